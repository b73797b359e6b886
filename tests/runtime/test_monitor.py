"""The supervisor of one job: its connections cannot harm the job, its clock has no edge, it is in no job's group."""

import asyncio
import os
import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from host import eventually, job_groups, job_processes, monitor_of, needs_root, process_status, strace

from jobworker import JobSpec, State, Worker
from jobworker.core.outcome import Exited, Signaled, Stopped
from jobworker.core.requests import MOST_SECONDS
from jobworker.core.spec import Limits, MiB
from jobworker.job import JobStatus
from jobworker.runtime import job_dir, wire
from jobworker.runtime.monitor import _Pipe
from jobworker.runtime.output_log import Stream

pytestmark = needs_root


@pytest.fixture
async def sleeper(worker: Worker) -> JobStatus:
    return await worker.start(JobSpec(program="sleep", args=("1000",)))


@contextmanager
def connection(state: Path, job: JobStatus) -> Iterator[socket.socket]:
    """A second connection to the monitor, beside the worker's."""
    directory = job_dir.open_directory(state / "jobs", job.id)
    try:
        channel = job_dir.connect(directory)
    finally:
        os.close(directory)
    with channel:
        channel.settimeout(60)
        yield channel


async def test_every_connection_is_told_that_the_job_runs_and_how_it_ended(
    worker: Worker, state: Path, sleeper: JobStatus
) -> None:
    with connection(state, sleeper) as first, connection(state, sleeper) as second:
        for channel in (first, second):
            news, _ = wire.receive(channel)
            assert isinstance(news, wire.NowRunning)
            assert news.sandbox == sleeper.sandbox
        wire.send(second, wire.OrderStop("carol", 15, 0))
        ended = await worker.wait(sleeper.id)
        assert ended.ending is not None
        assert ended.ending.outcome == Stopped("carol", 9)
        for channel in (first, second):
            last, _ = wire.receive(channel)
            assert isinstance(last, wire.NowEnded)
            assert last.ending == ended.ending.to_document()
            assert wire.receive(channel) == (None, [])


@pytest.mark.parametrize(
    "packet", [b"\0", b"{}", b'{"type": "NowEnded", "ending": {}}', b"[" * 60_000], ids=["nul", "empty", "odd", "deep"]
)
async def test_garbage_ends_its_own_connection_and_nothing_else(
    worker: Worker, state: Path, sleeper: JobStatus, packet: bytes
) -> None:
    with connection(state, sleeper) as channel:
        wire.receive(channel)
        channel.send(packet)
        assert wire.receive(channel) == (None, [])
    assert (await worker.status(sleeper.id)).state is State.RUNNING


async def test_a_monitor_without_a_free_descriptor_keeps_its_job(
    worker: Worker, state: Path, sleeper: JobStatus
) -> None:
    """R1. Whoever wants to talk to it waits until there is one."""
    monitor = monitor_of(sleeper.id)
    used = {int(fd) for fd in os.listdir(f"/proc/{monitor}/fd")}
    limits = resource.prlimit(monitor, resource.RLIMIT_NOFILE)
    resource.prlimit(monitor, resource.RLIMIT_NOFILE, (min(set(range(len(used) + 1)) - used), limits[1]))
    with connection(state, sleeper) as channel:
        for _ in range(3):  # it has looked at its connections before it answers again
            assert (await worker.status(sleeper.id)).state is State.RUNNING
        resource.prlimit(monitor, resource.RLIMIT_NOFILE, limits)
        news, _ = wire.receive(channel)
        assert isinstance(news, wire.NowRunning)
    assert (await worker.stop(sleeper.id)).state is State.STOPPED


def ask_many_times(channel: socket.socket) -> None:
    for _ in range(100_000):
        wire.send(channel, wire.AskUsage())


async def test_who_asks_without_listening_is_hung_up_on_and_holds_up_nobody(
    worker: Worker, state: Path, sleeper: JobStatus
) -> None:
    with connection(state, sleeper) as channel:
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            ask_many_times(channel)
        assert (await worker.status(sleeper.id)).state is State.RUNNING
        await worker.stop(sleeper.id)


