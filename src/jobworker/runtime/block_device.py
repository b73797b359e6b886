"""Which disk an io limit is for: from a device node or any path to the kernel's major:minor.

The block layer throttles whole disks, so a partition stands for the disk it is on.
"""

import contextlib
import os
import stat
from pathlib import Path

from jobworker.core.errors import ErrorCode, JobError, quoted

_SYSFS = Path("/sys/dev/block")


def disk_of(path: str, mountinfo: str, sysfs: Path = _SYSFS) -> str:
    """`major:minor` of the disk for `path`; UNSUPPORTED when no single disk is behind it.

    `mountinfo` is the text of /proc/self/mountinfo, used where stat(2) gives an anonymous device.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise JobError(ErrorCode.INVALID_ARGUMENT, f"io_device: the server has no path {quoted(path)}") from error
    if stat.S_ISCHR(status.st_mode):
        raise JobError(ErrorCode.INVALID_ARGUMENT, f"io_device: {quoted(path)} is a character device, not a disk")
    device = status.st_rdev if stat.S_ISBLK(status.st_mode) else status.st_dev
    return disk_behind(device, path, mountinfo, sysfs)


def disk_behind(device: int, path: str, mountinfo: str, sysfs: Path = _SYSFS) -> str:
    """`major:minor` of the disk that stat(2) has named `device` for `path`."""
    if os.major(device) == 0:
        device = _source_of(device, path, mountinfo)
    return _whole_disk(f"{os.major(device)}:{os.minor(device)}", path, sysfs)


def _source_of(device: int, path: str, mountinfo: str) -> int:
    """The block device that a file system with an anonymous device number is mounted from."""
    number = f"{os.major(device)}:{os.minor(device)}"
    kind = "unknown"
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split()[2] != number:
            continue
        kind, source = rest.split()[:2]
        if source.startswith("/dev/"):
            # A container may show the mount and not the device; then no disk is known.
            with contextlib.suppress(OSError):
                status = os.stat(source)
                if stat.S_ISBLK(status.st_mode):
                    return status.st_rdev
    raise JobError(
        ErrorCode.UNSUPPORTED,
        f"io limits: {quoted(path)} is on a file system without a disk of its own ({kind}); "
        "name a disk or a path on one with io_device",
    )


def _whole_disk(number: str, path: str, sysfs: Path) -> str:
    entry = (sysfs / number).resolve()
    if not entry.is_dir():
        raise JobError(ErrorCode.UNSUPPORTED, f"io limits: the kernel knows no disk behind {quoted(path)}")
    if (entry / "partition").exists():
        entry = entry.parent
    return (entry / "dev").read_text().strip()
