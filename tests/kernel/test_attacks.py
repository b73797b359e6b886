"""What a hostile job, or a stuck part of the service, has tried and must not get."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path

from host import JOB_PYTHON, monitor_of, needs_root

from jobworker import JobSpec, Network, State, Worker
from jobworker.runtime import job_dir

pytestmark = needs_root

_STRANGER = """
import os, socket, sys
if sys.argv[1] == "hold":
    server = socket.socket(socket.AF_UNIX)
    server.bind("\\0" + sys.argv[2])
    server.listen()
    print("ready", flush=True)
    [pipe] = socket.recv_fds(server.accept()[0], 1, 1)[1]
    while True:
        os.write(pipe, bytes(65536))
peer = socket.socket(socket.AF_UNIX)
peer.connect("\\0" + sys.argv[2])
socket.send_fds(peer, [b"x"], [1])
"""


def _python(code: str, *args: str, network: Network = Network.NONE) -> JobSpec:
    return JobSpec(program=JOB_PYTHON, args=("-c", code, *args), network=network)


async def test_a_stranger_who_writes_for_ever_to_a_jobs_output_does_not_keep_it_from_ending(worker: Worker) -> None:
    name = f"jobworker-test-{os.getpid()}"
    holder = await worker.start(_python(_STRANGER, "hold", name, network=Network.HOST))
    await anext(worker.output(holder.id))
    giver = await worker.start(_python(_STRANGER, "give", name, network=Network.HOST))
    assert (await worker.wait(giver.id, timeout=60)).state is State.COMPLETED


async def test_a_monitor_that_does_not_answer_keeps_no_server_from_starting(state: Path) -> None:
    sleep = JobSpec(program="sleep", args=("1000",))
    async with await Worker.open(state) as worker:
        stuck, well = await worker.start(sleep), await worker.start(sleep)
    monitor = monitor_of(stuck.id)
    os.kill(monitor, signal.SIGSTOP)
    try:
        async with asyncio.timeout(60):
            worker = await Worker.open(state)
        assert (await worker.status(well.id)).state is State.RUNNING
    finally:
        os.kill(monitor, signal.SIGCONT)
    async with worker:
        for job in (stuck, well):
            assert (await worker.stop(job.id)).state is State.STOPPED
            await worker.remove(job.id)


async def test_a_monitor_whose_door_is_crowded_is_adopted_when_it_lets_in_again(state: Path) -> None:
    """No job is taken for lost because others knocked first."""
    async with await Worker.open(state) as worker:
        job = await worker.start(JobSpec(program="sleep", args=("1000",)))
    monitor = monitor_of(job.id)
    os.kill(monitor, signal.SIGSTOP)
    crowd = []
    directory = job_dir.open_directory(state / "jobs", job.id)
    try:
        with contextlib.suppress(BlockingIOError):
            while True:
                crowd.append(job_dir.connect(directory))
        async with asyncio.timeout(60):
            worker = await Worker.open(state)
        assert (await worker.status(job.id)).state is State.PENDING
    finally:
        os.kill(monitor, signal.SIGCONT)
        os.close(directory)
        for channel in crowd:
            channel.close()
    async with worker:
        assert (await worker.stop(job.id)).state is State.STOPPED
        await worker.remove(job.id)
