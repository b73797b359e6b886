"""Stopping: everything of the job dies, once, whatever it does against it."""

import asyncio
import os
import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from host import (
    JOB_PYTHON,
    SLOWNESS,
    eventually,
    job_groups,
    job_processes,
    needs_root,
    output_of,
    process_status,
    run_job,
    start_talking,
    strace,
)

from jobworker import JobError, JobSpec, Limits, State, Worker
from jobworker.core.errors import ErrorCode
from jobworker.core.job_id import new_job_id
from jobworker.core.outcome import Stopped
from jobworker.runtime.output_log import Stream

pytestmark = needs_root

_SLEEP = JobSpec(program="/bin/sleep", args=("1000",))


def _sh(script: str, **limits: object) -> JobSpec:
    return JobSpec(program="/bin/sh", args=("-c", script), limits=Limits(**limits))  # type: ignore[arg-type]


def _tree(programs: Path) -> JobSpec:
    return JobSpec(program=str(programs / "tree"))


def _is_alive(pid: int, started: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19] == started
    except (FileNotFoundError, ProcessLookupError):
        return False


def _start_times(pids: set[int]) -> dict[int, str]:
    return {pid: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19] for pid in pids}


async def _stdout_of(worker: Worker, job_id: str) -> bytes:
    """What the program itself says; shells report on stderr how their children ended."""
    return b"".join([chunk.data async for chunk in worker.output(job_id, streams=frozenset({Stream.STDOUT}))])


@pytest.mark.layout
@pytest.mark.parametrize("grace", [0.0, 0.2])
async def test_stop_ends_the_whole_tree(worker: Worker, state: Path, programs: Path, grace: float) -> None:
    """P1. Sessions of their own, daemons, deaf and stopped ones; tracing is refused to jobs."""
    job = await start_talking(worker, _tree(programs))
    processes = _start_times(job_processes(state, job.id))
    states = {process_status(pid)["State"][0] for pid in processes}
    assert len(processes) == 8  # the control: they live, some of them stopped
    assert {"S", "T"} <= states
    job = await worker.stop(job.id, grace=grace)
    assert job.state is State.STOPPED
    assert [pid for pid, started in processes.items() if _is_alive(pid, started)] == []
    assert job_groups(state) == []


@pytest.mark.layout
async def test_stop_ends_a_job_that_was_suspended(worker: Worker, state: Path) -> None:
    """P1. And with grace it is woken to hear of it."""
    job = await start_talking(worker, _sh("trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.01; done"))
    await worker.signal(job.id, signal.SIGSTOP)
    await eventually(
        lambda: any(process_status(pid).get("State", "").startswith("T") for pid in job_processes(state, job.id))
    )
    job = await worker.stop(job.id, grace=60)
    assert job.state is State.STOPPED
    assert await _stdout_of(worker, job.id) == b"ready\nbye\n"


@pytest.mark.layout
async def test_stop_ends_a_job_that_is_frozen(worker: Worker, state: Path) -> None:
    """P1. By the host's administrator, through the group of the job that can do it."""
    job = await start_talking(worker, _sh("echo ready; while :; do :; done"))
    switches = [group / "cgroup.freeze" for group in job_groups(state) if (group / "cgroup.freeze").exists()]
    if not switches:
        pytest.skip("needs a cgroup v2 tree: only there a group can be frozen")
    switches[0].write_text("1")
    events = switches[0].parent / "cgroup.events"
    await eventually(lambda: "frozen 1" in events.read_text())
    assert (await worker.status(job.id)).state is State.RUNNING
    assert (await worker.stop(job.id)).state is State.STOPPED
    assert job_groups(state) == []


@pytest.fixture
def frozen() -> Iterator[Path]:
    """A group in the freezer of version 1, as the host's administrator makes one; everything in it is frozen."""
    tree = Path("/sys/fs/cgroup/freezer")
    if not (tree / "cgroup.procs").exists():
        pytest.skip("needs the freezer of cgroup v1")
    group = tree / f"jobworker-test-{os.getpid()}"
    group.mkdir()
    (group / "freezer.state").write_text("FROZEN")
    try:
        yield group
    finally:
        (group / "freezer.state").write_text("THAWED")
        group.rmdir()


def _is_frozen(group: Path) -> bool:
    """Asked for each time: a process that moves in while it forks is passed over by Linux 6.1."""
    (group / "freezer.state").write_text("FROZEN")
    return (group / "freezer.state").read_text() == "FROZEN\n"


