"""A start that fails, or is killed, at any step: never a job with less sandbox, and nothing left behind."""

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from host import (
    a_faulty_worker,
    children,
    count_descriptors,
    descendants,
    eventually,
    job_groups,
    job_processes,
    launcher_of,
    monitor_of,
    needs_root,
    process_status,
    title,
)

from jobworker import ErrorCode, JobError, JobSpec, State, Worker
from jobworker.core.job_id import new_job_id
from jobworker.core.outcome import Lost
from jobworker.runtime import job_dir, sandbox, wire
from jobworker.runtime.host_view import HostView

pytestmark = needs_root

_ECHO = JobSpec(program="/bin/echo", args=("it runs",))


def _steps(state: Path) -> list[str]:
    """The names of the steps that a job on this host goes through."""
    host = HostView.survey(Path("/proc/self/mountinfo").read_text(), [str(state.resolve())])
    job = sandbox.Confinement(job_id="0" * 36, uid=200_000, gid=200_000, entry_files=())
    return [type(step).__name__ for step in sandbox.plan(_ECHO, host, job)]


def _labelled(label: str, position: int) -> JobSpec:
    return JobSpec(program=_ECHO.program, args=_ECHO.args, labels={label: str(position)})


@pytest.fixture
async def faulty(state: Path) -> AsyncIterator[Worker]:
    """A worker whose launcher fails or waits where a job's labels say."""
    async with a_faulty_worker(state) as worker:
        yield worker
        for pid in _standing(worker):
            os.kill(pid, signal.SIGCONT)
        for job in worker.list():
            await worker.remove(job.id, force=True)


def _everything(worker: Worker, state: Path) -> dict[str, object]:
    """All that a start makes: descriptors, processes, mounts, groups and directories."""
    helpers = [worker._launcher.pid, *descendants(worker._launcher.pid)]
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "helpers": sorted(title(pid) for pid in helpers),
        "their descriptors": sorted(count_descriptors(pid) for pid in helpers if title(pid)),
        "children": children(),
        "mounts": Path("/proc/self/mountinfo").read_text(),
        "groups": job_groups(state),
        "directories": os.listdir(state / "jobs"),
        "jobs": list(worker._jobs),
        "uids": _leased_uids(),
    }


def _leased_uids() -> int:
    """How many of the host's job uids are locked by processes below this one; /proc/locks."""
    inode = os.stat("/run/jobworker/uids").st_ino
    ours = {str(pid) for pid in descendants(os.getpid())}
    lines = (line.split() for line in Path("/proc/locks").read_text().splitlines())
    return len([line for line in lines if f":{inode}" in line[-3] and line[-4] in ours])


async def _base_line(worker: Worker, state: Path) -> dict[str, object]:
    """What there is after a first good start."""
    job = await worker.start(_ECHO)
    assert (await worker.wait(job.id)).state is State.COMPLETED
    await worker.remove(job.id)
    await eventually(lambda: _is_at_rest(worker))
    return _everything(worker, state)


def _is_at_rest(worker: Worker) -> bool:
    """Whether the launcher has collected every monitor, let go of what it had for it, and waits for orders."""
    helpers = descendants(worker._launcher.pid)
    return len(helpers) == 1 and all(process_status(pid).get("State", "").startswith("S") for pid in helpers)


async def _assert_as_before(worker: Worker, state: Path, before: dict[str, object]) -> None:
    # The failure is told a moment before the monitor that told it is collected, and the clean-up
    # a moment before the launcher closes its channel.
    await eventually(
        lambda: _is_at_rest(worker) and _everything(worker, state)["their descriptors"] == before["their descriptors"]
    )
    assert _everything(worker, state) == before


async def test_a_failure_at_any_step_fails_the_start_by_name_and_leaves_nothing(faulty: Worker, state: Path) -> None:
    """S6, E25. The control: without the fault the same launcher runs the job."""
    before = await _base_line(faulty, state)
    steps = _steps(state)
    assert {"JoinCgroup", "NewNamespaces", "EnterRoot", "MountProc", "BecomeUser", "ForbidNewPrivileges"} <= set(steps)
    for position, name in enumerate(steps):
        with pytest.raises(JobError) as caught:
            await faulty.start(_labelled("fail_at", position))
        assert caught.value.code is ErrorCode.UNSUPPORTED
        assert f"step {name} failed: Operation not permitted" in caught.value.message
        await _assert_as_before(faulty, state, before)


