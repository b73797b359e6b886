"""kill -9 of every process in turn: no job, no byte and no exit code is lost, and nothing happens twice."""

import asyncio
import contextlib
import hashlib
import os
import random
import signal
import time
from contextlib import aclosing
from dataclasses import dataclass
from uuid import uuid4

import pytest
from host import needs_root

from jobworker.client.model import End
from jobworker.core.errors import ErrorCode, JobError
from jobworker.core.lifecycle import State
from jobworker.core.outcome import Exited, Lost, Stopped
from jobworker.core.spec import JobSpec

pytestmark = needs_root


def processes_of(children_of, monitor):
    """The processes of one job, below its monitor."""
    found, new = [], [monitor]
    while new:
        below = children_of(new.pop())
        found += below
        new += below
    return found


def sh(script, **fields):
    return JobSpec(program="/bin/sh", args=("-c", script), **fields)


@dataclass(frozen=True)
class Mixed:
    """One of the mixed jobs of a round: its key, what it runs, and how it must end."""

    key: str
    spec: JobSpec
    code: int | None  # None: it does not end by itself
    output: bytes


def mixed_job(chance):
    """A job that ends at once, soon, or not at all, silent or with output on both streams."""
    kind = chance.choice(("true", "soon", "writer", "talker", "forever", "leaves a child"))
    code = chance.randrange(256)
    wait = f"{chance.uniform(0, 0.4):.3f}"
    lines = b"".join(b"%d\n" % number for number in range(1, 20_001))
    script, output = {
        "true": (f"exit {code}", b""),
        "soon": (f"sleep {wait}; exit {code}", b""),
        "writer": (f"seq 1 20000; exit {code}", lines),
        "talker": (f"seq 1 10000; sleep {wait}; seq 10001 20000 >&2; exit {code}", lines),
        "forever": ("echo here; exec sleep 1000", b"here\n"),
        "leaves a child": (f"sleep 1000 & sleep {wait}; exit {code}", b""),
    }[kind]
    return Mixed(str(uuid4()), sh(script, name=kind.replace(" ", "-")), None if kind == "forever" else code, output)


async def start_all(daemon, jobs, known):
    """Starts all at once and notes each answer; the server may die under it."""

    async def start(job):
        with contextlib.suppress(JobError):
            known[job.key] = (await client.start(job.spec, idempotency_key=job.key)).job.id

    with contextlib.suppress(JobError):
        async with daemon.client() as client:
            await asyncio.gather(*(start(job) for job in jobs))


async def output_of(client, job_id):
    """What a job has written so far, and the end message."""
    data, end = bytearray(), None
    async with aclosing(client.stream(job_id, follow=False)) as events:
        async for event in events:
            if isinstance(event, End):
                end = event
            else:
                assert event.offset == len(data)
                data += event.data
    return bytes(data), end


async def check_all(daemon, jobs, known):
    """Every job there must be is there once, and has ended as it must, or runs."""
    async with daemon.client() as client:
        before = dict(known)
        for job in jobs:  # the keys are asked for again: each stands for the one job that it stood for
            known[job.key] = (await client.start(job.spec, idempotency_key=job.key)).job.id
        assert {key: known[key] for key in before} == before, "an acknowledged job was started twice"
        assert len(set(known.values())) == len(jobs)
        for job in jobs:
            job_id = known[job.key]
            if job.code is None:
                status = await client.status(job_id)
            else:
                status = await client.wait(job_id, timeout=60)
            assert not isinstance(status.outcome, Lost), f"{job.spec.name} is lost: {status.outcome.reason}"
            data, end = await output_of(client, job_id)
            if job.code is None:
                assert status.state is State.RUNNING, status.outcome
                assert job.output.startswith(data)
            else:
                assert status.outcome == Exited(job.code), (job.spec.name, status.outcome)
                assert hashlib.sha256(data).digest() == hashlib.sha256(job.output).digest()
                assert end.state is status.state
    async with daemon.client("admin") as client:
        listed = [job.id async for page in client.list(page_size=1000) for job in page]
    assert sorted(listed) == sorted(known.values())
    assert {entry.name for entry in (daemon.directory / "jobs").iterdir()} >= {
        known[job.key] for job in jobs if job.code is None
    } & set(listed)


