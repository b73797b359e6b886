"""What isolates and limits jobs: one list of controls, each found out by trying, for the server and for its operator.

A control that is missing refuses jobs by its name. Some may be done without where the operator
says so: then the sandbox is planned without them, and every job shows it.
"""

import errno
import os
import resource
import signal
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from jobworker.core.errors import ErrorCode, JobError
from jobworker.core.spec import Limits, MiB
from jobworker.runtime import linux, sandbox, seccomp, unprivileged
from jobworker.runtime.block_device import disks_of
from jobworker.runtime.cgroup import Cgroup, CgroupHost

#: What takes a step's place in a sandbox without the control.
Replacement = Callable[[sandbox.Step], Iterable[sandbox.Step]]


class Need(Enum):
    """Who misses a control."""

    ALL = "all jobs"
    DEFAULT = "jobs with the default limits"
    ASKING = "jobs that ask for it"
    NONE = "optional"  # something else takes its place, or it makes a host better


@dataclass(frozen=True, slots=True)
class Control:
    """One thing that isolates or limits jobs.

    `attempt` raises when it does not work here; it is called in a process of its own. Jobs can do
    without a control that all need when `replacement` is given.
    """

    name: str
    need: Need
    lost_without: str
    remedy: str
    attempt: Callable[[], None]
    replacement: Replacement | None = None

    @property
    def can_be_done_without(self) -> bool:
        """Whether an operator may allow jobs to run without it."""
        return self.replacement is not None or self.need is Need.DEFAULT


@dataclass(frozen=True, slots=True)
class Finding:
    """What a try has shown; no reason when the control works."""

    control: Control
    reason: str

    @property
    def works(self) -> bool:
        """Whether the control can be relied on here."""
        return not self.reason


@dataclass(frozen=True, slots=True)
class Verdict:
    """What findings mean for jobs: which controls they run without, and for want of which they are refused."""

    degraded: tuple[str, ...]
    refused: tuple[str, ...]

    def check(self) -> None:
        """Returns when jobs may run; UNSUPPORTED, naming every control that they must not run without."""
        if self.refused:
            names = ", ".join(self.refused)
            raise JobError(
                ErrorCode.UNSUPPORTED,
                f"this host cannot isolate jobs: {names} missing; its operator runs jobworkerd check",
            )

    def replan(self, steps: Sequence[sandbox.Step]) -> list[sandbox.Step]:
        """The steps of a sandbox without the missing controls."""
        for control in CONTROLS:
            if control.name in self.degraded and control.replacement is not None:
                steps = [new for step in steps for new in control.replacement(step)]
        return list(steps)


def describe_isolation(degraded: Sequence[str]) -> str:
    """How whole the isolation of jobs is, in the words that every reply, list, log and audit shows."""
    return f"degraded({', '.join(degraded)})" if degraded else "full"


def try_all(controls: Iterable[Control]) -> list[Finding]:
    """Tries each control in a child process, which it cannot outlive."""
    return [Finding(control, _try(control)) for control in controls]


def judge(findings: Iterable[Finding], allowed: Collection[str], *, is_root: bool) -> Verdict:
    """What the findings mean where the operator has `allowed` to do without some controls.

    Without root there is one uid for all: who runs it so has decided that by doing it. Limits
    refuse the jobs that ask for them, and nobody else.
    """
    missing = [finding.control for finding in findings if not finding.works]
    if not is_root:
        allowed = {*allowed, SEPARATE_UID}
    degraded = [
        control.name
        for control in missing
        if control.need is Need.DEFAULT or (control.can_be_done_without and control.name in allowed)
    ]
    refused = [control.name for control in missing if control.need is Need.ALL and control.name not in degraded]
    return Verdict(tuple(degraded), tuple(refused))


