"""The library: what a caller may rely on, also when it is wrong, late, impatient or not alone."""

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path

import pytest
from host import eventually, job_groups, monitor_of, needs_root, output_of, run_job, start_talking

from jobworker import JobSpec, State, Worker
from jobworker.core.errors import ErrorCode, JobError
from jobworker.core.job_id import new_job_id
from jobworker.core.outcome import Exited, Signaled, Stopped
from jobworker.job import JobStatus
from jobworker.runtime import wire
from jobworker.runtime.launcher_client import LauncherClient
from jobworker.worker import bootstrap

pytestmark = needs_root

SLEEP = JobSpec(program="sleep", args=("1000",))
WRONG_IDS = [
    "",
    "../../../etc",
    "..",
    "a/b",
    "\0",
    "x" * 100_000,
    new_job_id().upper(),
    new_job_id()[:8],
    new_job_id() + "\n",
]


def shell(script: str) -> JobSpec:
    return JobSpec(program="sh", args=("-c", script))


# Waiting.


async def test_wait_returns_the_job_after_its_end(worker: Worker) -> None:
    job = await worker.start(shell("exit 3"))
    ended = await worker.wait(job.id)
    assert ended.ending is not None
    assert ended.ending.outcome == Exited(3)
    assert await worker.wait(job.id) == ended, "also when it has long ended"


async def test_wait_returns_the_running_job_when_its_time_is_over(worker: Worker) -> None:
    job = await worker.start(SLEEP)
    for timeout in (0.05, 0, -1):
        assert (await worker.wait(job.id, timeout=timeout)).state is State.RUNNING


async def test_everyone_who_waits_is_told_the_same_end(worker: Worker) -> None:
    job = await worker.start(SLEEP)
    waiting = [asyncio.create_task(worker.wait(job.id)) for _ in range(100)]
    gave_up = asyncio.create_task(worker.wait(job.id))
    await asyncio.sleep(0)
    gave_up.cancel()
    stopped = await worker.stop(job.id)
    assert {repr(status) for status in await asyncio.gather(*waiting)} == {repr(stopped)}