def crash_rounds(daemon, rounds, seconds, children_of, start_time):
    """Kills the server again and again while it starts, streams and ends jobs; how many rounds there were."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    jobs: list[Mixed] = []
    known: dict[str, str] = {}
    alive: dict[str, dict[int, int | None]] = {}
    deadline = time.monotonic() + seconds
    daemon.start()
    done = 0
    while done < rounds and time.monotonic() < deadline:
        done += 1
        new = [mixed_job(chance) for _ in range(chance.randrange(2, 7))]
        jobs += new

        async def one_round(new=new):
            starting = asyncio.create_task(start_all(daemon, new, known))
            await asyncio.sleep(chance.uniform(0, 0.15))  # the random moment
            os.kill(daemon.pid, signal.SIGKILL)
            await asyncio.to_thread(daemon.collect)
            await asyncio.sleep(chance.choice((0, 0, 0.1)))  # a downtime in which some end
            await asyncio.to_thread(daemon.start)
            await starting

        asyncio.run(one_round())
        now = {
            job_id: {pid: start_time(pid) for pid in processes_of(children_of, monitor)}
            for job_id, monitor in daemon.monitors().items()
        }
        for job_id, processes in alive.items():
            assert now.get(job_id) == processes, "a job that runs for ever has other processes than before"
        forever = {known.get(job.key) for job in jobs if job.code is None}
        alive = {job_id: processes for job_id, processes in now.items() if job_id in forever}
    asyncio.run(check_all(daemon, jobs, known))
    records = daemon.audit()
    starts = [row["target"] for row in records if (row["action"], row["decision"]) == ("job.start", "allowed")]
    assert len(starts) == len(set(starts))
    assert set(known.values()) <= set(starts)  # more were cut short, before they had begun to run
    return done


@pytest.mark.timeout(600)
def test_nothing_is_lost_or_doubled_when_the_server_is_killed_at_random_moments(own_daemon, children_of, start_time):
    """C1, S11, S10, U2."""
    assert crash_rounds(own_daemon, 30, 570, children_of, start_time) == 30


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_nothing_is_lost_or_doubled_in_300_crashes(own_daemon, children_of, start_time):
    """C1."""
    assert crash_rounds(own_daemon, 300, 1700, children_of, start_time) == 300


def test_a_job_that_ends_during_the_downtime_has_its_exact_end_on_record(own_daemon, eventually):
    """C1: exit codes, signals, timeouts, and the output to the last byte."""
    own_daemon.start()
    jobs = {
        own_daemon.start_job("sh", "-c", "sleep 0.5; seq 1 50000; exit 42"): ({"kind": "exited", "code": 42}, 42),
        own_daemon.start_job("sh", "-c", "sleep 0.5; kill -9 $$"): ({"kind": "signaled", "signal": 9}, 137),
        own_daemon.start_job("sh", "-c", "sleep 0.5"): ({"kind": "exited", "code": 0}, 0),
    }
    timed = own_daemon.jobctl("start", "--timeout", "700ms", "--", "sleep", "1000").stdout.strip()
    jobs[timed] = ({"kind": "timed_out"}, 124)
    own_daemon.kill()
    eventually(lambda: not own_daemon.monitors())
    own_daemon.start()
    for job_id, (outcome, code) in jobs.items():
        assert own_daemon.job(job_id)["outcome"] == outcome
        assert own_daemon.jobctl("wait", job_id).returncode == code
    first = next(iter(jobs))
    shown = own_daemon.jobctl("logs", first).stdout
    assert shown == "".join(f"{number}\n" for number in range(1, 50_001))


def test_running_jobs_keep_their_processes_over_a_crash_and_can_be_stopped_after_it(
    own_daemon, children_of, start_time, eventually
):
    """C1, P1."""
    own_daemon.start()
    job_id = own_daemon.start_job("sh", "-c", "echo before; sleep 1000 & setsid sleep 1000 & wait")
    monitor = own_daemon.monitors()[job_id]
    eventually(lambda: len(processes_of(children_of, monitor)) == 3)
    processes = {pid: start_time(pid) for pid in [monitor, *processes_of(children_of, monitor)]}
    own_daemon.kill()
    own_daemon.start()
    assert {pid: start_time(pid) for pid in processes} == processes
    assert own_daemon.job(job_id)["state"] == "RUNNING"
    assert own_daemon.job(job_id)["effective_limits"]["pids"] == "256"
    assert own_daemon.jobctl("stop", job_id).returncode == 0
    assert {start_time(pid) for pid in processes} == {None}
    assert own_daemon.job(job_id)["outcome"] == {"kind": "stopped", "by": "alice", "signal": 9}
    assert own_daemon.jobctl("logs", job_id).stdout == "before\n"
    assert own_daemon.job_groups() == []


def test_a_stop_on_record_when_the_server_dies_is_finished_by_the_next_one(own_daemon, eventually):
    """C1, P1: the program takes no notice of SIGTERM."""
    own_daemon.start()
    job_id = own_daemon.start_job("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1000; done")
    eventually(lambda: own_daemon.jobctl("logs", "--no-follow", job_id).stdout == "ready\n")
    stopping = own_daemon.spawn_jobctl("stop", "--grace", "3s", job_id)
    eventually(lambda: any(record["action"] == "job.stop" for record in own_daemon.audit()))
    own_daemon.kill()
    stopping.kill()
    stopping.communicate()
    own_daemon.start()
    ended = own_daemon.jobctl("wait", "--timeout", "50s", job_id)
    assert ended.returncode != 124, ended.stderr
    assert own_daemon.job(job_id)["outcome"]["kind"] == "stopped"
    assert own_daemon.job(job_id)["outcome"]["by"] == "alice"


def test_a_follower_is_there_again_after_a_crash_and_misses_nothing(own_daemon):
    """C1, O1: one jobctl, one output, two servers."""
    own_daemon.start()
    job_id = own_daemon.start_job("sh", "-c", "for n in 1 2 3 4 5 6 7 8; do seq $n 10 9999; sleep 0.2; done")
    follower = own_daemon.spawn_jobctl("logs", "-f", job_id)
    first = follower.stdout.read(100)
    own_daemon.kill()
    own_daemon.start()
    rest, words = follower.communicate(timeout=60)
    assert follower.returncode == 0, words
    expected = "".join(f"{number}\n" for start in range(1, 9) for number in range(start, 10_000, 10))
    assert (first + rest).decode() == expected


def test_a_killed_launcher_is_replaced_and_no_job_notices(own_daemon, start_time, eventually):
    """C2."""
    own_daemon.start()
    before = own_daemon.start_job("sh", "-c", "sleep 1; exit 3")
    for _ in range(3):
        launcher = own_daemon.process_titled("jobworker-launcher")
        os.kill(launcher, signal.SIGKILL)
        eventually(lambda launcher=launcher: start_time(launcher) is None)
        done = own_daemon.jobctl("run", "--", "echo", "again")
        assert (done.returncode, done.stdout) == (0, "again\n"), done.stderr
    assert own_daemon.jobctl("wait", before).returncode == 3
    assert own_daemon.process_titled("jobworker-launcher") != launcher


def test_starts_survive_a_launcher_that_is_killed_under_them(own_daemon):
    """C2, S6: each start happens once; none hangs and nothing is left of a try that was cut off."""
    own_daemon.start()

    async def starts():
        async with own_daemon.client() as client:
            async with asyncio.timeout(100):
                starting = [asyncio.create_task(client.start(sh(f"exit {code}"))) for code in range(60)]
                for _ in range(3):
                    await asyncio.sleep(0.03)
                    with contextlib.suppress(ValueError, ProcessLookupError):
                        os.kill(own_daemon.process_titled("jobworker-launcher"), signal.SIGKILL)
                started = await asyncio.gather(*starting)
                ended = await asyncio.gather(*(client.wait(each.job.id) for each in started))
            assert [job.outcome for job in ended] == [Exited(code) for code in range(60)]
            return {job.id async for page in client.list(page_size=1000) for job in page}, {job.id for job in ended}

    listed, ended = asyncio.run(starts())
    assert listed == ended
    assert {entry.name for entry in (own_daemon.directory / "jobs").iterdir()} == ended
    assert own_daemon.job_groups() == []


def test_a_killed_keeper_takes_no_job_and_no_start_with_it(own_daemon, start_time, eventually):
    """C2."""
    own_daemon.start()
    before = own_daemon.start_job("sh", "-c", "sleep 0.5; exit 3")
    keeper = own_daemon.process_titled("jobworker-keeper")
    os.kill(keeper, signal.SIGKILL)
    eventually(lambda: start_time(keeper) is None)
    done = own_daemon.jobctl("run", "--", "echo", "on")
    assert (done.returncode, done.stdout) == (0, "on\n"), done.stderr
    assert own_daemon.jobctl("wait", before).returncode == 3


def test_a_killed_monitor_takes_its_job_with_it_and_the_record_says_so(own_daemon, children_of, start_time, eventually):
    """C2: at once, completely, and nobody else's; the output up to then is kept."""
    own_daemon.start()
    script = "seq 1 1000; sleep 1000 & setsid sleep 1000 & wait"
    victim, other = own_daemon.start_job("sh", "-c", script), own_daemon.start_job("sleep", "1000")
    eventually(lambda: own_daemon.job(victim)["output"]["stdout_bytes"] == 3893)
    follower = own_daemon.spawn_jobctl("logs", "--exit-code", victim)
    follower.stdout.read(1)
    monitor = own_daemon.monitors()[victim]
    eventually(lambda: len(processes_of(children_of, monitor)) == 3)
    processes = [monitor, *processes_of(children_of, monitor)]
    os.kill(monitor, signal.SIGKILL)
    eventually(lambda: {start_time(pid) for pid in processes} == {None})
    output, words = follower.communicate(timeout=60)
    assert (follower.returncode, len(output)) == (125, 3892), words
    job = own_daemon.job(victim)
    assert (job["state"], job["outcome"]["kind"]) == ("FAILED", "lost")
    assert "monitor" in job["outcome"]["reason"]
    assert job["output"]["stdout_bytes"] == 3893
    assert {group.name for group in own_daemon.job_groups()} == {other}
    assert own_daemon.job(other)["state"] == "RUNNING"
    refused = own_daemon.jobctl("rm", victim)
    assert refused.returncode == 0, refused.stderr


