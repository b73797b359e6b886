"""The client against a real server, over each transport."""

import asyncio
import hashlib
import random
import socket
from contextlib import aclosing
from time import monotonic

import grpc
import pytest
from client.scripted_server import STDERR, STDOUT, Script, Wire
from client.throwaway_ca import Authority

from jobworker.api.grpc._generated import jobworker_pb2 as pb2
from jobworker.client.job_client import JobClient
from jobworker.client.model import Chunk, End, OutputStream
from jobworker.core.errors import ErrorCode, JobError
from jobworker.core.lifecycle import State
from jobworker.core.outcome import Exited, Stopped
from jobworker.core.spec import JobSpec

MISSING = "00000000-0000-4000-8000-000000000000"


def with_client(context, work):
    async def connected():
        async with JobClient.connect(context) as client:
            return await work(client)

    return asyncio.run(connected())


def refusal(context, work):
    with pytest.raises(JobError) as refused:
        with_client(context, work)
    return refused.value


async def read(client, job_id, **request):
    return [event async for event in client.stream(job_id, **request)]


def test_a_job_is_started_watched_and_removed(server, context):
    async def life(client):
        started = await client.start(JobSpec(program="echo", args=("hello",)))
        assert not started.existed
        chunk, end = await read(client, started.job.id)
        assert (chunk.offset, chunk.stream, chunk.data) == (0, OutputStream.STDOUT, b"hello\n")
        assert (end.state, end.outcome, end.offset) == (State.COMPLETED, Exited(0), 6)
        assert (await client.wait(started.job.id)).state is State.COMPLETED
        assert (await client.status(started.job.id)).output.stdout_bytes == 6
        await client.remove(started.job.id)
        with pytest.raises(JobError):
            await client.status(started.job.id)

    with_client(context, life)


def test_a_running_job_is_stopped(server, context):
    server.jobs.scripts[b"sleep"] = Script(outcome=None)
    job_id = server.add(b"sleep")
    stopped = with_client(context, lambda client: client.stop(job_id, grace=1.5, signal=2))
    assert (stopped.state, stopped.outcome) == (State.STOPPED, Stopped("alice", 9))
    request = server.last(pb2.StopRequest)
    assert (request.grace.ToNanoseconds(), request.signal) == (1_500_000_000, 2)


def test_the_exact_code_comes_from_the_server(context):
    error = refusal(context, lambda client: client.status(MISSING))
    assert (error.code, error.message) == (ErrorCode.JOB_NOT_FOUND, "job not found")


def test_a_start_that_has_to_be_repeated_starts_one_job(server, context):
    server.jobs.failures = [(grpc.StatusCode.UNAVAILABLE, "unavailable", "not now")] * 2
    with_client(context, lambda client: client.start(JobSpec(program="echo")))
    starts = [request for request in server.jobs.requests if isinstance(request, pb2.StartRequest)]
    assert len(starts) == 3
    assert len({request.idempotency_key for request in starts} - {""}) == 1


def test_the_same_key_is_the_same_job(context):
    async def twice(client):
        first = await client.start(JobSpec(program="echo"), idempotency_key="k")
        second = await client.start(JobSpec(program="echo"), idempotency_key="k")
        return first, second

    first, second = with_client(context, twice)
    assert first.job.id == second.job.id
    assert (first.existed, second.existed) == (False, True)


def test_a_refusal_is_not_repeated(server, context):
    refusal(context, lambda client: client.start(JobSpec(program="missing")))
    assert len(server.jobs.requests) == 1


def test_a_signal_is_sent_at_most_once(server, context):
    server.jobs.scripts[b"sleep"] = Script(outcome=None)
    job_id = server.add(b"sleep")
    server.jobs.failures = [(grpc.StatusCode.UNAVAILABLE, "unavailable", "not now")]
    assert refusal(context, lambda client: client.signal(job_id, 1)).code is ErrorCode.UNAVAILABLE
    assert len(server.jobs.requests) == 1


def test_a_stop_whose_answer_was_lost_succeeds(server, context):
    server.jobs.scripts[b"sleep"] = Script(outcome=None)
    server.jobs.lose_answers = 1
    job_id = server.add(b"sleep")
    assert with_client(context, lambda client: client.stop(job_id)).state is State.STOPPED


def test_stopping_an_ended_job_is_told(server, context):
    job_id = server.add(b"echo")
    assert refusal(context, lambda client: client.stop(job_id)).code is ErrorCode.JOB_NOT_RUNNING


def test_a_wait_with_a_timeout_returns_the_running_job(server, context):
    server.jobs.scripts[b"sleep"] = Script(outcome=None)
    job_id = server.add(b"sleep")
    assert with_client(context, lambda client: client.wait(job_id, timeout=0.05)).state is State.RUNNING


def test_a_wait_lasts_until_the_end(server, context):
    server.jobs.scripts[b"sleep"] = Script(outcome=None)
    job_id = server.add(b"sleep")

    async def wait(client):
        waiting = asyncio.create_task(client.wait(job_id))
        assert await asyncio.to_thread(server.jobs.called.wait, 10)
        await asyncio.to_thread(server.end, job_id)
        return await waiting

    assert with_client(context, wait).outcome == Exited(0)


def test_a_list_comes_in_pages(server, context):
    ids = [server.add(b"echo", labels={"n": str(n)}) for n in range(5)]

    async def pages(client):
        return [[job.id for job in page] async for page in client.list(page_size=2)]

    newest_first = ids[::-1]
    assert with_client(context, pages) == [newest_first[:2], newest_first[2:4], newest_first[4:]]


