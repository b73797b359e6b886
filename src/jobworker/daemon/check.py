"""`jobworkerd check`: what this host can enforce, found out by trying, and how to get the rest."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from jobworker.core.errors import JobError
from jobworker.core.spec import Limits, MiB
from jobworker.runtime import linux
from jobworker.runtime.block_device import disks_of
from jobworker.runtime.cgroup import CgroupHost


@dataclass(frozen=True, slots=True)
class Control:
    """One thing that isolates or limits jobs, and how to find out whether it works here."""

    name: str
    is_required: bool
    lost_without: str
    remedy: str
    attempt: Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a try has shown."""

    control: str
    works: bool
    required: bool
    lost_without: str
    remedy: str
    reason: str


def check(output: Literal["text", "json"]) -> int:
    """Prints a line for each control; returns 1 when something required is missing, else 0."""
    findings = [_try(control) for control in _CONTROLS]
    if output == "json":
        sys.stdout.write(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n")
    else:
        sys.stdout.write(_table(findings))
    return int(any(finding.required and not finding.works for finding in findings))


def _try(control: Control) -> Finding:
    """Tries a control in a child process, which it cannot outlive."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            control.attempt()
        except JobError as error:
            os.write(writable, error.message.encode())
        except OSError as error:
            os.write(writable, (error.strerror or str(error)).encode())
        finally:
            os._exit(0)
    os.close(writable)
    with os.fdopen(readable, "rb") as pipe:
        reason = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    if status and not reason:
        reason = "the try did not end by itself"
    return Finding(
        control=control.name,
        works=not reason,
        required=control.is_required,
        lost_without=control.lost_without,
        remedy=control.remedy,
        reason=reason,
    )


def _table(findings: list[Finding]) -> str:
    lines = [f"{'CONTROL':<16}  {'WORKS':<5}  {'REQUIRED':<8}  WITHOUT IT"]
    for finding in findings:
        works = "yes" if finding.works else "no"
        required = "yes" if finding.required else "no"
        lines.append(f"{finding.control:<16}  {works:<5}  {required:<8}  {finding.lost_without}")
        if not finding.works:
            lines.append(f"{'':<16}  why: {finding.reason}; to get it: {finding.remedy}")
    return "\n".join(lines) + "\n"


def _root() -> None:
    if os.geteuid() != 0:
        raise PermissionError(1, "not running as root")


def _read_only_tree() -> None:
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    linux.bind_read_only("/", "/proc")


def _hidden_processes() -> None:
    linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWPID)
    child = os.fork()
    if child == 0:
        linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
        linux.mount("proc", "/proc", "proc", linux.MS_NOSUID, "hidepid=2")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        raise OSError(1, "a new /proc cannot be mounted")


def _namespace(flag: int) -> Callable[[], None]:
    return lambda: linux.unshare(flag)


def _limit(limits: Limits) -> Callable[[], None]:
    """Sets a limit on a group of its own, reads it back and removes the group."""

    def attempt() -> None:
        host = CgroupHost.discover("jobworker-check")
        host.prepare()
        group = host.group(str(os.getpid()))
        group.create()
        try:
            group.limit(limits, disks_of("/") if limits.limits_io() else [])
        finally:
            group.remove()
            host.remove_parent()

    return attempt


def _atomic_kill() -> None:
    host = CgroupHost.discover("jobworker-check")
    if not any(Path(tree.path, "cgroup.procs").exists() for tree in host.hierarchies if tree.is_v2):
        raise FileNotFoundError(2, "no cgroup v2 tree is mounted")


def _pidfd() -> None:
    os.close(os.pidfd_open(os.getpid()))


_CONTROLS: Final = (
    Control("root", True, "no job can be isolated", "start jobworkerd as root; it gives root up itself", _root),
    Control(
        "pid-namespace",
        True,
        "jobs would see and signal the host's processes",
        "CAP_SYS_ADMIN; in a container, run it privileged",
        _namespace(linux.CLONE_NEWPID),
    ),
    Control(
        "mount-namespace",
        True,
        "jobs would write to the host's files",
        "CAP_SYS_ADMIN and Linux 5.12 or later",
        _read_only_tree,
    ),
    Control(
        "net-namespace",
        True,
        "jobs would reach the host's network",
        "CAP_SYS_ADMIN; a kernel with CONFIG_NET_NS",
        _namespace(linux.CLONE_NEWNET),
    ),
    Control(
        "ipc-namespace",
        True,
        "jobs would share memory and queues",
        "CAP_SYS_ADMIN; a kernel with CONFIG_IPC_NS",
        _namespace(linux.CLONE_NEWIPC),
    ),
    Control(
        "uts-namespace",
        True,
        "jobs would see the host's name",
        "CAP_SYS_ADMIN; a kernel with CONFIG_UTS_NS",
        _namespace(linux.CLONE_NEWUTS),
    ),
    Control(
        "cgroup-namespace",
        True,
        "jobs would see the host's control groups",
        "CAP_SYS_ADMIN; a kernel with CONFIG_CGROUPS",
        _namespace(linux.CLONE_NEWCGROUP),
    ),
    Control(
        "hidden-proc",
        True,
        "jobs would see their monitor",
        "CAP_SYS_ADMIN; a host /proc that is not masked",
        _hidden_processes,
    ),
    Control(
        "memory-limit",
        True,
        "no job starts: each has a memory limit",
        "the memory controller; boot with cgroup_enable=memory",
        _limit(Limits(memory=64 * MiB, pids=None)),
    ),
    Control(
        "pids-limit",
        True,
        "no job starts: each has a pids limit",
        "the pids controller",
        _limit(Limits(memory=None, pids=64)),
    ),
    Control(
        "cpu-limit",
        False,
        "jobs with --cpu are refused",
        "the cpu controller; a kernel with CONFIG_CFS_BANDWIDTH",
        _limit(Limits(memory=None, pids=None, cpu=0.5)),
    ),
    Control(
        "io-limit",
        False,
        "jobs with --io are refused, unless they name a disk",
        "the io (blkio) controller, and / on a disk",
        _limit(Limits(memory=None, pids=None, io_write_bps=MiB)),
    ),
    Control(
        "cgroup-kill",
        False,
        "jobs are killed by their PID namespace alone",
        "mount a cgroup v2 tree; Linux 5.14 or later",
        _atomic_kill,
    ),
    Control("pidfd", True, "signals could hit a stranger", "Linux 5.3 or later", _pidfd),
)
