"""What the end of a job promises, over every face: outcomes, stopping, signals, waiting, removing."""

import asyncio
import math
from contextlib import aclosing
from uuid import uuid4

import pytest
from conformance.faces import ending_of, output, read, refused

from jobworker.core.errors import ErrorCode
from jobworker.core.lifecycle import State
from jobworker.core.outcome import Exited, Lost, OomKilled, OutputLimit, Signaled, Stopped, TimedOut
from jobworker.core.spec import JobSpec, Limits, MiB, OnOutputLimit

SLEEP = JobSpec(program="/bin/sleep", args=("1000",))
NOT_FOUND = (ErrorCode.JOB_NOT_FOUND, "job not found")
NOT_RUNNING = (ErrorCode.JOB_NOT_RUNNING, "job not running: it has already ended")
KILL_AT_LIMIT = Limits(output_bytes=1000, on_output_limit=OnOutputLimit.KILL)

#: A script and its limits; the state, outcome and exit code of the job.
ENDINGS = {
    "success": ("exit 0", Limits(), "COMPLETED", Exited(0), 0),
    "its own code": ("exit 7", Limits(), "FAILED", Exited(7), 7),
    "the code of a shell": ("exit 127", Limits(), "FAILED", Exited(127), 127),
    "the highest code": ("exit 255", Limits(), "FAILED", Exited(255), 255),
    "a signal": ("kill -11 $$", Limits(), "FAILED", Signaled(11), None),
    "SIGKILL": ("kill -9 $$", Limits(), "FAILED", Signaled(9), None),
    "the code that SIGKILL looks like": ("exit 137", Limits(), "FAILED", Exited(137), 137),
    "its timeout": ("sleep 1000", Limits(timeout=0.2), "FAILED", TimedOut(), None),
    "its memory": ("head -c 64m /dev/zero | tail", Limits(memory=16 * MiB), "FAILED", OomKilled(), None),
    "its output": ("yes", KILL_AT_LIMIT, "FAILED", OutputLimit(), None),
}


@pytest.mark.parametrize("how", ENDINGS)
async def test_every_end_is_told_apart(face, shell, how):
    """P8."""
    script, limits, state, outcome, code = ENDINGS[how]
    started = await face.start(shell(script, limits=limits))
    job = await face.wait(started.job.id)
    assert (job.state.value, job.outcome, job.exit_code) == (state, outcome, code)
    assert job.started_at <= job.ended_at
    assert (await face.status(job.id)).outcome == outcome


def test_every_kind_of_outcome_has_its_promise():
    """Stopped is below; a lost job needs a monitor that dies, which tests/e2e/test_restart.py sees to."""
    told = {type(outcome) for *_, outcome, _ in ENDINGS.values()} | {Stopped, Lost}
    assert told == {Exited, Signaled, OomKilled, TimedOut, Stopped, OutputLimit, Lost}


async def test_stop_ends_everything_and_says_who_did_it(face, shell):
    """P1."""
    started = await face.start(shell("trap '' TERM; setsid sleep 1000 & (sleep 1000 &); sleep 1000"))
    job = await face.stop(started.job.id)
    assert ending_of(job) == ("STOPPED", "stopped", None)
    assert job.outcome == Stopped("alice", 9)
    assert (await face.status(job.id)).outcome == job.outcome


async def test_a_grace_lets_a_job_say_its_last_words(face, shell):
    """P3."""
    started = await face.start(shell("trap 'echo bye; exit 3' INT; echo ready; while :; do sleep 0.01; done"))
    await _first_chunk(face, started.job.id)
    job = await face.stop(started.job.id, grace=60, signal=2)
    assert (job.state, job.outcome) == (State.STOPPED, Stopped("alice", 0))
    assert await output(face, job.id) == b"ready\nbye\n"


async def test_what_ignores_the_signal_is_killed_when_the_grace_is_over(face, shell):
    started = await face.start(shell("trap '' TERM; echo ready; while :; do sleep 0.01; done"))
    await _first_chunk(face, started.job.id)
    assert (await face.stop(started.job.id, grace=0.1)).outcome == Stopped("alice", 9)


async def test_a_second_stop_is_told_that_there_is_nothing_to_stop(face):
    """P5."""
    job_id = (await face.start(SLEEP)).job.id
    await face.stop(job_id)
    assert await refused(face.stop(job_id)) == NOT_RUNNING
    assert await refused(face.stop(job_id, grace=1)) == NOT_RUNNING


async def test_ten_stops_at_once_agree_on_one_end(face):
    """P5."""
    job_id = (await face.start(SLEEP)).job.id
    told = await asyncio.gather(*(face.stop(job_id) for _ in range(10)), return_exceptions=True)
    outcomes = {job.outcome for job in told if not isinstance(job, Exception)}
    assert outcomes == {Stopped("alice", 9)}
    assert {(error.code, error.message) for error in told if isinstance(error, Exception)} <= {NOT_RUNNING}


