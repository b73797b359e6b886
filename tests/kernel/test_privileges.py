"""What launcher and monitors keep of root's rights: what making and ending jobs takes, and no more."""

import asyncio
import signal
from pathlib import Path

import pytest
from host import eventually, launcher_of, monitor_of, needs_root, process_status, start_talking

from jobworker import ErrorCode, JobError, JobSpec, State, Worker
from jobworker.core.outcome import Signaled
from jobworker.runtime import launcher, linux, monitor
from jobworker.runtime.launcher_client import LauncherClient
from jobworker.worker import bootstrap

pytestmark = needs_root

_TALKS = JobSpec(program="sh", args=("-c", "echo ready > /dev/stdout; exec sleep 1000"))
_SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
#: A launcher that lacks one more capability than the real one.
_PROGRAM = """
import sys
sys.path.insert(0, {source!r})
from jobworker.runtime import launcher, linux
def main():
    linux.keep_capabilities(launcher.CAPABILITIES - {{{lacking}}})
    launcher.main()
"""


def _mask(capabilities: frozenset[int]) -> int:
    return sum(1 << capability for capability in capabilities)


def _sets(pid: int) -> dict[str, int]:
    status = process_status(pid)
    return {name: int(status[name], 16) for name in _SETS}


async def test_launcher_and_keeper_have_what_making_jobs_takes_and_no_more(worker: Worker) -> None:
    for pid in (worker._launcher.pid, await launcher_of(worker)):
        ours = _sets(pid)
        assert ours["CapBnd"] == ours["CapBnd"] & _mask(launcher.CAPABILITIES)
        assert ours["CapPrm"] == ours["CapEff"] == ours["CapBnd"]
        assert ours["CapInh"] == ours["CapAmb"] == 0


async def test_a_monitor_keeps_less_than_the_launcher_once_its_program_runs(worker: Worker) -> None:
    job = await start_talking(worker, _TALKS)
    pid = monitor_of(job.id)
    await eventually(lambda: _sets(pid)["CapBnd"] & ~_mask(monitor.CAPABILITIES) == 0)
    kept = _sets(pid)
    assert kept["CapPrm"] == kept["CapEff"] == kept["CapBnd"] != 0
    assert monitor.CAPABILITIES < launcher.CAPABILITIES
    assert (await worker.stop(job.id)).state is State.STOPPED


@pytest.mark.parametrize(
    "name", ["SYS_ADMIN", "SETUID", "SETGID", "SETPCAP", "CHOWN", "MKNOD", "NET_ADMIN", "KILL", "DAC_OVERRIDE"]
)
async def test_no_capability_of_the_launcher_s_can_be_spared(name: str, state: Path, tmp_path: Path) -> None:
    with pytest.raises(JobError):
        await _live(state, tmp_path, getattr(linux, f"CAP_{name}"))


async def test_with_all_capabilities_of_the_launcher_s_a_job_lives_its_life(state: Path, tmp_path: Path) -> None:
    """The control of the test above."""
    await _live(state, tmp_path, -1)


async def _live(state: Path, place: Path, lacking: int) -> None:
    """A job is started, talks, is signalled and ends, under a launcher without one capability."""
    module = f"lacks_{lacking + 1}"
    (place / f"{module}.py").write_text(
        _PROGRAM.format(source=str(Path(launcher.__file__).parents[2]), lacking=lacking)
    )
    client = await asyncio.to_thread(LauncherClient.start, bootstrap(state), module=module, search_path=place)
    async with await Worker.open(state, launcher=client) as worker:
        try:
            job = await start_talking(worker, _TALKS)
            await worker.signal(job.id, signal.SIGTERM)
            ended = await worker.wait(job.id)
            if ended.ending is None or ended.ending.outcome != Signaled(signal.SIGTERM):
                raise JobError(ErrorCode.INTERNAL, f"it did not end as it was told to: {ended.ending}")
        finally:
            for job in worker.list():
                await worker.remove(job.id, force=True)
