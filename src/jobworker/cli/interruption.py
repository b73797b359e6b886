"""Leaves what a verb is doing when SIGINT or SIGTERM asks for it."""

import asyncio
import os
import select
import signal as signals
from collections.abc import Coroutine
from types import FrameType
from typing import Any, Final, TypeVar

_T = TypeVar("_T")
_BLOCKED_SECONDS: Final = 0.1  # a write that still goes on this long after a signal counts as blocked


class Interrupted(Exception):  # noqa: N818 - it is a request, not an error
    """The user or the system asked this command to leave, by `signal`."""

    def __init__(self, signal: int) -> None:
        super().__init__(signals.Signals(signal).name)
        self.signal = signal


def run(work: Coroutine[Any, Any, _T]) -> _T:
    """What `work` returns; Interrupted when SIGINT or SIGTERM came first, with `work` cleanly cancelled."""
    received: list[int] = []

    async def interruptible() -> _T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def leave(signal: int, _frame: FrameType | None) -> None:
            received.append(signal)
            if task is not None:
                loop.call_soon_threadsafe(task.cancel)
            signals.setitimer(signals.ITIMER_REAL, _BLOCKED_SECONDS, _BLOCKED_SECONDS)

        def insist(_signal: int, frame: FrameType | None) -> None:
            # A write to a pipe that nobody empties blocks the loop, so only an exception ends it.
            if frame is not None and frame.f_code is write_all.__code__:
                raise Interrupted(received[0])

        handlers = {signals.SIGINT: leave, signals.SIGTERM: leave, signals.SIGALRM: insist}
        before = {signal: signals.signal(signal, handler) for signal, handler in handlers.items()}
        try:
            return await work
        finally:
            signals.setitimer(signals.ITIMER_REAL, 0)
            for signal, handler in before.items():
                signals.signal(signal, handler)

    try:
        return asyncio.run(interruptible())
    except asyncio.CancelledError:
        raise Interrupted(received[0]) from None


def write_all(fd: int, data: bytes) -> None:
    """Writes all of `data` to `fd`, however little it takes at a time."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            # Another program that shares the terminal has made it non-blocking.
            select.select([], [fd], [])