async def test_a_signal_reaches_the_program(face, shell):
    started = await face.start(shell("trap 'echo got it; exit 5' USR1; echo ready; while :; do sleep 0.01; done"))
    await _first_chunk(face, started.job.id)
    await face.signal(started.job.id, 10)
    assert (await face.wait(started.job.id)).outcome == Exited(5)
    assert await output(face, started.job.id) == b"ready\ngot it\n"
    assert await refused(face.signal(started.job.id, 10)) == NOT_RUNNING


async def test_a_number_that_is_no_signal_is_refused(face):
    job_id = (await face.start(SLEEP)).job.id
    why = "signal: 99 is not valid; allowed: 1 to 64, but not 32 and 33"
    assert await refused(face.signal(job_id, 99)) == (ErrorCode.INVALID_ARGUMENT, why)
    assert (await face.status(job_id)).state is State.RUNNING


async def test_wait_lasts_until_the_end_and_no_longer(face, shell):
    started = await face.start(shell("trap 'exit 4' USR1; echo ready; while :; do sleep 0.01; done"))
    await _first_chunk(face, started.job.id)
    running = await face.wait(started.job.id, timeout=0)
    assert (running.state, running.outcome) == (State.RUNNING, None)
    waiting = [asyncio.ensure_future(face.wait(started.job.id, timeout=limit)) for limit in (None, 60)]
    await face.signal(started.job.id, 10)
    assert {job.outcome for job in await asyncio.gather(*waiting)} == {Exited(4)}
    assert (await face.wait(started.job.id)).outcome == Exited(4)


async def test_a_removed_job_is_gone(face):
    job_id = (await face.start(JobSpec(program="true"))).job.id
    await face.wait(job_id)
    await face.remove(job_id)
    assert await refused(face.status(job_id)) == NOT_FOUND
    assert job_id not in [job.id async for page in face.list() for job in page]


async def test_a_running_job_is_removed_by_force_only(face):
    job_id = (await face.start(SLEEP)).job.id
    why = "job running: stop it first, or remove it with force"
    assert await refused(face.remove(job_id)) == (ErrorCode.JOB_RUNNING, why)
    assert (await face.status(job_id)).state is State.RUNNING
    await face.remove(job_id, force=True)
    assert await refused(face.status(job_id)) == NOT_FOUND


ABOUT_A_JOB = {
    "status": lambda face, job_id: face.status(job_id),
    "stop": lambda face, job_id: face.stop(job_id),
    "wait": lambda face, job_id: face.wait(job_id),
    "signal": lambda face, job_id: face.signal(job_id, 1),
    "remove": lambda face, job_id: face.remove(job_id, force=True),
    "output": read,
}


@pytest.mark.parametrize("call", ABOUT_A_JOB)
async def test_an_unknown_job_and_what_is_no_id_are_not_found(face, call):
    """A6: no prefix, no other case, no path; a job's own id in another spelling is nobody's."""
    ask = ABOUT_A_JOB[call]
    assert await refused(ask(face, str(uuid4()))) == NOT_FOUND
    job_id = (await face.start(SLEEP)).job.id
    no_id = (ErrorCode.JOB_NOT_FOUND, "job not found: ids have 36 characters, as printed by start")
    for text in ("", ".", "../", job_id[:8], job_id.upper() + "A", f"../jobs/{job_id}", f"{job_id}\0", "a" * 100_000):
        assert await refused(ask(face, text)) == no_id
    assert (await face.status(job_id)).state is State.RUNNING


async def _first_chunk(face, job_id) -> None:
    """Returns once the job has written something: it says so when it is ready."""
    async with aclosing(face.stream(job_id)) as events:
        await anext(events)


@pytest.mark.parametrize(
    "how", [{"grace": -1.0}, {"grace": math.nan}, {"grace": math.inf}, {"grace": 1.0, "signal": 65}], ids=str
)
async def test_a_stop_that_cannot_be_stops_nothing(face, how):
    job_id = (await face.start(SLEEP)).job.id
    name, value = list(how.items())[-1]
    code, message = await refused(face.stop(job_id, **how))
    assert code is ErrorCode.INVALID_ARGUMENT
    assert message.startswith(f"{name}: {value} is not valid; allowed: ")
    assert (await face.status(job_id)).state is State.RUNNING


@pytest.mark.parametrize("number", [-1, 0, 33, 65, 1 << 40])
async def test_what_is_no_signal_is_sent_to_nobody(face, number):
    job_id = (await face.start(SLEEP)).job.id
    wrong = (ErrorCode.INVALID_ARGUMENT, f"signal: {number} is not valid; allowed: 1 to 64, but not 32 and 33")
    assert await refused(face.signal(job_id, number)) == wrong
    assert (await face.status(job_id)).state is State.RUNNING


@pytest.mark.parametrize("text", ["", "\udcff", "../x", "x" * 100_000], ids=repr)
async def test_what_is_no_id_is_no_job(face, text):
    """A6."""
    no_such = (ErrorCode.JOB_NOT_FOUND, "job not found: ids have 36 characters, as printed by start")
    for ask in ABOUT_A_JOB.values():
        assert await refused(ask(face, text)) == no_such
