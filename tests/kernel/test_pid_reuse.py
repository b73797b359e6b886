"""A process number that has passed to a stranger is never taken for the process that had it before."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from host import eventually, job_processes, monitor_of, needs_root, process_status, start_talking

from jobworker import JobError, JobSpec, State, Worker
from jobworker.core.errors import ErrorCode
from jobworker.core.outcome import Lost

pytestmark = needs_root

_READY = JobSpec(program="/bin/sh", args=("-c", "echo ready; sleep 1000"))


@contextlib.contextmanager
def _stranger(programs: Path, pid: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the host's with this number; it must be free."""
    parent = subprocess.Popen([programs / "at_pid", str(pid)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stderr is not None
    try:
        if parent.stdout.readline() != b"here\n":
            pytest.skip(f"needs to choose process numbers: {parent.stderr.read().decode()}")
        assert process_status(pid)["Name"] == "at_pid"  # the control: whoever acts by number acts on this one
        yield parent
        assert process_status(pid)["Name"] == "at_pid", "the stranger was hit"
    finally:
        parent.kill()
        parent.communicate()


async def test_a_stranger_with_the_number_of_a_dead_program_is_left_alone(worker: Worker, programs: Path) -> None:
    """P7. Stop, signal and removal of the job come too late and hit nobody."""
    job = await start_talking(worker, _READY)
    program = min(job_processes(worker._jobs_dir.parent, job.id))
    await worker.stop(job.id)
    await eventually(lambda: not process_status(program))
    with _stranger(programs, program):
        for late in (worker.stop(job.id), worker.signal(job.id, signal.SIGKILL)):
            with pytest.raises(JobError) as refused:
                await late
            assert refused.value.code is ErrorCode.JOB_NOT_RUNNING
        await worker.remove(job.id, force=True)


async def test_a_stranger_with_the_number_of_a_dead_monitor_is_left_alone(
    worker: Worker, state: Path, programs: Path
) -> None:
    """P7. Nor is it taken for the monitor: the job is lost, now and for the next server."""
    job = await start_talking(worker, _READY)
    monitor = monitor_of(job.id)
    os.kill(monitor, signal.SIGKILL)
    ended = await worker.wait(job.id)
    await eventually(lambda: not process_status(monitor))
    with _stranger(programs, monitor):
        assert ended.ending is not None
        assert isinstance(ended.ending.outcome, Lost)
        assert (await worker.status(job.id)).state is State.FAILED
        with pytest.raises(JobError):
            await worker.stop(job.id)
        await worker.remove(job.id, force=True)
