"""A job's isolation as ordered steps: planned as data, applied in the child before exec.

Order, as SECURITY.md lists it; each step is checked and a failure aborts the start by its name:

 1  join the control groups           7  host name, loopback
 2  new namespaces                    8  session, umask, rlimits
 3  cut mount propagation             9  groups, uid, capabilities, no_new_privs
 4  a read-only root beside the old  10  Landlock
 5  pivot into it, drop the old      11  close descriptors, seccomp
 6  masks, /proc, /dev, /tmp         12  working directory, read back, exec
"""

import contextlib
import errno
import json
import os
import resource
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Protocol

from jobworker.core.spec import JobSpec, Limits, MiB, Network
from jobworker.runtime import isolation, kernel_file, linux, seccomp
from jobworker.runtime.mountinfo import parse_mountinfo

#: Where a bare program name is looked up, and the job's own PATH.
SEARCH_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Where the child that goes through the steps says how it gets on; exec closes it.
STATUS_FD: Final = 3
DEFAULT_WORKDIR: Final = "/tmp/work"  # noqa: S108 - inside the job's private /tmp

_HIDDEN_DIRECTORIES: Final = (
    "/root",
    "/home",
    "/run",
    "/var/run",
    "/var/log",
    "/mnt",
    "/media",
    "/srv",
    "/boot",
    "/etc/ssl/private",
    "/var/lib/docker",
    "/var/lib/containerd",
)
_HIDDEN_FILES: Final = ("/etc/shadow", "/etc/shadow-", "/etc/gshadow", "/etc/gshadow-", "/etc/sudoers")
_HIDDEN_GLOBS: Final = ("etc/ssh/*_key", "etc/*.keytab")
_PROC_READ_ONLY: Final = ("sys", "irq", "bus", "fs", "sysrq-trigger")
_PROC_MASKED: Final = (
    "acpi",
    "asound",
    "kcore",
    "keys",
    "latency_stats",
    "timer_list",
    "sched_debug",
    "scsi",
    "kallsyms",
    "interrupts",
)
DEVICES: Final = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9)}
_DEVICE_LINKS: Final = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
}
# Kernel file systems that a job gets as fresh instances or not at all.
_KERNEL_FILE_SYSTEMS: Final = frozenset(
    {
        "proc",
        "sysfs",
        "devtmpfs",
        "devpts",
        "cgroup",
        "cgroup2",
        "securityfs",
        "debugfs",
        "tracefs",
        "bpf",
        "pstore",
        "efivarfs",
        "configfs",
        "mqueue",
        "hugetlbfs",
        "binfmt_misc",
        "autofs",
        "fusectl",
        "rpc_pipefs",
        "nsfs",
        "ramfs",
    }
)
# Places where a job sees something of its own, so that nothing below needs a copy or a mask.
_REPLACED: Final = ("/tmp", "/proc", "/sys", "/dev")  # noqa: S108
_MOUNT_POINTS: Final = ("proc", "dev", "tmp")  # what a root must have, since it is read-only
_UMASK: Final = 0o022
_OOM_SCORE: Final = 500
FIRST_LANDLOCK: Final = 2  # under the first version no file could be moved to another directory
_NOSUID_NODEV: Final = linux.MS_NOSUID | linux.MS_NODEV
_MASKS: Final = "tmp"  # where the empty file and directory for masks stand until /tmp is mounted


class Step(Protocol):
    """One thing to do to the calling process; its repr is what an error shows."""

    def apply(self) -> None:
        """Does it, or raises OSError."""


@dataclass(frozen=True, slots=True)
class JoinCgroup:
    """Puts the process into its control groups, before anything else can run in it."""

    entry_files: tuple[str, ...]

    def apply(self) -> None:
        for path in self.entry_files:
            kernel_file.write(path, "0")


@dataclass(frozen=True, slots=True)
class PreferForOom:
    """The host kills jobs before monitors, and the server last, when its own memory runs out."""

    score: int

    def apply(self) -> None:
        kernel_file.write("/proc/self/oom_score_adj", str(self.score))


