"""Output: everybody gets every byte, live and later, however fast, slow, odd or much it is."""

import asyncio
import contextlib
import hashlib
import itertools
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from host import eventually, job_processes, monitor_of, needs_root, output_of, process_status, run_job, start_talking

from jobworker import JobSpec, State, Worker
from jobworker.core.errors import ErrorCode, JobError
from jobworker.core.job_id import new_job_id
from jobworker.core.outcome import Exited, OutputLimit
from jobworker.core.spec import Limits, MiB, OnOutputLimit
from jobworker.job import JobStatus
from jobworker.runtime.output_log import BOTH, Chunk, Stream

pytestmark = needs_root

PROGRAMS = Path(__file__).parents[1] / "programs"
STDOUT, STDERR = frozenset({Stream.STDOUT}), frozenset({Stream.STDERR})


def shell(script: str, *args: str, **values: Any) -> JobSpec:
    return JobSpec(program="sh", args=("-c", script, "sh", *args), **values)


@pytest.fixture
def files() -> Iterator[Path]:
    """A directory whose files jobs can read."""
    place = Path(tempfile.mkdtemp(prefix="jobworker-files-", dir="/var/tmp"))
    place.chmod(0o755)
    try:
        yield place
    finally:
        shutil.rmtree(place)


class Seen:
    """What one reader got, and that it was in order."""

    def __init__(self) -> None:
        self.digests = {stream: hashlib.sha256() for stream in Stream}
        self.all = hashlib.sha256()
        self.size = 0

    def take(self, chunk: Chunk) -> None:
        assert chunk.offset == self.size, "a gap, a repeat or a disorder"
        self.size = chunk.end
        self.all.update(chunk.data)
        self.digests[chunk.stream].update(chunk.data)

    async def all_of(self, chunks: AsyncIterator[Chunk]) -> "Seen":
        async for chunk in chunks:
            self.take(chunk)
        return self


async def reconnecting(worker: Worker, job_id: str, seed: int) -> Seen:
    """Reads a random number of chunks, goes away, and comes back with the offset."""
    chance = random.Random(seed)
    seen = Seen()
    while True:
        chunks = worker.output(job_id, offset=seen.size, max_chunk=chance.randint(1000, 100_000))
        left = chance.randint(1, 50)
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                seen.take(chunk)
                left -= 1
                if not left:
                    break
            else:
                return seen


async def check_every_reader_sees_the_same(worker: Worker, files: Path, size: int) -> None:
    """Two files of random bytes, one on each stream at the same time; early, late and restless readers."""
    contents = {stream: os.urandom(size) for stream in Stream}
    for stream, content in contents.items():
        (files / stream.name).write_bytes(content)
    script = 'cat "$1/STDOUT" & cat "$1/STDERR" >&2; wait'
    job = await worker.start(shell(script, str(files)))
    early = [asyncio.create_task(Seen().all_of(worker.output(job.id))) for _ in range(10)]
    restless = [asyncio.create_task(reconnecting(worker, job.id, seed)) for seed in range(5)]
    await worker.output(job.id).__anext__()
    late = [asyncio.create_task(Seen().all_of(worker.output(job.id))) for _ in range(4)]
    seen = [await task for task in (*early, *restless, *late)]
    seen.append(await Seen().all_of(worker.output(job.id)))  # after the end
    for reader in seen:
        for stream, content in contents.items():
            assert reader.digests[stream].digest() == hashlib.sha256(content).digest()
        assert reader.all.digest() == seen[0].all.digest()
    for stream, wanted in ((Stream.STDOUT, STDOUT), (Stream.STDERR, STDERR)):
        digest = hashlib.sha256()
        async for chunk in worker.output(job.id, streams=wanted):
            assert chunk.stream is stream
            digest.update(chunk.data)
        assert digest.digest() == hashlib.sha256(contents[stream]).digest()
    ended = await worker.status(job.id)
    assert (ended.output.stdout_bytes, ended.output.stderr_bytes, ended.output.dropped_bytes) == (size, size, 0)


async def test_twenty_readers_early_late_and_reconnecting_get_the_same_bytes(worker: Worker, files: Path) -> None:
    """O1."""
    await check_every_reader_sees_the_same(worker, files, 8 * MiB)


