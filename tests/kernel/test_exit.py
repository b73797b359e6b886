"""How jobs end: exact codes, honest reasons, nothing unreaped, nothing left alive."""

import asyncio
import os
import re
import signal
import statistics
import time
from collections import Counter
from pathlib import Path

import pytest
from host import (
    count_descriptors,
    descendants,
    eventually,
    job_groups,
    job_processes,
    launcher_of,
    monitor_of,
    needs_root,
    process_status,
    run_job,
    strace,
    title,
)

from jobworker import JobSpec, Limits, State, Worker
from jobworker.core.outcome import Exited, OomKilled, Signaled, Stopped, TimedOut
from jobworker.core.spec import MiB

pytestmark = needs_root

_TRUE = JobSpec(program="/bin/true")
_SOME_CODES = (0, 1, 2, 42, 125, 126, 127, 128, 137, 255)
_FATAL = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGABRT,
    signal.SIGFPE,
    signal.SIGKILL,
    signal.SIGSEGV,
    signal.SIGPIPE,
    signal.SIGTERM,
    signal.SIGRTMIN,
    signal.SIGRTMAX,
)


def _sh(script: str, *args: str, **limits: object) -> JobSpec:
    return JobSpec(program="/bin/sh", args=("-c", script, "sh", *args), limits=Limits(**limits))  # type: ignore[arg-type]


async def _assert_exit_codes_are_exact(worker: Worker, codes: tuple[int, ...]) -> None:
    for code in codes:
        job, _ = await run_job(worker, _sh('exit "$1"', str(code)))
        assert job.ending is not None
        assert job.ending.outcome == Exited(code)
        assert job.state is (State.COMPLETED if code == 0 else State.FAILED)


async def test_exit_codes_are_exact(worker: Worker) -> None:
    """P8."""
    await _assert_exit_codes_are_exact(worker, _SOME_CODES)


@pytest.mark.soak
async def test_all_exit_codes_are_exact(worker: Worker) -> None:
    """P8."""
    await _assert_exit_codes_are_exact(worker, tuple(range(256)))


async def test_a_signal_is_a_signal_and_no_exit_code(worker: Worker) -> None:
    """P8."""
    for number in _FATAL:
        job, _ = await run_job(worker, _sh('kill -"$1" $$', str(int(number))))
        assert job.ending is not None
        assert (job.ending.outcome, job.state) == (Signaled(number), State.FAILED)


@pytest.mark.layout
async def test_stopped_killed_out_of_memory_and_timed_out_are_told_apart(worker: Worker, programs: Path) -> None:
    """P8. All four end by the same SIGKILL."""
    killed, _ = await run_job(worker, _sh("kill -9 $$"))
    late, _ = await run_job(worker, _sh("sleep 1000", timeout=0.2))
    hungry, _ = await run_job(
        worker, JobSpec(program=str(programs / "hog"), args=("64",), limits=Limits(memory=32 * MiB))
    )
    stopped = await worker.start(_sh("sleep 1000"))
    stopped = await worker.stop(stopped.id, by="alice")
    outcomes = [job.ending.outcome if job.ending else None for job in (killed, late, hungry, stopped)]
    assert outcomes == [Signaled(9), TimedOut(), OomKilled(), Stopped("alice", 9)]
    assert [job.state for job in (killed, late, hungry, stopped)] == [State.FAILED] * 3 + [State.STOPPED]


@pytest.mark.layout
async def test_a_job_whose_child_met_the_memory_limit_is_out_of_memory_whatever_it_returns(
    worker: Worker, programs: Path
) -> None:
    """P8. The program outlives its child for an instant, and its exit must not win the race."""
    for _ in range(10):
        job, _ = await run_job(worker, _sh('"$1" 64; exit 3', str(programs / "hog"), memory=32 * MiB))
        assert job.ending is not None
        assert job.ending.outcome == OomKilled()


async def test_grandchildren_that_hold_the_pipe_end_with_the_main_process(worker: Worker, state: Path) -> None:
    """P10."""
    job, output = await run_job(worker, _sh("sleep 1000 & setsid sleep 1000 & echo done"))
    assert (job.state, output) == (State.COMPLETED, b"done\n")
    assert job_processes(state, job.id) == set()
    assert job_groups(state) == []


async def test_a_timeout_ends_the_job_on_time(worker: Worker, programs: Path) -> None:
    """P11. By the monotonic clock, which no change of the wall clock moves.

    Never early; how late it is told is up to disk and processor as well, so that one of several tries must be in time.
    """
    late: list[float] = []
    while not late or (late[-1] > 0.5 and len(late) < 10):
        before = time.monotonic()
        job = await worker.start(JobSpec(program=str(programs / "tree"), limits=Limits(timeout=2.0)))
        after = time.monotonic()
        job = await worker.wait(job.id)
        ended = time.monotonic()
        assert ended - before >= 2.0
        assert job.ending is not None
        assert job.ending.outcome == TimedOut()
        late.append(ended - after - 2.0)
    assert min(late) <= 0.5


async def test_a_timeout_is_time_that_the_program_ran(worker: Worker) -> None:
    """P11. What the sandbox took before is not part of it."""
    job, _ = await run_job(worker, JobSpec(program="/bin/sleep", args=("1000",), limits=Limits(timeout=0.05)))
    assert job.ending is not None
    assert job.ending.outcome == TimedOut()
    assert job.ending.ended_at - job.ending.started_at >= 0.05


