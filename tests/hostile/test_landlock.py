"""Where the kernel has Landlock, writing is refused by it as well, also where mounts and permissions would allow it."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from host import JOB_PYTHON, a_faulty_worker, needs_root, run_job

from jobworker import JobSpec, State
from jobworker.runtime import linux

pytestmark = [
    needs_root,
    pytest.mark.skipif(linux.landlock_version() < 2, reason="needs Landlock, version 2 or later (Linux 5.19)"),
]

#: Opens files of others for writing, then uses the places that a job may write to in the usual ways.
_WRITES = """
import errno, json, os, sys
def tried(act, *arguments):
    try:
        act(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"
def write(path):
    os.write(os.open(path, os.O_WRONLY | os.O_TRUNC), b"x")
os.makedirs("/tmp/a/b")
open("/tmp/a/file", "w").write("x")
print(json.dumps({
    "fifo": tried(os.open, sys.argv[1], os.O_RDWR),
    "urandom": tried(os.open, "/dev/urandom", os.O_WRONLY),
    "null": tried(write, "/dev/null"),
    "own name": tried(write, "/proc/self/comm"),
    "output": tried(os.open, "/dev/stderr", os.O_WRONLY),
    "truncated": tried(write, "/tmp/a/file"),
    "moved": tried(os.rename, "/tmp/a/file", "/tmp/a/b/file"),
    "removed": tried(os.unlink, "/tmp/a/b/file"),
    "shared memory": tried(os.mkdir, "/dev/shm/x"),
}))
"""


@pytest.fixture
def fifo() -> Iterator[Path]:
    """One that is open to all, in a place of the host that jobs see."""
    place = Path("/var/tmp") / f"jobworker-fifo-{os.getpid()}"
    place.mkdir(mode=0o755)
    place.chmod(0o755)
    os.mkfifo(place / "fifo")
    (place / "fifo").chmod(0o666)
    yield place / "fifo"
    shutil.rmtree(place)


async def test_a_fifo_of_the_host_is_refused_and_ordinary_writing_is_not(state: Path, fifo: Path) -> None:
    """E9. A read-only mount does not keep anybody from a FIFO. The control: the same job without the rules."""
    spec = JobSpec(program=JOB_PYTHON, args=("-c", _WRITES, str(fifo)))
    async with a_faulty_worker(state) as worker:
        job, output = await run_job(worker, spec)
        assert job.state is State.COMPLETED, output
        assert job.sandbox["landlock"] == "yes"
        found = json.loads(output)
        assert (found.pop("fifo"), found.pop("urandom")) == ("EACCES", "EACCES")
        assert set(found.values()) == {"ok"}
        weak, output = await run_job(worker, replace(spec, labels={"without": "RestrictWriting"}))
        assert weak.sandbox["landlock"] == "no"
        assert set(json.loads(output).values()) == {"ok"}
        for one in (job, weak):
            await worker.remove(one.id)
