"""Jobs that take all they can get: only they suffer, others start, answer and end, and nothing is left of them."""

import os
from pathlib import Path

import pytest
from host import (
    JOB_PYTHON,
    a_process,
    eventually,
    job_groups,
    job_processes,
    monitor_of,
    needs_root,
    output_of,
    process_status,
    run_job,
)

from jobworker import JobSpec, Limits, State, Worker
from jobworker.core.spec import MiB

pytestmark = needs_root

_MEMORY = 64 * MiB
_PIDS = 64


def _shell(script: str) -> JobSpec:
    return JobSpec(program="/bin/sh", args=("-c", script), limits=Limits(memory=_MEMORY, pids=_PIDS))


#: Each takes something without end; `sleep` keeps the job, so that it is stopped and does not just fail.
_GREEDY = {
    "processes": "bomb() { bomb | bomb & }; bomb; while :; do sleep 1; done",
    "memory": "tail /dev/zero & sleep 1000",
    "scratch space": "cat /dev/zero > /tmp/full; cat /dev/zero > /dev/shm/full; sleep 1000",
    "files": "cd /tmp; i=0; while : > $i; do i=$((i+1)); done; sleep 1000",
    "descriptors": "for n in 1 2 3 4 5 6 7 8; do cat /dev/zero | cat /dev/zero | sleep 1000 & done; sleep 1000",
    "pipes": "while :; do yes | sleep 1000 & done; sleep 1000",
    "output": "while :; do cat /dev/zero; done",
    "processor": "for n in 1 2 3 4 5 6 7 8; do while :; do :; done & done; wait",
}


@pytest.mark.parametrize("greed", _GREEDY)
async def test_only_the_greedy_job_suffers(worker: Worker, state: Path, greed: str) -> None:
    """R1. Beside it other jobs run and the host starts processes; its limits are never passed; nothing is left."""
    witness = await worker.start(JobSpec(program="/bin/sleep", args=("1000",)))
    job = await worker.start(_shell(_GREEDY[greed]))
    monitor = monitor_of(job.id)
    for _ in range(5):
        neighbour = await worker.start(JobSpec(program="/bin/echo", args=("well",)))
        assert await output_of(worker, neighbour.id) == b"well\n"
        assert (await worker.wait(neighbour.id)).state is State.COMPLETED
        assert len(job_processes(state, job.id)) <= _PIDS
        status = await worker.status(job.id)
        assert status.usage.memory_peak is None or status.usage.memory_peak <= _MEMORY + 4 * MiB
    host = a_process("true")
    assert host.wait() == 0
    assert (await worker.status(witness.id)).state is State.RUNNING
    if (await worker.status(job.id)).state is State.RUNNING:
        await worker.stop(job.id)
    await eventually(lambda: process_status(monitor) == {}, seconds=60)
    assert [group for group in job_groups(state) if group.name == job.id] == []
    await worker.stop(witness.id)


async def test_a_fork_bomb_meets_its_limit(worker: Worker, state: Path) -> None:
    """R1, S2. The control of the test above: the bomb does explode."""
    job = await worker.start(_shell(_GREEDY["processes"]))
    await eventually(lambda: len(job_processes(state, job.id)) > _PIDS // 2, seconds=60)
    await worker.stop(job.id)
    assert job_groups(state) == []


_TREE = """
import os
os.mkdir("/tmp/t")
os.chdir("/tmp/t")
os.symlink("/", "root")
os.symlink("../../../..", "up")
os.mkdir("closed")
open("closed/file", "w").close()
os.chmod("closed", 0)
for number in range(20000):
    open(str(number), "w").close()
for _ in range(10000):
    os.mkdir("d")
    os.chdir("d")
print(len(os.listdir("/tmp/t")))
"""


async def test_a_job_with_a_tree_that_is_hard_to_remove_ends_like_any_other(worker: Worker, state: Path) -> None:
    """E24. Deep, wide, without permissions, with links to everywhere; what it says shows that it was all there."""
    job, output = await run_job(worker, JobSpec(program=JOB_PYTHON, args=("-c", _TREE)))
    assert output == b"20004\n"
    assert job.state is State.COMPLETED
    await worker.remove(job.id)
    assert job_groups(state) == []
    assert os.listdir(state / "jobs") == []