async def test_an_end_that_cannot_be_told_at_first_is_told_in_the_end_and_logged(
    state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """P2: whoever waits hears of it when it is on record."""
    faults: list[Exception] = [RuntimeError("a fault of ours"), JobError(ErrorCode.UNAVAILABLE, "the disk is full")]

    async def record(_: JobStatus) -> None:
        if faults:
            raise faults.pop(0)

    async with await Worker.open(state, on_end=record) as worker:
        job = await worker.start(shell("exit 3"))
        ended = await worker.wait(job.id, timeout=30)
        assert ended.ending is not None
        assert ended.ending.outcome == Exited(3)
        assert faults == []
        assert f"the end of job {job.id} failed, internal error " in caplog.text
        await worker.remove(job.id)


# Removing.


async def test_a_removed_job_is_gone_with_its_output(worker: Worker, state: Path) -> None:
    job, _ = await run_job(worker, shell("echo out"))
    await worker.remove(job.id)
    assert list((state / "jobs").iterdir()) == []
    assert worker.list() == []
    for ask in (
        worker.status(job.id),
        worker.wait(job.id),
        worker.remove(job.id),
        worker.stop(job.id),
        output_of(worker, job.id),
    ):
        with pytest.raises(JobError) as refused:
            await ask
        assert refused.value.code is ErrorCode.JOB_NOT_FOUND


async def test_a_running_job_is_removed_by_force_only(worker: Worker, state: Path) -> None:
    job = await worker.start(SLEEP)
    with pytest.raises(JobError, match="force") as refused:
        await worker.remove(job.id)
    assert refused.value.code is ErrorCode.JOB_RUNNING
    assert (await worker.status(job.id)).state is State.RUNNING
    await worker.remove(job.id, force=True)
    assert job_groups(state) == []
    assert list((state / "jobs").iterdir()) == []


async def test_who_follows_a_job_that_is_removed_sees_its_end(worker: Worker) -> None:
    job = await start_talking(worker, shell("echo out; exec sleep 1000"))
    follower = asyncio.create_task(output_of(worker, job.id))
    waiter = asyncio.create_task(worker.wait(job.id))
    await asyncio.sleep(0)
    await worker.remove(job.id, force=True)
    assert await follower == b"out\n"
    assert (await waiter).state is State.STOPPED


async def test_removing_a_job_many_times_at_once_removes_it_once(worker: Worker, state: Path) -> None:
    job = await worker.start(SLEEP)
    results = await asyncio.gather(*(worker.remove(job.id, force=True) for _ in range(20)), return_exceptions=True)
    failures = [result for result in results if result is not None]
    assert all(isinstance(failure, JobError) and failure.code is ErrorCode.JOB_NOT_FOUND for failure in failures)
    assert list((state / "jobs").iterdir()) == []


async def test_removing_by_force_races_with_the_natural_end(worker: Worker, state: Path) -> None:
    """P5."""
    for number in range(20):
        job = await worker.start(shell(f"sleep 0.0{number % 4}"))
        await worker.remove(job.id, force=True)
    assert list((state / "jobs").iterdir()) == []


# Listing.


async def test_the_list_has_every_job_newest_first(worker: Worker) -> None:
    assert worker.list() == []
    started = [(await worker.start(SLEEP if number % 2 else JobSpec(program="true"))).id for number in range(6)]
    for job_id in started[0::2]:
        await worker.wait(job_id)
    listed = worker.list()
    assert [job.id for job in listed] == started[::-1]
    assert [job.state for job in listed] == [State.RUNNING, State.COMPLETED] * 3


async def test_a_damaged_job_hides_no_other_job(worker: Worker, state: Path) -> None:
    """C5, in small: power may fail before a file that nobody syncs is on disk."""
    whole, _ = await run_job(worker, shell("echo whole"))
    for content in ("", "{}", '{"spec": 5', '{"spec": {"program": "x", "newer": 1}, "created_at": 1, "boot_id": ""}'):
        damaged, _ = await run_job(worker, JobSpec(program="true"))
        (state / "jobs" / damaged.id / "spec.json").write_text(content)
        assert [job.id for job in worker.list()] == [whole.id]
        with pytest.raises(JobError) as refused:
            await worker.status(damaged.id)
        assert refused.value.code is ErrorCode.INTERNAL
        await worker.remove(damaged.id)


# Ids.


@pytest.mark.parametrize("job_id", WRONG_IDS, ids=lambda job_id: repr(job_id[:12]))
async def test_what_is_no_id_reaches_no_path(worker: Worker, job_id: str) -> None:
    """A6."""
    for ask in (
        worker.status(job_id),
        worker.wait(job_id),
        worker.stop(job_id),
        worker.signal(job_id, 15),
        worker.remove(job_id, force=True),
        output_of(worker, job_id),
    ):
        with pytest.raises(JobError) as refused:
            await ask
        assert refused.value.code is ErrorCode.JOB_NOT_FOUND
        assert len(refused.value.message) < 200
    if job_id:
        with pytest.raises(JobError):
            await worker.start(SLEEP, job_id=job_id)
    assert worker.list() == []


async def test_an_id_is_given_once(worker: Worker) -> None:
    """A start with the id of another job fails and leaves that job as it is, running or ended."""
    job_id = new_job_id()
    job = await worker.start(shell("echo first; exec sleep 1000"), job_id=job_id)
    assert job.id == job_id
    assert (await worker.output(job_id).__anext__()).data == b"first\n"
    for _ in ("running", "ended"):
        with pytest.raises(JobError, match="exists") as refused:
            await worker.start(SLEEP, job_id=job_id)
        assert refused.value.code is ErrorCode.INVALID_ARGUMENT
        assert (await worker.status(job_id)).spec == job.spec
        with contextlib.suppress(JobError):
            await worker.stop(job_id)
    assert await output_of(worker, job_id) == b"first\n"


# Starting and stopping by callers that change their minds.


async def test_a_cancelled_caller_does_not_cancel_the_start(worker: Worker) -> None:
    job_id = new_job_id()
    caller = asyncio.create_task(worker.start(shell("echo ran"), job_id=job_id))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert (await worker.wait(job_id)).state is State.COMPLETED
    assert await output_of(worker, job_id) == b"ran\n"


async def test_a_cancelled_caller_of_a_start_that_fails_leaves_nothing(worker: Worker, state: Path) -> None:
    caller = asyncio.create_task(worker.start(JobSpec(program="/no/such/program")))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await eventually(lambda: not worker.list() and not list((state / "jobs").iterdir()))
    assert job_groups(state) == []


async def test_a_cancelled_stop_stops_all_the_same(worker: Worker) -> None:
    job = await worker.start(SLEEP)
    caller = asyncio.create_task(worker.stop(job.id, by="frank"))
    await asyncio.sleep(0)
    caller.cancel()
    ended = await worker.wait(job.id, timeout=60)
    assert ended.ending is not None
    assert ended.ending.outcome == Stopped("frank", 9)


async def test_a_job_can_be_stopped_before_its_start_has_returned(worker: Worker) -> None:
    """P5."""
    job_id = new_job_id()
    start = asyncio.create_task(worker.start(SLEEP, job_id=job_id))
    await asyncio.sleep(0)
    assert (await worker.stop(job_id)).state is State.STOPPED
    await start


# Signals.


async def test_a_signal_reaches_the_main_process(worker: Worker) -> None:
    job = await start_talking(worker, shell("trap 'echo hup' HUP; echo ready; while :; do sleep 0.02; done"))
    await worker.signal(job.id, signal.SIGHUP)
    seen = b""
    async with asyncio.timeout(60):
        async for chunk in worker.output(job.id):
            seen += chunk.data
            if b"hup" in seen:
                break
    await worker.signal(job.id, signal.SIGKILL)
    ended = await worker.wait(job.id)
    assert ended.ending is not None
    assert ended.ending.outcome == Signaled(9)
    with pytest.raises(JobError) as refused:
        await worker.signal(job.id, signal.SIGHUP)
    assert refused.value.code is ErrorCode.JOB_NOT_RUNNING


@pytest.mark.parametrize("number", [0, -1, 32, 33, 65, 1 << 40])
async def test_what_is_no_signal_is_refused(worker: Worker, number: int) -> None:
    job = await worker.start(SLEEP)
    for ask in (worker.signal(job.id, number), worker.stop(job.id, grace=1, signal_number=number)):
        with pytest.raises(JobError, match="signal") as refused:
            await ask
        assert refused.value.code is ErrorCode.INVALID_ARGUMENT


@pytest.mark.parametrize("grace", [-0.001, float("-inf"), float("nan")])
async def test_what_is_no_grace_is_refused(worker: Worker, grace: float) -> None:
    job = await worker.start(SLEEP)
    with pytest.raises(JobError, match="grace") as refused:
        await worker.stop(job.id, grace=grace)
    assert refused.value.code is ErrorCode.INVALID_ARGUMENT
    assert (await worker.status(job.id)).state is State.RUNNING


async def signal_many_times(worker: Worker, job_id: str) -> None:
    for _ in range(100_000):
        await worker.signal(job_id, signal.SIGCONT)


async def test_orders_beyond_what_the_monitor_can_be_given_are_refused_and_not_forgotten(worker: Worker) -> None:
    """R4: the monitor stands still, so the channel fills up; a lost order would be a lie."""
    job = await worker.start(SLEEP)
    monitor = monitor_of(job.id)
    os.kill(monitor, signal.SIGSTOP)
    try:
        with pytest.raises(JobError, match="too many orders") as refused:
            await signal_many_times(worker, job.id)
        assert refused.value.code is ErrorCode.EXHAUSTED
        with pytest.raises(JobError):
            await worker.remove(job.id, force=True)
        assert (await worker.status(job.id)).state is State.RUNNING, "a job that could not be ended is not removed"
    finally:
        os.kill(monitor, signal.SIGCONT)
    async with asyncio.timeout(60):
        while (await worker.status(job.id)).state is State.RUNNING:
            with contextlib.suppress(JobError):
                await worker.stop(job.id)
            await asyncio.sleep(0.01)
    assert (await worker.status(job.id)).state is State.STOPPED


async def test_a_status_does_not_wait_for_a_monitor_that_stands_still(worker: Worker) -> None:
    """P4."""
    job = await worker.start(SLEEP)
    monitor = monitor_of(job.id)
    os.kill(monitor, signal.SIGSTOP)
    try:
        async with asyncio.timeout(60):
            statuses = await asyncio.gather(*(worker.status(job.id) for _ in range(50)))
        assert {status.state for status in statuses} == {State.RUNNING}
    finally:
        os.kill(monitor, signal.SIGCONT)
    await eventually(lambda: worker._jobs[job.id]._usage_news is None)
    assert (await worker.status(job.id)).usage.memory_peak is not None


# Several workers.


async def test_a_second_worker_on_the_same_directory_is_refused(worker: Worker, state: Path) -> None:
    """C5."""
    job = await worker.start(SLEEP)
    with pytest.raises(JobError, match="another jobworker uses this state directory") as refused:
        await Worker.open(state)
    assert refused.value.code is ErrorCode.UNAVAILABLE
    assert (await worker.status(job.id)).state is State.RUNNING


async def test_two_workers_on_two_directories_do_not_meet(worker: Worker, state: Path) -> None:
    other_state = state.parent / "other"
    async with await Worker.open(other_state) as other:
        ours, theirs = await worker.start(SLEEP), await other.start(SLEEP)
        assert ours.sandbox["uid"] != theirs.sandbox["uid"]
        assert [job.id for job in worker.list()] == [ours.id]
        assert [job.id for job in other.list()] == [theirs.id]
        with pytest.raises(JobError):
            await worker.stop(theirs.id)
        await other.remove(theirs.id, force=True)
        assert (await worker.status(ours.id)).state is State.RUNNING
    assert (await worker.stop(ours.id)).state is State.STOPPED
    assert job_groups(other_state) == []


async def test_a_worker_that_cannot_open_leaves_the_directory_free(state: Path) -> None:
    (state / "jobs").mkdir(parents=True)
    with pytest.raises(JobError, match="launcher") as refused:
        # A range with the server's own uid in it is what no launcher takes.
        await Worker.open(state, launcher=await asyncio.to_thread(LauncherClient.start, bad_bootstrap(state)))
    assert refused.value.code is ErrorCode.UNAVAILABLE
    async with await Worker.open(state):
        pass


def bad_bootstrap(state: Path) -> wire.Bootstrap:
    return bootstrap(state, service_uid=1500, uids=(1000, 2000))


# The end is told before it is seen.


async def test_the_end_is_awaited_by_its_recorder_before_anyone_sees_it(state: Path) -> None:
    """P2."""
    told: list[JobStatus] = []
    may_go_on = asyncio.Event()

    async def on_end(status: JobStatus) -> None:
        told.append(status)
        await may_go_on.wait()

    async with await Worker.open(state, on_end=on_end) as worker:
        job = await worker.start(JobSpec(program="true"))
        await eventually(lambda: bool(told))
        assert told[0].state is State.COMPLETED
        assert (await worker.status(job.id)).state is State.RUNNING
        assert (await worker.wait(job.id, timeout=0.05)).state is State.RUNNING
        follower = asyncio.create_task(output_of(worker, job.id))
        await asyncio.sleep(0.05)
        assert not follower.done()
        may_go_on.set()
        await follower
        assert (await worker.status(job.id)) == told[0]
        assert len(told) == 1
        await worker.remove(job.id)


async def test_an_ended_job_is_told_from_its_directory_alone(worker: Worker, state: Path) -> None:
    """The disk tells the truth when nobody remembers."""
    job, _ = await run_job(worker, shell("echo out; exit 9"))
    assert job.id not in worker._jobs
    document = json.loads((state / "jobs" / job.id / "outcome.json").read_text())
    assert document["outcome"] == {"kind": "exited", "code": 9}
    assert document["output"]["stdout_bytes"] == 4
    assert (await worker.status(job.id)).ending == job.ending


async def test_a_start_waits_for_a_few_of_another_users_crowd_only(worker: Worker) -> None:
    """R4. The control: a start of the crowd's own waits for all that came before it."""
    ended: list[str] = []

    async def start(by: str) -> None:
        await worker.start(JobSpec(program="true"), by=by)
        ended.append(by)

    await asyncio.gather(*(start(by) for by in ["crowd"] * 40 + ["late"]))
    assert ended.index("late") < 20
    crowd: list[int] = []

    async def start_numbered(number: int) -> None:
        await worker.start(JobSpec(program="true"), by="crowd")
        crowd.append(number)

    await asyncio.gather(*map(start_numbered, range(41)))
    assert crowd.index(40) >= 20
