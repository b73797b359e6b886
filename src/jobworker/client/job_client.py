"""A typed, asynchronous client of jobworkerd: the same methods and promises over every transport."""

import asyncio
import signal as signals
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import fields, replace
from functools import partial
from time import monotonic
from typing import Final, Self, TypeVar, assert_never

from jobworker.client.connection import CONNECT_SECONDS, Connection, ListQuery, OutputQuery
from jobworker.client.context import Context, Transport
from jobworker.client.model import Chunk, End, Identity, Job, OutputStream, Started
from jobworker.client.unreachable import TookTooLongError
from jobworker.core.errors import ErrorCode, JobError
from jobworker.core.job_id import check_job_id
from jobworker.core.lifecycle import State
from jobworker.core.requests import check_grace, check_idempotency_key, check_place, check_signal
from jobworker.core.spec import JobSpec, Limits

_WAIT_SLICE_SECONDS: Final = 300.0  # a long wait is many calls, each with a deadline
_RETRY_SECONDS: Final = 1.6  # a request is repeated for this long: a restart of the server takes one second
_RESUME_SECONDS: Final = 30.0  # a broken stream is resumed for this long
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 2.0
_ALL_LIMITS: Final = frozenset(item.name for item in fields(Limits))

_Answer = TypeVar("_Answer")


class JobClient:
    """One user's access to one server; every method raises JobError with the exact reason.

    Requests that may be repeated without harm are repeated while the server is unavailable.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @classmethod
    @asynccontextmanager
    async def connect(cls, context: Context, transport: Transport | None = None) -> AsyncIterator[Self]:
        """A client with an open connection; UNAVAILABLE within seconds when the server cannot be reached.

        Without a `transport` it is gRPC when the context has a certificate, else HTTPS.
        """
        async with _open(context, context.choose(transport)) as connection:
            await _repeat(connection.reach)
            yield cls(connection)

    async def start(
        self,
        spec: JobSpec,
        *,
        asked_limits: Collection[str] = _ALL_LIMITS,
        idempotency_key: str | None = None,
    ) -> Started:
        """Starts a job, exactly once however often the request has to be sent.

        The program runs when this returns. Limits that are not in `asked_limits` are left to
        the server's defaults. With an `idempotency_key` of the caller's, the promise holds
        across calls too: the same key means the same job.
        """
        key = str(uuid.uuid4()) if idempotency_key is None else check_idempotency_key(idempotency_key)
        return await _repeat(lambda: self._connection.start(spec, asked_limits, key))

    async def stop(self, job_id: str, *, grace: float = 0.0, signal: int = signals.SIGTERM) -> Job:
        """Ends a job and everything in it, and returns it as it ended.

        With a `grace` in seconds every process first gets `signal`. JOB_NOT_RUNNING when it
        had ended before.
        """
        check_grace(grace)
        check_signal(signal)
        lost_answers = 0

        async def attempt() -> Job:
            nonlocal lost_answers
            try:
                return await self._connection.stop(check_job_id(job_id), grace, signal)
            except JobError as error:
                if error.code is ErrorCode.JOB_NOT_RUNNING and lost_answers:
                    # An earlier attempt did it, and only its answer was lost.
                    return await self._connection.status(job_id)
                lost_answers += 1
                raise

        return await _repeat(attempt)

    async def status(self, job_id: str) -> Job:
        """The job as it is now."""
        return await _repeat(lambda: self._connection.status(check_job_id(job_id)))

    async def wait(self, job_id: str, *, timeout: float | None = None) -> Job:  # noqa: ASYNC109 - the server's timeout
        """The job after its end, or as it is when `timeout` seconds have passed first."""
        deadline = None if timeout is None else monotonic() + timeout

        async def attempt() -> Job:
            left = _WAIT_SLICE_SECONDS if deadline is None else max(0.0, deadline - monotonic())
            return await self._connection.wait(check_job_id(job_id), min(left, _WAIT_SLICE_SECONDS))

        while True:
            job = await _repeat(attempt)
            if job.state.is_final or (deadline is not None and monotonic() >= deadline):
                return job

    async def remove(self, job_id: str, *, force: bool = False) -> None:
        """Deletes an ended job and its output; with `force` a running one is ended first."""
        await self._connection.remove(check_job_id(job_id), force=force)

    async def signal(self, job_id: str, signal: int) -> None:
        """Sends `signal` to the job's main process, at most once."""
        check_signal(signal)
        await self._connection.signal(check_job_id(job_id), signal)

    async def list(  # noqa: PLR0913 - one keyword a filter
        self,
        *,
        states: Iterable[State] = (),
        labels: Mapping[str, str] | None = None,
        owner: str = "",
        id_prefix: str = "",
        name: str = "",
        page_size: int = 0,
    ) -> AsyncGenerator[list[Job], None]:
        """Pages of the jobs that match everything given, newest first; at least one page."""
        query = ListQuery(
            states=tuple(states),
            labels=dict(labels or {}),
            owner=owner,
            id_prefix=id_prefix,
            name=name,
            page_size=page_size,
        )
        while True:
            page = await _repeat(partial(self._connection.list, query))
            yield page.jobs
            if not page.next_token:
                return
            query = replace(query, page_token=page.next_token)

    async def who_am_i(self) -> Identity:
        """Whom the server takes this client for, and by what."""
        return await _repeat(self._connection.who_am_i)

    async def stream(  # noqa: PLR0913 - one keyword a field of the request
        self,
        job_id: str,
        *,
        offset: int = 0,
        streams: Iterable[OutputStream] = (),
        follow: bool = True,
        since: float | None = None,
        tail_lines: int | None = None,
    ) -> AsyncGenerator[Chunk | End, None]:
        """The job's output from `offset` on, byte for byte and once, then its End.

        A broken connection is resumed behind the last byte that arrived. UNAVAILABLE when the
        server stays away for half a minute.
        """
        check_place(offset=offset, tail_lines=tail_lines, since=since)
        query = OutputQuery(
            job_id=check_job_id(job_id),
            offset=offset,
            streams=tuple(streams),
            follow=follow,
            since=since,
            tail_lines=tail_lines,
        )
        patience = _Patience()
        reached: int | None = None  # the end of what has arrived
        while True:
            try:
                async with aclosing(self._connection.stream(query)) as events:
                    async for event in events:
                        if isinstance(event, Chunk):
                            reached = event.end
                            patience.renew()
                        yield event
            except JobError as error:
                await patience.pause_after(error)
            else:
                return
            if reached is not None:
                # The place to go on is known now; it must not be moved again.
                query = replace(query, offset=reached, since=None, tail_lines=None)