def test_a_monitor_that_is_killed_during_the_downtime_leaves_a_lost_job(own_daemon, start_time, eventually):
    """C2, S10: found out at the next start, and the job's groups are removed then."""
    own_daemon.start()
    job_id = own_daemon.start_job("sh", "-c", "echo word; sleep 1000 & wait")
    eventually(lambda: own_daemon.job(job_id)["output"]["stdout_bytes"] == 5)
    own_daemon.kill()
    monitor = own_daemon.monitors()[job_id]
    os.kill(monitor, signal.SIGKILL)
    eventually(lambda: start_time(monitor) is None)
    own_daemon.start()
    job = own_daemon.job(job_id)
    assert (job["state"], job["outcome"]) == ("FAILED", {"kind": "lost", "reason": "its monitor was killed"})
    assert job["output"]["stdout_bytes"] == 5
    assert own_daemon.jobctl("logs", job_id).stdout == "word\n"
    assert own_daemon.job_groups() == []
    own_daemon.kill()
    own_daemon.start()
    assert own_daemon.job(job_id) == job


def test_after_kill_9_of_everything_a_new_start_works(own_daemon, eventually, start_time):
    """S10."""
    own_daemon.start()
    jobs = [own_daemon.start_job("sleep", "1000") for _ in range(3)]
    everything = [own_daemon.pid, *own_daemon.descendants()]
    for pid in everything:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    own_daemon.collect()
    eventually(lambda: {start_time(pid) for pid in everything} == {None})
    own_daemon.start()
    assert {own_daemon.job(job_id)["outcome"]["kind"] for job_id in jobs} == {"lost"}
    assert own_daemon.job_groups() == []
    assert own_daemon.jobctl("run", "--", "echo", "new").stdout == "new\n"


