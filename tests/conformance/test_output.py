"""What the output of a job promises, over every face."""

import asyncio
import hashlib
import math
from contextlib import AsyncExitStack, aclosing

import pytest
from conformance.faces import output, read, refused

from jobworker.client.model import Chunk, OutputStream
from jobworker.core.errors import ErrorCode
from jobworker.core.lifecycle import State
from jobworker.core.outcome import Exited
from jobworker.core.spec import JobSpec, Limits

WAIT = "until [ $went_on ]; do sleep 0.01; done; went_on="
#: Both streams in turns; each line is written when it is told that the one before is on record.
TALK = f"trap went_on=1 USR1; echo 1; {WAIT}; echo 22 >&2; {WAIT}; echo 333; {WAIT}; echo 4444 >&2"
SAID = b"1\n22\n333\n4444\n"


@pytest.fixture
async def talker(face, shell):
    """A job that has said all it had to say."""
    job_id = (await face.start(shell(TALK))).job.id
    said = b""
    async with aclosing(face.stream(job_id)) as events:
        async for event in events:
            if isinstance(event, Chunk):
                said += event.data
                if said != SAID:
                    await face.signal(job_id, 10)
    assert said == SAID
    return job_id


async def test_both_streams_come_in_their_order_with_place_and_time(face, talker):
    job = await face.status(talker)
    chunks, end = await read(face, talker)
    assert [(chunk.offset, chunk.stream.value, chunk.data) for chunk in chunks] == [
        (0, "stdout", b"1\n"),
        (2, "stderr", b"22\n"),
        (5, "stdout", b"333\n"),
        (9, "stderr", b"4444\n"),
    ]
    times = [chunk.time for chunk in chunks]
    assert times == sorted(times)
    assert job.created_at < times[0]
    assert times[-1] < job.ended_at + 1
    assert (end.state, end.outcome, end.offset) == (State.COMPLETED, Exited(0), len(SAID))
    assert (end.output.stdout_bytes, end.output.stderr_bytes, end.output.dropped_bytes) == (6, 8, 0)


#: What a reader asks for, and what it gets.
PARTS = {
    "everything": ({}, SAID),
    "from the middle of a line": ({"offset": 6}, SAID[6:]),
    "from the end": ({"offset": len(SAID)}, b""),
    "from behind the end": ({"offset": 10_000}, b""),
    "stdout": ({"streams": [OutputStream.STDOUT]}, b"1\n333\n"),
    "stderr": ({"streams": [OutputStream.STDERR]}, b"22\n4444\n"),
    "both by name": ({"streams": list(OutputStream)}, SAID),
    "stderr from an offset": ({"streams": [OutputStream.STDERR], "offset": 3}, b"2\n4444\n"),
    "the last two lines": ({"tail_lines": 2}, b"333\n4444\n"),
    "the last line of stdout": ({"tail_lines": 1, "streams": [OutputStream.STDOUT]}, b"333\n"),
    "no line": ({"tail_lines": 0}, b""),
    "more lines than there are": ({"tail_lines": 1000}, SAID),
    "since before it began": ({"since": 1.5}, SAID),
    "what is there now": ({"follow": False}, SAID),
}


@pytest.mark.parametrize("part", PARTS)
async def test_a_reader_gets_the_part_that_it_asked_for(face, talker, part):
    query, wanted = PARTS[part]
    assert await output(face, talker, **query) == wanted


async def test_since_begins_with_what_was_written_at_that_time(face, talker):
    chunks, _ = await read(face, talker)
    # Between two chunks: what times are rounded to on the way is far less.
    between = (chunks[1].time + chunks[2].time) / 2
    assert await output(face, talker, since=between) == b"333\n4444\n"


async def test_a_follower_sees_output_as_it_comes_and_the_end_when_it_is_there(face, shell):
    """O5: before, during and after the run the same bytes, and the final state with the end."""
    script = "trap 'echo three; exit 0' USR1; echo one; echo two; while :; do sleep 0.01; done"
    job_id = (await face.start(shell(script))).job.id
    async with aclosing(face.stream(job_id)) as events:
        seen = b""
        while not seen.endswith(b"two\n"):
            seen += (await anext(events)).data
        assert (await face.status(job_id)).state is State.RUNNING
        assert await output(face, job_id, follow=False) == seen  # during
        await face.signal(job_id, 10)
        rest = [event async for event in events]
    assert seen + b"".join(event.data for event in rest[:-1]) == b"one\ntwo\nthree\n"
    assert rest[-1].outcome == Exited(0)
    assert (await face.status(job_id)).state is State.COMPLETED
    assert await output(face, job_id) == b"one\ntwo\nthree\n"  # after


async def test_without_following_the_end_says_that_the_job_still_runs(face, shell):
    job_id = (await face.start(shell("echo ready; exec sleep 1000"))).job.id
    async with aclosing(face.stream(job_id)) as events:
        await anext(events)
    chunks, end = await read(face, job_id, follow=False)
    assert [chunk.data for chunk in chunks] == [b"ready\n"]
    assert (end.state, end.outcome, end.offset) == (State.RUNNING, None, 6)


async def test_a_job_that_says_nothing_has_an_end(face):
    """O11."""
    job_id = (await face.start(JobSpec(program="sleep", args=("0.2",)))).job.id
    chunks, end = await read(face, job_id)
    assert (chunks, end.outcome, end.offset) == ([], Exited(0), 0)


async def test_a_job_that_closes_its_output_goes_on(face, shell):
    """O6."""
    job_id = (await face.start(shell("echo out; exec >&- 2>&-; sleep 0.3; exit 6"))).job.id
    chunks, end = await read(face, job_id)
    assert ([chunk.data for chunk in chunks], end.outcome) == ([b"out\n"], Exited(6))