async def test_the_end_is_seen_only_when_all_is_dead_and_all_output_on_disk(worker: Worker, state: Path) -> None:
    """P2. Whether it ends by itself or is stopped."""
    flood = "yes x | head -c 20000000 & yes y | head -c 20000000 >&2 & "
    for script, by_itself in ((flood + "wait", True), (flood + "sleep 1000", False)):
        job = await worker.start(_sh(script))
        if not by_itself:
            await worker.stop(job.id)
        while not (job := await worker.status(job.id)).state.is_final:
            pass  # no moment is missed
        assert job.ending is not None
        assert job_groups(state) == []
        files = {path.name: path.stat().st_size for path in (state / "jobs" / job.id).iterdir()}
        assert files["output"] == job.ending.output.kept_bytes
        assert "outcome.json" in files
        assert not by_itself or job.ending.output.kept_bytes == 40_000_000


async def test_status_never_fails_while_the_job_ends(worker: Worker) -> None:
    """P2. Whoever asks at the very moment gets an answer: running, or how it ended."""

    async def watch(job_id: str) -> State:
        while not (job := await worker.status(job_id)).state.is_final:
            assert job.state is State.RUNNING
        return job.state

    for _ in range(20):
        job = await worker.start(_TRUE)
        assert await asyncio.gather(*(watch(job.id) for _ in range(5))) == [State.COMPLETED] * 5


async def _assert_no_trace_of(worker: Worker, state: Path, count: int) -> None:
    async def one(turns: int) -> None:
        for _ in range(turns):
            job, output = await run_job(worker, _sh("echo hi"))
            assert (job.state, output) == (State.COMPLETED, b"hi\n")
            await worker.remove(job.id)

    def base_line() -> dict[str, object]:
        helpers = [worker._launcher.pid, *descendants(worker._launcher.pid)]
        return {
            "helpers": [title(pid) for pid in helpers],
            "helpers' descriptors": [count_descriptors(pid) for pid in helpers],
            "descriptors": len(os.listdir("/proc/self/fd")),
            "mounts": Path("/proc/self/mountinfo").read_text(),
            "groups": job_groups(state),
            "directories": os.listdir(state / "jobs"),
        }

    await one(2)
    await eventually(lambda: len(descendants(worker._launcher.pid)) == 1)
    before = base_line()
    await asyncio.gather(*(one(count // 8) for _ in range(8)))
    # A monitor's last word comes just before its end; collecting it is the kernel's.
    await eventually(lambda: base_line() == before)
    zombies = [pid for pid in descendants(os.getpid()) if process_status(pid).get("State", "").startswith("Z")]
    assert zombies == []


async def test_hundreds_of_short_jobs_leave_nothing(worker: Worker, state: Path) -> None:
    """P6."""
    await _assert_no_trace_of(worker, state, 200)


@pytest.mark.soak
@pytest.mark.timeout(900)
async def test_ten_thousand_short_jobs_leave_nothing(worker: Worker, state: Path) -> None:
    """P6."""
    await _assert_no_trace_of(worker, state, 10_000)


async def test_a_thousand_orphans_in_a_job_are_reaped(worker: Worker, programs: Path) -> None:
    """P6. Unreaped ones would count against the limit of 16 processes, and the job would fail."""
    orphans = JobSpec(program=str(programs / "orphans"), args=("1000",), limits=Limits(pids=16))
    job, _ = await run_job(worker, orphans)
    assert job.state is State.COMPLETED


@pytest.mark.layout
async def test_groups_go_away_without_anyone_sleeping(worker: Worker, state: Path, tmp_path: Path) -> None:
    """P9. No process of ours calls a sleep, and none tries again and again to remove a group."""
    launcher = await launcher_of(worker)
    log = tmp_path / "trace"
    # What a job itself does is not ours: it is untraced from its exec on.
    tracer = strace(launcher, log, "-b", "execve", "-e", "trace=rmdir,nanosleep,clock_nanosleep")
    try:
        await eventually(lambda: process_status(launcher)["TracerPid"] == str(tracer.pid))
        for _ in range(10):
            job, _ = await run_job(worker, _sh("sleep 1000 & setsid sleep 1000 & echo ready"))
            assert job.state is State.COMPLETED
        groups = 10 * len(_hierarchies_of_one_job())
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.wait(timeout=20)
    calls = log.read_text().splitlines()
    assert [line for line in calls if "sleep" in line] == []
    tries = Counter(re.findall(r'rmdir\("([^"]+)"', "\n".join(calls)))
    assert len(tries) >= groups
    # A group whose last task the kernel has not quite let go of is tried once more, or now and then some times.
    assert statistics.median(tries.values()) <= 3


def _hierarchies_of_one_job() -> list[object]:
    from jobworker.runtime.cgroup_host import CgroupHost

    return list(CgroupHost.discover("unused").hierarchies)


async def test_orphans_stay_with_their_job_and_never_become_the_hosts(worker: Worker, state: Path) -> None:
    """P6. What a job's dead processes leave becomes a child of its monitor."""
    script = "setsid sleep 1000 & (setsid sleep 1000 &) ; echo ready; sleep 1000"
    job = await worker.start(_sh(script))
    monitor = monitor_of(job.id)

    def is_settled() -> bool:
        own = job_processes(state, job.id)
        parents = [int(process_status(pid).get("PPid", -1)) for pid in own]
        return len(own) == 4 and set(parents) <= own | {monitor} and parents.count(monitor) == 2

    await eventually(is_settled)
    await worker.stop(job.id)
