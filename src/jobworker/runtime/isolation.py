"""The isolation of the calling process as the kernel tells it, in the words of a job's status."""

import os
import resource
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Self

from jobworker.runtime import kernel_file
from jobworker.runtime.mountinfo import parse_mountinfo

#: Namespaces in the words of a status, with their names in /proc/self/ns.
NAMESPACES: Final = {
    "pid": "pid",
    "mount": "mnt",
    "net": "net",
    "ipc": "ipc",
    "uts": "uts",
    "cgroup": "cgroup",
    "user": "user",
}
#: Rlimits in the words of a status.
_RLIMITS: Final = {
    "core": resource.RLIMIT_CORE,
    "nofile": resource.RLIMIT_NOFILE,
    "nproc": resource.RLIMIT_NPROC,
    "memlock": resource.RLIMIT_MEMLOCK,
    "msgqueue": resource.RLIMIT_MSGQUEUE,
    "rtprio": resource.RLIMIT_RTPRIO,
    "nice": resource.RLIMIT_NICE,
    "stack": resource.RLIMIT_STACK,
}
_CAPABILITY_SETS: Final = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
_SECCOMP_MODES: Final = {"0": "no", "1": "strict", "2": "filter"}  # linux/seccomp.h
_REFUSED_BY_LANDLOCK: Final = "/dev/urandom"  # anybody else may write to it
_WITH_DEVICES: Final = ("/dev", "/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


def namespaces() -> dict[str, int]:
    """The namespaces of the calling process, by their numbers."""
    return {name: os.stat(f"/proc/self/ns/{file}").st_ino for name, file in NAMESPACES.items()}


@dataclass(frozen=True, slots=True)
class Outside:
    """What the host has and a job is to have others of."""

    namespaces: Mapping[str, int]  # by their numbers
    root: tuple[int, int]  # device and inode

    @classmethod
    def look(cls) -> Self:
        """That of the calling process."""
        return cls(namespaces(), _root())


def _root() -> tuple[int, int]:
    status = os.stat("/")
    return status.st_dev, status.st_ino


def read(outside: Outside, masked: Iterable[str], read_only: Iterable[str], kept: Collection[int]) -> dict[str, str]:
    """What the kernel says of the calling process; takes no privilege and changes nothing.

    The paths are those that must not be seen, and those that must not be written to; `kept` are
    descriptors that exec closes.
    """
    own = namespaces()
    apart = [name for name in NAMESPACES if own[name] != outside.namespaces[name]]
    status = dict(line.split(":\t", 1) for line in kernel_file.read("/proc/self/status").splitlines())
    return {
        "namespaces": ",".join(apart),
        "network": "loopback only" if "net" in apart else "host",
        **_mounts(masked, read_only, is_own=_root() != outside.root),
        "uid": _one_id(status["Uid"]),
        "gid": _one_id(status["Gid"]),
        "groups": status["Groups"].strip() or "none",
        "capabilities": _capabilities([status[name] for name in _CAPABILITY_SETS]),
        "no_new_privs": "yes" if status["NoNewPrivs"] == "1" else "no",
        "seccomp": _SECCOMP_MODES.get(status["Seccomp"], status["Seccomp"]),
        "landlock": "yes" if _is_refused(_REFUSED_BY_LANDLOCK) else "no",
        "rlimits": show_rlimits((number, *resource.getrlimit(number)) for number in _RLIMITS.values()),
        "umask": status["Umask"],
        "oom_score_adj": kernel_file.read("/proc/self/oom_score_adj").strip(),
        "session": "own" if os.getsid(0) == os.getpid() else "shared",
        "descriptors": ",".join(map(str, _descriptors(kept))),
        "hostname": os.uname().nodename,
    }


def show_rlimits(limits: Iterable[tuple[int, int, int]]) -> str:
    """Soft and hard limits by name; of each a number, a soft value and a hard one."""
    names = {number: name for name, number in _RLIMITS.items()}
    return ",".join(f"{names[number]}={_bound(soft)}:{_bound(hard)}" for number, soft, hard in limits)


def _bound(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


def _mounts(masked: Iterable[str], read_only: Iterable[str], *, is_own: bool) -> dict[str, str]:
    mounts = {
        mount.path: mount.options.split(",") for mount in parse_mountinfo(kernel_file.read("/proc/self/mountinfo"))
    }
    writable = sorted(path + ":noexec" * ("noexec" in options) for path, options in mounts.items() if "rw" in options)
    is_nosuid = all("nosuid" in options for options in mounts.values())
    is_nodev = all("nodev" in options for path, options in mounts.items() if path not in _WITH_DEVICES)
    # What has gone since the host was surveyed could not be masked, and is not seen either.
    seen = [path for path in masked if path not in mounts and os.path.lexists(path)]
    open_to_writing = [path for path in read_only if "ro" not in mounts.get(path, ())]
    return {
        "root": ("read-only" if "ro" in mounts.get("/", ()) else "writable") + ", of its own" * is_own,
        "writable": ",".join(writable),
        "mounts": ",".join(flag for flag, holds in (("nosuid", is_nosuid), ("nodev", is_nodev)) if holds),
        "masks": "complete" if not seen else f"{len(seen)} missing",
        "knobs": "read-only" if not open_to_writing else f"{len(open_to_writing)} writable",
    }


def _is_refused(path: str) -> bool:
    """Whether opening the file for writing is not permitted; Landlock shows itself in no file."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
    except PermissionError:
        return True
    return False


def _one_id(ids: str) -> str:
    """The id that is the real, effective, saved and file system one; all four when they differ."""
    words = ids.split()
    return words[0] if len(set(words)) == 1 else ",".join(words)


def _capabilities(sets: list[str]) -> str:
    return "none" if not any(int(value, 16) for value in sets) else "/".join(sets)


def _descriptors(kept: Collection[int]) -> list[int]:
    listed = [int(name) for name in os.listdir("/proc/self/fd")]
    return sorted(fd for fd in listed if fd not in kept and _is_open(fd))


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False  # it was the one of the listing
    return True