def _open(context: Context, transport: Transport) -> AbstractAsyncContextManager[Connection]:
    """A connection of this kind; the libraries of the other kind are not loaded."""
    match transport:
        case Transport.GRPC:
            from jobworker.client.grpc import GrpcConnection  # noqa: PLC0415

            return GrpcConnection.open(context)
        case Transport.HTTPS:
            from jobworker.client.http import HttpsConnection  # noqa: PLC0415

            return HttpsConnection.open(context)
        case _:
            assert_never(transport)


async def _repeat(attempt: Callable[[], Awaitable[_Answer]]) -> _Answer:
    """The answer of `attempt`, which is repeated while the server is unavailable."""
    patience = _Patience()
    while True:
        try:
            return await attempt()
        except JobError as error:
            await patience.pause_after(error)


class _Patience:
    """How long to go on after failures: a while since there was a connection, with growing pauses."""

    def __init__(self) -> None:
        self._limit = _RETRY_SECONDS
        self._since = self._attempt_began = monotonic()
        self._pause = _FIRST_PAUSE

    def renew(self) -> None:
        """The server is there and answers, so the next failure is a new one."""
        self._limit = _RESUME_SECONDS
        self._since = monotonic()
        self._pause = _FIRST_PAUSE

    async def pause_after(self, error: JobError) -> None:
        """Waits for the next attempt; raises `error` when repeating cannot help or has gone on too long."""
        if monotonic() - self._attempt_began > 2 * CONNECT_SECONDS and not isinstance(error, TookTooLongError):
            # Connecting fails sooner than this, so there was a connection that waited and then broke.
            self.renew()
        if error.code is not ErrorCode.UNAVAILABLE or monotonic() + self._pause > self._since + self._limit:
            raise error
        await asyncio.sleep(self._pause)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        self._attempt_began = monotonic()
