"""Which disks an io limit is for: from a device node or any path to the kernel's major:minor.

The block layer throttles whole disks, so a partition stands for the disk it is on. What is stacked
on other devices stands for itself and for all of them, so that another way to the same disk is no
way around the limit.
"""

import errno
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jobworker.core.errors import ErrorCode, JobError, quoted
from jobworker.runtime import kernel_file
from jobworker.runtime.mountinfo import Mount, parse_mountinfo, unescape

_SYSFS: Final = Path("/sys")


@dataclass(frozen=True, slots=True)
class Place:
    """A path as stat(2) knows it: the device that it is or is on, and the mount it is reached through."""

    device: int
    mount: int


def look_up(path: str) -> Place:
    """The place that a user has named; INVALID_ARGUMENT when this host has no such path, or it is not on a disk."""
    try:
        return _place(path)
    except OSError as error:
        what = f"{quoted(path)} is a character device, not a disk"
        if error.errno != errno.ENOTBLK:
            what = f"the server has no path {quoted(path)}"
        raise JobError(ErrorCode.INVALID_ARGUMENT, f"io_device: {what}") from error


def disks_of(path: str) -> list[str]:
    """`major:minor` of every disk behind a path of this host; see `look_up` and `disks_behind`."""
    return disks_behind(look_up(path), path)


def disks_behind(place: Place, path: str, *, mountinfo: str | None = None, sysfs: Path = _SYSFS) -> list[str]:
    """`major:minor` of every disk that holds `place`, the uppermost first.

    UNSUPPORTED, naming `path` and the file system, when no disk is behind it or not all of them
    can be known. `mountinfo` is the text of /proc/self/mountinfo, read now unless given.
    """
    return list(dict.fromkeys(_Search(path, mountinfo, sysfs).disks(place)))


def is_stacked(number: str, sysfs: Path = _SYSFS) -> bool:
    """Whether the disk `major:minor` is made of others, which see again whatever goes to it."""
    device = sysfs / "dev/block" / number
    return (device / "loop/backing_file").exists() or any((device / "slaves").glob("*"))


def _place(path: str) -> Place:
    # The mount is found by an open file: a subvolume of btrfs and a file of an overlay have
    # device numbers that are in no list of mounts.
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if stat.S_ISCHR(status.st_mode):
            raise OSError(errno.ENOTBLK, os.strerror(errno.ENOTBLK))
        _, _, rest = Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii").partition("mnt_id:")
        return Place(status.st_rdev if stat.S_ISBLK(status.st_mode) else status.st_dev, int(rest.split()[0]))
    finally:
        os.close(fd)


class _Search:
    """The way down from a path that a user has named to the disks."""

    def __init__(self, path: str, mountinfo: str | None, sysfs: Path) -> None:
        self._path = path
        self._mountinfo = mountinfo
        self._sysfs = sysfs

    def disks(self, place: Place) -> Iterator[str]:
        if os.major(place.device) == 0:
            yield from self._disks_of_mount(place)
        else:
            yield from self._disks_of_device(f"{os.major(place.device)}:{os.minor(place.device)}")

    def _disks_of_device(self, number: str) -> Iterator[str]:
        """The disk with this number or with this partition, and what it is made of."""
        device = (self._sysfs / "dev/block" / number).resolve()
        if not device.is_dir():
            raise self._refusal(f"the kernel knows no disk behind {quoted(self._path)}")
        if (device / "partition").exists():
            device = device.parent
        yield _number(device)
        for part in sorted((device / "slaves").glob("*")):  # of device mapper, md and bcache
            yield from self._disks_of_device(_number(part))
        backing_file = device / "loop/backing_file"
        if backing_file.exists():
            yield from self._disks_under(os.fsdecode(backing_file.read_bytes()).rstrip("\n"), "loop device")

    def _disks_of_mount(self, place: Place) -> Iterator[str]:
        """The disks of a file system that has a device number of its own invention."""
        mount = self._mount(place)
        if mount.kind == "overlay":
            for directory in _layers(mount.file_system_options):
                yield from self._disks_under(directory, mount.kind)
        elif mount.kind == "btrfs":
            for number in self._btrfs_members(self._device_of(mount)):
                yield from self._disks_of_device(number)
        else:
            yield from self._disks_of_device(self._device_of(mount))

    def _mount(self, place: Place) -> Mount:
        """The mount that `place` is reached through."""
        mountinfo = self._mountinfo if self._mountinfo is not None else kernel_file.read("/proc/self/mountinfo")
        for mount in parse_mountinfo(mountinfo):
            if mount.number == str(place.mount):
                return mount
        raise self._refusal(f"the kernel does not tell what {quoted(self._path)} is mounted from")

    def _disks_under(self, path: str, kind: str) -> Iterator[str]:
        """The disks of a path that the kernel has named, as part of a `kind` of device or file system."""
        try:
            place = _place(path)
        except OSError:
            # A container shows the mount and not what it is made of; a file may be deleted.
            raise self._refusal(f"{quoted(self._path)} is on files that cannot be seen from here ({kind})") from None
        yield from self.disks(place)

    def _device_of(self, mount: Mount) -> str:
        """The number of the block device that a file system is mounted from."""
        try:
            status = os.stat(mount.source) if mount.source.startswith("/dev/") else None
        except OSError:
            status = None
        if status is None or not stat.S_ISBLK(status.st_mode):
            raise self._refusal(f"{quoted(self._path)} is on a file system without a disk of its own ({mount.kind})")
        return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"

    def _btrfs_members(self, number: str) -> list[str]:
        """The devices of the btrfs that has this one, which may be many."""
        for devices in (self._sysfs / "fs/btrfs").glob("*/devices"):
            members = sorted(map(_number, devices.iterdir()))
            if number in members:
                return members
        raise self._refusal(f"the kernel does not tell which disks {quoted(self._path)} is on (btrfs)")

    @staticmethod
    def _refusal(why: str) -> JobError:
        return JobError(ErrorCode.UNSUPPORTED, f"io limits: {why}; name a disk or a path on one with io_device")


def _number(device: Path) -> str:
    return (device / "dev").read_text(encoding="ascii").strip()


def _layers(options: str) -> Iterator[str]:
    """The directories that an overlay is made of."""
    for option in options.split(","):
        name, _, value = option.partition("=")
        if name == "upperdir":
            yield unescape(value)
        elif name in {"lowerdir", "lowerdir+", "datadir+"}:
            yield from (unescape(part).replace("\\:", ":") for part in re.split(r"(?<!\\134):+", value))
