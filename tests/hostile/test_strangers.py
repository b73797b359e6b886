"""Programs that no one here wrote, made to leave or to overload a sandbox, run as jobs; outside each of them works."""

import asyncio
import shutil
import subprocess
from pathlib import Path

import pytest
from host import eventually, job_groups, needs_root, output_of, run_job, titled_as_monitor

from jobworker import ErrorCode, JobError, JobSpec, Limits, State, Worker
from jobworker.core.spec import MiB
from jobworker.runtime import sandbox

pytestmark = needs_root

#: What each must not get done in a job, and does outside of one.
_LEAVING = {
    "unshare a user namespace": ("unshare", "--user", "--map-root-user", "true"),
    "unshare the mounts": ("unshare", "--mount", "true"),
    "unshare the network": ("unshare", "--net", "true"),
    "nsenter its own namespace": ("sh", "-c", "nsenter --target $$ --uts true"),
    "setpriv to root": ("setpriv", "--reuid=0", "--regid=0", "--clear-groups", "true"),
    "setpriv with capabilities": ("setpriv", "--inh-caps=+net_raw", "--ambient-caps=+net_raw", "true"),
    "capsh to root": ("capsh", "--uid=0", "--", "-c", "true"),
    "capsh into another root": ("capsh", "--chroot=/", "--", "-c", "true"),
    "bwrap": ("bwrap", "--ro-bind", "/", "/", "true"),
    "bwrap in a user namespace": ("bwrap", "--unshare-user", "--ro-bind", "/", "/", "--dev", "/dev", "true"),
    "mount": ("mount", "-t", "tmpfs", "none", "/opt"),
}


def _needs(program: str) -> None:
    if shutil.which(program, path=sandbox.SEARCH_PATH) is None:
        pytest.skip(f"needs {program}, installed where jobs see it")


@pytest.mark.parametrize("way", _LEAVING)
async def test_no_tool_gets_out_of_a_job(worker: Worker, way: str) -> None:
    """E4, E8. The control does its work in mounts of its own, and the same mistake would fail it too."""
    program, *args = _LEAVING[way]
    _needs(program)
    control = ["unshare", "--mount", "--propagation", "private", program, *args]
    await asyncio.to_thread(subprocess.run, control, check=True, stdin=subprocess.DEVNULL)
    job, output = await run_job(worker, JobSpec(program=program, args=tuple(args)))
    assert job.state is State.FAILED, output


async def test_capsh_finds_no_capability_in_a_job(worker: Worker) -> None:
    """E3. The control: outside it finds some."""
    _needs("capsh")
    _, output = await run_job(worker, JobSpec(program="capsh", args=("--print",)))
    found = dict(line.split("=", 1) for line in output.decode().splitlines() if "=" in line)
    outside = await asyncio.to_thread(subprocess.run, ["capsh", "--print"], capture_output=True, check=True)
    control = dict(line.split("=", 1) for line in outside.stdout.decode().splitlines() if "=" in line)
    assert (found["Current: "], found["Bounding set "], found["Ambient set "]) == ("", "", "")
    assert control["Bounding set "] != ""


#: Stressors that attack the kernel rather than the job, with what holds each of them.
_STRESSORS = {
    "fork": (("--fork", "8", "--vfork", "4"), Limits(pids=48)),
    "vm": (("--vm", "4", "--vm-bytes", "64M"), Limits(memory=48 * MiB)),
    "sysinval": (("--sysinval", "2"), Limits(pids=64)),
    "sysbadaddr": (("--sysbadaddr", "2"), Limits(pids=64)),
    "seccomp": (("--seccomp", "2"), Limits(pids=64)),
    "enosys": (("--enosys", "2"), Limits(pids=64)),
    "clone": (("--clone", "2"), Limits(pids=64)),
}


@pytest.mark.parametrize("name", _STRESSORS)
async def test_a_stressor_harms_its_own_job_only(worker: Worker, state: Path, name: str) -> None:
    """R1, P1. The control: a second job is started, answers and ends meanwhile, and the host's mounts stay.

    When a stressor meets its limit is the kernel's affair, so that it may have ended before it is stopped.
    """
    _needs("stress-ng")
    stressors, limits = _STRESSORS[name]
    mounts = Path("/proc/self/mountinfo").read_text()
    args = (*stressors, "--timeout", "60", "--temp-path", "/tmp", "--oomable", "--no-rand-seed")
    job = await worker.start(JobSpec(program="stress-ng", args=args, limits=limits))
    for _ in range(3):
        witness = await worker.start(JobSpec(program="/bin/echo", args=("well",)))
        assert await output_of(worker, witness.id) == b"well\n"
        assert (await worker.wait(witness.id)).state is State.COMPLETED
        assert (await worker.status(job.id)).state in {State.RUNNING, State.FAILED}
    try:
        assert (await worker.stop(job.id)).state is State.STOPPED
    except JobError as error:
        assert error.code is ErrorCode.JOB_NOT_RUNNING  # noqa: PT017 - the other end that it may have had
        assert (await worker.status(job.id)).state is State.FAILED
    await eventually(lambda: titled_as_monitor(job.id) == [])
    assert job_groups(state) == []
    assert Path("/proc/self/mountinfo").read_text() == mounts
