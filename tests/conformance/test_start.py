"""What starting a job promises, over every face."""

import os

import pytest
from conformance.faces import ending_of, output, refused

from jobworker.core.errors import ErrorCode
from jobworker.core.job_id import is_job_id
from jobworker.core.lifecycle import State
from jobworker.core.spec import JobSpec, Limits, MiB, OnOutputLimit

SLEEP = JobSpec(program="/bin/sleep", args=("1000",))


async def test_start_answers_with_a_running_job(face):
    job = (await face.start(SLEEP)).job
    assert is_job_id(job.id)
    assert ending_of(job) == ("RUNNING", None, None)
    assert job.created_at <= job.started_at
    assert job.ended_at is None
    assert (await face.status(job.id)).state is State.RUNNING


async def test_a_job_shows_what_was_asked_for(face):
    limits = Limits(
        cpu=0.5, memory=64 * MiB, pids=9, timeout=600.5, output_bytes=1 << 20, on_output_limit=OnOutputLimit.KILL
    )
    spec = JobSpec(
        program="/bin/sleep",
        args=("1000",),
        env={"MODE": "fast", "RAW": os.fsdecode(b"\xff")},
        workdir="/tmp",
        name="build",
        labels={"team": "web"},
        limits=limits,
    )
    job = (await face.start(spec)).job
    assert (await face.status(job.id)).spec == spec
    assert job.owner == "alice"
    assert {"cpu_quota_us", "memory_limit_in_bytes"} & job.effective_limits.keys() or "cpu.max" in job.effective_limits
    assert job.sandbox


async def test_a_bare_name_is_looked_up_on_the_server(face):
    job = (await face.start(JobSpec(program="echo", args=("here",)))).job
    assert await output(face, job.id) == b"here\n"


FAILURES = {
    "a missing file": ({"program": "/nonexistent"}, ErrorCode.PROGRAM_NOT_FOUND, "program not found: '/nonexistent'"),
    "a name nobody has": (
        {"program": "no-such-name"},
        ErrorCode.PROGRAM_NOT_FOUND,
        "program not found: 'no-such-name'",
    ),
    "a file without the x bit": (
        {"program": "/etc/passwd"},
        ErrorCode.PROGRAM_NOT_EXECUTABLE,
        "program not executable: '/etc/passwd'",
    ),
    "a directory": (
        {"program": "/etc"},
        ErrorCode.PROGRAM_NOT_EXECUTABLE,
        "program not executable, it is a directory: '/etc'",
    ),
    "a missing workdir": (
        {"program": "/bin/true", "workdir": "/nonexistent"},
        ErrorCode.INVALID_ARGUMENT,
        "workdir: the job cannot enter '/nonexistent': No such file or directory",
    ),
    "a root that nobody allows": (
        {"program": "/bin/true", "rootfs": "/usr"},
        ErrorCode.PERMISSION_DENIED,
        "rootfs: '/usr' is not at or below a directory that the operator lists in isolation.rootfs",
    ),
    "an unknown device": (
        {"program": "/bin/true", "limits": Limits(io_read_bps=1 << 20, io_device="/nonexistent")},
        ErrorCode.INVALID_ARGUMENT,
        "io_device: the server has no path '/nonexistent'",
    ),
    "too many words": (
        {"program": "/bin/true", "args": ("x" * 200_000,)},
        ErrorCode.INVALID_ARGUMENT,
        "the arguments and environment are too long for: '/bin/true'",
    ),
}


@pytest.mark.parametrize("why", FAILURES)
async def test_a_start_that_fails_says_why_and_leaves_no_job(face, why):
    """S7."""
    spec, code, message = FAILURES[why]
    before = [job.id async for page in face.list() for job in page]
    assert await refused(face.start(JobSpec(**spec))) == (code, message)
    assert [job.id async for page in face.list() for job in page] == before


async def test_arguments_arrive_byte_for_byte(face):
    """S9."""
    hard = ["; rm -rf", "two words", "", "new\nline", "*", "ü", "\udcff\udc80", "-x", "--", "'\""]
    job = (await face.start(JobSpec(program="printf", args=(r"%s\0", *hard)))).job
    assert await output(face, job.id) == b"".join(os.fsencode(word) + b"\0" for word in hard)
    assert (await face.status(job.id)).spec.args == (r"%s\0", *hard)


async def test_the_environment_is_what_was_declared(face):
    env = {"A": "b=c", "EMPTY": "", "RAW": "\udcff", "LINES": "1\n2"}
    job = (await face.start(JobSpec(program="/usr/bin/env", args=("-0",), env=env))).job
    told = dict(line.split(b"=", 1) for line in (await output(face, job.id)).split(b"\0") if line)
    assert {name: told[os.fsencode(name)] for name in env} == {name: os.fsencode(value) for name, value in env.items()}
