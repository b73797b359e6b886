"""A jobworkerd whose jobs follow a script: real gRPC over mutual TLS and real HTTPS, no processes.

A job's program picks its script: `echo` writes its arguments and exits 0, every other
program what `scripts` says of it.
"""

import asyncio
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
from client.scripted_https import HttpsDoor

from jobworker.api.grpc._generated import jobworker_pb2 as pb2
from jobworker.api.grpc._generated.jobworker_pb2_grpc import JobWorkerServicer, add_JobWorkerServicer_to_server
from jobworker.client.context import Transport

STDOUT, STDERR = pb2.OUTPUT_STREAM_STDOUT, pb2.OUTPUT_STREAM_STDERR
EXITED_0 = pb2.Outcome(exited=0)


@dataclass
class Script:
    """What a program does: the pieces it writes, then how it ends; without an outcome it runs on."""

    pieces: list[tuple[int, bytes]] = field(default_factory=list)
    outcome: pb2.Outcome | None = field(default_factory=lambda: EXITED_0)
    dropped_bytes: int = 0


class ScriptedJobs(JobWorkerServicer):
    """The service over jobs that exist in memory only."""

    def __init__(self) -> None:
        self.scripts: dict[bytes, Script] = {}
        self.jobs: dict[str, pb2.Job] = {}
        self.pieces: dict[str, list[tuple[int, bytes]]] = {}
        self.ended: dict[str, asyncio.Event] = {}
        self.keys: dict[str, str] = {}
        self.requests: list[Any] = []
        self.called = threading.Event()  # at least once
        self.failures: list[tuple[grpc.StatusCode, str, str]] = []  # what the next calls answer instead
        self.lose_answers = 0  # that many stops act and then fail
        self.user = "alice"  # whom it takes its caller for

    async def _begin(self, request, context) -> None:
        self.requests.append(request)
        self.called.set()
        if self.failures:
            await self._fail(context, *self.failures.pop(0))

    async def _fail(self, context, status, code, message) -> None:
        await context.abort(status, message, (("jobworker-error", code),) if code else ())

    async def _job(self, request, context) -> pb2.Job:
        await self._begin(request, context)
        if request.id not in self.jobs:
            await self._fail(context, grpc.StatusCode.NOT_FOUND, "job_not_found", "job not found")
        return self.jobs[request.id]

    def add(self, program: bytes, args: list[bytes] = (), **spec: Any) -> pb2.Job:
        script = Script([(STDOUT, b" ".join(args) + b"\n")]) if program == b"echo" else self.scripts[program]
        job = pb2.Job(
            id=str(uuid.uuid4()),
            owner="alice",
            spec=pb2.JobSpec(program=program, args=args, **spec),
            state=pb2.JOB_STATE_RUNNING,
        )
        job.created_at.FromSeconds(int(time.time()) - 60)
        job.started_at.FromSeconds(int(time.time()) - 60)
        self.jobs[job.id], self.pieces[job.id] = job, script.pieces
        self.ended[job.id] = asyncio.Event()
        for stream, data in script.pieces:
            name = "stdout_bytes" if stream == STDOUT else "stderr_bytes"
            setattr(job.output, name, getattr(job.output, name) + len(data))
        job.output.dropped_bytes = script.dropped_bytes
        job.output.dropped_reason = "limit" if script.dropped_bytes else ""
        if script.outcome is not None:
            self.end(job, script.outcome)
        return job

    def end(self, job: pb2.Job, outcome: pb2.Outcome) -> None:
        job.outcome.CopyFrom(outcome)
        job.ended_at.FromSeconds(int(time.time()))
        if outcome.WhichOneof("why") == "exited":
            job.exit_code = outcome.exited
        job.state = {"stopped": pb2.JOB_STATE_STOPPED}.get(outcome.WhichOneof("why"), pb2.JOB_STATE_FAILED)
        if outcome == EXITED_0:
            job.state = pb2.JOB_STATE_COMPLETED
        self.ended[job.id].set()

    async def Start(self, request, context):  # noqa: N802 - named by the protocol
        await self._begin(request, context)
        if existing := self.keys.get(request.idempotency_key):
            return pb2.StartResponse(job=self.jobs[existing], existed=True)
        program = request.spec.program
        if program != b"echo" and program not in self.scripts:
            not_found = (grpc.StatusCode.NOT_FOUND, "program_not_found", "program not found: see what the server has")
            await self._fail(context, *not_found)
        job = self.add(program, list(request.spec.args), name=request.spec.name, labels=request.spec.labels)
        self.keys[request.idempotency_key] = job.id
        return pb2.StartResponse(job=job)

    async def Stop(self, request, context):  # noqa: N802
        job = await self._job(request, context)
        if job.HasField("outcome"):
            ended = (grpc.StatusCode.FAILED_PRECONDITION, "job_not_running", "cannot stop: the job has already ended")
            await self._fail(context, *ended)
        self.end(job, pb2.Outcome(stopped=pb2.Outcome.Stopped(by="alice", signal=9)))
        if self.lose_answers:
            self.lose_answers -= 1
            await self._fail(context, grpc.StatusCode.UNAVAILABLE, "unavailable", "shutting down")
        return pb2.StopResponse(job=job)

    async def Status(self, request, context):  # noqa: N802
        return pb2.StatusResponse(job=await self._job(request, context))

    async def Stream(self, request, context):  # noqa: N802
        job = await self._job(request, context)
        offset = 0
        pieces = self.pieces[job.id]
        if request.HasField("tail_lines"):
            pieces = pieces[len(pieces) - request.tail_lines :]
        for stream, piece in pieces:
            begin = max(0, request.offset - offset)
            if begin < len(piece) and (not request.streams or stream in request.streams):
                chunk = pb2.OutputChunk(offset=offset + begin, stream=stream, data=piece[begin:])
                chunk.time.FromSeconds(1_700_000_000)
                yield pb2.StreamResponse(chunk=chunk)
            offset += len(piece)
        if request.follow:
            await self.ended[job.id].wait()
        outcome = job.outcome if job.HasField("outcome") else None
        end = pb2.OutputEnd(state=job.state, outcome=outcome, output=job.output, offset=offset)
        yield pb2.StreamResponse(end=end)

    async def WhoAmI(self, request, context):  # noqa: N802
        await self._begin(request, context)
        answer = pb2.WhoAmIResponse(
            user=self.user, role="user", scopes=["jobs:read"], credential="certificate serial 1"
        )
        answer.expires_at.FromSeconds(4_000_000_000)
        return answer

    async def List(self, request, context):  # noqa: N802
        await self._begin(request, context)
        found = [
            job
            for job in reversed(self.jobs.values())
            if job.id.startswith(request.id_prefix)
            and (not request.states or job.state in request.states)
            and (not request.name or job.spec.name == request.name)
            and all(job.spec.labels.get(key) == value for key, value in request.labels.items())
        ]
        begin = int(request.page_token or 0)
        end = begin + (request.page_size or 100)
        return pb2.ListResponse(jobs=found[begin:end], next_page_token=str(end) if end < len(found) else "")

    async def Wait(self, request, context):  # noqa: N802
        job = await self._job(request, context)
        try:
            async with asyncio.timeout(request.timeout.ToNanoseconds() / 1e9 if request.HasField("timeout") else None):
                await self.ended[job.id].wait()
        except TimeoutError:
            return pb2.WaitResponse(job=job)
        return pb2.WaitResponse(job=job)

    async def Remove(self, request, context):  # noqa: N802
        job = await self._job(request, context)
        if not job.HasField("outcome") and not request.force:
            running = (grpc.StatusCode.FAILED_PRECONDITION, "job_running", "cannot remove: the job still runs")
            await self._fail(context, *running)
        del self.jobs[job.id]
        return pb2.RemoveResponse()

    async def Signal(self, request, context):  # noqa: N802
        job = await self._job(request, context)
        self.end(job, pb2.Outcome(signaled=request.signal))
        return pb2.SignalResponse()