@pytest.mark.soak
async def test_twenty_readers_get_the_same_64_mib(worker: Worker, files: Path) -> None:
    """O1."""
    await check_every_reader_sees_the_same(worker, files, 32 * MiB)


async def test_a_million_numbered_lines_arrive_without_gap_repeat_or_disorder(worker: Worker) -> None:
    """O1: for who was there at the start, who comes in the middle, and who comes at the end."""
    expected = hashlib.sha256(b"".join(b"%d\n" % number for number in range(1, 1_000_001))).digest()
    job = await worker.start(shell("seq 1 300000; sleep 0.2; seq 300001 1000000"))
    first = asyncio.create_task(Seen().all_of(worker.output(job.id)))
    await worker.output(job.id, offset=2_000_000).__anext__()  # at the pause: history ends, live begins
    middle = await Seen().all_of(worker.output(job.id))
    last = await Seen().all_of(worker.output(job.id))
    for reader in (await first, middle, last):
        assert reader.all.digest() == expected


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("printf 'a\\000b'", b"a\0b"),
        ('for i in $(seq 128 255); do printf "\\\\$(printf %o $i)"; done', bytes(range(128, 256))),
        ("printf 'no newline'", b"no newline"),
        (":", b""),
        ("printf '\\n\\r\\n\\033[31m'", b"\n\r\n\x1b[31m"),
    ],
    ids=["nul", "high bytes", "no newline", "nothing", "control characters"],
)
async def test_bytes_come_as_they_were_written(worker: Worker, script: str, expected: bytes) -> None:
    """O2."""
    job, output = await run_job(worker, shell(script))
    assert output == expected
    assert job.state is State.COMPLETED
    assert job.output.stdout_bytes == len(expected)


