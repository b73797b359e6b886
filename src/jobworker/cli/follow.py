"""Copies a job's output from the server to here, and tells how to come back when that is left early."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

from jobworker.cli.interruption import Interrupted
from jobworker.cli.notice import say, say_what_was_dropped
from jobworker.cli.session import Target
from jobworker.client.model import Chunk, End
from jobworker.core.errors import ErrorCode, JobError


class Sink(Protocol):
    """Where output goes; `offset` is the end of what has been written."""

    offset: int

    def write(self, chunk: Chunk, /) -> None:
        """Writes one piece."""

    def finish(self, end: End, /) -> None:
        """Writes what is left to write after the last piece."""


async def copy_output(events: AsyncGenerator[Chunk | End, None], job_id: str, sink: Sink, target: Target) -> End:
    """Writes all of `events` to `sink` and returns their end; tells what of the output was never kept.

    Whoever leaves before, or is cut off, is told how to see the rest and how to stop the job.
    """
    try:
        async with aclosing(events):
            async for event in events:
                if isinstance(event, End):
                    sink.finish(event)
                    say_what_was_dropped(job_id, event.output)
                    return event
                sink.write(event)
    except (asyncio.CancelledError, Interrupted):
        _tell_the_way_back(job_id, sink.offset, target)
        raise
    except JobError as error:
        if error.code is ErrorCode.UNAVAILABLE:
            _tell_the_way_back(job_id, sink.offset, target)
        raise
    raise JobError(
        ErrorCode.INTERNAL, f"the output of job {job_id} has no end; read it again with: jobctl logs {job_id}"
    )


def _tell_the_way_back(job_id: str, offset: int, target: Target) -> None:
    say(f"left the output of job {job_id}; the job itself is not stopped by this")
    say(f"to see the rest: {target.command('logs', '--offset', str(offset), job_id)}")
    say(f"to stop the job: {target.command('stop', job_id)}")
