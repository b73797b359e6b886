"""A job's isolation as ordered steps: planned as data, applied in the child before exec.

Order, as SECURITY.md lists it; each step is checked and a failure aborts the start by its name:

 1  join the control groups           7  host name, loopback
 2  new namespaces                    8  session, umask, rlimits
 3  cut mount propagation             9  groups, uid, capabilities, no_new_privs
 4  a read-only root beside the old  10  Landlock
 5  pivot into it, drop the old      11  close descriptors, seccomp
 6  masks, /proc, /dev, /tmp         12  working directory, read back, exec
"""

import os
import resource
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from jobworker.core.spec import JobSpec, Limits, MiB, Network
from jobworker.runtime import isolation, linux, seccomp
from jobworker.runtime.host_view import HostView, is_below
from jobworker.runtime.sandbox_steps import (
    BecomeUser,
    BindRoot,
    BuildRoot,
    CloseDescriptors,
    CutPropagation,
    DropBoundingSet,
    DropCapabilities,
    EnterRoot,
    EnterWorkdir,
    Exec,
    FilterSystemCalls,
    ForbidNewPrivileges,
    JoinCgroup,
    MakeReadOnly,
    MakeWorkdir,
    Mask,
    MountDev,
    MountProc,
    MountScratch,
    NewNamespaces,
    NewSession,
    PreferForOom,
    PrepareMasks,
    RaiseLoopback,
    ReadBack,
    RestrictWriting,
    SetHostname,
    SetRlimits,
    SetUmask,
    Step,
)

#: Where a bare program name is looked up, and the job's own PATH.
SEARCH_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Where the child that goes through the steps says how it gets on, and where it notes that it comes to the last one;
#: exec closes both.
STATUS_FD: Final = 3
LOCK_FD: Final = 4
DEFAULT_WORKDIR: Final = "/tmp/work"  # noqa: S108 - inside the job's private /tmp

_UMASK: Final = 0o022
_OOM_SCORE: Final = 500
_UNLIMITED_SCRATCH: Final = 512 * MiB  # for a job that may have all memory
_SCRATCH_FLAGS: Final = linux.MS_NOSUID | linux.MS_NODEV


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """What is particular to one job's sandbox."""

    job_id: str
    uid: int
    gid: int
    entry_files: tuple[str, ...]
    programs: tuple[str, ...] | None = None  # the only files that may be executed; None: any


def plan(spec: JobSpec, host: HostView, job: Confinement) -> list[Step]:
    """The steps that turn a fresh child of the monitor into the job's program."""
    namespaces = linux.CLONE_NEWNS | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS | linux.CLONE_NEWCGROUP
    if spec.network is Network.NONE:
        namespaces |= linux.CLONE_NEWNET
    scratch = spec.limits.memory or _UNLIMITED_SCRATCH
    proc_masks = [mask for mask in host.masks if is_below(mask.path, ("/proc",))]
    other_masks = [mask for mask in host.masks if mask not in proc_masks]
    if spec.rootfs is not None:
        other_masks = _inside(spec.rootfs, other_masks)
    return [
        JoinCgroup(job.entry_files),
        PreferForOom(_OOM_SCORE),
        NewNamespaces(namespaces),
        CutPropagation(),
        BuildRoot(host.file_systems) if spec.rootfs is None else BindRoot(spec.rootfs),
        EnterRoot(),
        PrepareMasks(),
        *other_masks,
        MountProc(),
        *proc_masks,
        *(MakeReadOnly(path) for path in host.proc_read_only),
        MountDev(),
        MountScratch("/dev/shm", 64 * MiB, _SCRATCH_FLAGS | linux.MS_NOEXEC),  # noqa: S108
        MountScratch("/tmp", scratch, _SCRATCH_FLAGS),  # noqa: S108
        MakeWorkdir(DEFAULT_WORKDIR, job.uid, job.gid),
        SetHostname(_hostname(job.job_id)),
        *([RaiseLoopback()] if spec.network is Network.NONE else []),
        NewSession(),
        SetUmask(_UMASK),
        SetRlimits(_rlimits(spec.limits)),
        DropBoundingSet(),
        BecomeUser(job.uid, job.gid),
        DropCapabilities(),
        ForbidNewPrivileges(),
        *([RestrictWriting(host.landlock)] if host.landlock else []),
        CloseDescriptors(LOCK_FD),
        FilterSystemCalls(seccomp.PROGRAM),
        EnterWorkdir(spec.workdir or DEFAULT_WORKDIR),
        ReadBack(
            expected=_expected(spec, host, job),
            outside=host.outside,
            masked=tuple(mask.path for mask in (*other_masks, *proc_masks)),
            read_only=("/", "/dev", *host.proc_read_only),
            report=STATUS_FD,
            kept=(STATUS_FD, LOCK_FD),
        ),
        Exec(
            _candidates(spec.program),
            (spec.program, *spec.args),
            tuple(_environment(spec, job.job_id).items()),
            job.programs,
        ),
    ]


