"""The connection to a jobworkerd over gRPC, proven by a certificate."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any, Self, TypeVar

import grpc

from jobworker.api.grpc._generated import jobworker_pb2 as pb2
from jobworker.api.grpc._generated.jobworker_pb2_grpc import JobWorkerStub
from jobworker.client import messages
from jobworker.client.channel import open_channel
from jobworker.client.connection import (
    ACT_SECONDS,
    ANSWER_SECONDS,
    CONNECT_SECONDS,
    ListQuery,
    OutputQuery,
    Page,
)
from jobworker.client.context import Context, Transport
from jobworker.client.grpc_failure import failure
from jobworker.client.model import Chunk, End, Identity, Job, Started
from jobworker.client.unreachable import ENDED_EARLY, unreachable
from jobworker.core.spec import JobSpec

_Answer = TypeVar("_Answer")


class GrpcConnection:
    """A Connection over one channel, which gRPC makes anew when it breaks."""

    def __init__(self, server: str, channel: grpc.aio.Channel) -> None:
        self._server = server
        self._channel = channel
        self._stub: Any = JobWorkerStub(channel)  # type: ignore[no-untyped-call]  # generated without types

    @classmethod
    @asynccontextmanager
    async def open(cls, context: Context) -> AsyncIterator[Self]:
        """A connection to the context's server, made on first use."""
        async with open_channel(context) as channel:
            yield cls(context.address(Transport.GRPC), channel)

    async def reach(self) -> None:
        """Returns with an open connection, or raises why there is none."""
        state = self._channel.get_state(try_to_connect=True)
        while state in {grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING}:
            await self._channel.wait_for_state_change(state)
            state = self._channel.get_state(try_to_connect=True)
        if state is not grpc.ChannelConnectivity.READY:
            # Only a call that fails tells why the connection does.
            await self._call(self._stub.List, pb2.ListRequest(page_size=1), CONNECT_SECONDS)

    async def start(self, spec: JobSpec, asked_limits: Collection[str], idempotency_key: str) -> Started:
        """Starts a job, or finds the one that the key has started before."""
        message = messages.spec_to_message(spec, asked_limits)
        request = pb2.StartRequest(spec=message, idempotency_key=idempotency_key)
        answer = await self._call(self._stub.Start, request, ACT_SECONDS)
        return Started(job=messages.job_from_message(answer.job), existed=answer.existed)

    async def stop(self, job_id: str, grace: float, signal: int) -> Job:
        """Ends a job; `signal` comes first when there is a `grace`."""
        request = pb2.StopRequest(id=job_id)
        if grace > 0:
            request.grace.CopyFrom(messages.duration(grace))
            request.signal = signal
        return messages.job_from_message((await self._call(self._stub.Stop, request, grace + ACT_SECONDS)).job)

    async def status(self, job_id: str) -> Job:
        """The job as it is now."""
        answer = await self._call(self._stub.Status, pb2.StatusRequest(id=job_id), ANSWER_SECONDS)
        return messages.job_from_message(answer.job)

    async def wait(self, job_id: str, seconds: float) -> Job:
        """The job after its end, or as it is after `seconds`."""
        request = pb2.WaitRequest(id=job_id, timeout=messages.duration(seconds))
        return messages.job_from_message((await self._call(self._stub.Wait, request, seconds + ANSWER_SECONDS)).job)

    async def remove(self, job_id: str, *, force: bool) -> None:
        """Deletes a job with its output."""
        await self._call(self._stub.Remove, pb2.RemoveRequest(id=job_id, force=force), ACT_SECONDS)

    async def signal(self, job_id: str, signal: int) -> None:
        """Sends `signal` to the job's main process."""
        await self._call(self._stub.Signal, pb2.SignalRequest(id=job_id, signal=signal), ANSWER_SECONDS)

    async def list(self, query: ListQuery) -> Page:
        """One page of jobs, newest first."""
        request = pb2.ListRequest(
            states=[messages.wire_value(messages.STATES, state) for state in query.states],
            labels=query.labels,
            owner=query.owner,
            id_prefix=query.id_prefix,
            name=query.name,
            page_size=query.page_size,
            page_token=query.page_token,
        )
        answer = await self._call(self._stub.List, request, ANSWER_SECONDS)
        return Page([messages.job_from_message(job) for job in answer.jobs], answer.next_page_token)

    async def who_am_i(self) -> Identity:
        """Whom the server takes this client for."""
        return messages.identity_from_message(await self._call(self._stub.WhoAmI, pb2.WhoAmIRequest(), ANSWER_SECONDS))

    async def stream(self, query: OutputQuery) -> AsyncGenerator[Chunk | End, None]:
        """The output that was asked for, then its End; UNAVAILABLE when the line is cut before that."""
        request = pb2.StreamRequest(
            id=query.job_id,
            offset=query.offset,
            streams=[messages.wire_value(messages.STREAMS, stream) for stream in query.streams],
            follow=query.follow,
            tail_lines=query.tail_lines,
        )
        if query.since is not None:
            request.since.CopyFrom(messages.timestamp(query.since))
        call = self._stub.Stream(request)
        try:
            async for message in call:
                if not message.HasField("chunk"):
                    yield messages.end_from_message(message.end)
                    return
                yield messages.chunk_from_message(message.chunk)
        except grpc.aio.AioRpcError as error:
            raise failure(error, self._server) from error
        finally:
            call.cancel()
        raise unreachable(self._server, ENDED_EARLY)

    async def _call(self, method: Callable[..., Awaitable[_Answer]], request: object, seconds: float) -> _Answer:
        try:
            return await method(request, timeout=seconds)
        except grpc.aio.AioRpcError as error:
            raise failure(error, self._server) from error
