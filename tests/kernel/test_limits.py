"""Limits, proven by what they do; each with a control without the limit."""

import asyncio
import contextlib
import os
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from host import JOB_PYTHON, eventually, job_groups, job_processes, monitor_of, needs_root, run_job, start_talking

from jobworker import JobSpec, Limits, State, Worker
from jobworker.core.outcome import Exited, OomKilled
from jobworker.core.spec import MiB
from jobworker.runtime.block_device import disks_of
from jobworker.runtime.cgroup_host import CgroupHost
from jobworker.worker import bootstrap

pytestmark = needs_root

#: What the kernel gives beyond a limit of memory where it cannot wait, as to a process that it is killing.
_OVERDRAFT = 2 * MiB


@pytest.fixture
def big_file(programs: Path) -> Iterator[Path]:
    """16 MiB on the disk under /, where jobs may read it."""
    path = programs / "big"
    path.write_bytes(os.urandom(16 * MiB))
    path.chmod(0o644)
    with path.open("rb") as file:
        os.fsync(file)
    yield path
    path.unlink()


def _root_has_a_disk() -> bool:
    try:
        disks_of("/")
    except Exception:  # noqa: BLE001 - the tests of block_device tell which
        return False
    return True


needs_disk = pytest.mark.skipif(
    not _root_has_a_disk(), reason="needs a disk of its own under /: io limits are for disks"
)


async def _share_of_a_core(worker: Worker, programs: Path, cpu: float | None) -> tuple[float, float]:
    """What a busy job gets, by its own clock, and how long the kernel kept it from running."""
    spin = JobSpec(program=JOB_PYTHON, args=(str(programs / "spin.py"), "2"), limits=Limits(cpu=cpu))
    job, output = await run_job(worker, spin)
    assert job.usage.throttled_seconds is not None
    assert job.usage.cpu_seconds is not None
    return float(output), job.usage.throttled_seconds


@pytest.mark.layout
async def test_a_cpu_limit_holds(worker: Worker, programs: Path) -> None:
    """S2. 0.2 ± 0.05 seconds a second, and the throttling is counted.

    Never more; that a job gets so much at all is up to what else runs here, so that one of several tries must.
    """
    for _ in range(5):
        share, throttled = await _share_of_a_core(worker, programs, 0.2)
        assert share <= 0.25
        free, never = await _share_of_a_core(worker, programs, None)
        assert never == 0
        if share >= 0.15 and throttled > 0.1 and free > 0.3:
            break
    else:
        pytest.fail(f"at last {share} with the limit, throttled for {throttled} s, and {free} without it")


@pytest.mark.layout
async def test_a_job_over_its_memory_limit_is_ended_and_the_worker_lives(worker: Worker, programs: Path) -> None:
    """S2."""
    for limit, outcome in ((32 * MiB, OomKilled()), (256 * MiB, Exited(0)), (None, Exited(0))):
        hog = JobSpec(program=str(programs / "hog"), args=("64",), limits=Limits(memory=limit))
        job, _ = await run_job(worker, hog)
        assert job.ending is not None
        assert job.ending.outcome == outcome
        assert job.usage.memory_peak is not None
        assert limit is None or job.usage.memory_peak <= limit + _OVERDRAFT


@pytest.mark.layout
@pytest.mark.parametrize("place", ["/tmp", "/dev/shm"])
async def test_a_file_in_memory_does_not_get_around_the_memory_limit(worker: Worker, place: str) -> None:
    """S2. The control: with a limit above what it writes, the same job ends well."""
    for limit, ends_well in ((24 * MiB, False), (256 * MiB, True)):
        fill = JobSpec(
            program="/bin/dd",
            args=("if=/dev/zero", f"of={place}/fill", "bs=1M", "count=48", "status=none"),
            limits=Limits(memory=limit),
        )
        job, _ = await run_job(worker, fill)
        assert (job.state is State.COMPLETED) is ends_well
        assert job.usage.memory_peak is not None
        assert job.usage.memory_peak <= limit + _OVERDRAFT


#: Sends 96 MiB to sockets that nobody reads from, and tells how much has waited in them. Where sockets may exceed the
#: limit of memory for a moment, as on v2, the memory that it takes after that is what the limit refuses.
_FILL_SOCKETS = """
import socket
sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(800)]
for one in sockets:
    one.bind(("127.0.0.1", 0))
    for _ in range(2):
        one.sendto(bytes(60 * 1024), one.getsockname())
taken = b"x" * (8 << 20)
waiting = 0
for one in sockets:
    one.setblocking(False)
    try:
        while True:
            waiting += len(one.recv(65536))
    except BlockingIOError:
        pass
print(waiting)
"""


@pytest.mark.layout
async def test_what_waits_in_sockets_does_not_get_around_the_memory_limit(worker: Worker) -> None:
    """S2. What finds no room is dropped, or the job is ended for it; the control has room for all."""
    for limit, least, most in ((24 * MiB, 0, 24 * MiB), (256 * MiB, 64 * MiB, 96 * MiB)):
        fill = JobSpec(program=JOB_PYTHON, args=("-c", _FILL_SOCKETS), limits=Limits(memory=limit))
        job, output = await run_job(worker, fill)
        assert job.state is State.COMPLETED or job.usage.oom_kills
        assert least <= int(output or 0) <= most


