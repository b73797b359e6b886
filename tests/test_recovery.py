"""What becomes of jobs that an earlier server left: adopted, believed or declared lost, and none is forgotten."""

import asyncio
import contextlib
import errno
import json
import os
import resource
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from host import (
    eventually,
    job_groups,
    job_processes,
    monitor_of,
    needs_root,
    output_of,
    process_status,
    start_talking,
)

from jobworker import JobSpec, State, Worker
from jobworker.core.errors import ErrorCode, JobError
from jobworker.core.job_id import new_job_id
from jobworker.core.outcome import Ending, Exited, Lost, Outcome, Stopped
from jobworker.endings import Endings
from jobworker.job import JobStatus
from jobworker.lost import why_lost
from jobworker.runtime import job_dir, wire
from jobworker.runtime.cgroup_host import CgroupHost
from jobworker.runtime.launcher_client import LauncherClient
from jobworker.worker import bootstrap


@pytest.mark.parametrize(
    ("has_directory", "is_same_boot", "reason"),
    [
        (False, True, "the server stopped before the job was started"),
        (False, False, "host rebooted"),
        (True, False, "host rebooted"),
        (True, True, "its monitor was killed"),
    ],
)
def test_a_lost_job_says_why(has_directory: bool, is_same_boot: bool, reason: str) -> None:  # noqa: FBT001
    assert why_lost(has_directory=has_directory, is_same_boot=is_same_boot) == Lost(reason)


# With real jobs. A worker that is closed and one that is killed leave the same: jobs with their monitors.


@pytest.fixture
async def first(state: Path) -> Worker:
    """A worker that the test closes before the second one comes."""
    return await Worker.open(state)


@contextlib.asynccontextmanager
async def successor(state: Path) -> AsyncIterator[Worker]:
    async with await Worker.open(state) as worker:
        yield worker
        for job in worker.list():
            await worker.remove(job.id, force=True)


def outcome_of(job: JobStatus) -> Outcome | None:
    return job.ending.outcome if job.ending else None


async def kill_monitor_of(job_id: str) -> None:
    """When it returns the kernel has taken back all that the monitor held, its lock included."""
    monitor = monitor_of(job_id)
    os.kill(monitor, signal.SIGKILL)
    await eventually(lambda: process_status(monitor).get("State", "Z").startswith("Z"))


def shell(script: str) -> JobSpec:
    return JobSpec(program="sh", args=("-c", script))


@needs_root
async def test_a_running_job_is_adopted_with_its_output_and_can_be_stopped(state: Path, first: Worker) -> None:
    """C1."""
    job = await start_talking(first, shell("echo before; exec sleep 1000"))
    processes = job_processes(state, job.id)
    await first.close()
    async with successor(state) as second:
        (found,) = second.list()
        assert (found.id, found.state, found.spec) == (job.id, State.RUNNING, job.spec)
        assert (found.phase, found.created_at) == (job.phase, job.created_at)
        assert (found.effective_limits, found.sandbox) == (job.effective_limits, job.sandbox)
        assert job_processes(state, job.id) == processes
        assert (await second.status(job.id)).usage.cpu_seconds is not None
        stopped = await second.stop(job.id, by="erin")
        assert outcome_of(stopped) == Stopped("erin", 9)
        assert await output_of(second, job.id) == b"before\n"


@needs_root
async def test_an_end_while_nobody_looked_is_on_record(state: Path, first: Worker) -> None:
    """C1."""
    job = await start_talking(first, shell("echo out; sleep 0.3; echo more; exit 5"))
    await first.close()
    await eventually((state / "jobs" / job.id / "outcome.json").exists)
    async with successor(state) as second:
        status = await second.wait(job.id)
        assert outcome_of(status) == Exited(5)
        assert (status.effective_limits, status.sandbox) == (job.effective_limits, job.sandbox)
        assert await output_of(second, job.id) == b"out\nmore\n"


@needs_root
async def test_a_killed_monitor_takes_its_job_along_and_it_is_recorded_as_lost(state: Path, worker: Worker) -> None:
    """C2: at once, while the server runs."""
    job = await start_talking(worker, shell("echo kept; setsid sleep 1000 & exec sleep 1000"))
    os.kill(monitor_of(job.id), signal.SIGKILL)
    ended = await worker.wait(job.id, timeout=60)
    assert outcome_of(ended) == Lost("its monitor was killed")
    assert ended.state is State.FAILED
    assert ended.output.stdout_bytes == len(b"kept\n")
    assert await output_of(worker, job.id) == b"kept\n"
    assert job_groups(state) == []
    with pytest.raises(JobError) as refused:
        await worker.stop(job.id)
    assert refused.value.code is ErrorCode.JOB_NOT_RUNNING