class ScriptedServer:
    """A ScriptedJobs behind TLS on a free port of 127.0.0.1, in a thread of its own."""

    def __init__(self, authority) -> None:
        self._authority = authority
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self.jobs = ScriptedJobs()
        self.https = HttpsDoor(self.jobs)
        self.ports: dict[Transport, int] = {}

    def __enter__(self):
        self._thread.start()
        self.run(self._serve)
        return self

    def __exit__(self, *_):
        self.run(lambda: self._server.stop(0))
        self.run(self.https.close)
        self.run(_finish_all)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def address(self, transport: Transport) -> str:
        return f"127.0.0.1:{self.ports[transport]}"

    def run(self, work: Callable[[], Any]) -> Any:
        """The result of the coroutine that `work` makes, in the server's thread."""
        return asyncio.run_coroutine_threadsafe(_awaited(work), self._loop).result(30)

    def add(self, program: bytes, args: list[bytes] = (), **spec: Any) -> str:
        """The id of a new job."""

        async def add() -> str:
            return self.jobs.add(program, list(args), **spec).id

        return self.run(add)

    def end(self, job_id: str, outcome: pb2.Outcome = EXITED_0) -> None:
        async def end() -> None:
            self.jobs.end(self.jobs.jobs[job_id], outcome)

        self.run(end)

    def last(self, kind: type) -> Any:
        """The newest request of this type."""
        return [request for request in self.jobs.requests if isinstance(request, kind)][-1]

    async def _serve(self) -> None:
        self._server = grpc.aio.server()
        add_JobWorkerServicer_to_server(self.jobs, self._server)
        credentials = grpc.ssl_server_credentials(
            [self._authority.server()],
            root_certificates=self._authority.pem,
            require_client_auth=True,
        )
        self.ports[Transport.GRPC] = self._server.add_secure_port("127.0.0.1:0", credentials)
        await self._server.start()
        self.ports[Transport.HTTPS] = await self.https.serve(self._authority.server())


