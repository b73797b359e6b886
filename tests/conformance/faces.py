"""The library with the client's methods and types, so that a promise is written once for both."""

from contextlib import aclosing
from itertools import pairwise

from jobworker import JobError
from jobworker.client.model import Chunk, End, Job, OutputStream, Started
from jobworker.core.errors import ErrorCode
from jobworker.core.lifecycle import Ended, Pending
from jobworker.core.outcome import outcome_kind
from jobworker.runtime.output_log import BOTH, Stream

USER = "alice"  # who asks, everywhere


class Library:
    """A Worker as a JobClient: it adds who asks, and nothing to what is promised."""

    def __init__(self, worker) -> None:
        self._worker = worker

    async def start(self, spec, **_) -> Started:
        return Started(job=_job(await self._worker.start(spec)), existed=False)

    async def stop(self, job_id, *, grace=0.0, signal=15) -> Job:
        return _job(await self._worker.stop(job_id, by=USER, grace=grace, signal_number=signal))

    async def status(self, job_id) -> Job:
        return _job(await self._worker.status(job_id))

    async def wait(self, job_id, *, timeout=None) -> Job:  # noqa: ASYNC109 - the worker's
        return _job(await self._worker.wait(job_id, timeout=timeout))

    async def remove(self, job_id, *, force=False) -> None:
        await self._worker.remove(job_id, force=force)

    async def signal(self, job_id, signal) -> None:
        await self._worker.signal(job_id, signal)

    async def list(self, **_):
        yield [_job(status) for status in self._worker.list()]

    async def stream(self, job_id, *, offset=0, streams=(), follow=True, since=None, tail_lines=None):
        wanted = frozenset(Stream[stream.name] for stream in streams) or BOTH
        chunks = self._worker.output(
            job_id, offset=offset, streams=wanted, follow=follow, since=since, tail_lines=tail_lines
        )
        async with aclosing(chunks):
            async for chunk in chunks:
                offset = chunk.end
                yield Chunk(chunk.offset, OutputStream[chunk.stream.name], chunk.time_ns / 1e9, chunk.data)
        job = await self.status(job_id)
        yield End(job.state, job.outcome, job.output, offset)


def _job(status) -> Job:
    match status.phase:
        case Pending():
            started_at = ended_at = None
        case Ended(ending):
            started_at, ended_at = ending.started_at, ending.ended_at
        case underway:
            started_at, ended_at = underway.started_at, None
    return Job(
        id=status.id,
        owner=USER,
        spec=status.spec,
        state=status.state,
        created_at=status.created_at,
        started_at=started_at,
        ended_at=ended_at,
        outcome=status.ending.outcome if status.ending else None,
        usage=status.usage,
        output=status.output,
        effective_limits=status.effective_limits,
        sandbox=status.sandbox,
        isolation=status.sandbox.get("isolation", ""),
    )


def ending_of(job) -> tuple:
    """State, kind of outcome and exit code, as callers decide by them."""
    return job.state.value, job.outcome and outcome_kind(job.outcome), job.exit_code


async def read(face, job_id, **query) -> tuple[list[Chunk], End]:
    """Every chunk of a stream, which must follow on each other, and its one end."""
    async with aclosing(face.stream(job_id, **query)) as events:
        *chunks, end = [event async for event in events]
    assert all(isinstance(chunk, Chunk) for chunk in chunks)
    assert isinstance(end, End)
    if not query.get("streams"):
        for before, after in pairwise(chunks):
            assert before.end == after.offset, "a gap, a repeat or a disorder"
    return chunks, end


async def output(face, job_id, **query) -> bytes:
    """The bytes of a stream."""
    chunks, _ = await read(face, job_id, **query)
    return b"".join(chunk.data for chunk in chunks)


async def refused(call) -> tuple[ErrorCode, str]:
    """The code and the exact message of the error that a call ends with."""
    try:
        await call
    except JobError as error:
        return error.code, error.message
    raise AssertionError("it was not refused")
