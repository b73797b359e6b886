"""The steps of a sandbox: each does one thing to the calling process, or raises OSError."""

import contextlib
import errno
import json
import os
import resource
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from jobworker.runtime import isolation, kernel_file, linux

DEVICES: Final = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9)}
_DEVICE_LINKS: Final = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
}
_MOUNT_POINTS: Final = ("proc", "dev", "tmp")  # what a root must have, since it is read-only
_NOSUID_NODEV: Final = linux.MS_NOSUID | linux.MS_NODEV
_MASKS: Final = "tmp"  # where the empty file and directory for masks stand until /tmp is mounted


class Step(Protocol):
    """One thing to do to the calling process; its class name is what an error shows."""

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
    """The directory that was asked for cannot be a job's root; the text continues a sentence that names it."""


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
    """Only those up to `last` stay open; those above 2 close themselves at exec."""

    last: int

    def apply(self) -> None:
        os.closerange(self.last + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1])


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
    kept: tuple[int, ...]

    def apply(self) -> None:
        found = isolation.read(self.outside, self.masked, self.read_only, self.kept)
        for name, value in self.expected.items():
            if found[name] != value:
                raise NotAsPlannedError(name, found[name])
        os.write(self.report, json.dumps({"isolation": found}).encode() + b"\n")

    def expecting(self, **changes: str | None) -> "ReadBack":
        """The same, where the kernel must say something else, or, for None, may say what it likes."""
        expected = {**self.expected, **changes}
        return replace(self, expected={name: value for name, value in expected.items() if value is not None})


class NotApprovedError(PermissionError):
    """The program is not one of those that the job may be started with."""


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
                if error.errno not in {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP}:
                    raise
                if os.path.isfile(path) and os.access(path, os.X_OK):
                    # Nothing is wrong with the program itself, so it is what its #! line or its ELF header names.
                    raise OSError(errno.ELIBBAD, "its interpreter is missing or cannot be executed") from error
                if error.errno == errno.ELOOP:
                    raise
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
