"""What tests ask about the host they run on."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from jobworker import JobSpec, Worker
from jobworker.job import JobStatus
from jobworker.runtime.launcher_client import LauncherClient
from jobworker.worker import bootstrap

_TREES = Path("/sys/fs/cgroup")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: jobs are isolated with CAP_SYS_ADMIN")

#: How many times longer everything takes than on a machine that is not emulated.
SLOWNESS = 10 if "JOBWORKER_VM" in os.environ else 1

#: A Python that jobs can run: their own user cannot read one below /root.
JOB_PYTHON = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable


_PROGRAMS = Path(__file__).parent / "programs"


@contextlib.asynccontextmanager
async def a_faulty_worker(state: Path, **options: Any) -> AsyncIterator[Worker]:
    """A worker whose launcher does what the labels of a job say; see tests/programs/faulty_launcher.py."""
    (state / "jobs").mkdir(mode=0o700, parents=True)  # the launcher hides what it finds
    launcher = await asyncio.to_thread(
        LauncherClient.start, bootstrap(state, **options), module="faulty_launcher", search_path=_PROGRAMS
    )
    async with await Worker.open(state, launcher=launcher) as worker:
        yield worker


def job_groups(state: Path) -> list[Path]:
    """The control groups of jobs below `state`, in every hierarchy."""
    parent = bootstrap(state).cgroup_parent
    roots = [_TREES, *_TREES.iterdir()] if _TREES.is_dir() else []
    found: list[Path] = []
    for root in roots:
        with contextlib.suppress(FileNotFoundError):  # a launcher has just removed the parent
            found += [group for group in root.glob(f"{parent}/*") if group.is_dir()]
    return sorted(found)


def children() -> set[int]:
    """The processes that this one has started and not yet collected."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            found.update(map(int, (task / "children").read_text().split()))
    return found


def descendants(pid: int) -> set[int]:
    """The processes below `pid`; what ends meanwhile may be missing."""
    try:
        found = {
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        }
    except (FileNotFoundError, ProcessLookupError):
        return set()
    return found.union(*map(descendants, found))


def process_status(pid: int) -> dict[str, str]:
    """The lines of /proc/<pid>/status; empty when the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def count_descriptors(pid: int) -> int:
    """How many descriptors the process has open; none when it has just ended."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except FileNotFoundError:
        return 0


def title(pid: int) -> str:
    """What ps shows for the process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0].decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


async def launcher_of(worker: Worker) -> int:
    """The process that creates the worker's jobs, as soon as the keeper has forked it."""
    found: list[int] = []

    def is_there() -> bool:
        found[:] = [pid for pid in descendants(worker._launcher.pid) if title(pid) == "jobworker-launcher"]
        return bool(found)

    await eventually(is_there)
    return found[0]


def titled_as_monitor(job_id: str) -> list[int]:
    """The processes that say of themselves that they supervise the job."""
    pids = [int(pid) for pid in os.listdir("/proc") if pid.isdigit()]
    return [pid for pid in pids if title(pid) == f"jobworker-monitor {job_id}"]


def monitor_of(job_id: str) -> int:
    """The process that supervises the job."""
    [pid] = [pid for pid in titled_as_monitor(job_id) if is_first_of_its_namespace(pid)]
    return pid


def is_first_of_its_namespace(pid: int) -> bool:
    """What tells a monitor from its child, which has the same title until it is the program."""
    return process_status(pid).get("NSpid", "").split()[-1:] == ["1"]


def job_processes(state: Path, job_id: str) -> set[int]:
    """The job's processes as the host counts them: in some group of the job, in whatever hierarchy."""
    found: set[int] = set()
    for group in job_groups(state):
        if group.name == job_id:
            with contextlib.suppress(OSError):  # the job has just ended
                found.update(map(int, (group / "cgroup.procs").read_text().split()))
    return found


async def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Returns when the condition holds; fails when it does not within the time, which a busy machine may need."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"did not happen within {seconds} s"
        await asyncio.sleep(0.005)


async def output_of(worker: Worker, job_id: str) -> bytes:
    """Everything the job writes until its end."""
    return b"".join([chunk.data async for chunk in worker.output(job_id)])


async def run_job(worker: Worker, spec: JobSpec) -> tuple[JobStatus, bytes]:
    """The job after its end, and what it wrote."""
    job = await worker.start(spec)
    output = await output_of(worker, job.id)
    return await worker.wait(job.id), output


async def start_talking(worker: Worker, spec: JobSpec) -> JobStatus:
    """The job as soon as it has written something: a victim that is ready says so."""
    job = await worker.start(spec)
    async with contextlib.aclosing(worker.output(job.id)) as chunks:
        async for _ in chunks:
            break
    return job


def a_process(*command: str) -> subprocess.Popen[bytes]:
    """A process of the host's, without any sandbox; to be killed by whoever wants it."""
    return subprocess.Popen(command or ("sleep", "1000"))


def strace(pid: int, log: Path, *options: str) -> subprocess.Popen[bytes]:
    """Writes the system calls of `pid` and of all that it forks from now on to `log`, until SIGINT."""
    program = shutil.which("strace")
    if program is None:
        pytest.skip("needs strace: it sees the system calls of launcher, monitors and jobs")
    return subprocess.Popen([program, "-f", "-qq", *options, "-o", log, "-p", str(pid)])