@pytest.mark.layout
async def test_stop_ends_a_job_that_the_freezer_of_v1_holds(worker: Worker, state: Path, frozen: Path) -> None:
    """P1. The control: a stranger in the same group is killed and does not die, and stays frozen."""
    job = await start_talking(worker, _sh("sleep 1000 & echo ready; while :; do :; done"))
    stranger = await asyncio.create_subprocess_exec("/bin/sleep", "1000")
    for pid in (stranger.pid, *job_processes(state, job.id)):
        (frozen / "cgroup.procs").write_text(str(pid))
    await eventually(lambda: _is_frozen(frozen))
    stranger.kill()
    try:
        assert (await worker.stop(job.id)).state is State.STOPPED
        assert job_groups(state) == []
        assert (frozen / "cgroup.procs").read_text() == f"{stranger.pid}\n"
    finally:
        (frozen / "freezer.state").write_text("THAWED")
        await stranger.wait()


async def test_stop_ends_a_job_that_is_traced(worker: Worker, state: Path, tmp_path: Path) -> None:
    """P1. By the host's administrator, who looks at what it does."""
    job = await start_talking(worker, _sh("echo ready; while :; do sleep 0.01; done"))
    main = min(job_processes(state, job.id))
    with strace(main, tmp_path / "trace") as tracer:
        await eventually(lambda: process_status(main)["TracerPid"] == str(tracer.pid))
        assert (await worker.stop(job.id)).state is State.STOPPED
        tracer.wait(timeout=20)
    assert job_groups(state) == []


@pytest.mark.layout
async def test_stop_ends_a_fork_bomb(worker: Worker, state: Path, programs: Path) -> None:
    """P1."""
    bomb = JobSpec(program=str(programs / "fork_storm"), args=("spread",), limits=Limits(pids=100))
    job = await worker.start(bomb)
    await eventually(lambda: len(job_processes(state, job.id)) >= 90)
    assert (await worker.stop(job.id)).state is State.STOPPED
    assert job_groups(state) == []


async def test_a_job_that_handles_sigterm_can_say_its_last_words(worker: Worker) -> None:
    """P3."""
    last_words = "head -c 200000 /dev/zero | tr '\\0' x; echo bye; exit 7"
    talker = f'trap "{last_words}" TERM; echo ready; while :; do sleep 0.01; done'
    job = await start_talking(worker, _sh(talker))
    job = await worker.stop(job.id, by="alice", grace=60)
    assert await _stdout_of(worker, job.id) == b"ready\n" + b"x" * 200_000 + b"bye\n"
    assert job.ending is not None
    assert (job.state, job.ending.outcome) == (State.STOPPED, Stopped("alice", 0))