def _expected(spec: JobSpec, host: HostView, job: Confinement) -> dict[str, str]:
    """What `isolation.read` must find in a process that has gone through the plan."""
    own_network = ["net"] if spec.network is Network.NONE else []
    return {
        "namespaces": ",".join(["pid", "mount", *own_network, "ipc", "uts", "cgroup"]),
        "network": "loopback only" if spec.network is Network.NONE else "host",
        "root": "read-only" if spec.rootfs is None else "read-only, of its own",
        "writable": "/dev/shm:noexec,/proc:noexec,/tmp",  # noqa: S108
        "mounts": "nosuid,nodev",
        "masks": "complete",
        "knobs": "read-only",
        "uid": str(job.uid),
        "gid": str(job.gid),
        "groups": "none",
        "capabilities": "none",
        "no_new_privs": "yes",
        "seccomp": "filter",
        "landlock": "yes" if host.landlock else "no",
        "rlimits": isolation.show_rlimits(_rlimits(spec.limits)),
        "umask": f"{_UMASK:04o}",
        "oom_score_adj": str(_OOM_SCORE),
        "session": "own",
        "descriptors": "0,1,2",
        "hostname": _hostname(job.job_id),
    }


def _inside(rootfs: str, masks: Iterable[Mask]) -> list[Mask]:
    """Those masks that are for something below `rootfs`, by the paths that it has for a job there."""
    top = os.path.normpath(rootfs)
    return [replace(mask, path=mask.path.removeprefix(top)) for mask in masks if mask.path.startswith(top + "/")]


def _hostname(job_id: str) -> str:
    return f"job-{job_id[:8]}"


def _candidates(program: str) -> tuple[str, ...]:
    if program.startswith("/"):
        return (program,)
    return tuple(f"{directory}/{program}" for directory in SEARCH_PATH.split(":"))


def _environment(spec: JobSpec, job_id: str) -> Mapping[str, str]:
    return {"PATH": SEARCH_PATH, "HOME": "/tmp", "LANG": "C.UTF-8", "JOBWORKER_JOB_ID": job_id, **spec.env}  # noqa: S108


def _rlimits(limits: Limits) -> tuple[tuple[int, int, int], ...]:
    """By number, soft and hard, in the order of a status; never above what the server itself has."""
    # One more than the control group lets through, which would count none of its refusals if it were never asked.
    processes = resource.RLIM_INFINITY if limits.pids is None else limits.pids + 1
    wanted = (
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_NOFILE, 1024, 4096),
        (resource.RLIMIT_NPROC, processes, processes),
        (resource.RLIMIT_MEMLOCK, 65536, 65536),
        (resource.RLIMIT_MSGQUEUE, 0, 0),
        (resource.RLIMIT_RTPRIO, 0, 0),
        (resource.RLIMIT_NICE, 0, 0),
        (resource.RLIMIT_STACK, 8 * MiB, 64 * MiB),
    )
    # A server without CAP_SYS_RESOURCE cannot raise a hard limit.
    ceilings = {number: resource.getrlimit(number)[1] for number, _, _ in wanted}
    return tuple(
        (number, _lower_rlimit(soft, ceilings[number]), _lower_rlimit(hard, ceilings[number]))
        for number, soft, hard in wanted
    )


def _lower_rlimit(limit: int, ceiling: int) -> int:
    """The stricter of two resource limits; RLIM_INFINITY is the mildest, whatever its number."""
    if resource.RLIM_INFINITY in {limit, ceiling}:
        return ceiling if limit == resource.RLIM_INFINITY else limit
    return min(limit, ceiling)