@needs_root
@pytest.mark.parametrize(
    ("recorded", "outcome"),
    [
        (Ending(outcome=Exited(3), ended_at=1.0).to_document(), Exited(3)),
        ({"outcome": {"kind": "a later release's"}}, Lost("the job's files are damaged")),
    ],
    ids=["whole", "damaged"],
)
async def test_a_monitor_killed_after_it_recorded_the_end_is_believed_and_nothing_of_the_job_is_left(
    state: Path, worker: Worker, recorded: dict[str, object], outcome: Outcome
) -> None:
    """C2, P1: while the server runs. What is recorded is told, or that it cannot be read; the groups are gone then."""
    job = await start_talking(worker, shell("echo out; exec sleep 1000"))
    document = recorded | {"effective_limits": {}, "sandbox": {}}
    (state / "jobs" / job.id / "outcome.json").write_text(json.dumps(document))
    os.kill(monitor_of(job.id), signal.SIGKILL)
    assert outcome_of(await worker.wait(job.id, timeout=60)) == outcome
    assert job_groups(state) == []
    await worker.remove(job.id)


@needs_root
async def test_a_monitor_killed_while_nobody_looked_is_found_out(state: Path, first: Worker) -> None:
    """C2."""
    job = await start_talking(first, shell("echo kept; exec sleep 1000"))
    await first.close()
    await kill_monitor_of(job.id)
    async with successor(state) as second:
        status = await second.status(job.id)
        assert outcome_of(status) == Lost("its monitor was killed")
        assert status.ending is not None
        assert status.ending.ended_at >= job.created_at
        assert job_groups(state) == []
        assert await output_of(second, job.id) == b"kept\n"
    async with successor(state) as third:
        assert third.list() == []


@needs_root
async def test_after_a_reboot_a_job_is_lost_for_that_reason(state: Path, first: Worker) -> None:
    """C4: the boot id on record is another than the host's."""
    job = await start_talking(first, shell("echo kept; exec sleep 1000"))
    await first.close()
    await kill_monitor_of(job.id)
    request = state / "jobs" / job.id / "spec.json"
    document = json.loads(request.read_text())
    request.write_text(json.dumps(document | {"boot_id": "00000000-0000-4000-8000-000000000000"}))
    async with successor(state) as second:
        assert outcome_of(await second.status(job.id)) == Lost("host rebooted")


@needs_root
@pytest.mark.parametrize("is_after_reboot", [True, False], ids=["after a reboot", "the control"])
async def test_what_a_reset_has_cost_of_a_jobs_files_does_not_cost_the_job(
    state: Path,
    is_after_reboot: bool,  # noqa: FBT001
) -> None:
    """C4: the disk shows it as it was before its program was loaded, which it may have been since."""
    job_id, directory = ordered(state, "00000000-0000-4000-8000-000000000000" if is_after_reboot else None)
    lock = job_dir.take_lock(directory)
    job_dir.note_launch(lock)
    for fd in (*job_dir.open_output(directory), lock, directory):
        os.close(fd)
    async with successor(state) as second:
        outcomes = {job.id: outcome_of(job) for job in second.list()}
        assert outcomes == ({job_id: Lost("host rebooted")} if is_after_reboot else {})


@needs_root
async def test_a_directory_that_was_never_finished_is_removed(state: Path, first: Worker) -> None:
    """C3: the server died while it made it."""
    await first.close()
    for content in (None, "", '{"spec": {"progr'):
        directory = state / "jobs" / new_job_id()
        directory.mkdir(mode=0o700)
        if content is not None:
            (directory / "spec.json").write_text(content)
    async with successor(state) as second:
        assert second.list() == []
        assert list((state / "jobs").iterdir()) == []


@needs_root
async def test_a_removal_that_was_cut_short_is_finished(state: Path, first: Worker) -> None:
    """C3: after a crash at whatever file, the job is there whole or gone without a rest."""
    job = await start_talking(first, shell("echo out"))
    await first.wait(job.id)
    await first.close()
    (state / "jobs" / job.id / "spec.json").unlink()
    async with successor(state) as second:
        assert second.list() == []
        assert list((state / "jobs").iterdir()) == []


@needs_root
async def test_a_job_whose_request_is_damaged_keeps_no_server_from_starting(state: Path, first: Worker) -> None:
    """C5: it stays where it is, and can be removed; the others are as they were."""
    whole = await start_talking(first, shell("echo whole; exec sleep 1000"))
    damaged = [await start_talking(first, shell("echo out; exec sleep 1000")) for _ in range(2)]
    await first.close()
    for job, content in zip(
        damaged, ('{"spec": {"prog', '{"spec": {"newer": 1}, "created_at": 1, "boot_id": ""}'), strict=True
    ):
        await kill_monitor_of(job.id)
        (state / "jobs" / job.id / "spec.json").write_text(content)
    async with successor(state) as second:
        assert [job.id for job in second.list()] == [whole.id]
        for job in damaged:
            assert (state / "jobs" / job.id / "output").read_bytes() == b"out\n"
            await second.remove(job.id)
        assert {group.name for group in job_groups(state)} == {whole.id}