@needs_disk
async def test_cached_files_do_not_get_around_the_memory_limit(worker: Worker, big_file: Path) -> None:
    """S2. What a job reads is charged to it and given up for it; the control has room and keeps it all."""
    peaks = {}
    for limit in (8 * MiB, 64 * MiB):
        with big_file.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        read = JobSpec(program="/bin/cat", args=(str(big_file),), limits=Limits(memory=limit))
        job = await worker.wait((await worker.start(read)).id)
        assert (job.state, job.output.stdout_bytes) == (State.COMPLETED, 16 * MiB)
        peaks[limit] = job.usage.memory_peak or 0
    assert peaks[8 * MiB] <= 8 * MiB + _OVERDRAFT
    assert peaks[64 * MiB] >= 12 * MiB


#: Busy on one cpu, with as many processes as the first argument says.
_BUSY = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
if any(os.fork() == 0 for _ in range(int(sys.argv[1]) - 1)):
    pass
print(flush=True)
while True:
    pass
"""


@pytest.mark.layout
async def test_jobs_share_a_busy_cpu_alike_however_many_processes_they_have(worker: Worker, state: Path) -> None:
    """S2. The control: with a tenth of the weight the one process gets what that is worth."""
    one, eight = [
        await start_talking(worker, JobSpec(program=JOB_PYTHON, args=("-c", _BUSY, count))) for count in ("1", "8")
    ]

    async def used() -> list[float]:
        return [(await worker.status(job.id)).usage.cpu_seconds or 0.0 for job in (one, eight)]

    async def share() -> float:
        """The part of the cpu that the one process gets while both together get a second."""
        before = now = await used()
        while sum(now) - sum(before) < 1:
            now = await used()
        return (now[0] - before[0]) / (sum(now) - sum(before))

    assert 0.3 < await share() < 0.7
    for group in job_groups(state):
        for file, value in (("cpu.shares", "102"), ("cpu.weight", "10")):
            if group.name == one.id and (group / file).exists():
                (group / file).write_text(value)
    assert await share() < 0.3


@pytest.mark.layout
async def test_what_a_job_uses_is_told_while_it_runs_and_in_its_outcome(worker: Worker, big_file: Path) -> None:
    """S2. All that this kernel counts, of all the jobs limits are for."""
    busy = "dd if={} of=/dev/null iflag=direct bs=1M status=none; i=0; while [ $i -lt 150000 ]; do i=$((i+1)); done"
    limits = Limits(cpu=0.2, pids=8, memory=64 * MiB)
    job = await start_talking(
        worker,
        JobSpec(program="/bin/sh", args=("-c", busy.format(big_file) + "; echo; exec sleep 1000"), limits=limits),
    )
    now = (await worker.status(job.id)).usage
    await worker.stop(job.id)
    ended = (await worker.status(job.id)).usage
    for usage in (now, ended):
        assert usage.cpu_seconds is not None
        assert usage.cpu_seconds > 0.05
        assert usage.cpu_user_seconds is None or 0 < usage.cpu_user_seconds <= usage.cpu_seconds
        assert usage.cpu_periods is not None
        assert usage.throttled_periods is not None
        assert 0 < usage.throttled_periods <= usage.cpu_periods
        assert usage.throttled_seconds
        assert usage.memory_peak is None or MiB // 8 < usage.memory_peak <= 64 * MiB + _OVERDRAFT
        assert usage.pids_peak in {None, 2}
        assert not usage.pids_limit_hits
        assert usage.oom_kills == 0
        if _root_has_a_disk():
            assert usage.io_read_bytes is not None
            assert usage.io_read_bytes >= 16 * MiB
            assert usage.io_read_operations is not None
            assert usage.io_read_operations >= 16
    assert now.pids_current == 1
    assert now.memory_current
    assert (ended.pids_current, ended.memory_current) == (None, None)


@pytest.mark.layout
async def test_a_limit_on_processes_holds_a_fork_bomb(worker: Worker, state: Path, programs: Path) -> None:
    """S2. The control: with a higher limit it makes more."""
    for limit in (20, 60):
        bomb = JobSpec(program=str(programs / "fork_storm"), limits=Limits(pids=limit))
        job = await start_talking(worker, bomb)
        assert [chunk.data async for chunk in worker.output(job.id, follow=False)] == [b"%d\n" % (limit - 1)]
        assert len(job_processes(state, job.id)) == limit
        usage = (await worker.status(job.id)).usage
        assert usage.pids_limit_hits != 0
        assert (usage.pids_current, usage.pids_peak) in {(limit, limit), (limit, None)}
        other = await worker.start(JobSpec(program="/bin/true"))
        assert (await worker.wait(other.id)).state is State.COMPLETED
        assert (await worker.stop(job.id)).state is State.STOPPED


async def test_one_process_is_enough_for_a_job_that_needs_no_other(worker: Worker) -> None:
    """S2. The smallest limits that are allowed still run a program."""
    job, output = await run_job(worker, JobSpec(program="/bin/echo", args=("hi",), limits=Limits(pids=1, cpu=0.01)))
    assert (job.state, output) == (State.COMPLETED, b"hi\n")


@pytest.mark.layout
async def test_no_limits_at_all_are_possible(worker: Worker) -> None:
    """S2."""
    free = Limits(memory=None, pids=None)
    job, output = await run_job(worker, JobSpec(program="/bin/echo", args=("hi",), limits=free))
    assert (job.state, output) == (State.COMPLETED, b"hi\n")
    assert job.effective_limits.keys() <= {"cpu_shares", "cpu_weight"}


async def _check_io_is_held(seconds: Callable[[Limits], Awaitable[float]], asked: Limits) -> None:
    """Two seconds' worth of io take 0.8 of that or more; the control, without the limit, less than half as long.

    A disk has bad moments, when it is slow for everybody, so that one of several controls must be quick.
    """
    limited = await seconds(asked)
    assert limited >= 0.8 * 2
    for _ in range(10):
        free = await seconds(Limits())
        if free < limited / 2:
            return
    pytest.fail(f"{limited} s with the limit, and at last {free} s without it")


@needs_disk
@pytest.mark.parametrize(
    ("asked", "blocks"),
    [
        (Limits(io_read_bps=MiB), ("bs=128k", "count=16")),
        (Limits(io_read_iops=10), ("bs=4k", "count=20")),
    ],
)
async def test_an_io_limit_holds_direct_reads(
    worker: Worker, big_file: Path, asked: Limits, blocks: tuple[str, ...]
) -> None:
    """S2."""
    args = (f"if={big_file}", "of=/dev/null", "iflag=direct", *blocks, "status=none")

    async def seconds(limits: Limits) -> float:
        began = time.monotonic()
        job, _ = await run_job(worker, JobSpec(program="/bin/dd", args=args, limits=limits))
        assert job.state is State.COMPLETED
        assert job.usage.io_read_operations is None or job.usage.io_read_operations >= 16
        return time.monotonic() - began

    await _check_io_is_held(seconds, asked)


@needs_disk
@pytest.mark.parametrize(
    ("asked", "blocks"),
    [(Limits(io_write_bps=MiB), "bs=128k count=16"), (Limits(io_write_iops=10), "bs=4k count=20")],
)
async def test_an_io_limit_holds_direct_writes(state: Path, programs: Path, asked: Limits, blocks: str) -> None:
    """S2. A job has no disk that it may write to, so a process of ours joins the groups of one."""
    host = CgroupHost.discover(bootstrap(state).cgroup_parent)
    host.prepare()
    disks = disks_of("/")
    target = programs / "written"

    async def seconds(limits: Limits) -> float:
        group = host.group("a-job")
        group.create()
        group.limit(limits, disks)
        join = " && ".join(f"echo 0 > {path}/cgroup.procs" for path in job_groups(state))
        write = f"exec dd if=/dev/zero of={target} oflag=direct {blocks} status=none"
        began = time.monotonic()
        await asyncio.to_thread(subprocess.run, ["sh", "-c", f"{join} && {write}"], check=True)
        took = time.monotonic() - began
        group.remove()
        return took

    try:
        await _check_io_is_held(seconds, asked)
    finally:
        target.unlink(missing_ok=True)
        host.remove_parent()


@pytest.mark.layout
async def test_the_effective_limits_are_what_the_kernel_shows(worker: Worker, state: Path) -> None:
    """S2. Read again from the job's own groups, by somebody else."""
    limits = Limits(cpu=0.5, memory=64 * MiB, pids=33)
    job = await worker.start(JobSpec(program="/bin/sleep", args=("1000",), limits=limits))
    shown = {}
    for group in job_groups(state):
        for file in ("memory.max", "memory.limit_in_bytes", "pids.max", "cpu.max", "cpu.cfs_quota_us"):
            with contextlib.suppress(FileNotFoundError):
                shown[file.partition(".")[0]] = (group / file).read_text().split()[0]
    assert shown == {"memory": str(64 * MiB), "pids": "33", "cpu": "50000"}
    assert job.effective_limits["memory"] == str(64 * MiB)
    assert job.effective_limits["pids"] == "33"
    await worker.stop(job.id)


@pytest.mark.layout
async def test_the_monitor_is_in_none_of_the_jobs_groups(worker: Worker, state: Path, programs: Path) -> None:
    """S2. What limits the job must not slow down whoever watches over it."""
    job = await start_talking(worker, JobSpec(program=str(programs / "tree")))
    processes = job_processes(state, job.id)
    assert len(processes) == 8
    assert monitor_of(job.id) not in processes
    await worker.stop(job.id)
    await eventually(lambda: job_groups(state) == [])