def test_a_start_makes_missing_parent_groups_again(own_daemon):
    """S10: the last launcher of an earlier server may remove them after a new one has found them there."""
    own_daemon.start()
    job_id = own_daemon.start_job("sleep", "1000")
    parents = {group.parent for group in own_daemon.job_groups()}
    assert own_daemon.jobctl("stop", job_id).returncode == 0
    assert parents
    for parent in parents:
        parent.rmdir()
    done = own_daemon.jobctl("run", "--memory", "64M", "--", "echo", "here")
    assert (done.returncode, done.stdout) == (0, "here\n"), done.stderr


async def test_one_key_is_one_job_however_often_it_is_sent_at_once(daemon):
    """S11."""
    key = str(uuid4())
    spec = sh("sleep 0.1; echo once")
    async with daemon.client() as client:
        started = await asyncio.gather(*(client.start(spec, idempotency_key=key) for _ in range(100)))
        assert len({each.job.id for each in started}) == 1
        assert [each.existed for each in started].count(False) == 1
        others = await asyncio.gather(*(client.start(spec) for _ in range(2)))  # positive control
        assert len({each.job.id for each in others}) == 2


def test_one_key_is_one_job_across_crashes(own_daemon):
    """S11: 100 callers keep sending it while the server is killed under them, twice."""
    key, spec = str(uuid4()), sh("sleep 1; echo once")
    own_daemon.start()

    async def ask(client):
        while True:
            try:
                return (await client.start(spec, idempotency_key=key)).job.id
            except JobError as error:
                if error.code is not ErrorCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.05)

    async def ask_all():
        async with own_daemon.client() as client, asyncio.timeout(100):
            asking = [asyncio.create_task(ask(client)) for _ in range(100)]
            for _ in range(2):
                await asyncio.sleep(0.02)
                await asyncio.to_thread(own_daemon.kill)
                await asyncio.to_thread(own_daemon.start)
            return set(await asyncio.gather(*asking))

    (job_id,) = asyncio.run(ask_all())
    listed = own_daemon.jobctl("list", "-a", "-q", user="admin").stdout.split()
    assert listed == [job_id]
    starts = [record["target"] for record in own_daemon.audit() if record["action"] == "job.start"]
    assert starts[-1] == job_id  # those before it were cut short, and nothing has run
    assert own_daemon.jobctl("logs", job_id).stdout == "once\n"


async def test_a_start_goes_on_when_its_caller_goes_away(daemon):
    """P12: a cancelled call leaves a job that runs or none, not half of one."""
    async with daemon.client() as client:
        for delay in (0, 0.001, 0.003, 0.01):
            key = str(uuid4())
            call = asyncio.create_task(client.start(JobSpec(program="/bin/sleep", args=("1000",)), idempotency_key=key))
            await asyncio.sleep(delay)
            call.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await call
            again = await client.start(JobSpec(program="/bin/sleep", args=("1000",)), idempotency_key=key)
            assert again.job.state is State.RUNNING
            assert (await client.stop(again.job.id)).outcome == Stopped("alice", 9)