@dataclass(frozen=True, slots=True)
class NewNamespaces:
    """Separates the process from the host; the PID namespace came with the monitor."""

    flags: int

    def apply(self) -> None:
        linux.unshare(self.flags)


@dataclass(frozen=True, slots=True)
class CutPropagation:
    """No mount of the job reaches the host, none of the host's reaches the job."""

    def apply(self) -> None:
        linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)


@dataclass(frozen=True, slots=True)
class BuildRoot:
    """Puts read-only copies of the host's file systems together, in a place nobody else sees."""

    file_systems: tuple[str, ...]  # mount points, parents first; "/" is the first

    def apply(self) -> None:
        # /proc is only the place to attach to: in this mount namespace it is the job's alone.
        linux.bind_read_only("/", "/proc")
        os.chdir("/proc")
        for path in self.file_systems[1:]:
            # What has gone since the host was surveyed is not there to be seen.
            with contextlib.suppress(FileNotFoundError):
                linux.bind_read_only(path, path.lstrip("/"))


class UnfitRootError(OSError):
    """The directory that was asked for cannot be a job's root; the text goes on behind its name."""


@dataclass(frozen=True, slots=True)
class BindRoot:
    """Takes a directory by itself for the root, instead of the host's tree.

    No link is followed on the way to it, and what is mounted below it stays behind, unless
    `with_mounts`: in a user namespace all that is mounted there comes along.
    """

    path: str
    with_mounts: bool = False

    def apply(self) -> None:
        try:
            directory = linux.open_directory(self.path)
        except OSError as error:
            is_link = error.errno == errno.ELOOP
            why = "is reached by a symbolic link; name the directory itself" if is_link else _why_no_root(error)
            raise UnfitRootError(error.errno, why) from error
        linux.bind_read_only(directory, "/proc", recursive=self.with_mounts)
        os.close(directory)
        os.chdir("/proc")
        # Whoever can write to the directory could change them still; ReadBack would see where the mounts have come to.
        for name in _MOUNT_POINTS:
            if not os.path.isdir(name) or os.path.islink(name):
                raise UnfitRootError(errno.ENOTDIR, f"lacks the directory {name}, for the job's own /{name}; make it")


def _why_no_root(error: OSError) -> str:
    return f"cannot be a root: {os.strerror(error.errno or 0)}"


@dataclass(frozen=True, slots=True)
class EnterRoot:
    """Makes the new root the only one: the old one is detached, not hidden."""

    def apply(self) -> None:
        linux.pivot_root(".", ".")
        linux.umount(".", linux.MNT_DETACH)
        os.chdir("/")


@dataclass(frozen=True, slots=True)
class PrepareMasks:
    """An empty directory and an empty file, read-only, to lay over what a job must not see."""

    def apply(self) -> None:
        os.umask(0)  # until the root is complete, modes are meant as they are written
        linux.mount("mask", _MASKS, "tmpfs", _NOSUID_NODEV | linux.MS_NOEXEC, "mode=0755,size=4k,nr_inodes=4")
        os.mkdir(f"{_MASKS}/directory", 0o555)
        os.close(os.open(f"{_MASKS}/file", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o444))
        flags = linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY | linux.MS_NOEXEC | _NOSUID_NODEV
        linux.mount("mask", _MASKS, None, flags)


@dataclass(frozen=True, slots=True)
class Mask:
    """Lays emptiness over a path."""

    path: str
    is_directory: bool

    def apply(self) -> None:
        source = f"{_MASKS}/directory" if self.is_directory else f"{_MASKS}/file"
        # What has gone since the host was surveyed needs no mask.
        with contextlib.suppress(FileNotFoundError):
            linux.mount(source, self.path, None, linux.MS_BIND)


@dataclass(frozen=True, slots=True)
class MountProc:
    """A /proc of the job's own processes: those of other uids, such as the monitor, are not in it."""

    def apply(self) -> None:
        linux.mount("proc", "/proc", "proc", _NOSUID_NODEV | linux.MS_NOEXEC, "hidepid=2")


