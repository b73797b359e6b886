"""What happens to jobs, told to everyone who listens and may know it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Final

from jobworker.core.errors import ErrorCode, JobError
from jobworker.store.jobs import JobRecord

_BACKLOG: Final = 1000  # events that a listener may be behind


@dataclass(frozen=True, slots=True)
class JobEvent:
    """A job that has just come into the state that its record shows; `number` counts events since the server began."""

    number: int
    at: float
    record: JobRecord


class JobEvents:
    """Where events are told and listened to; telling never waits."""

    def __init__(self) -> None:
        self._listeners: set[_Listener] = set()
        self._number = 0

    def tell(self, record: JobRecord, at: float) -> None:
        """Tells everyone who wants to know about this job."""
        self._number += 1
        event = JobEvent(self._number, at, record)
        for listener in self._listeners:
            listener.offer(event)

    @contextlib.contextmanager
    def listen(self, is_wanted: Callable[[JobRecord], bool]) -> Iterator[AsyncIterator[JobEvent]]:
        """Every event from now on about jobs that are wanted; EXHAUSTED ends it for those who do not keep up."""
        listener = _Listener(is_wanted)
        self._listeners.add(listener)
        try:
            yield listener.events()
        finally:
            self._listeners.discard(listener)


class _Listener:
    def __init__(self, is_wanted: Callable[[JobRecord], bool]) -> None:
        self._is_wanted = is_wanted
        self._queue: asyncio.Queue[JobEvent] = asyncio.Queue(_BACKLOG)
        self._is_behind = False

    def offer(self, event: JobEvent) -> None:
        if self._is_behind or not self._is_wanted(event.record):
            return
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            self._is_behind = True

    async def events(self) -> AsyncIterator[JobEvent]:
        while True:
            if self._is_behind and self._queue.empty():
                raise JobError(
                    ErrorCode.EXHAUSTED, "events came faster than they were read; list the jobs, listen again"
                )
            yield await self._queue.get()