def _try(control: Control) -> str:
    """Why the control does not work here; nothing when it does."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            control.attempt()
            status = 0
        except JobError as error:
            os.write(writable, error.message.encode())
        except (OSError, ValueError) as error:  # a ValueError is how setrlimit says EPERM
            os.write(writable, (getattr(error, "strerror", None) or str(error)).encode())
        finally:
            os._exit(status)
    os.close(writable)
    with os.fdopen(readable, "rb") as pipe:
        reason = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    return reason or ("the try did not end by itself" if status else "")


# How each is tried. What a job does in a user namespace is tried in one.


def _in_namespace(attempt: Callable[[], None]) -> Callable[[], None]:
    def inside() -> None:
        if os.geteuid() != 0:
            unprivileged.enter_user_namespace()
        attempt()

    return inside


def _new_namespace(flag: int) -> Callable[[], None]:
    return _in_namespace(lambda: linux.unshare(flag))


def _private_mounts() -> None:
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)


def _read_only_root() -> None:
    _private_mounts()
    linux.bind_read_only("/", "/proc", recursive=os.geteuid() != 0)


def _masks() -> None:
    _private_mounts()
    linux.mount("mask", "/tmp", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "size=4k")  # noqa: S108 - ours alone
    os.mkdir("/tmp/directory")  # noqa: S108
    linux.mount("/tmp/directory", "/proc", None, linux.MS_BIND)  # noqa: S108
    if os.listdir("/proc"):
        raise OSError(1, "what was laid over a directory does not hide it")


def _hidden_processes() -> None:
    """A new /proc that shows neither the processes outside nor, without capabilities, the first one inside."""
    linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWPID)
    if _status_of_child(_look_around):
        raise OSError(1, "a new /proc cannot be mounted, or shows the processes of others")


def _look_around() -> None:
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("proc", "/proc", "proc", linux.MS_NOSUID, "hidepid=2")
    if [name for name in os.listdir("/proc") if name.isdecimal()] != ["1"]:
        raise OSError(1, "others are there")


def _devices() -> None:
    _private_mounts()
    step = sandbox.MountDev()
    for instead in [step] if os.geteuid() == 0 else unprivileged.do_without_root(step):
        instead.apply()
    with open("/dev/null", "wb", buffering=0) as device:
        device.write(b"gone")


def _separate_uid() -> None:
    if os.geteuid() != 0:
        raise PermissionError(1, "only root can give a job another uid")
    os.setgroups(())
    os.setresgid(_SOME_JOB_UID, _SOME_JOB_UID, _SOME_JOB_UID)
    os.setresuid(_SOME_JOB_UID, _SOME_JOB_UID, _SOME_JOB_UID)


def _limit(limits: Limits) -> Callable[[], None]:
    return lambda: _with_group(lambda group: _set_limit(group, limits))


def _set_limit(group: Cgroup, limits: Limits) -> None:
    group.limit(limits, disks_of("/") if limits.limits_io() else [])


def _swap_accounting() -> None:
    def attempt(group: Cgroup) -> None:
        if not {"swap", "memory_and_swap"} & set(group.limit(Limits(memory=64 * MiB, pids=None), [])):
            raise OSError(1, "the kernel does not account swap to groups")

    _with_group(attempt)


def _atomic_kill() -> None:
    def attempt(group: Cgroup) -> None:
        if not group.can_kill_at_once:
            raise FileNotFoundError(2, "no cgroup v2 tree that we may use has cgroup.kill")
        child = group.fork()
        if child == 0:
            signal.pause()
        group.kill()
        os.waitpid(child, 0)

    _with_group(attempt)


def _with_group(attempt: Callable[[Cgroup], None]) -> None:
    """Tries something on a group of its own, and removes it."""
    host = CgroupHost.discover(f"jobworker-check-{os.getpid()}")
    host.prepare()
    group = host.group("try")
    try:
        group.create()
        attempt(group)
    finally:
        group.remove()
        host.remove_parent()


def _no_new_privileges() -> None:
    linux.set_no_new_privs()


def _filter_system_calls() -> None:
    linux.set_no_new_privs()
    sandbox.FilterSystemCalls(seccomp.PROGRAM).apply()
    try:
        linux.unshare(linux.CLONE_NEWUTS)
    except PermissionError:
        return
    raise OSError(1, "what the filter denies is not denied")


def _without_filter(step: sandbox.Step) -> Iterable[sandbox.Step]:
    if isinstance(step, sandbox.ReadBack):
        return [step.expecting(seccomp=None)]
    return [] if isinstance(step, sandbox.FilterSystemCalls) else [step]


def _restrict_writing() -> None:
    version = linux.landlock_version()
    if version < sandbox.FIRST_LANDLOCK:
        raise OSError(errno.EOPNOTSUPP, "the kernel has no Landlock in use that can be asked for this")
    linux.set_no_new_privs()
    linux.restrict_writing(version, ("/proc",), ())
    try:
        os.close(os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC))
    except PermissionError:
        return
    raise OSError(errno.EPERM, "what Landlock denies is not denied")


def _close_range() -> None:
    linux.close_range(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))


def _pidfd() -> None:
    child = os.fork()
    if child == 0:
        signal.pause()
    process = os.pidfd_open(child)
    signal.pidfd_send_signal(process, signal.SIGKILL)
    os.waitpid(child, 0)


def _raise_rlimits() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lower = hard - 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, lower), lower))
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, lower), hard))


def _no_core_pipe() -> None:
    if _read_setting("/proc/sys/kernel/core_pattern").startswith("|"):
        raise OSError(1, "the host pipes cores to a program of its own")


def _no_terminal_input() -> None:
    if _read_setting("/proc/sys/dev/tty/legacy_tiocsti") != "0":
        raise OSError(1, "the kernel lets any process type into its terminal")


def _read_setting(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as setting:
            return setting.read().strip()
    except FileNotFoundError:
        return ""


def _status_of_child(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _without_namespace(flag: int, *dropped: type[sandbox.Step]) -> Replacement:
    """No namespace of this kind, and none of the steps that would touch the host's own."""

    def replace(step: sandbox.Step) -> Iterable[sandbox.Step]:
        if isinstance(step, sandbox.NewNamespaces):
            return [sandbox.NewNamespaces(step.flags & ~flag)]
        if isinstance(step, sandbox.ReadBack):
            return [_expecting_no_namespace(step, flag)]
        return [] if isinstance(step, dropped) else [step]

    return replace