async def check_long_line(worker: Worker, size: int) -> None:
    job = await worker.start(shell(f"head -c {size} /dev/zero", limits=Limits(output_bytes=2 * size)))
    seen = await Seen().all_of(worker.output(job.id))
    digest = hashlib.sha256()
    for _ in range(size // MiB):
        digest.update(bytes(MiB))
    assert (seen.size, seen.all.digest()) == (size, digest.digest())


async def test_a_line_of_64_mib_arrives_whole(worker: Worker) -> None:
    """O2."""
    await check_long_line(worker, 64 * MiB)


@pytest.mark.soak
async def test_a_line_of_1_gib_arrives_whole(worker: Worker) -> None:
    """O2."""
    await check_long_line(worker, 1024 * MiB)


async def test_a_million_one_byte_writes_arrive_and_are_collected_on_disk(
    worker: Worker, programs: Path, state: Path
) -> None:
    """O2: a million records of 24 bytes would be an index of 24 MB for 1 MB of output."""
    job = await worker.start(JobSpec(program=str(programs / "drip"), args=("1000000",)))
    output = await output_of(worker, job.id)
    assert output == (b"abcdefghijklmnopqrstuvwxyz" * 38462)[:1_000_000]
    assert (state / "jobs" / job.id / "output.idx").stat().st_size < 1_000_000


async def test_small_writes_with_pauses_are_not_held_back(worker: Worker) -> None:
    """O3: collecting is for floods only; a prompt without a newline is seen while the program waits."""
    job = await worker.start(shell("printf 'login: '; exec sleep 1000"))
    async with asyncio.timeout(60):
        chunk = await worker.output(job.id).__anext__()
    assert chunk.data == b"login: "


def switches(pid: int) -> int:
    """How often the threads of a process have gone to sleep by themselves: each wake-up ends one."""
    tasks = [int(task) for task in os.listdir(f"/proc/{pid}/task")]
    return sum(int(process_status(task)["voluntary_ctxt_switches"]) for task in tasks)


def cpu_ticks(pid: int) -> int:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(words[11]) + int(words[12])


async def at_rest(pids: tuple[int, ...], seconds: float) -> list[tuple[int, int]]:
    """What the processes have done, once they have done nothing more for so long; whoever polls never rests.

    Who says that it waits is still on the way to it, however long that takes on a busy machine.
    """

    def activity() -> list[tuple[int, int]]:
        return [(switches(pid), cpu_ticks(pid)) for pid in pids]

    before = activity()
    async with asyncio.timeout(60):
        while True:
            await asyncio.sleep(seconds)
            now = activity()
            if now == before:
                return now
            before = now


async def test_idle_followers_wake_nobody_up(state: Path) -> None:
    """O3: neither the monitor nor the process with the followers does anything while the job is silent."""
    command = (sys.executable, str(PROGRAMS / "idle_followers.py"), str(state), "100")
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    try:
        assert process.stdout is not None
        job_id = (await process.stdout.readline()).decode().strip()
        watched = (process.pid, monitor_of(job_id))
        before = await at_rest(watched, seconds=3)
        for pid in job_processes(state, job_id):
            os.kill(pid, signal.SIGHUP)
        # The control: what wakes them is seen.
        await eventually(lambda: all(switches(pid) > then for pid, (then, _) in zip(watched, before, strict=True)))
    finally:
        await process.communicate(b"")  # the end of its input ends the job and then itself
    assert process.returncode == 0


async def test_fifty_readers_of_a_dripping_job_see_every_byte(worker: Worker, programs: Path) -> None:
    """O4."""
    job = await worker.start(JobSpec(program=str(programs / "drip"), args=("600", "5000", "1")))
    readers = [asyncio.create_task(Seen().all_of(worker.output(job.id))) for _ in range(25)]
    await worker.output(job.id, offset=300).__anext__()
    readers += [asyncio.create_task(Seen().all_of(worker.output(job.id))) for _ in range(25)]
    expected = (b"abcdefghijklmnopqrstuvwxyz" * 24)[:600]
    for stream, wanted in ((Stream.STDOUT, expected[0::2]), (Stream.STDERR, expected[1::2])):
        for reader in readers:
            assert (await reader).digests[stream].digest() == hashlib.sha256(wanted).digest()


async def check_burst_then_exit(worker: Worker, size: int, rounds: int) -> None:
    for _ in range(rounds):
        job = await worker.start(shell(f"head -c {size} /dev/zero; exit 3"))
        received = 0
        async for chunk in worker.output(job.id):
            received += len(chunk.data)
        status = await worker.status(job.id)
        assert received == size
        assert status.state is State.FAILED, "the state is final when the stream ends"
        assert status.ending is not None
        assert status.ending.outcome == Exited(3)
        assert status.output.stdout_bytes == size
        await worker.remove(job.id)


async def test_a_burst_right_before_the_exit_is_never_cut(worker: Worker) -> None:
    """O5."""
    await check_burst_then_exit(worker, 100_000_000, 3)
    await check_burst_then_exit(worker, 200_000, 40)


@pytest.mark.soak
async def test_a_hundred_bursts_of_100_mb_are_never_cut(worker: Worker) -> None:
    """O5."""
    await check_burst_then_exit(worker, 100_000_000, 100)


async def test_a_job_that_closes_its_output_lives_on_and_nobody_spins(worker: Worker, state: Path) -> None:
    """O6."""
    job = await start_talking(worker, shell("echo early; exec >&- 2>&-; exec sleep 1000"))
    follower = asyncio.create_task(output_of(worker, job.id))
    monitor = monitor_of(job.id)
    await eventually(lambda: not {"pipe"} & {link.split(":")[0] for link in links(job_processes(state, job.id))})
    await at_rest((monitor,), seconds=2)
    assert not follower.done(), "no early end"
    assert (await worker.status(job.id)).state is State.RUNNING
    await worker.stop(job.id)
    assert await follower == b"early\n"


def links(pids: set[int]) -> list[str]:
    found = []
    for pid in pids:
        with contextlib.suppress(FileNotFoundError):
            found += [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    return found


def resident() -> int:
    return int(process_status(os.getpid())["VmRSS"].split()[0]) * 1024


async def test_stalled_and_slow_readers_cost_neither_job_nor_other_readers_nor_memory(worker: Worker) -> None:
    """O7."""
    size = 256 * MiB
    warm_up = await worker.start(shell(f"head -c {64 * MiB} /dev/zero"))
    await Seen().all_of(worker.output(warm_up.id))
    before = resident()
    job = await worker.start(shell(f"head -c {size} /dev/zero"))
    stalled = worker.output(job.id)
    await stalled.__anext__()
    slow_bytes = 0

    async def read_slowly() -> None:
        nonlocal slow_bytes
        async for chunk in worker.output(job.id, max_chunk=1):
            slow_bytes += len(chunk.data)
            await asyncio.sleep(0.05)

    slow = asyncio.create_task(read_slowly())
    quick = [asyncio.create_task(Seen().all_of(worker.output(job.id))) for _ in range(3)]
    peak = before
    while not all(task.done() for task in quick):
        peak = max(peak, resident())
        await asyncio.sleep(0.05)
    assert [task.result().size for task in quick] == [size] * 3
    assert (await worker.wait(job.id)).state is State.COMPLETED
    assert not slow.done()
    assert 0 < slow_bytes < 10_000
    assert peak - before < 32 * MiB
    slow.cancel()
    async with contextlib.aclosing(stalled):
        assert (await stalled.__anext__()).offset > 0, "it goes on where it stood, after the end of the job"


@pytest.mark.parametrize("limit", [0, 1, 100_000, 1 * MiB])
async def test_beyond_the_limit_output_is_dropped_counted_and_never_blocks(worker: Worker, limit: int) -> None:
    """O8: nobody reads while it writes."""
    written = 5_000_000
    spec = shell(f"head -c {written} /dev/zero; touch /tmp/on; exec sleep 1000", limits=Limits(output_bytes=limit))
    job = await worker.start(spec)

    async def totals() -> tuple[int, int, str | None]:
        told = (await worker.status(job.id)).output
        return told.kept_bytes, told.dropped_bytes, told.dropped_reason

    expected = (limit, written - limit, "limit")
    async with asyncio.timeout(60):
        while await totals() != expected:  # noqa: ASYNC110 - only asking tells
            await asyncio.sleep(0.01)
    assert (await worker.status(job.id)).state is State.RUNNING
    await worker.stop(job.id)
    assert await totals() == expected
    assert len(await output_of(worker, job.id)) == limit


async def test_output_of_exactly_the_limit_loses_nothing(worker: Worker) -> None:
    """O8."""
    job, output = await run_job(worker, shell("head -c 100000 /dev/zero", limits=Limits(output_bytes=100_000)))
    assert len(output) == 100_000
    assert (job.output.dropped_bytes, job.output.dropped_reason) == (0, None)


async def test_a_job_that_asked_for_it_ends_at_its_output_limit(worker: Worker) -> None:
    """O8, P8."""
    limits = Limits(output_bytes=MiB, on_output_limit=OnOutputLimit.KILL)
    job, output = await run_job(worker, shell("cat /dev/zero", limits=limits))
    assert job.ending is not None
    assert job.ending.outcome == OutputLimit()
    assert job.state is State.FAILED
    assert len(output) == MiB
    assert job.output.dropped_bytes > 0
    control, _ = await run_job(worker, shell(f"head -c {MiB} /dev/zero", limits=limits))
    assert control.state is State.COMPLETED, "below the limit it does not"


async def test_on_a_full_disk_output_is_a_prefix_and_the_end_is_on_record(tmp_path: Path) -> None:
    """O10, R2: told, never silently short; the server goes on, and new jobs start when there is room again."""
    place = Path(tempfile.mkdtemp(prefix="jobworker-disk-", dir="/var/tmp"))
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(PROGRAMS / "full_disk.py"), str(place), stdout=subprocess.PIPE
        )
        answer, _ = await process.communicate()
    finally:
        place.rmdir()
    assert process.returncode == 0
    report = json.loads(answer)
    totals = report["totals"]
    assert report["outcome"] == {"kind": "exited", "code": 0}
    assert report["state"] == "COMPLETED"
    assert totals["dropped_reason"] == "ENOSPC"
    assert totals["stdout_bytes"] == report["read"]
    assert totals["stdout_bytes"] + totals["dropped_bytes"] == report["written"]
    assert report["is_prefix"]
    assert 0 < report["read"] < MiB
    assert report["refused"][0] == "unavailable"
    assert "No space left" in report["refused"][1]
    assert report["jobs_while_full"] == 1
    assert report["recovered"] == "again\n"


async def test_following_a_pending_job_waits_for_its_output(worker: Worker) -> None:
    """O11."""
    job_id = new_job_id()
    start = asyncio.create_task(worker.start(shell("echo out"), job_id=job_id))
    await asyncio.sleep(0)
    assert [job.state for job in worker.list()] in ([State.PENDING], [])
    assert (await worker.status(job_id)).state is State.PENDING
    assert await output_of(worker, job_id) == b"out\n"
    await start


async def test_following_a_job_that_never_starts_is_the_reason_why(worker: Worker) -> None:
    """O11."""
    job_id = new_job_id()
    start = asyncio.create_task(worker.start(JobSpec(program="/no/such/program"), job_id=job_id))
    await asyncio.sleep(0)
    with pytest.raises(JobError) as followed:
        await output_of(worker, job_id)
    with pytest.raises(JobError) as started:
        await start
    assert followed.value.code is started.value.code is ErrorCode.PROGRAM_NOT_FOUND


@pytest.mark.parametrize("job_id", [new_job_id(), "", "../../etc", "0" * 36])
async def test_output_of_an_unknown_job_is_an_error(worker: Worker, job_id: str) -> None:
    """O11, A6."""
    with pytest.raises(JobError) as error:
        await output_of(worker, job_id)
    assert error.value.code is ErrorCode.JOB_NOT_FOUND


async def test_the_output_of_a_silent_job_ends_with_the_job(worker: Worker) -> None:
    """O11."""
    job, output = await run_job(worker, JobSpec(program="true"))
    assert (output, job.state) == (b"", State.COMPLETED)
    assert await output_of(worker, job.id) == b""


async def test_output_files_are_private_and_out_of_the_jobs_sight(worker: Worker, state: Path) -> None:
    """O12: the same probe, run on the host, sees them."""
    probe = 'find "$1" -type f 2>/dev/null; cat "$1"/jobs/*/output; echo seen: $(ls -A "$1" | wc -l)'
    job = await worker.start(shell(f"{probe}; exec sleep 1000", str(state)))
    seen = b""
    async for chunk in worker.output(job.id):
        seen += chunk.data
        if b"seen: " in seen:
            break
    directory = state / "jobs" / job.id
    uid = int(job.sandbox["uid"])
    for name in ("output", "output.idx", "spec.json", "lock", "control", "outcome.json.new"):
        status = (directory / name).stat()
        assert (name, status.st_mode & 0o777, status.st_uid) == (name, 0o600, os.geteuid())
        assert status.st_uid != uid
    for place in (directory, directory.parent):
        assert place.stat().st_mode & 0o777 == 0o700
    await worker.stop(job.id)
    command = ["sh", "-c", probe, "sh", str(state)]
    control = (await asyncio.to_thread(subprocess.run, command, capture_output=True, check=True)).stdout
    assert seen.splitlines()[-1] == b"seen: 0"
    assert control.splitlines()[-1] == b"seen: 2"
    assert str(directory / "output").encode() in control.splitlines()
    assert str(directory / "output").encode() not in seen.splitlines()


# Which part of the output.


@pytest.fixture
async def talker(worker: Worker) -> JobStatus:
    """An ended job that wrote on both streams in a known order: each piece when the one before was on record."""
    wait = "until [ $went_on ]; do sleep 0.01; done; went_on="
    script = f"trap went_on=1 USR1; echo one; {wait}; echo two >&2; {wait}; echo three; {wait}; printf four >&2"
    job = await worker.start(shell(script))
    output = b""
    async for chunk in worker.output(job.id):
        output += chunk.data
        if not output.endswith(b"four"):
            await worker.signal(job.id, signal.SIGUSR1)
    assert output == b"one\ntwo\nthree\nfour"
    return await worker.wait(job.id)


async def selected(worker: Worker, job: JobStatus, **wanted: Any) -> bytes:
    return b"".join([chunk.data async for chunk in worker.output(job.id, **wanted)])


#: What a reader asks for, and what it gets.
PARTS: list[tuple[dict[str, Any], bytes]] = [
    ({"streams": STDOUT}, b"one\nthree\n"),
    ({"streams": STDERR}, b"two\nfour"),
    ({"streams": frozenset()}, b""),
    ({"tail_lines": 0}, b""),
    ({"tail_lines": 1}, b"four"),
    ({"tail_lines": 3}, b"two\nthree\nfour"),
    ({"tail_lines": 99}, b"one\ntwo\nthree\nfour"),
    ({"tail_lines": 1, "streams": STDOUT}, b"three\n"),
    ({"tail_lines": 2, "streams": STDERR}, b"two\nfour"),
    ({"tail_lines": 2, "offset": 9}, b"hree\nfour"),
    ({"offset": 2}, b"e\ntwo\nthree\nfour"),
    ({"offset": 4}, b"two\nthree\nfour"),
    ({"offset": 2, "streams": STDERR}, b"two\nfour"),
    ({"offset": 18}, b""),
    ({"offset": 10**12}, b""),
    ({"offset": (1 << 63) - 1}, b""),
    ({"since": 0.0}, b"one\ntwo\nthree\nfour"),
    ({"since": 4e9}, b""),
    ({"max_chunk": 1}, b"one\ntwo\nthree\nfour"),
    ({"follow": False}, b"one\ntwo\nthree\nfour"),
]


async def test_a_reader_gets_the_part_it_asked_for(worker: Worker, talker: JobStatus) -> None:
    for wanted, expected in PARTS:
        assert await selected(worker, talker, **wanted) == expected, wanted


async def test_chunks_say_when_and_on_which_stream_and_since_goes_by_it(worker: Worker, talker: JobStatus) -> None:
    chunks = [chunk async for chunk in worker.output(talker.id)]
    assert [(chunk.offset, chunk.stream, chunk.data) for chunk in chunks] == [
        (0, Stream.STDOUT, b"one\n"),
        (4, Stream.STDERR, b"two\n"),
        (8, Stream.STDOUT, b"three\n"),
        (14, Stream.STDERR, b"four"),
    ]
    assert talker.ending is not None
    assert talker.ending.started_at is not None
    times = [chunk.time_ns / 1e9 for chunk in chunks]
    assert talker.ending.started_at - 1 < times[0] < times[1] < times[2] < times[3] <= talker.ending.ended_at
    # Between two chunks: a float rounds what the index has in nanoseconds.
    assert await selected(worker, talker, since=(times[0] + times[1]) / 2) == b"two\nthree\nfour"
    assert await selected(worker, talker, since=(times[1] + times[2]) / 2, streams=STDERR) == b"four"


@pytest.mark.parametrize("wanted", [{"offset": -1}, {"tail_lines": -1}, {"max_chunk": 0}, {"since": math.inf}], ids=str)
async def test_a_part_that_cannot_be_is_refused(worker: Worker, talker: JobStatus, wanted: dict[str, Any]) -> None:
    with pytest.raises(JobError) as refused:
        await selected(worker, talker, **wanted)
    assert refused.value.code is ErrorCode.INVALID_ARGUMENT


async def test_chunks_never_mix_streams_nor_outgrow_their_bound(worker: Worker, programs: Path) -> None:
    job = await worker.start(JobSpec(program=str(programs / "drip"), args=("20000", "0", "1")))
    position = 0
    async for chunk in worker.output(job.id, max_chunk=7):
        assert 0 < len(chunk.data) <= 7
        assert chunk.offset == position
        position = chunk.end
        # Bytes that are even in the alphabet are of one stream, odd ones of the other.
        assert {(byte - ord("a")) % 2 for byte in chunk.data} == {chunk.stream - 1}
    assert position == 20_000


async def test_without_following_a_reader_of_a_running_job_gets_what_is_there(worker: Worker) -> None:
    job = await start_talking(worker, shell("echo there; exec sleep 1000"))
    assert await selected(worker, job, follow=False) == b"there\n"
    assert await selected(worker, job, follow=False, tail_lines=1) == b"there\n"


async def test_a_follower_that_asked_for_the_tail_goes_on_with_what_comes(worker: Worker) -> None:
    job = await start_talking(worker, shell("trap 'echo more; exit' USR1; seq 1 5; while :; do sleep 0.01; done"))
    seen = b""
    async for chunk in worker.output(job.id, tail_lines=2):
        seen += chunk.data
        if seen == b"4\n5\n":
            await worker.signal(job.id, signal.SIGUSR1)
    assert seen == b"4\n5\nmore\n"


async def test_many_readers_that_come_and_go_leave_nothing(worker: Worker) -> None:
    """O9, for the library: a closed reader holds no descriptor and no watch."""
    job = await start_talking(worker, shell("echo there; exec sleep 1000"))
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(50):
        async with contextlib.aclosing(worker.output(job.id)) as chunks:
            await chunks.__anext__()
    waiting = [asyncio.create_task(output_of(worker, job.id)) for _ in range(50)]
    await eventually(lambda: len(os.listdir("/proc/self/fd")) >= len(before) + 100)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert not worker._inotify._callbacks
    assert not list(itertools.chain(worker._jobs[job.id].listeners))


async def test_both_is_both_streams() -> None:
    assert BOTH == STDOUT | STDERR