async def test_connections_leave_nothing_in_the_monitor(state: Path, sleeper: JobStatus) -> None:
    monitor = monitor_of(sleeper.id)
    before = len(os.listdir(f"/proc/{monitor}/fd"))
    for _ in range(50):
        with connection(state, sleeper) as channel:
            wire.receive(channel)
    await eventually(lambda: len(os.listdir(f"/proc/{monitor}/fd")) <= before)


async def test_the_monitor_is_in_no_group_of_its_job(state: Path, sleeper: JobStatus) -> None:
    """S2: what limits the job must not limit who watches it."""
    monitor = monitor_of(sleeper.id)
    assert job_processes(state, sleeper.id)
    assert monitor not in job_processes(state, sleeper.id)
    assert sleeper.id not in Path(f"/proc/{monitor}/cgroup").read_text()
    assert process_status(monitor)["NSpid"].split()[-1] == "1", "it is PID 1 of the job's namespace"


async def test_figures_that_cannot_be_read_cost_neither_the_job_nor_its_exit_code(
    worker: Worker, state: Path, tmp_path: Path, sleeper: JobStatus
) -> None:
    """P8. The control: while the kernel answers there are figures."""
    assert (await worker.status(sleeper.id)).usage.cpu_seconds is not None
    monitor = monitor_of(sleeper.id)
    files = [word for group in job_groups(state) for word in ("-P", f"{group}/cpu.stat")]
    tracer = strace(monitor, tmp_path / "trace", *files, "-e", "inject=read:error=EIO")
    await eventually(lambda: process_status(monitor)["TracerPid"] == str(tracer.pid))
    assert (await worker.status(sleeper.id)).state is State.RUNNING
    await worker.signal(sleeper.id, signal.SIGKILL)
    ended = await worker.wait(sleeper.id)
    tracer.wait()  # it ends with the monitor
    assert ended.ending is not None
    assert (ended.ending.outcome, ended.usage.cpu_seconds) == (Signaled(signal.SIGKILL), None)


@pytest.mark.parametrize("seconds", [30 * 86400.0, 10 * 365 * 86400.0])
async def test_a_timeout_beyond_what_poll_takes_is_no_fault(worker: Worker, seconds: float) -> None:
    """P11: poll(2) waits 24 days at most."""
    job = await worker.start(JobSpec(program="sh", args=("-c", "sleep 0.2; exit 4"), limits=Limits(timeout=seconds)))
    ended = await worker.wait(job.id)
    assert ended.ending is not None
    assert ended.ending.outcome == Exited(4)


@pytest.mark.parametrize("grace", [1e7, MOST_SECONDS])
async def test_a_grace_of_centuries_is_no_fault(worker: Worker, grace: float) -> None:
    """P3."""
    script = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done"
    job = await worker.start(JobSpec(program="sh", args=("-c", script)))
    async for _ in worker.output(job.id):
        break
    ended = await worker.stop(job.id, by="dave", grace=grace)
    assert ended.ending is not None
    assert ended.ending.outcome == Stopped("dave", 0)


async def test_a_thousand_watchers_do_not_end_the_job_they_watch(worker: Worker, sleeper: JobStatus) -> None:
    """R4: each asks how it is, all at once."""
    statuses = await asyncio.gather(*(worker.status(sleeper.id) for _ in range(3000)))
    assert {status.state for status in statuses} == {State.RUNNING}
    assert (await worker.status(sleeper.id)).usage.memory_peak is not None


async def test_a_monitor_uses_little_memory_of_its_own(sleeper: JobStatus) -> None:
    """§15: the pages of the launcher are shared."""
    rollup = Path(f"/proc/{monitor_of(sleeper.id)}/smaps_rollup").read_text()
    private = sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_"))
    assert private * 1024 < 4 * MiB


def test_only_a_flood_of_small_reads_is_collected() -> None:
    pipe = _Pipe(-1, Stream.STDOUT)
    assert not any(pipe.is_busy(now / 10) for now in range(1000)), "ten a second are no flood"
    assert not any(pipe.is_busy(100.0) for _ in range(128))
    assert all(pipe.is_busy(100.0) for _ in range(10)), "more than a hundred at once are"
    assert not pipe.is_busy(101.0), "and it is over when it is over"