@dataclass(frozen=True, slots=True)
class MakeReadOnly:
    """Nothing below the path can be written through this mount any more."""

    path: str

    def apply(self) -> None:
        linux.mount(self.path, self.path, None, linux.MS_BIND)
        flags = linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY | linux.MS_NOEXEC | _NOSUID_NODEV
        linux.mount(self.path, self.path, None, flags)


@dataclass(frozen=True, slots=True)
class MountDev:
    """A /dev with the harmless devices only, read-only; the job has no right to make others."""

    def apply(self) -> None:
        begin_dev()
        for name, (major, minor) in DEVICES.items():
            os.mknod(f"/dev/{name}", 0o020666, os.makedev(major, minor))
        complete_dev()


def begin_dev() -> None:
    """An empty /dev, for the devices to come."""
    # The one mount without nodev: without it these devices would not work.
    linux.mount("dev", "/dev", "tmpfs", linux.MS_NOSUID | linux.MS_NOEXEC, "mode=0755,size=64k,nr_inodes=32")


def complete_dev() -> None:
    """What a /dev has beside devices; nothing can be added to it any more."""
    for name, target in _DEVICE_LINKS.items():
        os.symlink(target, f"/dev/{name}")
    os.mkdir("/dev/shm", 0o755)  # noqa: S108 - the job's own
    flags = linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NOEXEC
    linux.mount("dev", "/dev", None, flags)


@dataclass(frozen=True, slots=True)
class MountScratch:
    """A writable place of the job's own in memory, counted against the job's memory."""

    path: str
    size: int
    flags: int

    def apply(self) -> None:
        inodes = max(1024, self.size // 4096)
        linux.mount("tmpfs", self.path, "tmpfs", self.flags, f"mode=1777,size={self.size},nr_inodes={inodes}")


@dataclass(frozen=True, slots=True)
class MakeWorkdir:
    """The job's private, empty working directory."""

    path: str
    uid: int
    gid: int

    def apply(self) -> None:
        os.mkdir(self.path, 0o700)
        os.chown(self.path, self.uid, self.gid)


@dataclass(frozen=True, slots=True)
class SetHostname:
    """A host name that tells nothing about the host."""

    name: str

    def apply(self) -> None:
        socket.sethostname(self.name)


@dataclass(frozen=True, slots=True)
class RaiseLoopback:
    """The only network interface there is."""

    def apply(self) -> None:
        linux.raise_loopback()


@dataclass(frozen=True, slots=True)
class NewSession:
    """A session of the job's own, without a terminal."""

    def apply(self) -> None:
        os.setsid()


@dataclass(frozen=True, slots=True)
class SetUmask:
    """Which permissions new files of the job do not get."""

    mask: int

    def apply(self) -> None:
        os.umask(self.mask)


@dataclass(frozen=True, slots=True)
class SetRlimits:
    """Resource limits of the process, soft and hard, by number."""

    limits: tuple[tuple[int, int, int], ...]

    def apply(self) -> None:
        for number, soft, hard in self.limits:
            resource.setrlimit(number, (soft, hard))


@dataclass(frozen=True, slots=True)
class DropBoundingSet:
    """No later exec can give a capability back."""

    def apply(self) -> None:
        linux.drop_bounding_set()


@dataclass(frozen=True, slots=True)
class BecomeUser:
    """The job's own unprivileged uid and gid, and no other group."""

    uid: int
    gid: int

    def apply(self) -> None:
        os.setgroups(())
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)


@dataclass(frozen=True, slots=True)
class DropCapabilities:
    """Empties every capability set; leaving root did so for some, and not for the inheritable one."""

    def apply(self) -> None:
        linux.clear_capabilities()


@dataclass(frozen=True, slots=True)
class ForbidNewPrivileges:
    """Set-uid programs and file capabilities have no effect from now on."""

    def apply(self) -> None:
        linux.set_no_new_privs()