def test_a_list_asks_for_what_it_is_told_to(server, context):
    async def pages(client):
        query = {"states": [State.FAILED], "labels": {"a": "b"}, "owner": "bob", "id_prefix": "3f", "name": "n"}
        return [page async for page in client.list(**query)]

    assert with_client(context, pages) == [[]]
    wanted = pb2.ListRequest(states=[pb2.JOB_STATE_FAILED], labels={"a": "b"}, owner="bob", id_prefix="3f", name="n")
    assert server.last(pb2.ListRequest) == wanted


def test_a_stream_begins_where_it_is_asked_to(server, context):
    server.jobs.scripts[b"p"] = Script([(STDOUT, b"abc"), (STDERR, b"def")])
    job_id = server.add(b"p")
    events = with_client(context, lambda client: read(client, job_id, offset=4, since=1.5, tail_lines=9))
    assert [event.data for event in events[:-1]] == [b"ef"]
    request = server.last(pb2.StreamRequest)
    assert (request.follow, request.tail_lines, request.since.ToNanoseconds()) == (True, 9, 1_500_000_000)
    only = with_client(context, lambda client: read(client, job_id, streams=[OutputStream.STDERR], follow=False))
    assert [event.data for event in only[:-1]] == [b"def"]
    assert not server.last(pb2.StreamRequest).follow


def test_a_cut_stream_goes_on_without_losing_or_repeating_a_byte(server, context, transport, context_to):  # O1
    source = random.Random(1)
    pieces = [(source.choice([STDOUT, STDERR]), source.randbytes(source.randrange(1, 9000))) for _ in range(300)]
    server.jobs.scripts[b"p"] = Script(pieces)
    job_id = server.add(b"p")

    async def through_a_bad_network():
        async with (
            Wire(server.ports[transport], cut_after=[100_000, 300_000, 5_000, 400_000]) as wire,
            JobClient.connect(context_to(wire.port)) as client,
        ):
            return await read(client, job_id), wire.connections

    events, connections = asyncio.run(through_a_bad_network())
    assert connections >= 4
    assert isinstance(events[-1], End)
    chunks = events[:-1]
    offset = 0
    for chunk in chunks:
        assert isinstance(chunk, Chunk)
        assert chunk.offset == offset
        offset = chunk.end
    written = hashlib.sha256(b"".join(data for _, data in pieces))
    assert hashlib.sha256(b"".join(chunk.data for chunk in chunks)).digest() == written.digest()


def test_a_resumed_tail_does_not_jump_ahead(server, context, transport, context_to):
    server.jobs.scripts[b"p"] = Script([(STDOUT, bytes([n]) * 5000) for n in range(100)], outcome=None)
    job_id = server.add(b"p")

    async def cut_once_something_came():
        async with Wire(server.ports[transport]) as wire:
            data = []
            async with JobClient.connect(context_to(wire.port)) as client:
                async for event in client.stream(job_id, tail_lines=100):
                    if isinstance(event, Chunk):
                        data.append(event.data)
                    if len(data) == 50 and wire.connections == 1:
                        wire.cut()
                        await asyncio.to_thread(server.end, job_id)
            return data

    assert b"".join(asyncio.run(cut_once_something_came())) == b"".join(bytes([n]) * 5000 for n in range(100))
    assert not server.last(pb2.StreamRequest).HasField("tail_lines")


def test_a_stream_gives_up_when_the_server_stays_away(server, context, transport, context_to, monkeypatch):
    monkeypatch.setattr("jobworker.client.job_client._RESUME_SECONDS", 0.4)
    server.jobs.scripts[b"p"] = Script([(STDOUT, b"x")], outcome=None)
    job_id = server.add(b"p")

    async def cut_for_good():
        async with (
            Wire(server.ports[transport]) as wire,
            JobClient.connect(context_to(wire.port)) as client,
            aclosing(client.stream(job_id)) as events,
        ):
            assert (await anext(events)).data == b"x"
            wire.close()
            await anext(events)

    with pytest.raises(JobError, match=r"cannot reach 127\.0\.0\.1") as lost:
        asyncio.run(cut_for_good())
    assert lost.value.code is ErrorCode.UNAVAILABLE


def test_a_server_that_is_down_is_named_within_seconds(context_to):  # Q2
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        before = monotonic()
        error = refusal(context_to(port), lambda client: client.status(MISSING))
    assert error.code is ErrorCode.UNAVAILABLE
    assert error.message.startswith(f"cannot reach 127.0.0.1:{port}: connection refused")
    assert monotonic() - before < 30


def test_a_server_that_accepts_and_says_nothing_is_named_within_seconds(context_to):  # Q2
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        before = monotonic()
        error = refusal(context_to(port), lambda client: client.status(MISSING))
    assert error.message == f"cannot reach 127.0.0.1:{port}: no answer in time; check the address and the network"
    assert monotonic() - before < 30


def test_a_server_of_a_foreign_authority_is_not_talked_to(server, transport, context, context_to):  # A1
    assert with_client(context, lambda client: client.start(JobSpec(program="echo"))).job.owner == "alice"
    foreign = context_to(server.ports[transport], by=Authority())
    error = refusal(foreign, lambda client: client.start(JobSpec(program="echo")))
    assert error.message.endswith("its certificate is not from the context's CA")
