"""A typed, asynchronous client of jobworkerd over gRPC."""

import asyncio
import signal as signals
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import fields
from functools import partial
from time import monotonic
from typing import Any, Final, Self, TypeVar

import grpc

from jobworker.api.grpc._generated import jobworker_pb2 as pb2
from jobworker.api.grpc._generated.jobworker_pb2_grpc import JobWorkerStub
from jobworker.client import messages
from jobworker.client.channel import CONNECT_SECONDS, open_channel
from jobworker.client.context import Context
from jobworker.client.failure import failure
from jobworker.client.model import Chunk, End, Job, OutputStream, Started
from jobworker.core.errors import ErrorCode, JobError
from jobworker.core.lifecycle import State
from jobworker.core.spec import JobSpec, Limits

_ANSWER_SECONDS: Final = 30.0  # for calls that only look something up
_ACT_SECONDS: Final = 60.0  # for calls that start, end or delete processes
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

    def __init__(self, server: str, channel: grpc.aio.Channel) -> None:
        self._server = server
        self._channel = channel
        self._stub: Any = JobWorkerStub(channel)  # type: ignore[no-untyped-call]  # generated without types

    @classmethod
    @asynccontextmanager
    async def connect(cls, context: Context) -> AsyncIterator[Self]:
        """A client with an open connection; UNAVAILABLE within seconds when the server cannot be reached."""
        async with open_channel(context) as channel:
            client = cls(context.server, channel)
            await client._repeat(client._reach)
            yield client

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
        request = pb2.StartRequest(
            spec=messages.spec_to_message(spec, asked_limits),
            idempotency_key=idempotency_key or str(uuid.uuid4()),
        )
        answer = await self._repeat(lambda: self._call(self._stub.Start, request, _ACT_SECONDS))
        return Started(job=messages.job_from_message(answer.job), existed=answer.existed)

    async def stop(self, job_id: str, *, grace: float = 0.0, signal: int = signals.SIGTERM) -> Job:
        """Ends a job and everything in it, and returns it as it ended.

        With a `grace` in seconds every process first gets `signal`. JOB_NOT_RUNNING when it
        had ended before.
        """
        request = pb2.StopRequest(id=job_id)
        if grace > 0:
            request.grace.CopyFrom(messages.duration(grace))
            request.signal = signal
        lost_answers = 0

        async def attempt() -> Job:
            nonlocal lost_answers
            try:
                return messages.job_from_message((await self._call(self._stub.Stop, request, grace + _ACT_SECONDS)).job)
            except JobError as error:
                if error.code is ErrorCode.JOB_NOT_RUNNING and lost_answers:
                    # An earlier attempt did it, and only its answer was lost.
                    return await self.status(job_id)
                lost_answers += 1
                raise

        return await self._repeat(attempt)

    async def status(self, job_id: str) -> Job:
        """The job as it is now."""
        request = pb2.StatusRequest(id=job_id)
        answer = await self._repeat(lambda: self._call(self._stub.Status, request, _ANSWER_SECONDS))
        return messages.job_from_message(answer.job)

    async def wait(self, job_id: str, *, timeout: float | None = None) -> Job:  # noqa: ASYNC109 - the server's timeout
        """The job after its end, or as it is when `timeout` seconds have passed first."""
        deadline = None if timeout is None else monotonic() + timeout
        while True:
            slice_seconds = _WAIT_SLICE_SECONDS
            if deadline is not None:
                slice_seconds = min(slice_seconds, max(0.0, deadline - monotonic()))
            request = pb2.WaitRequest(id=job_id, timeout=messages.duration(slice_seconds))
            answer = await self._repeat(partial(self._call, self._stub.Wait, request, slice_seconds + _ANSWER_SECONDS))
            job = messages.job_from_message(answer.job)
            if job.state.is_final or (deadline is not None and monotonic() >= deadline):
                return job

    async def remove(self, job_id: str, *, force: bool = False) -> None:
        """Deletes an ended job and its output; with `force` a running one is ended first."""
        request = pb2.RemoveRequest(id=job_id, force=force)
        await self._call(self._stub.Remove, request, _ACT_SECONDS)

    async def signal(self, job_id: str, signal: int) -> None:
        """Sends `signal` to the job's main process, at most once."""
        await self._call(self._stub.Signal, pb2.SignalRequest(id=job_id, signal=signal), _ANSWER_SECONDS)

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
        request = pb2.ListRequest(
            states=[messages.wire_value(messages.STATES, state) for state in states],
            labels=dict(labels or {}),
            owner=owner,
            id_prefix=id_prefix,
            name=name,
            page_size=page_size,
        )
        while True:
            answer = await self._repeat(lambda: self._call(self._stub.List, request, _ANSWER_SECONDS))
            yield [messages.job_from_message(job) for job in answer.jobs]
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

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
        request = pb2.StreamRequest(
            id=job_id,
            offset=offset,
            streams=[messages.wire_value(messages.STREAMS, stream) for stream in streams],
            follow=follow,
            tail_lines=tail_lines,
        )
        if since is not None:
            request.since.CopyFrom(messages.timestamp(since))
        patience = _Patience()
        while True:
            call = self._stub.Stream(request)
            try:
                async for message in call:
                    if message.HasField("chunk"):
                        chunk = messages.chunk_from_message(message.chunk)
                        request.offset = chunk.end
                        patience.renew()
                        yield chunk
                    else:
                        yield messages.end_from_message(message.end)
                        return
                broken = JobError(ErrorCode.UNAVAILABLE, f"cannot reach {self._server}: the stream ended too early")
            except grpc.aio.AioRpcError as error:
                broken = failure(error, self._server)
            finally:
                call.cancel()
            await patience.pause_after(broken)
            if request.offset != offset:
                # The place to go on is known now; it must not be moved again.
                request.ClearField("since")
                request.ClearField("tail_lines")

    async def _reach(self) -> None:
        """Returns with an open connection, or raises why there is none."""
        state = self._channel.get_state(try_to_connect=True)
        while state in {grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING}:
            await self._channel.wait_for_state_change(state)
            state = self._channel.get_state(try_to_connect=True)
        if state is not grpc.ChannelConnectivity.READY:
            # Only a call that fails tells why the connection does.
            await self._call(self._stub.List, pb2.ListRequest(page_size=1), CONNECT_SECONDS)

    async def _call(self, method: Callable[..., Awaitable[_Answer]], request: object, seconds: float) -> _Answer:
        try:
            return await method(request, timeout=seconds)
        except grpc.aio.AioRpcError as error:
            raise failure(error, self._server) from error

    async def _repeat(self, attempt: Callable[[], Awaitable[_Answer]]) -> _Answer:
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
        if monotonic() - self._attempt_began > 2 * CONNECT_SECONDS and not _ran_out_of_time(error):
            # Connecting fails sooner than this, so there was a connection that waited and then broke.
            self.renew()
        if error.code is not ErrorCode.UNAVAILABLE or monotonic() + self._pause > self._since + self._limit:
            raise error
        await asyncio.sleep(self._pause)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        self._attempt_began = monotonic()


def _ran_out_of_time(error: JobError) -> bool:
    """Whether a call's own deadline ended it: the server is there but does not answer."""
    cause = error.__cause__
    return isinstance(cause, grpc.aio.AioRpcError) and cause.code() is grpc.StatusCode.DEADLINE_EXCEEDED