async def test_default_dispositions_die_of_the_signal_at_once(worker: Worker) -> None:
    """P3. No PID 1 of ours swallows it: with an hour of grace, SIGKILL cannot be what ends it here."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        job = await worker.start(_SLEEP)
        async with asyncio.timeout(60):
            job = await worker.stop(job.id, grace=3600, signal_number=number)
        assert job.ending is not None
        assert job.ending.outcome == Stopped("", number)


async def test_every_process_of_the_job_hears_the_signal(worker: Worker) -> None:
    """P3. A child in a session of its own as well."""
    child = "setsid sh -c \"trap 'echo child; exit' TERM; echo up; while :; do sleep 0.01; done\""
    job = await start_talking(worker, _sh(f"trap : TERM; {child}; echo parent"))
    await worker.stop(job.id, grace=60)
    assert await _stdout_of(worker, job.id) == b"up\nchild\nparent\n"


async def test_what_ignores_the_signal_is_killed_when_the_grace_is_over(worker: Worker) -> None:
    """P3."""
    job = await start_talking(worker, _sh("trap '' TERM; echo ready; while :; do sleep 0.01; done"))
    began = time.monotonic()
    job = await worker.stop(job.id, grace=0.5)
    assert time.monotonic() - began >= 0.5
    assert job.ending is not None
    assert job.ending.outcome == Stopped("", 9)


async def test_nobody_waits_for_somebody_elses_grace(worker: Worker) -> None:
    """P4. In the median no 100 ms longer than without anybody's grace, which is the control.

    Status, list, output and other jobs' stops; a stop takes what the disk takes for the job's last words.
    """
    job = await start_talking(worker, _sh("trap '' TERM; echo ready; while :; do sleep 0.01; done"))
    usually = await _seconds_to_be_served(worker, job.id)
    stopping = asyncio.create_task(worker.stop(job.id, by="patient", grace=3600))
    assert await _seconds_to_be_served(worker, job.id) < 3 * usually + 0.1 * SLOWNESS
    assert not stopping.done()
    # One without grace hurries it, and changes nothing about who stopped it.
    async with asyncio.timeout(60):
        hurried = await worker.stop(job.id, by="hasty")
    assert await stopping == hurried
    assert hurried.ending is not None
    assert hurried.ending.outcome == Stopped("patient", 9)


async def _seconds_to_be_served(worker: Worker, job_id: str) -> float:
    """How long questions about a job that says it is ready, and a stop of another, take in the median."""
    times: list[float] = []
    for _ in range(20):
        other = await worker.start(_SLEEP)
        began = time.monotonic()
        assert (await worker.status(job_id)).state is State.RUNNING
        assert {listed.id for listed in worker.list()} >= {job_id, other.id}
        assert [chunk.data async for chunk in worker.output(job_id, follow=False)] == [b"ready\n"]
        assert (await worker.stop(other.id)).state is State.STOPPED
        times.append(time.monotonic() - began)
    return statistics.median(times)


async def test_twenty_stops_at_once_agree_on_one_end(worker: Worker) -> None:
    """P5."""
    job = await worker.start(_SLEEP)
    ends = await asyncio.gather(*(worker.stop(job.id, by=f"user{n}") for n in range(20)))
    assert all(end == ends[0] for end in ends)
    assert await worker.status(job.id) == ends[0]


async def test_hundreds_of_questions_at_once_do_not_disturb_the_job(worker: Worker, state: Path) -> None:
    """P5. They could fill the channel to the monitor, which must not cost the job its life."""
    job = await worker.start(_SLEEP)
    answers = await asyncio.gather(*(worker.status(job.id) for _ in range(1000)))
    assert {answer.state for answer in answers} == {State.RUNNING}
    assert len(job_processes(state, job.id)) == 1
    assert (await worker.stop(job.id)).state is State.STOPPED


async def test_a_stop_right_after_start_finds_the_job(worker: Worker) -> None:
    """P5. Also while its start is still under way."""
    for _ in range(20):
        job = await worker.start(_SLEEP)
        assert (await worker.stop(job.id)).state is State.STOPPED
    for _ in range(20):
        job_id = new_job_id()
        starting = asyncio.create_task(worker.start(_SLEEP, job_id=job_id))
        await asyncio.sleep(0)
        assert (await worker.stop(job_id)).state is State.STOPPED
        assert (await starting).id == job_id


async def test_a_stop_after_the_end_says_that_the_job_is_not_running(worker: Worker) -> None:
    """P5. After a stop as well."""
    ended, _ = await run_job(worker, JobSpec(program="/bin/true"))
    stopped = await worker.stop((await worker.start(_SLEEP)).id)
    for job in (ended, stopped):
        with pytest.raises(JobError) as caught:
            await worker.stop(job.id)
        assert caught.value.code is ErrorCode.JOB_NOT_RUNNING
        assert await worker.status(job.id) == job


async def test_a_stop_that_races_the_natural_end_has_one_consistent_answer(worker: Worker) -> None:
    """P5. Each job lasts a little shorter or longer than the one before, so that the race is close on any machine."""
    answers, lasts = set(), 0.002
    for _ in range(60):
        job = await worker.start(JobSpec(program="/bin/sleep", args=(f"{lasts:.6f}",)))
        try:
            answer: State | ErrorCode = (await worker.stop(job.id)).state
        except JobError as error:
            answer = error.code
        final = (await worker.wait(job.id)).state
        assert (final, answer) in {
            (State.STOPPED, State.STOPPED),
            (State.COMPLETED, ErrorCode.JOB_NOT_RUNNING),
        }
        answers.add(answer)
        lasts *= 0.7 if answer is State.STOPPED else 1.5
    assert State.STOPPED in answers


async def test_removing_a_job_whose_start_fails_disturbs_neither(worker: Worker, state: Path) -> None:
    """P5."""
    for _ in range(20):
        job_id = new_job_id()
        starting = asyncio.create_task(worker.start(JobSpec(program="/no/such/program"), job_id=job_id))
        await asyncio.sleep(0)
        await worker.remove(job_id, force=True)
        with pytest.raises(JobError) as caught:
            await starting
        assert caught.value.code is ErrorCode.PROGRAM_NOT_FOUND
    assert os.listdir(state / "jobs") == []


async def test_a_signal_reaches_the_main_process_only(worker: Worker) -> None:
    """P3. It is no stop: what the program makes of it is its own affair."""
    script = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print("up", flush=True)
signal.sigwait([signal.SIGUSR1])
print("heard", flush=True)
"""
    job = await start_talking(worker, JobSpec(program=JOB_PYTHON, args=("-c", script)))
    await worker.signal(job.id, signal.SIGUSR1)
    assert await output_of(worker, job.id) == b"up\nheard\n"
    assert (await worker.wait(job.id)).state is State.COMPLETED