@dataclass(frozen=True, slots=True)
class RestrictWriting:
    """What can be written is said once more to the kernel, apart from mounts and permissions."""

    version: int

    def apply(self) -> None:
        # Not the generators of random numbers: that they are refused is how isolation.py sees this step.
        contents = ("/proc", "/dev/null", "/dev/zero", "/dev/full")
        linux.restrict_writing(self.version, ("/tmp", "/dev/shm"), contents)  # noqa: S108


@dataclass(frozen=True, slots=True)
class CloseDescriptors:
    """Only 0, 1, 2 and `kept` stay open; `kept` closes itself at exec."""

    kept: int

    def apply(self) -> None:
        os.closerange(3, self.kept)
        os.closerange(self.kept + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1])


@dataclass(frozen=True, slots=True)
class FilterSystemCalls:
    """What the table in seccomp.py denies is denied from now on, to the program and all that it starts."""

    program: bytes = field(repr=False)

    def apply(self) -> None:
        linux.filter_system_calls(self.program)


@dataclass(frozen=True, slots=True)
class EnterWorkdir:
    """Where the program starts; reached by path alone, with the job's own rights."""

    path: str

    def apply(self) -> None:
        os.chdir(self.path)
        if not os.getcwd().startswith("/"):
            # getcwd(2) marks what is outside of the root with "(unreachable)".
            raise PermissionError(errno.EACCES, "the working directory is outside of the job's root")