ODD = {
    "every byte": (
        r"""i=0; while [ $i -lt 256 ]; do printf "\\$(printf %03o $i)"; i=$((i+1)); done""",
        bytes(range(256)),
    ),
    "no newline": ("printf abc", b"abc"),
    "a NUL": (r"printf 'a\0b'", b"a\0b"),
    "one long line": ("head -c 5000000 /dev/zero | tr '\\0' x", b"x" * 5_000_000),
    "half a character": (r"printf '\342\230'; sleep 0.05; printf '\272'", "☺".encode()),
}


@pytest.mark.parametrize("what", ODD)
async def test_bytes_come_as_they_were_written(face, shell, what):
    """O2."""
    script, written = ODD[what]
    job_id = (await face.start(shell(script))).job.id
    assert await output(face, job_id) == written


async def test_early_late_and_resuming_readers_get_the_same_bytes(face, shell):
    """O1: random bytes on both streams, compared with what the job says of them."""
    script = (
        "head -c 3000000 /dev/urandom >/tmp/a; head -c 2000000 /dev/urandom >/tmp/b;"
        "cat /tmp/a & cat /tmp/b >&2; wait; cat /tmp/a /tmp/b | sha256sum | cut -d' ' -f1 >&2"
    )
    job_id = (await face.start(shell(script))).job.id

    async def resuming(step):
        """Leaves again and again, and comes back behind the last byte."""
        data, offset = [], 0
        while True:
            async with aclosing(face.stream(job_id, offset=offset)) as events:
                taken = 0
                async for event in events:
                    if not isinstance(event, Chunk):
                        return b"".join(data)
                    assert event.offset == offset
                    data.append(event.data)
                    offset = event.end
                    taken += len(event.data)
                    if taken > step:
                        break

    early = [output(face, job_id) for _ in range(3)] + [resuming(700_000), resuming(1_900_000)]
    copies = await asyncio.gather(*early)
    copies.append(await output(face, job_id))
    stdout = await output(face, job_id, streams=[OutputStream.STDOUT])
    stderr = await output(face, job_id, streams=[OutputStream.STDERR])
    assert {hashlib.sha256(copy).hexdigest() for copy in copies} == {hashlib.sha256(copies[0]).hexdigest()}
    assert len(copies[0]) == len(stdout) + len(stderr)
    assert hashlib.sha256(stdout + stderr[:2_000_000]).hexdigest() == stderr[2_000_000:].decode().strip()


async def test_numbered_lines_have_no_gap_at_the_seam_of_history_and_live(face, shell):
    """O1."""
    job_id = (await face.start(shell("seq 1 100000; sleep 0.1; seq 100001 200000"))).job.id
    lines = (await output(face, job_id)).split()
    assert [int(line) for line in lines] == list(range(1, 200_001))


async def test_small_writes_are_not_lost(face, shell):
    """O4."""
    job_id = (await face.start(shell("i=0; while [ $i -lt 300 ]; do printf x; i=$((i+1)); done"))).job.id
    copies = await asyncio.gather(*(output(face, job_id) for _ in range(5)))
    assert set(copies) == {b"x" * 300}


async def test_a_burst_before_the_exit_is_never_cut(face, shell):
    """O5."""
    job_id = (await face.start(shell("head -c 20000000 /dev/zero"))).job.id
    chunks, end = await read(face, job_id)
    assert sum(len(chunk.data) for chunk in chunks) == end.output.stdout_bytes == 20_000_000
    assert (await face.status(job_id)).state is State.COMPLETED


async def test_readers_that_stall_hold_up_neither_the_job_nor_others(face, shell):
    """O7."""
    job_id = (await face.start(shell("head -c 30000000 /dev/zero"))).job.id
    async with AsyncExitStack() as stack:
        stalled = [await stack.enter_async_context(aclosing(face.stream(job_id))) for _ in range(3)]
        for events in stalled:
            await anext(events)  # and no more
        assert (await face.wait(job_id)).outcome == Exited(0)
        assert len(await output(face, job_id)) == 30_000_000
        # Whoever reads on after all gets everything.
        late = [event async for event in stalled[0]]
    assert late[-1].offset == 30_000_000


async def test_what_is_beyond_the_limit_is_dropped_counted_and_told(face, shell):
    """O8."""
    job_id = (await face.start(shell("head -c 300000 /dev/zero", limits=Limits(output_bytes=100_000)))).job.id
    chunks, end = await read(face, job_id)
    assert sum(len(chunk.data) for chunk in chunks) == 100_000
    assert (end.outcome, end.output.stdout_bytes) == (Exited(0), 100_000)
    assert (end.output.dropped_bytes, end.output.dropped_reason) == (200_000, "limit")
    assert (await face.status(job_id)).output == end.output


@pytest.mark.parametrize(
    "place",
    [
        {"offset": -1},
        {"offset": 1 << 63},
        {"offset": 1 << 64},
        {"tail_lines": -1},
        {"tail_lines": 1 << 64},
        {"since": math.nan},
        {"since": math.inf},
        {"since": 1e300},
        {"since": 1e11},
    ],
    ids=str,
)
async def test_a_place_that_no_output_has_is_refused_by_its_name(face, talker, place):
    ((name, value),) = place.items()
    code, message = await refused(output(face, talker, **place))
    assert code is ErrorCode.INVALID_ARGUMENT
    assert message.startswith(f"{name}: {value} is not valid; allowed: ")


async def test_the_last_place_there_can_be_is_behind_every_output(face, talker):
    assert await output(face, talker, offset=(1 << 63) - 1) == b""
    assert await output(face, talker, tail_lines=(1 << 63) - 1) == SAID