async def _finish_all() -> None:
    """Ends what is still under way, such as a handshake that its client has left, so that its socket is closed."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.sleep(0)


async def _awaited(work: Callable[[], Any]) -> Any:
    return await work()


class Wire:
    """A TCP relay to a server that can be cut, as a bad network does.

    With `cut_after`, each of the first connections breaks once that many bytes have come from the server.
    """

    def __init__(self, port: int, cut_after: list[int] = ()) -> None:
        self._target = port
        self._budgets = list(cut_after)
        self._writers: list[asyncio.StreamWriter] = []
        self._relays: list[asyncio.Task[None]] = []
        self.connections = 0

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self.close()
        for relay in self._relays:
            relay.cancel()
        await asyncio.gather(*self._relays, return_exceptions=True)
        await asyncio.sleep(0)  # in which aborted transports close their sockets

    def close(self) -> None:
        self._server.close()
        self.cut()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _relay(self, near_reader, near_writer) -> None:
        self._relays.append(asyncio.current_task())
        self._writers.append(near_writer)
        self.connections += 1
        budget = self._budgets.pop(0) if self._budgets else None
        far_writer = None
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.append(far_writer)
            async with asyncio.TaskGroup() as both:
                both.create_task(_pump(near_reader, far_writer, None))
                both.create_task(_pump(far_reader, near_writer, budget))
        except* (ConnectionError, _CutError):
            pass
        finally:
            near_writer.transport.abort()
            if far_writer is not None:
                far_writer.transport.abort()


class _CutError(Exception):
    pass


async def _pump(reader, writer, budget) -> None:
    while data := await reader.read(16384):
        if budget is not None:
            budget -= len(data)
            if budget < 0:
                raise _CutError
        writer.write(data)
        await writer.drain()
    raise _CutError