#: What a step gives that the kernel cannot be asked for afterwards, or that is no loss of isolation.
_UNSEEN = {
    "MakeWorkdir": "entering it fails",
    "RaiseLoopback": "less network, not more",
    "EnterWorkdir": "another place in the same root",
    "DropCapabilities": "leaving root has emptied the sets, where nothing was inheritable",
}


async def test_a_job_that_lacks_any_step_is_refused_by_what_the_kernel_says(faulty: Worker, state: Path) -> None:
    """E25. Each step after the new root left out in turn: the start names what is missing, and nothing is left."""
    before = await _base_line(faulty, state)
    steps = _steps(state)
    entered = steps.index("EnterRoot") + 1
    refused: dict[str, str] = {}
    for position in range(entered, len(steps)):
        # In a place that anybody may enter, or that would be what refuses a job of the wrong uid.
        spec = replace(_labelled("skip_at", position), workdir="/")
        try:
            job = await faulty.start(spec)
        except JobError as error:
            refused[steps[position]] = error.message
        else:
            await faulty.remove(job.id, force=True)
    assert {name for name in steps[entered:] if name not in refused} == set(_UNSEEN)
    for name in ("ReadBack", "Exec"):
        assert "before its program was loaded" in refused.pop(name)  # no answer is no consent
    assert all(re.search(r"step \w+ failed: ", message) for message in refused.values()), refused
    await _assert_as_before(faulty, state, before)


async def _start_and_wait_at(
    worker: Worker, state: Path, where: int | JobSpec
) -> tuple[asyncio.Task[object], str, int]:
    """A start that stands still before the step, its job's id, and the process that stands there."""
    job_id = new_job_id()
    spec = where if isinstance(where, JobSpec) else _labelled("wait_at", where)
    starting: asyncio.Task[object] = asyncio.create_task(worker.start(spec, job_id=job_id))
    await eventually(lambda: bool(_standing(worker)) or starting.done())
    assert not starting.done(), starting
    return starting, job_id, _standing(worker)[0]


def _standing(worker: Worker) -> list[int]:
    """The processes that wait in faulty_launcher's step."""
    return [pid for pid in descendants(worker._launcher.pid) if process_status(pid).get("State", "").startswith("T")]


@pytest.mark.parametrize("victim", ["monitor", "child"])
async def test_kill_9_at_any_step_fails_the_start_and_leaves_nothing(faulty: Worker, state: Path, victim: str) -> None:
    """S6. Of the monitor, with whom the kernel ends the rest, or of the child that sets up the sandbox."""
    before = await _base_line(faulty, state)
    for position in range(len(_steps(state))):
        starting, job_id, child = await _start_and_wait_at(faulty, state, position)
        os.kill(monitor_of(job_id) if victim == "monitor" else child, signal.SIGKILL)
        with pytest.raises(JobError) as caught:
            await starting
        assert caught.value.code in {ErrorCode.UNAVAILABLE, ErrorCode.UNSUPPORTED}
        await _assert_as_before(faulty, state, before)


async def _start_with_a_deaf_monitor(worker: Worker, state: Path, *, is_loaded: bool) -> tuple[str, int]:
    """A job's id and its monitor, which gets no processor time: the program runs, or is about to be loaded."""
    spec = replace(_labelled("wait_at", len(_steps(state)) - 1), program="/bin/sleep", args=("1000",))
    _, job_id, child = await _start_and_wait_at(worker, state, spec)
    monitor = monitor_of(job_id)
    os.kill(monitor, signal.SIGSTOP)
    if is_loaded:
        os.kill(child, signal.SIGCONT)
        await eventually(lambda: title(child) == "/bin/sleep")
    assert (await worker.status(job_id)).state is State.PENDING
    return job_id, monitor


async def test_a_program_that_runs_when_its_monitor_is_killed_before_it_tells_is_a_lost_job(
    faulty: Worker, state: Path
) -> None:
    """C3, S11: no failed start, after which the same request may be made again."""
    job_id, monitor = await _start_with_a_deaf_monitor(faulty, state, is_loaded=True)
    waiting = asyncio.create_task(faulty.wait(job_id))
    await asyncio.sleep(0)
    os.kill(monitor, signal.SIGKILL)
    for job in (await waiting, await faulty.status(job_id)):
        assert job.ending is not None
        assert job.ending.outcome == Lost("its monitor was killed")
    assert job_groups(state) == []