class NotAsPlannedError(OSError):
    """The kernel says that the process is confined otherwise than it was to be."""

    def __init__(self, what: str, found: str) -> None:
        super().__init__(errno.EPERM, f"the kernel says {what}: {found}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadBack:
    """What the kernel says of the process is what was planned, and goes to the monitor, to be shown as it is."""

    expected: Mapping[str, str]
    outside: isolation.Outside
    masked: tuple[str, ...]
    read_only: tuple[str, ...]
    report: int

    def apply(self) -> None:
        found = isolation.read(self.outside, self.masked, self.read_only, self.report)
        for name, value in self.expected.items():
            if found[name] != value:
                raise NotAsPlannedError(name, found[name])
        os.write(self.report, json.dumps({"isolation": found}).encode() + b"\n")

    def expecting(self, **changes: str | None) -> "ReadBack":
        """The same, where the kernel must say something else, or, for None, may say what it likes."""
        expected = {**self.expected, **changes}
        return replace(self, expected={name: value for name, value in expected.items() if value is not None})


class NotApprovedError(PermissionError):
    """The program is none of those that the job may be started with."""


@dataclass(frozen=True, slots=True)
class Exec:
    """Becomes the program: the one exec of a job.

    With `approved` paths it becomes one of these files or none: what is executed is the very file
    that was compared, so that no name that changes meanwhile makes a difference.
    """

    candidates: tuple[str, ...]
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    approved: tuple[str, ...] | None = None

    def apply(self) -> None:
        denied: OSError | None = None
        for path in self.candidates:
            try:
                self._become(path)
            except NotApprovedError:
                raise
            except OSError as error:
                if error.errno not in {errno.ENOENT, errno.ENOTDIR, errno.EACCES}:
                    raise
                if error.errno == errno.ENOENT and os.path.exists(path):
                    raise OSError(errno.ELIBBAD, "its interpreter is missing") from error
                if error.errno == errno.EACCES:
                    denied = IsADirectoryError(errno.EISDIR, "a directory") if os.path.isdir(path) else error
        raise denied or FileNotFoundError(errno.ENOENT, "no such file")

    def _become(self, path: str) -> None:
        environment = dict(self.env)
        if self.approved is None:
            os.execve(path, self.argv, environment)
        program = os.open(path, os.O_PATH | os.O_CLOEXEC)
        approved_path = self._approved_path(program)
        try:
            os.execve(program, self.argv, environment)
        except FileNotFoundError:
            # A script: its interpreter would open it again, and the descriptor is closed by then. The path
            # that the operator wrote leads to it as well; execveat(2).
            os.execve(approved_path, self.argv, environment)

    def _approved_path(self, program: int) -> str:
        wanted = os.fstat(program)
        for path in self.approved or ():
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(path), wanted):
                    return path
        raise NotApprovedError(errno.EPERM, "not an approved program")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostView:
    """What of this host a job may see; found out once, since it is the same for every job."""

    file_systems: tuple[str, ...]
    masks: tuple[Mask, ...]
    proc_read_only: tuple[str, ...]
    outside: isolation.Outside
    landlock: int  # the version in use; 0 where there is none that can be used

    @classmethod
    def survey(cls, mountinfo: str, hidden: Iterable[str]) -> "HostView":
        """The view for jobs on this host; `hidden` are paths to mask beside the standard ones."""
        masks = _masks((*_HIDDEN_DIRECTORIES, *_HIDDEN_FILES, *_glob_hidden(), *hidden))
        covered = (*_REPLACED, *(mask.path for mask in masks))
        file_systems = [
            mount.path
            for mount in parse_mountinfo(mountinfo)
            if mount.kind not in _KERNEL_FILE_SYSTEMS and not is_below(mount.path, covered)
        ]
        return cls(
            file_systems=("/", *sorted({path for path in file_systems if path != "/"})),
            masks=masks
            + tuple(Mask(f"/proc/{name}", Path(f"/proc/{name}").is_dir()) for name in _existing(_PROC_MASKED)),
            proc_read_only=tuple(f"/proc/{name}" for name in _existing(_PROC_READ_ONLY)),
            outside=isolation.Outside.look(),
            landlock=version if (version := linux.landlock_version()) >= FIRST_LANDLOCK else 0,
        )


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
        MountScratch("/dev/shm", 64 * MiB, _NOSUID_NODEV | linux.MS_NOEXEC),  # noqa: S108
        MountScratch("/tmp", scratch, _NOSUID_NODEV),  # noqa: S108
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
        CloseDescriptors(STATUS_FD),
        FilterSystemCalls(seccomp.PROGRAM),
        EnterWorkdir(spec.workdir or DEFAULT_WORKDIR),
        ReadBack(
            expected=_expected(spec, host, job),
            outside=host.outside,
            masked=tuple(mask.path for mask in (*other_masks, *proc_masks)),
            read_only=("/", "/dev", *host.proc_read_only),
            report=STATUS_FD,
        ),
        Exec(
            _candidates(spec.program),
            (spec.program, *spec.args),
            tuple(_environment(spec, job.job_id).items()),
            job.programs,
        ),
    ]


_UNLIMITED_SCRATCH: Final = 512 * MiB


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


def _masks(paths: Sequence[str]) -> tuple[Mask, ...]:
    """A mask for each path that exists and is no link; a link leads to what is masked by its own name."""
    masks = {}
    for path in paths:
        if os.path.exists(path) and os.path.realpath(path) != "/":
            real = os.path.realpath(path)
            masks[real] = Mask(real, os.path.isdir(real))
    below = {path for path in masks if any(is_below(path, (other,)) for other in masks if other != path)}
    return tuple(mask for path, mask in sorted(masks.items()) if path not in below and not is_below(path, _REPLACED))


def _glob_hidden() -> list[str]:
    return [str(path) for pattern in _HIDDEN_GLOBS for path in Path("/").glob(pattern)]


def _existing(names: Sequence[str]) -> list[str]:
    return [name for name in names if os.path.exists(f"/proc/{name}")]


def kernel_mounts(mountinfo: str) -> list[str]:
    """Where file systems are mounted that show the kernel itself, and that no job sees the host's instance of."""
    return [mount.path for mount in parse_mountinfo(mountinfo) if mount.kind in _KERNEL_FILE_SYSTEMS]


def is_below(path: str, tops: Iterable[str]) -> bool:
    """Whether `path` is one of `tops` or below one."""
    return any(path == top or path.startswith(top + "/") for top in tops)
