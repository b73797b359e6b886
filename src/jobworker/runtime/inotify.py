"""Notice of writes to files, from the kernel to the event loop: no polling, one descriptor."""

import asyncio
import errno
import os
import struct
from collections.abc import Callable
from typing import Final, Self

from jobworker.core.errors import ErrorCode, JobError
from jobworker.runtime import linux

_EVENT: Final = struct.Struct("iIII")  # watch, mask, cookie, length of the name behind it
_READ_SIZE: Final = 64 * 1024

Callback = Callable[[], None]


class Inotify:
    """One inotify instance for everyone in the process who follows a file."""

    def __init__(self, fd: int, loop: asyncio.AbstractEventLoop) -> None:
        self._fd = fd
        self._loop = loop
        self._callbacks: dict[int, set[Callback]] = {}

    @classmethod
    def open(cls) -> Self:
        """A new instance on the running event loop."""
        inotify = cls(linux.inotify_init(), asyncio.get_running_loop())
        inotify._loop.add_reader(inotify._fd, inotify._on_readable)
        return inotify

    def close(self) -> None:
        """Ends all watches."""
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def watch(self, file: int, callback: Callback, events: int = linux.IN_MODIFY) -> "Watch":
        """Calls `callback` after each write to the file behind descriptor `file`, or after other `events`.

        What comes before the event loop turns is told once. Several may watch one file for the same.
        EXHAUSTED when the host gives this user no more watches; inotify_add_watch(2).
        """
        try:
            number = linux.inotify_add_watch(self._fd, f"/proc/self/fd/{file}", events)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise JobError(
                ErrorCode.EXHAUSTED, "the server can follow no more files; raise fs.inotify.max_user_watches"
            ) from error
        self._callbacks.setdefault(number, set()).add(callback)
        return Watch(self, number, callback)

    def forget(self, number: int, callback: Callback) -> None:
        """Takes one watch back."""
        callbacks = self._callbacks.get(number, set())
        callbacks.discard(callback)
        if not callbacks and self._callbacks.pop(number, None) is not None:
            linux.inotify_rm_watch(self._fd, number)

    def _on_readable(self) -> None:
        try:
            events = os.read(self._fd, _READ_SIZE)
        except BlockingIOError:
            return
        place = 0
        changed: set[int] = set()
        while place < len(events):
            number, mask, _, name_size = _EVENT.unpack_from(events, place)
            place += _EVENT.size + name_size
            if mask & linux.IN_Q_OVERFLOW:
                changed.update(self._callbacks)
            elif mask & linux.IN_IGNORED:
                self._callbacks.pop(number, None)
            else:
                changed.add(number)
        for number in changed:
            for callback in tuple(self._callbacks.get(number, ())):
                callback()


class Watch:
    """One follower's interest in one file."""

    def __init__(self, inotify: Inotify, number: int, callback: Callback) -> None:
        self._inotify = inotify
        self._number = number
        self._callback = callback

    def close(self) -> None:
        """No more calls."""
        self._inotify.forget(self._number, self._callback)