def _expecting_no_namespace(step: sandbox.ReadBack, flag: int) -> sandbox.ReadBack:
    name = _NAMES[flag]
    apart = [other for other in step.expected["namespaces"].split(",") if other != name]
    step = step.expecting(namespaces=",".join(apart))
    match name:
        case "net":
            return step.expecting(network="host")
        case "uts":
            return step.expecting(hostname=None)
    return step


_NAMES: Final = {
    linux.CLONE_NEWNET: "net",
    linux.CLONE_NEWIPC: "ipc",
    linux.CLONE_NEWUTS: "uts",
    linux.CLONE_NEWCGROUP: "cgroup",
}
SEPARATE_UID: Final = "separate-uid"
_SOME_JOB_UID: Final = 200_000
_ADMIN: Final = "CAP_SYS_ADMIN; in a container, run it privileged"

#: In the order in which a job meets them.
CONTROLS: Final = (
    Control(
        "user-namespace",
        Need.NONE,
        "only root can isolate jobs",
        "a kernel with CONFIG_USER_NS, and a host that lets ordinary users use it",
        unprivileged.enter_user_namespace,
    ),
    Control(
        "pid-namespace",
        Need.ALL,
        "jobs would see and signal the host's processes, and outlive their stop",
        _ADMIN,
        _new_namespace(linux.CLONE_NEWPID),
    ),
    Control(
        "mount-namespace", Need.ALL, "jobs would write to the host's files", _ADMIN, _in_namespace(_private_mounts)
    ),
    Control(
        "net-namespace",
        Need.ALL,
        "jobs would reach the host's network",
        f"{_ADMIN}; a kernel with CONFIG_NET_NS",
        _new_namespace(linux.CLONE_NEWNET),
        _without_namespace(linux.CLONE_NEWNET, sandbox.RaiseLoopback),
    ),
    Control(
        "ipc-namespace",
        Need.ALL,
        "jobs would share memory and queues with others",
        f"{_ADMIN}; a kernel with CONFIG_IPC_NS",
        _new_namespace(linux.CLONE_NEWIPC),
        _without_namespace(linux.CLONE_NEWIPC),
    ),
    Control(
        "uts-namespace",
        Need.ALL,
        "jobs would see the host's name",
        f"{_ADMIN}; a kernel with CONFIG_UTS_NS",
        _new_namespace(linux.CLONE_NEWUTS),
        _without_namespace(linux.CLONE_NEWUTS, sandbox.SetHostname),
    ),
    Control(
        "cgroup-namespace",
        Need.ALL,
        "jobs would see the names of the host's control groups",
        f"{_ADMIN}; a kernel with CONFIG_CGROUPS",
        _new_namespace(linux.CLONE_NEWCGROUP),
        _without_namespace(linux.CLONE_NEWCGROUP),
    ),
    Control(
        "mount-api",
        Need.ALL,
        "the host's files could not be shown read-only",
        "Linux 5.12 or later (open_tree, mount_setattr, move_mount)",
        _in_namespace(_read_only_root),
    ),
    Control("masks", Need.ALL, "jobs would see the host's secrets", _ADMIN, _in_namespace(_masks)),
    Control(
        "hidden-proc",
        Need.ALL,
        "jobs would see their monitor",
        "CAP_SYS_ADMIN; a host /proc that is not masked",
        _in_namespace(_hidden_processes),
    ),
    Control("devices", Need.ALL, "jobs would have no /dev/null", "CAP_MKNOD", _in_namespace(_devices)),
    Control(
        SEPARATE_UID,
        Need.ALL,
        "jobs share one uid, with each other and with the server",
        "start jobworkerd as root; it gives root up itself",
        _separate_uid,
        unprivileged.do_without_root,
    ),
    Control("no-new-privileges", Need.ALL, "jobs could use set-uid programs", "Linux 3.5 or later", _no_new_privileges),
    Control(
        "seccomp",
        Need.ALL,
        "jobs would reach all of the kernel",
        "a kernel with CONFIG_SECCOMP_FILTER, on x86_64 or aarch64",
        _in_namespace(_filter_system_calls),
        _without_filter,
    ),
    Control("pidfd", Need.ALL, "signals could hit a stranger", "Linux 5.3 or later", _pidfd),
    Control(
        "memory-limit",
        Need.DEFAULT,
        "a job can use up the host's memory",
        "the memory controller; boot with cgroup_enable=memory",
        _limit(Limits(memory=64 * MiB, pids=None)),
    ),
    Control(
        "pids-limit",
        Need.DEFAULT,
        "a job can use up the host's processes",
        "the pids controller; a kernel with CONFIG_CGROUP_PIDS",
        _limit(Limits(memory=None, pids=64)),
    ),
    Control(
        "cpu-limit",
        Need.ASKING,
        "jobs with --cpu are refused",
        "the cpu controller; a kernel with CONFIG_CFS_BANDWIDTH",
        _limit(Limits(memory=None, pids=None, cpu=0.5)),
    ),
    Control(
        "io-limit",
        Need.ASKING,
        "jobs with --io are refused, unless they name a disk",
        "the io (blkio) controller, and / on a disk",
        _limit(Limits(memory=None, pids=None, io_write_bps=MiB)),
    ),
    Control(
        "swap-accounting",
        Need.NONE,
        "on a host with swap, jobs with a memory limit are refused",
        "boot with swapaccount=1",
        _swap_accounting,
    ),
    Control(
        "cgroup-kill",
        Need.NONE,
        "jobs are killed by their PID namespace alone",
        "mount a cgroup v2 tree; Linux 5.14 or later",
        _atomic_kill,
    ),
    Control(
        "landlock",
        Need.NONE,
        "jobs can write to FIFOs of the host that are open to all",
        "Linux 5.19 or later, with landlock among lsm= on its command line",
        _restrict_writing,
    ),
    Control(
        "close-range",
        Need.NONE,
        "descriptors are closed one by one, which is slower",
        "Linux 5.9 or later",
        _close_range,
    ),
    Control(
        "resource-capability",
        Need.NONE,
        "jobs get no more descriptors and stack than the server has",
        "CAP_SYS_RESOURCE",
        _raise_rlimits,
    ),
    Control(
        "no-core-pipe",
        Need.NONE,
        "a crashing job makes the host run its crash handler, outside of the job's limits",
        "a kernel.core_pattern without |",
        _no_core_pipe,
    ),
    Control(
        "no-terminal-input",
        Need.NONE,
        "seccomp alone keeps jobs from typing into a terminal",
        "dev.tty.legacy_tiocsti=0, Linux 6.2 or later",
        _no_terminal_input,
    ),
)

#: What decides whether, and how, jobs run here.
DECISIVE: Final = tuple(control for control in CONTROLS if control.need in {Need.ALL, Need.DEFAULT})
DISPENSABLE: Final = tuple(control.name for control in CONTROLS if control.can_be_done_without)
