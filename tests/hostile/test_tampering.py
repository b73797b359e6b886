"""Files that a job runs from, or that run the job, opened for writing; and what others left where it can look."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from host import JOB_PYTHON, monitor_of, needs_root, run_job

import jobworker
from jobworker import JobSpec, State, Worker

pytestmark = needs_root

_PACKAGE = Path(jobworker.__file__).parent


def _fingerprint(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


async def test_nothing_that_runs_a_job_can_be_written_by_it(worker: Worker, programs: Path) -> None:
    """E6. Its own program, its interpreter, its monitor's, and this package; the control: root outside may."""
    ours = sorted(_PACKAGE.rglob("*.py"))
    before = _fingerprint([*ours, Path(JOB_PYTHON)])
    targets = ["/proc/1/exe", "/proc/self/exe", "/proc/self/root/usr/bin/env", os.path.realpath(JOB_PYTHON)]
    targets += [str(path) for path in ours[:5]] + [str(programs / "probe.py"), "/bin/sh", "/etc/ld.so.cache"]
    spec = JobSpec(program=JOB_PYTHON, args=(str(programs / "probe.py"), "opens_for_writing", *targets))
    job, output = await run_job(worker, spec)
    assert job.state is State.COMPLETED, output
    assert set(json.loads(output).values()) <= {"EROFS", "EACCES", "ENOENT", "EPERM", "ETXTBSY"}
    assert _fingerprint([*ours, Path(JOB_PYTHON)]) == before
    control = subprocess.run(  # noqa: ASYNC221 - a moment
        [JOB_PYTHON, programs / "probe.py", "opens_for_writing", str(ours[0]), "/etc/ld.so.cache"],
        capture_output=True,
        check=True,
    )
    assert set(json.loads(control.stdout).values()) == {"ok"}


async def test_a_job_cannot_reach_into_its_monitor(worker: Worker) -> None:
    """E16. Its memory, its descriptors and its namespaces; it does not even see that there is one."""
    job = await worker.start(JobSpec(program="/bin/sleep", args=("1000",)))
    monitor = monitor_of(job.id)
    assert os.path.exists(f"/proc/{monitor}/mem")  # the control
    script = (
        "for f in mem maps environ fd cwd root ns/mnt; do ls -d /proc/1/$f && echo found; done 2> /dev/null; echo done"
    )
    _, output = await run_job(worker, JobSpec(program="/bin/sh", args=("-c", script)))
    assert output == b"done\n"
    await worker.stop(job.id)


@pytest.fixture
def meeting_point() -> Iterator[Path]:
    """A hidden place of the host, where services keep their sockets and FIFOs."""
    path = Path("/run") / f"jobworker-meeting-{os.getpid()}"
    path.mkdir(mode=0o777)
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)


async def test_sockets_and_fifos_of_services_are_out_of_reach(worker: Worker, meeting_point: Path) -> None:
    """E12, E13. Where services have them; the control reaches both."""
    os.mkfifo(meeting_point / "fifo")
    (meeting_point / "fifo").chmod(0o666)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(meeting_point / "socket"))
        (meeting_point / "socket").chmod(0o777)
        server.listen()
        code = (
            "import os, socket\n"
            "def tried(act):\n"
            "    try:\n        act()\n    except OSError as error:\n        return type(error).__name__\n"
            "    return 'ok'\n"
            f"place = {str(meeting_point)!r}\n"
            "print(tried(lambda: socket.socket(socket.AF_UNIX).connect(f'{place}/socket')),\n"
            "      tried(lambda: os.open(f'{place}/fifo', os.O_RDWR)))\n"
        )
        control = subprocess.run([JOB_PYTHON, "-c", code], capture_output=True, check=True)  # noqa: ASYNC221
        assert control.stdout == b"ok ok\n"
        _, output = await run_job(worker, JobSpec(program=JOB_PYTHON, args=("-c", code)))
        assert output == b"FileNotFoundError FileNotFoundError\n"