@needs_root
async def test_groups_that_a_killed_monitor_left_after_the_end_are_removed(state: Path, first: Worker) -> None:
    """C2, P6. The control: those of a job that runs stay."""
    running = await start_talking(first, shell("echo out; exec sleep 1000"))
    ended = await first.start(shell("exit 3"))
    await first.wait(ended.id)
    CgroupHost.discover(bootstrap(state).cgroup_parent).group(ended.id).create()
    assert {group.name for group in job_groups(state)} == {running.id, ended.id}
    await first.close()
    async with successor(state) as second:
        assert {group.name for group in job_groups(state)} == {running.id}
        assert outcome_of(await second.status(ended.id)) == Exited(3)
        assert (await second.status(running.id)).state is State.RUNNING


def ordered(state: Path, boot_id: str | None = None) -> tuple[str, int]:
    """A job's id and directory as they are while the launcher has not come to its order."""
    (state / "jobs").mkdir(parents=True)
    job_id = new_job_id()
    boot_id = boot_id or Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return job_id, job_dir.create(state / "jobs", job_id, job_dir.Request(shell("exec sleep 1000"), 1.0, boot_id))


@needs_root
async def test_a_launcher_that_outlives_its_server_launches_nothing_behind_the_next_ones_back(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C3, P1. It comes to the order while the next server takes the start back: no job runs that nobody knows."""
    job_id, directory = ordered(state)
    earlier = await asyncio.to_thread(LauncherClient.start, bootstrap(state))
    answers: list[wire.Message | None] = []
    clean_up = Endings.clean_up

    async def clean_up_too_early(endings: Endings, cleaned: str) -> None:
        await clean_up(endings, cleaned)
        with earlier.launch(job_id, directory) as channel:
            channel.setblocking(True)
            answers.append(await asyncio.to_thread(lambda: wire.receive(channel)[0]))

    monkeypatch.setattr(Endings, "clean_up", clean_up_too_early)
    async with successor(state) as second:
        monkeypatch.undo()
        [answer] = answers
        assert isinstance(answer, wire.StartFailed)
        assert second.list() == []
        assert job_groups(state) == []
        assert list((state / "jobs").iterdir()) == []
    os.close(directory)
    await asyncio.to_thread(earlier.close)


@needs_root
async def test_a_job_whose_monitor_is_still_coming_up_is_waited_for(state: Path) -> None:
    """C3. The control: once nobody has the lock any more, it is lost."""
    job_id, directory = ordered(state)
    lock = job_dir.take_lock(directory)
    async with successor(state) as second:
        assert (await second.wait(job_id, timeout=1.5)).state is State.PENDING, "through more than one try"
        os.close(lock)
        assert outcome_of(await second.wait(job_id, timeout=60)) == Lost("its monitor was killed")
    os.close(directory)


@needs_root
async def test_a_job_whose_request_cannot_be_read_is_ended_since_nobody_could_stop_it(
    state: Path, first: Worker
) -> None:
    """C5, P1. Its monitor lives; what it was is not known any more. A directory stands for a file that gives EIO."""
    jobs = [await start_talking(first, shell("echo out; exec sleep 1000")) for _ in range(2)]
    await first.close()
    (state / "jobs" / jobs[0].id / "spec.json").write_text("{")
    (state / "jobs" / jobs[1].id / "spec.json").unlink()
    (state / "jobs" / jobs[1].id / "spec.json").mkdir()
    async with successor(state) as second:
        assert second.list() == []
        await eventually(lambda: job_groups(state) == [])
        (state / "jobs" / jobs[1].id / "spec.json").rmdir()
        for job in jobs:
            assert (state / "jobs" / job.id / "output").read_bytes() == b"out\n"
            await second.remove(job.id)


@needs_root
async def test_a_running_job_whose_request_is_gone_is_ended_with_its_directory(state: Path, first: Worker) -> None:
    """C5, P1: nobody could stop it. The control: it ran until then."""
    job = await start_talking(first, shell("echo out; exec sleep 1000"))
    await first.close()
    assert job_processes(state, job.id)
    (state / "jobs" / job.id / "spec.json").unlink()
    async with successor(state) as second:
        await eventually(lambda: job_groups(state) == [])
        assert second.list() == []


@needs_root
async def test_a_worker_that_has_too_few_descriptors_is_none_and_forgets_no_job(state: Path, first: Worker) -> None:
    """C1, S11: a job that is taken for damaged would be started again under its key, beside itself."""
    job = await start_talking(first, shell("echo out; exec sleep 1000"))
    await first.close()
    launcher = await asyncio.to_thread(LauncherClient.start, bootstrap(state))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    refusals: set[int | None] = set()
    second: Worker | None = None
    for limit in range(3, before[0]):
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
        try:
            second = await Worker.open(state, launcher=launcher)
            break
        except OSError as error:
            refusals.add(error.errno)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert second is not None
    assert refusals == {errno.EMFILE}, "the control"
    async with second:
        assert [found.id for found in second.list()] == [job.id]
        await second.remove(job.id, force=True)


@needs_root
async def test_entries_that_are_no_directories_of_ours_keep_no_server_from_starting(state: Path, first: Worker) -> None:
    """C5: as after a repair of the file system. They stay as they are."""
    await first.close()
    place = state / "jobs"
    file, link, foreign = (place / new_job_id() for _ in range(3))
    file.write_text("what it was")
    link.symlink_to("/etc")
    foreign.mkdir(mode=0o700)
    (foreign / "put here by somebody").touch()
    async with successor(state) as second:
        assert second.list() == []
        for damaged in (file, link):
            with pytest.raises(JobError, match="damaged"):
                await second.status(damaged.name)
    assert (file.read_text(), os.readlink(link), len(list(foreign.iterdir()))) == ("what it was", "/etc", 1)


@needs_root
async def test_monitors_that_stand_still_are_waited_for_all_at_once(state: Path, first: Worker) -> None:
    """C1: as when the disk of their jobs hangs. The control: they are pending until they go on."""
    hung = [(await first.start(shell("exec sleep 1000"))).id for _ in range(12)]
    await first.close()
    monitors = [monitor_of(job_id) for job_id in hung]
    for pid in monitors:
        os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        second = await Worker.open(state)
        took = time.monotonic() - began
        assert {job.state for job in second.list()} == {State.PENDING}
    finally:
        for pid in monitors:
            os.kill(pid, signal.SIGCONT)
    assert took < len(hung), "a second for each"
    await eventually(lambda: {job.state for job in second.list()} == {State.RUNNING})
    for job_id in hung:
        await second.remove(job_id, force=True)
    await second.close()


@needs_root
async def test_an_end_that_the_disk_does_not_take_keeps_no_server_from_starting(state: Path, first: Worker) -> None:
    """R2: it goes on record when the disk takes it; until then the job has no end."""
    job = await start_talking(first, shell("echo kept; exec sleep 1000"))
    await first.close()
    await kill_monitor_of(job.id)
    place = state / "jobs" / job.id / "outcome.json.new"
    await eventually(lambda: job_processes(state, job.id) == set())
    place.unlink()
    place.mkdir()  # what nothing can be written to, not by root either
    async with asyncio.timeout(60), successor(state) as second:
        assert (await second.status(job.id)).ending is None
        place.rmdir()
        assert outcome_of(await second.wait(job.id)) == Lost("its monitor was killed")


@needs_root
async def test_what_is_no_job_is_left_alone(state: Path, first: Worker) -> None:
    await first.close()
    stranger = state / "jobs" / "lost+found"
    stranger.mkdir()
    async with successor(state) as second:
        assert second.list() == []
        assert stranger.is_dir()


@needs_root
async def test_many_jobs_of_every_kind_are_taken_over_at_once(state: Path, first: Worker) -> None:
    """C1: none lost, none doubled."""
    running = {(await first.start(shell("exec sleep 1000"))).id for _ in range(8)}
    ended = {(await first.wait((await first.start(shell("exit 2"))).id)).id for _ in range(8)}
    await first.close()
    async with successor(state) as second:
        states = {job.id: job.state for job in second.list()}
        assert states == dict.fromkeys(running, State.RUNNING) | dict.fromkeys(ended, State.FAILED)
        assert len(second.list()) == len(states)


@needs_root
async def test_a_followed_job_is_followed_again_from_the_offset(state: Path, first: Worker) -> None:
    """O1: the output has no seam where the server changed."""
    job = await first.start(shell("seq 1 2000; sleep 0.3; seq 2001 4000"))
    seen = b""
    async with contextlib.aclosing(first.output(job.id)) as chunks:
        async for chunk in chunks:
            seen += chunk.data
            if seen.endswith(b"2000\n"):
                break
    await first.close()
    async with successor(state) as second:
        async for chunk in second.output(job.id, offset=len(seen)):
            seen += chunk.data
    assert seen == b"".join(b"%d\n" % number for number in range(1, 4001))
