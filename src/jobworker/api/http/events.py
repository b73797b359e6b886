"""Events as browsers read them: server-sent events, one for each state that a job comes into."""

import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Final, Self

from jobworker.api.http.answers import Answer, exit_code_of, status_of
from jobworker.core.times import rfc3339
from jobworker.events import JobEvent

EVENTS_TYPE: Final = "text/event-stream"
_LISTENING: Final = b": listening\n\n"  # so that a caller knows from when on nothing is missed


class JobChange(Answer):
    """The data of an event."""

    id: str
    status: str
    exit_code: int | None
    owner: str
    name: str | None
    at: str

    @classmethod
    def of(cls, event: JobEvent) -> Self:
        """The event as it is told."""
        record = event.record
        return cls.model_construct(
            id=record.id,
            status=status_of(record.state),
            exit_code=exit_code_of(record.phase),
            owner=record.owner,
            name=record.spec.name,
            at=rfc3339(event.at),
        )


@contextlib.asynccontextmanager
async def server_sent(
    listening: AbstractAsyncContextManager[AsyncIterator[JobEvent]],
) -> AsyncIterator[tuple[bool, AsyncIterator[bytes]]]:
    """The bytes of a stream of events."""

    async def encode(events: AsyncIterator[JobEvent]) -> AsyncIterator[bytes]:
        yield _LISTENING
        async for event in events:
            data = JobChange.of(event).model_dump_json(by_alias=True)
            yield f"event: job\nid: {event.number}\ndata: {data}\n\n".encode()

    async with listening as events:
        yield False, encode(events)
