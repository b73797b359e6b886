"""One unprivileged uid for each live job, host-wide, held by a lock that its monitor keeps.

The locks are open-file-description locks on single bytes of one file: byte n stands for uid n.
The kernel gives a uid back when the last process with the lock is gone, so no crash can leak one.
See fcntl(2), F_OFD_SETLK.
"""

import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from jobworker.core.errors import ErrorCode, JobError

_FLOCK: Final = struct.Struct("hhqqi4x")  # struct flock: type, whence, start, len, pid


@dataclass(frozen=True, slots=True)
class UidLease:
    """The ids of one job: of it alone until `lock` is closed in every process, where there is one."""

    uid: int
    gid: int
    lock: int | None

    def release(self) -> None:
        """This process no longer holds the ids; a monitor that was forked meanwhile does."""
        if self.lock is not None:
            os.close(self.lock)


class OnlyUid:
    """The caller's own ids, which without root are the only ones there are: every job has them."""

    def lease(self) -> UidLease:
        """The same ids for every job."""
        return UidLease(os.geteuid(), os.getegid(), lock=None)


class UidRange:
    """The uids from `first` to `last`, shared by every launcher on the host."""

    def __init__(self, lock_file: Path, first: int, last: int) -> None:
        self._lock_file = lock_file
        self._first = first
        self._count = last - first + 1
        # Each launcher begins elsewhere, and goes round: a uid rests before it is used again.
        self._next = os.getpid() * 7919 % self._count

    @classmethod
    def open(cls, lock_dir: Path, first: int, last: int) -> Self:
        """The range with its lock file in `lock_dir`, which is made when it is missing."""
        lock_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        return cls(lock_dir / "uids", first, last)

    def lease(self) -> UidLease:
        """A free uid; EXHAUSTED when every uid of the range is in use."""
        lock = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            for _ in range(self._count):
                number = self._next
                self._next = (number + 1) % self._count
                uid = self._first + number
                if _try_lock(lock, uid):
                    return UidLease(uid, uid, lock)
        except OSError:
            os.close(lock)
            raise
        os.close(lock)
        raise JobError(ErrorCode.EXHAUSTED, f"all {self._count} job uids are in use; wait for jobs to end")


def _try_lock(file: int, uid: int) -> bool:
    """Locks the byte that stands for the uid itself, since launchers may have ranges that overlap."""
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, uid, 1, 0))
    except OSError as error:
        if error.errno in {errno.EAGAIN, errno.EACCES}:
            return False
        raise
    return True