@pytest.mark.parametrize("is_loaded", [False, True], ids=["about to be loaded", "running"])
async def test_a_start_that_loses_server_and_monitor_leaves_a_job_only_if_its_program_may_have_run(
    state: Path,
    is_loaded: bool,  # noqa: FBT001
) -> None:
    """C3, S11: each is the other's control."""
    async with a_faulty_worker(state) as worker:
        job_id, monitor = await _start_with_a_deaf_monitor(worker, state, is_loaded=is_loaded)
    os.kill(monitor, signal.SIGKILL)
    await eventually(lambda: process_status(monitor).get("State", "Z").startswith("Z"))  # its lock is free then
    async with await Worker.open(state) as second:
        outcomes = {job.id: job.ending and job.ending.outcome for job in second.list()}
        assert outcomes == ({job_id: Lost("its monitor was killed")} if is_loaded else {})
        assert job_groups(state) == []
        for job in outcomes:
            await second.remove(job)
        assert os.listdir(state / "jobs") == []


async def test_kill_9_of_the_launcher_at_any_step_does_not_stop_the_start(faulty: Worker, state: Path) -> None:
    """S6. From the fork of the monitor on nothing depends on it, and the keeper makes a new one."""
    for position in range(0, len(_steps(state)), 4):
        starting, job_id, child = await _start_and_wait_at(faulty, state, position)
        launcher = await launcher_of(faulty)
        os.kill(launcher, signal.SIGKILL)
        await eventually(lambda gone=launcher: process_status(gone) == {})  # type: ignore[misc]
        os.kill(child, signal.SIGCONT)
        await starting
        assert (await faulty.wait(job_id)).state is State.COMPLETED
        assert [chunk.data async for chunk in faulty.output(job_id)] == [b"it runs\n"]
        assert job_groups(state) == []
        await faulty.remove(job_id)


@pytest.mark.parametrize("grace", [0.0, 60.0])
async def test_a_start_that_stands_still_can_be_stopped_and_leaves_nothing(
    faulty: Worker, state: Path, grace: float
) -> None:
    """P5, P1: as where a program lies on a file server that is gone. The control: it stood still until then."""
    before = await _base_line(faulty, state)
    for position in range(0, len(_steps(state)), 9):
        starting, job_id, child = await _start_and_wait_at(faulty, state, position)
        assert (await faulty.status(job_id)).state is State.PENDING
        with pytest.raises(JobError, match="stopped before its program ran") as stopped:
            await faulty.stop(job_id, grace=grace)
        with pytest.raises(JobError, match="stopped before its program ran") as failed:
            await starting
        assert stopped.value.code is failed.value.code is ErrorCode.JOB_NOT_RUNNING
        assert process_status(child) == {}
        await _assert_as_before(faulty, state, before)


async def test_a_start_that_stands_still_shows_no_running_job(faulty: Worker, state: Path) -> None:
    """E25. Until the last step is done the job is pending, and its program has not run."""
    starting, job_id, child = await _start_and_wait_at(faulty, state, len(_steps(state)) - 1)
    assert (await faulty.status(job_id)).state is State.PENDING
    assert job_processes(state, job_id) == {child}
    os.kill(child, signal.SIGCONT)
    await starting
    assert (await faulty.wait(job_id)).state is State.COMPLETED


async def test_the_uid_of_a_start_that_failed_is_free_when_the_failure_is_told(state: Path) -> None:
    """S6: with one uid in all, the next job can have it at once."""
    async with a_faulty_worker(state, uids=(265_531, 265_531)) as worker:
        for _ in range(20):
            with pytest.raises(JobError) as caught:
                await worker.start(JobSpec(program="/does/not/exist"))
            assert caught.value.code is ErrorCode.PROGRAM_NOT_FOUND
        job = await worker.start(_ECHO)
        await worker.remove(job.id, force=True)


@pytest.mark.parametrize("spec", ["{}", "[]", "[" * 100_000, '{"spec": {"program": "/bin/true", "uid": 0}}'], ids=len)
async def test_an_order_that_makes_no_sense_is_refused_and_the_launcher_lives_on(
    worker: Worker, state: Path, spec: str
) -> None:
    """S6: as from a server that has been taken over; what it hands over is read with no trust in it."""
    launcher = await launcher_of(worker)
    job_id = new_job_id()
    place = state / "jobs" / job_id
    place.mkdir(mode=0o700)
    (place / job_dir.SPEC).write_text(spec)
    directory = job_dir.open_directory(state / "jobs", job_id)
    with worker._launcher.launch(job_id, directory) as channel:
        os.close(directory)
        channel.settimeout(60)
        answer, _ = await asyncio.to_thread(wire.receive, channel)
    assert isinstance(answer, wire.StartFailed)
    job_dir.remove(state / "jobs", job_id)
    assert await launcher_of(worker) == launcher
