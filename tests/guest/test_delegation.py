"""The server as a service that a service manager has handed a group to, as systemd does with Delegate=yes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from host import run_job

from jobworker import ErrorCode, JobError, JobSpec, Limits, Worker
from jobworker.core.spec import MiB

_TREE = Path("/sys/fs/cgroup")
_SERVICE = _TREE / "system.slice" / "jobworkerd.service"

pytestmark = [
    pytest.mark.machine,
    pytest.mark.skipif(
        os.environ["JOBWORKER_VM"] != "v2", reason="needs the v2 layout: only there is a group handed down"
    ),
]


@pytest.fixture
def service(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A group as systemd makes it for a unit, with this process and nothing else in it."""
    for group in (_TREE, _SERVICE.parent):
        group.mkdir(exist_ok=True)
        (group / "cgroup.subtree_control").write_text("+cpu +memory +pids +io")
    _SERVICE.mkdir()
    if request.param is not None:
        os.setxattr(_SERVICE, request.param, b"1")
    (_SERVICE / "cgroup.procs").write_text("0")
    try:
        yield _SERVICE
    finally:
        (_TREE / "cgroup.procs").write_text("0")
        for group in sorted(_SERVICE.glob("**/"), reverse=True):
            group.rmdir()


def _own_group() -> str:
    return Path("/proc/self/cgroup").read_text().strip().removeprefix("0::")


_LIMITED = JobSpec(
    program="/bin/sh", args=("-c", "cat /proc/self/cgroup"), limits=Limits(cpu=0.5, memory=64 * MiB, pids=9)
)


@pytest.mark.parametrize("service", ["trusted.delegate", "user.delegate"], indirect=True)
async def test_in_a_group_of_its_own_the_server_makes_room_and_limits_its_jobs(service: Path, state: Path) -> None:
    """S5. A group with processes hands no controllers down, so the server moves to a leaf beside its jobs."""
    async with await Worker.open(state) as worker:
        assert _own_group() == "/system.slice/jobworkerd.service/server"
        job = await worker.start(JobSpec(program="/bin/sleep", args=("1000",), limits=_LIMITED.limits))
        [group] = service.glob(f"*/{job.id}")
        assert (group / "memory.max").read_text() == f"{64 * MiB}\n"
        assert (group / "pids.max").read_text() == "9\n"
        assert (group / "cpu.max").read_text() == "50000 100000\n"
        await worker.stop(job.id)
        await worker.remove(job.id)
    async with await Worker.open(state) as again:  # from the leaf, where a restarted part of the server is
        job, _ = await run_job(again, _LIMITED)
        assert job.effective_limits["pids"] == "9"
        await again.remove(job.id)
    assert not list(_TREE.glob("jobworker*")), "nothing of ours outside of our group"


@pytest.mark.parametrize("service", [None], indirect=True)
async def test_a_group_that_nobody_has_handed_to_the_server_is_left_alone(service: Path, state: Path) -> None:
    """S5, the control: without the mark of the service manager, jobs go to the top and the server stays."""
    async with await Worker.open(state) as worker:
        assert _own_group() == "/system.slice/jobworkerd.service"
        job = await worker.start(JobSpec(program="/bin/sleep", args=("1000",), limits=_LIMITED.limits))
        assert list(_TREE.glob(f"*/{job.id}"))
        await worker.stop(job.id)
        await worker.remove(job.id)


@pytest.mark.parametrize("service", ["trusted.delegate"], indirect=True)
async def test_a_limit_is_refused_by_name_when_its_controller_was_not_handed_to_the_server(
    service: Path, state: Path
) -> None:
    """S3, S5: as with a unit above which DisableControllers= stands."""
    (service.parent / "cgroup.subtree_control").write_text("-pids")
    async with await Worker.open(state) as worker:
        with pytest.raises(JobError, match="pids limit: this host has no pids controller") as refused:
            await worker.start(_LIMITED)
        assert refused.value.code is ErrorCode.UNSUPPORTED
        job, _ = await run_job(worker, JobSpec(program="/bin/true", limits=Limits(pids=None)))
        assert job.effective_limits["memory"]
        await worker.remove(job.id)


_IN_A_CONTAINER = """
import asyncio, sys
from pathlib import Path
from jobworker import JobSpec, Limits, Worker

async def main():
    async with await Worker.open(sys.argv[1]) as worker:
        job = await worker.start(JobSpec(program="/bin/true", limits=Limits(pids=9)))
        await worker.wait(job.id)
        print(job.effective_limits["pids"], Path("/proc/self/cgroup").read_text().strip())
        await worker.remove(job.id)

asyncio.run(main())
"""


@pytest.mark.parametrize("service", [None], indirect=True)
def test_at_the_top_of_a_container_the_server_makes_room_as_well(service: Path, state: Path) -> None:
    """S5. What a container shows as the top of the tree is a group like any other, and has its processes in it."""
    own_tree = "umount /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup"
    command = f'{own_tree} && exec "$0" "$@"'
    container = ["unshare", "--cgroup", "--mount", "sh", "-c", command, sys.executable, "-c", _IN_A_CONTAINER, state]
    ran = subprocess.run(container, check=True, capture_output=True, text=True)
    assert ran.stdout == "9 0::/server\n"
