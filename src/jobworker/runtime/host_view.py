"""What jobs may see of this host."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from jobworker.runtime import isolation, linux
from jobworker.runtime.mountinfo import parse_mountinfo
from jobworker.runtime.sandbox_steps import Mask

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
_PROC_READ_ONLY: Final = ("sys", "irq", "bus", "fs", "sysrq-trigger", "pressure")
_PROC_MASKED: Final = (
    "acpi",
    "asound",
    "kcore",
    "keys",
    "key-users",
    "locks",  # the uids of all live jobs are byte ranges, and a lock of those shows in every namespace
    "latency_stats",
    "timer_list",
    "sched_debug",
    "scsi",
    "kallsyms",
    "interrupts",
)
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
FIRST_LANDLOCK: Final = 2  # under the first version no file could be moved to another directory


@dataclass(frozen=True, slots=True, kw_only=True)
class HostView:
    """What a job may see of this host; surveyed once, since it is the same for every job."""

    file_systems: tuple[str, ...]
    masks: tuple[Mask, ...]
    proc_read_only: tuple[str, ...]
    outside: isolation.Outside
    landlock: int  # the version in use; 0 where there is none that can be used

    @classmethod
    def survey(cls, mountinfo: str, hidden: Iterable[str]) -> Self:
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


def kernel_mounts(mountinfo: str) -> list[str]:
    """Where file systems are mounted that show the kernel itself, and that no job sees the host's instance of."""
    return [mount.path for mount in parse_mountinfo(mountinfo) if mount.kind in _KERNEL_FILE_SYSTEMS]


def is_below(path: str, tops: Iterable[str]) -> bool:
    """Whether `path` is one of `tops` or below one."""
    return any(path == top or path.startswith(top + "/") for top in tops)


def _masks(paths: Sequence[str]) -> tuple[Mask, ...]:
    """A mask for each existing path, with links resolved; a path below another masked one needs none of its own."""
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
