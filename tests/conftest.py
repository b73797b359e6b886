"""What tests of running jobs share: a state directory, a worker, and the rule that nothing is left behind."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from host import children, job_groups
from hypothesis import settings

from jobworker import Worker

# A case that takes long does so because the machine is busy.
settings.register_profile("jobworker", deadline=None)
settings.load_profile("jobworker")

PROGRAMS = Path(__file__).parent / "programs"


def _resources() -> dict[str, set[str]]:
    return {
        "descriptors": set(os.listdir("/proc/self/fd")),
        "children": set(map(str, children())),
        "mounts": set(Path("/proc/self/mountinfo").read_text().splitlines()),
    }


@pytest.fixture(autouse=True)
def nothing_is_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails any test after which a descriptor, a process, a mount or a job's control group is left."""
    before = _resources()
    yield
    deadline = time.monotonic() + 20  # what is on its way out is gone by then, and what was forgotten is not
    while left := _left_behind(before, _resources(), has_state="state" in request.fixturenames):
        assert time.monotonic() < deadline, f"{', '.join(left)} left behind"
        time.sleep(0.01)


def _left_behind(before: dict[str, set[str]], after: dict[str, set[str]], *, has_state: bool) -> list[str]:
    left = [kind for kind in ("children", "mounts") if after[kind] - before[kind]]
    # uvloop and grpc keep descriptors for the life of the process from their first use on.
    if has_state and len(after["descriptors"]) > len(before["descriptors"]) + 1:
        left.append("descriptors")
    return left


@pytest.fixture
def state() -> Iterator[Path]:
    """A directory for one server's or worker's state, that the service user can reach and no job sees."""
    parent = Path(tempfile.mkdtemp(prefix="jobworker-test-", dir="/var/tmp"))
    parent.chmod(0o755)
    try:
        yield parent / "state"
        assert job_groups(parent / "state") == []
    finally:
        shutil.rmtree(parent)


@pytest.fixture
async def worker(state: Path) -> AsyncIterator[Worker]:
    """A worker on an empty state directory, with a launcher of its own; every job is ended afterwards."""
    async with await Worker.open(state) as worker:
        yield worker
        for job in worker.list():
            await worker.remove(job.id, force=True)


@pytest.fixture(scope="session")
def programs() -> Iterator[Path]:
    """The victims of tests/programs, in a place that jobs can see; C files are compiled, without their suffix."""
    place = Path(tempfile.mkdtemp(prefix="jobworker-programs-", dir="/var/tmp"))
    place.chmod(0o755)
    try:
        compilers = []
        for source in PROGRAMS.iterdir():
            if source.suffix == ".c":
                command = ["cc", "-O1", "-static", "-o", place / source.stem, source, "-pthread"]
                compilers.append(subprocess.Popen(command))
            elif source.is_file():
                shutil.copy(source, place / source.name)
                (place / source.name).chmod(0o755)
        assert {compiler.wait() for compiler in compilers} == {0}
        yield place
    finally:
        shutil.rmtree(place)
