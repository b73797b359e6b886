"""A host that lacks a control refuses jobs by its name, or runs them without where its operator says so, and shows it.

What is missing is really missing: the launchers of tests/programs/lacking take it away from themselves.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from host import JOB_PYTHON, needs_root, run_job

from jobworker import ErrorCode, JobError, JobSpec, Limits, State, Worker
from jobworker.runtime.launcher_client import LauncherClient
from jobworker.worker import bootstrap

pytestmark = needs_root

_PROGRAMS = Path(__file__).parent.parent / "programs"
_STATUS = JobSpec(program="/bin/cat", args=("/proc/self/status",))
#: add_key(2) and keyctl(2) on x86_64 and aarch64: finds a key, then leaves one, in the keyring of the session that it
#: was born in, of one of its own and of its uid.
_KEYS = """
import ctypes, platform
call = ctypes.CDLL(None).syscall
add_key, keyctl = {"x86_64": (248, 250), "aarch64": (217, 219)}[platform.machine()]
for keyring, is_own_session in ((-3, False), (-3, True), (-4, False)):
    if is_own_session:
        call(keyctl, 1, None)
    print(call(keyctl, 10, keyring, b"user", b"jobworker-test", 0) > 0)
    call(add_key, b"user", b"jobworker-test", b"secret", 6, keyring)
    print(call(keyctl, 10, keyring, b"user", b"jobworker-test", 0) > 0)
"""


@asynccontextmanager
async def _worker_lacking(
    control: str, state: Path, *allowed: str, uids: tuple[int, int] = (200_000, 265_535)
) -> AsyncIterator[Worker]:
    """A worker on a host without the control, whose operator allows some to be missing."""
    launcher = await asyncio.to_thread(
        LauncherClient.start,
        bootstrap(state, allow_degraded=allowed, uids=uids),
        module=f"lacking.{control.replace('-', '_')}",
        search_path=_PROGRAMS,
    )
    async with await Worker.open(state, launcher=launcher) as worker:
        yield worker
        for job in worker.list():
            await worker.remove(job.id, force=True)


def _probe(programs: Path, *question: str) -> JobSpec:
    return JobSpec(program=JOB_PYTHON, args=(str(programs / "probe.py"), *question))


def _fields(status: bytes) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in status.decode().splitlines() if ":\t" in line)


@pytest.mark.parametrize(
    "control", ["pid-namespace", "net-namespace", "uts-namespace", "devices", "separate-uid", "seccomp"]
)
async def test_a_missing_control_refuses_jobs_by_its_name_and_leaves_nothing(control: str, state: Path) -> None:
    """E25, S3. The control: on the host as it is the same job runs, whole."""
    async with _worker_lacking(control, state) as worker:
        assert control in worker._launcher.refused
        assert worker._launcher.degraded == ()
        with pytest.raises(JobError, match=control) as caught:
            await worker.start(_STATUS)
        assert caught.value.code is ErrorCode.UNSUPPORTED
        assert list((state / "jobs").iterdir()) == []
    async with await Worker.open(state) as worker:
        job, _ = await run_job(worker, _STATUS)
        assert (job.state, job.sandbox["isolation"]) == (State.COMPLETED, "full")


async def test_a_job_without_an_allowed_namespace_says_so_and_has_the_others(state: Path, programs: Path) -> None:
    """E25. By effect: the job reaches the host's loopback. The control: a whole job does not."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        async with _worker_lacking("net-namespace", state, "net-namespace") as worker:
            assert worker._launcher.refused == ()
            job, output = await run_job(worker, _probe(programs, "connects", "tcp", "127.0.0.1", port))
            assert (job.sandbox["isolation"], json.loads(output)) == ("degraded(net-namespace)", "ok")
            assert job.sandbox["network"] == "host"
            assert "net" not in job.sandbox["namespaces"].split(",")
            _, hostname = await run_job(worker, JobSpec(program="hostname"))
            assert hostname.startswith(b"job-")
        async with await Worker.open(state) as worker:
            job, output = await run_job(worker, _probe(programs, "connects", "tcp", "127.0.0.1", port))
            assert (job.sandbox["isolation"], json.loads(output)) == ("full", "ECONNREFUSED")


async def test_a_job_without_an_allowed_filter_has_none_and_says_so(state: Path) -> None:
    """E25, E3. By effect: the launcher's own filter is the only one; a whole job has one of its own besides."""
    async with _worker_lacking("seccomp", state, "seccomp") as worker:
        job, output = await run_job(worker, _STATUS)
    assert job.sandbox["isolation"] == "degraded(seccomp)"
    async with _worker_lacking("uts-namespace", state, "uts-namespace") as worker:
        _, filtered = await run_job(worker, _STATUS)
    assert _fields(output)["Seccomp_filters"] == "1"
    assert _fields(filtered)["Seccomp_filters"] == "2"


async def test_a_job_finds_no_key_of_the_job_that_had_its_uid_before(state: Path) -> None:
    """E15. With the filter there is not even an answer; without it none was left.

    What all jobs are born with takes no key; the controls are a session that one has made for itself, and the uid's.
    """
    keys = JobSpec(program=JOB_PYTHON, args=("-c", _KEYS))
    unfiltered = [b"False", b"False", b"False", b"True", b"False", b"True"]
    for missing, answers in (("seccomp", unfiltered), ("uts-namespace", [b"False"] * 6)):
        async with _worker_lacking(missing, state, missing, uids=(265_532, 265_532)) as worker:
            for _ in range(2):
                job, output = await run_job(worker, keys)
                assert job.sandbox["uid"] == "265532"
                assert output.split() == answers


async def test_a_job_leaves_the_kernel_no_keyring_of_its_uid(state: Path) -> None:
    """The control: a job that no filter keeps from having keys has one. /proc/key-users, see proc(5)."""
    for missing, uid in (("uts-namespace", 265_536), ("seccomp", 265_537)):  # of no other job
        async with _worker_lacking(missing, state, missing, uids=(uid, uid)) as worker:
            await run_job(worker, _STATUS)
            has_keyring = f"{uid}:" in Path("/proc/key-users").read_text().split()
            assert has_keyring == (missing == "seccomp")


async def test_what_no_job_can_do_without_is_refused_even_when_it_is_allowed(state: Path) -> None:
    """E25."""
    async with _worker_lacking("pid-namespace", state, "pid-namespace", "net-namespace") as worker:
        assert "pid-namespace" in worker._launcher.refused
        with pytest.raises(JobError, match="pid-namespace"):
            await worker.start(_STATUS)


async def test_without_controllers_jobs_run_only_when_they_ask_for_no_limit_and_show_it(state: Path) -> None:
    """S3: a limit that was asked for is in force or refuses the start, whatever is allowed."""
    launcher = await asyncio.to_thread(
        LauncherClient.start,
        bootstrap(state, allow_degraded=("memory-limit", "pids-limit")),
        module="launcher_without_controllers",
        search_path=_PROGRAMS,
    )
    async with await Worker.open(state, launcher=launcher) as worker:
        with pytest.raises(JobError, match="memory") as caught:
            await worker.start(_STATUS)
        assert caught.value.code is ErrorCode.UNSUPPORTED
        job, _ = await run_job(worker, JobSpec(program="true", limits=Limits(memory=None, pids=None)))
        assert job.sandbox["isolation"] == "degraded(memory-limit, pids-limit)"
        assert "memory" not in job.effective_limits
