"""The use cases, over a real database and real jobs: authorised, within quota, recorded, audited once."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from host import eventually, job_groups, monitor_of, needs_root, titled_as_monitor

from jobworker import pruner
from jobworker.access.ceiling import Ceiling
from jobworker.access.policy import Action, is_allowed
from jobworker.access.principal import Principal, Role, identified
from jobworker.chores import Chore
from jobworker.core.errors import ErrorCode, JobError
from jobworker.core.job_id import new_job_id
from jobworker.core.lifecycle import Ended, Running, State
from jobworker.core.outcome import Exited, Lost, Outcome, Stopped
from jobworker.core.spec import JobSpec, Limits, MiB, Network
from jobworker.runtime.launcher_client import LauncherClient
from jobworker.runtime.output_log import Chunk
from jobworker.service import JobView, OutputEnd, OutputRequest, Quotas, Service
from jobworker.store import audit, boot, jobs
from jobworker.store.database import Database
from jobworker.store.jobs import JobFilter, JobRecord, Retention
from jobworker.worker import bootstrap

pytestmark = needs_root

SLEEP = JobSpec(program="sleep", args=("1000",))
TRUE = JobSpec(program="true")
ALL = JobFilter()


def principal(name: str, role: Role = Role.USER) -> Principal:
    return identified(name=name, role=role, credential="certificate serial 5f", source="ipv4:127.0.0.1:5")


ALICE, BOB, ROOT = principal("alice"), principal("bob"), principal("root", Role.ADMIN)


def shell(script: str) -> JobSpec:
    return JobSpec(program="sh", args=("-c", script))


@pytest.fixture
def database(state: Path) -> Any:
    state.mkdir(mode=0o700)
    with Database.open(state / "jobworker.db") as opened:
        yield opened


@contextlib.asynccontextmanager
async def serving(state: Path, database: Database, quotas: Quotas | None = None) -> AsyncIterator[Service]:
    (state / "jobs").mkdir(mode=0o700, exist_ok=True)
    launcher = await asyncio.to_thread(LauncherClient.start, bootstrap(state))
    service = await Service.open(state, database, launcher, node="here", quotas=quotas or Quotas())
    try:
        yield service
    finally:
        await service.close()


async def end_everything(service: Service) -> None:
    views, _ = await service.list(ROOT, ALL, None, 1000)
    for view in views:
        await service.remove(ROOT, view.record.id, force=True)


@pytest.fixture
async def service(state: Path, database: Database) -> AsyncIterator[Service]:
    async with serving(state, database) as opened:
        yield opened
        await end_everything(opened)


def trail(database: Database) -> list[tuple[str, str, str, str]]:
    """Every audit record: who, what, to what, decision."""
    records = [json.loads(line) for line in database.read(lambda connection: list(audit.export(connection)))]
    return [(row["principal"], row["action"], row["target"], row["decision"]) for row in records]


def recorded(database: Database, job_id: str) -> JobRecord | None:
    return database.read(lambda connection: jobs.get(connection, job_id))


async def start(service: Service, who: Principal = ALICE, spec: JobSpec = SLEEP, key: str | None = None) -> JobView:
    view, _ = await service.start(who, spec, key)
    return view


def outcome_of(view: JobView) -> Outcome | None:
    return view.record.phase.ending.outcome if isinstance(view.record.phase, Ended) else None


async def assert_lost_with_its_key(service: Service, job_id: str, why: str) -> None:
    """The record tells why, and the key starts no second job."""
    view = await service.status(ALICE, job_id)
    assert isinstance(view.record.phase, Ended)
    assert outcome_of(view) == Lost(why)
    again, existed = await service.start(ALICE, TRUE, "key")
    assert (again.record.id, existed) == (job_id, True)


async def read(service: Service, who: Principal, job_id: str, **wanted: Any) -> tuple[bytes, OutputEnd]:
    data, end = b"", None
    async for item in service.output(who, job_id, OutputRequest(**wanted)):
        if isinstance(item, Chunk):
            data += item.data
        else:
            end = item
    assert end is not None
    return data, end


async def refused(awaitable: Awaitable[Any]) -> ErrorCode:
    with pytest.raises(JobError) as error:
        await awaitable
    return error.value.code


#: Every use case that is about one job, as it is called by a user.
ON_A_JOB: dict[Action, Callable[[Service, Principal, str], Awaitable[Any]]] = {
    Action.JOB_STATUS: Service.status,
    Action.JOB_OUTPUT: read,
    Action.JOB_WAIT: lambda service, who, job: service.wait(who, job, 0),
    Action.JOB_STOP: lambda service, who, job: service.stop(who, job, grace=0, signal=15),
    Action.JOB_SIGNAL: lambda service, who, job: service.signal(who, job, 0o21),
    Action.JOB_REMOVE: lambda service, who, job: service.remove(who, job, force=True),
}
MUTATING = {Action.JOB_STOP, Action.JOB_SIGNAL, Action.JOB_REMOVE}


def test_every_action_on_a_job_is_tried() -> None:
    assert set(Action) - set(ON_A_JOB) == {
        Action.JOB_START,
        Action.JOB_LIST,
        Action.JOB_EVENTS,
        Action.NETWORK_HOST,
        Action.METRICS_READ,
        Action.WHO_AM_I,
    }


@pytest.mark.parametrize("action", ON_A_JOB, ids=lambda action: action.value)
@pytest.mark.parametrize("who", [ALICE, BOB, ROOT], ids=["owner", "other", "admin"])
async def test_only_the_owner_and_admins_act_on_a_job_and_each_try_is_one_audit_record(
    service: Service, database: Database, action: Action, who: Principal
) -> None:
    """A4, U1; the owner's try is the positive control of the other's."""
    job = (await start(service)).record.id
    before = trail(database)
    assert before == [("alice", "job.start", job, "allowed")]
    if is_allowed(who, action, "alice"):
        await ON_A_JOB[action](service, who, job)
        expected = [(who.name, action.value, job, "allowed")] if action in MUTATING else []
    else:
        assert await refused(ON_A_JOB[action](service, who, job)) is ErrorCode.PERMISSION_DENIED
        expected = [(who.name, action.value, job, "denied")]
        assert (await service.status(ALICE, job)).record.state is State.RUNNING
    assert trail(database)[1:] == expected


@pytest.mark.parametrize("action", ON_A_JOB, ids=lambda action: action.value)
@pytest.mark.parametrize("job_id", [new_job_id(), "../../x", "x" * 10_000], ids=["unknown", "path", "long"])
async def test_an_unknown_job_is_not_found_whoever_asks(
    service: Service, database: Database, action: Action, job_id: str
) -> None:
    """A6."""
    for who in (ALICE, ROOT):
        assert await refused(ON_A_JOB[action](service, who, job_id)) is ErrorCode.JOB_NOT_FOUND
    assert trail(database) == []


async def test_lists_show_own_jobs_only_and_everything_to_admins(service: Service, database: Database) -> None:
    """A4."""
    own = {(await start(service, who)).record.id: who.name for who in (ALICE, BOB, ALICE)}

    async def listed(who: Principal, wanted: JobFilter = ALL) -> dict[str, str]:
        views, _ = await service.list(who, wanted, None, 100)
        return {view.record.id: view.record.owner for view in views}

    assert await listed(ALICE) == {job: owner for job, owner in own.items() if owner == "alice"}
    assert await listed(BOB, JobFilter(owner="bob")) == {job: owner for job, owner in own.items() if owner == "bob"}
    assert await listed(ROOT) == own
    assert await listed(ROOT, JobFilter(owner="bob")) == await listed(BOB)
    assert await refused(service.list(BOB, JobFilter(owner="alice"), None, 100)) is ErrorCode.PERMISSION_DENIED
    assert trail(database)[-1] == ("bob", "job.list", "", "denied")


async def test_the_hosts_network_is_for_admins(service: Service, database: Database) -> None:
    spec = replace(SLEEP, network=Network.HOST)
    assert await refused(service.start(ALICE, spec, None)) is ErrorCode.PERMISSION_DENIED
    assert trail(database) == [("alice", "network.host", "", "denied")]
    assert database.read(jobs.unfinished) == []
    job = await start(service, ROOT, spec)
    assert job.record.sandbox["network"] == "host"
    assert trail(database)[1:] == [("root", "job.start", job.record.id, "allowed")]


async def test_a_role_with_a_list_of_programs_starts_no_other(state: Path, database: Database) -> None:
    """A8. Nor makes an approved one load what nobody has approved; admins, who have no list, may."""
    quotas = Quotas(programs={Role.USER: ("/usr/bin/sleep",)})
    async with serving(state, database, quotas) as service:
        other = JobSpec(program="/usr/bin/env")
        assert await refused(service.start(ALICE, other, None)) is ErrorCode.PERMISSION_DENIED
        assert [decision for _, _, _, decision in trail(database)] == ["allowed", "denied"]
        assert database.read(jobs.unfinished) == []
        loading = replace(SLEEP, env={"LD_PRELOAD": "/usr/lib/other.so"})
        assert await refused(service.start(ALICE, loading, None)) is ErrorCode.INVALID_ARGUMENT
        elsewhere = replace(SLEEP, rootfs="/srv/roots/a")  # where another file has the approved one's name
        assert await refused(service.start(ALICE, elsewhere, None)) is ErrorCode.INVALID_ARGUMENT
        for who, spec in ((ALICE, SLEEP), (ROOT, other), (ROOT, loading)):
            assert (await start(service, who, spec)).record.state in {State.RUNNING, State.COMPLETED}
        await end_everything(service)


# The life of a record.


async def test_a_job_is_on_record_from_start_to_end(service: Service, database: Database) -> None:
    """C4: the end is durable before anyone sees it."""
    view = await start(service, spec=shell("echo out; sleep 0.2; exit 6"))
    assert view.record.state is State.RUNNING
    ended = await service.wait(ALICE, view.record.id, None)
    record = recorded(database, view.record.id)
    assert record is not None
    assert record == ended.record
    assert isinstance(record.phase, Ended)
    assert record.phase.ending.outcome == Exited(6)
    assert record.effective_limits == view.record.effective_limits != {}
    assert ended.output.stdout_bytes == 4
    assert (await service.status(ALICE, view.record.id)) == ended


async def test_a_start_that_fails_leaves_no_record_and_no_directory_but_its_intent_and_failure_in_the_audit(
    service: Service, database: Database, state: Path
) -> None:
    """S7, U1."""
    assert await refused(service.start(ALICE, JobSpec(program="/no/such"), "key")) is ErrorCode.PROGRAM_NOT_FOUND
    assert (await service.list(ROOT, ALL, None, 10))[0] == []
    assert list((state / "jobs").iterdir()) == []
    (_, _, target, _), failed = trail(database)
    assert trail(database)[0] == ("alice", "job.start", target, "allowed")
    assert failed == ("alice", "job.start", target, "failed")
    assert json.loads(database.read(lambda rows: list(audit.export(rows)))[-1])["detail"] == "program_not_found"
    job = await start(service, key="key")
    assert job.record.state is State.RUNNING, "the key of a failed start is free again"


async def test_the_end_of_a_stream_tells_the_state_that_everyone_sees(service: Service, database: Database) -> None:
    """P2, O5."""
    job = (await start(service, spec=shell("echo a; echo b >&2; exit 2"))).record.id
    data, end = await read(service, ALICE, job, follow=True)
    record = recorded(database, job)
    assert record is not None
    assert (sorted(data.split()), end.state, end.outcome, end.offset) == ([b"a", b"b"], State.FAILED, Exited(2), 4)
    assert record.state is State.FAILED
    assert (await read(service, ALICE, job, offset=end.offset, follow=True))[0] == b""


async def test_without_following_the_end_says_where_to_go_on(service: Service) -> None:
    job = (await start(service, spec=shell("echo there; exec sleep 1000"))).record.id
    async with asyncio.timeout(60):
        while (await service.status(ALICE, job)).output.kept_bytes < 6:  # noqa: ASYNC110 - only asking tells
            await asyncio.sleep(0.01)
    data, end = await read(service, ALICE, job)
    assert (data, end.state, end.outcome, end.offset) == (b"there\n", State.RUNNING, None, 6)


async def test_an_end_that_the_database_refuses_is_put_on_record_when_it_is_mended(
    service: Service, database: Database, state: Path
) -> None:
    """C4, P2: somebody has changed the database under the server. Nobody sees an end that is not on record."""

    def rename(old: str, new: str) -> None:
        with contextlib.closing(sqlite3.connect(state / "jobworker.db")) as hands:
            hands.execute(f"ALTER TABLE {old} RENAME TO {new}")

    job = (await start(service, spec=SLEEP)).record.id
    await eventually(lambda: (record := recorded(database, job)) is not None and record.state is State.RUNNING)
    rename("jobs", "jobs_elsewhere")
    await service._worker.signal(job, signal.SIGKILL)
    await eventually((state / "jobs" / job / "outcome.json").exists)
    assert (await service.wait(ALICE, job, 1)).record.state is State.RUNNING
    rename("jobs_elsewhere", "jobs")
    ended = await service.wait(ALICE, job, 30)
    assert ended.record.state is State.FAILED
    assert recorded(database, job) == ended.record


async def test_a_stop_is_recorded_with_who_did_it(service: Service, database: Database) -> None:
    job = (await start(service)).record.id
    view = await service.stop(ROOT, job, grace=0, signal=15)
    assert isinstance(view.record.phase, Ended)
    assert view.record.phase.ending.outcome == Stopped("root", 9)
    assert view.record == recorded(database, job)
    assert await refused(service.stop(ALICE, job, grace=0, signal=15)) is ErrorCode.JOB_NOT_RUNNING
    assert await refused(service.signal(ALICE, job, 15)) is ErrorCode.JOB_NOT_RUNNING


@pytest.mark.parametrize("how", [{"grace": 1.0, "signal": 65}, {"grace": float("nan"), "signal": 15}], ids=str)
async def test_a_stop_that_cannot_be_is_not_wished_for(service: Service, database: Database, how: Any) -> None:
    """C3: on record it would end the job after the next restart."""
    job = (await start(service)).record.id
    assert await refused(service.stop(ALICE, job, **how)) is ErrorCode.INVALID_ARGUMENT
    record = recorded(database, job)
    assert record is not None
    assert record.desired is jobs.Desired.RUN
    assert [action for _, action, *_ in trail(database)] == ["job.start"]


async def test_a_stop_needs_no_audit_and_is_in_it_once_that_can_be_written(
    service: Service, database: Database, state: Path
) -> None:
    """R2, U1: what cannot write is here a database that somebody else holds; a start is refused meanwhile."""
    job = (await start(service)).record.id
    await eventually(lambda: (record := recorded(database, job)) is not None and record.state is State.RUNNING)
    database._connection.execute("PRAGMA busy_timeout = 0")
    with contextlib.closing(sqlite3.connect(state / "jobworker.db", isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        assert await refused(service.start(ALICE, TRUE, None)) is ErrorCode.UNAVAILABLE
        await service.stop(ALICE, job, grace=0, signal=15)
        assert (await service.status(ALICE, job)).record.state is State.STOPPED
        holder.execute("ROLLBACK")
    stopped = ("alice", "job.stop", job, "allowed")
    await eventually(lambda: stopped in trail(database))
    assert trail(database).count(stopped) == 1


async def test_twenty_stops_at_once_give_one_end(service: Service, database: Database) -> None:
    """P5."""
    job = (await start(service)).record.id
    stops = (service.stop(who, job, grace=0, signal=15) for who in [ALICE, ROOT] * 10)
    results = await asyncio.gather(*stops, return_exceptions=True)
    phases = {repr(result.record.phase) for result in results if isinstance(result, JobView)}
    assert len(phases) == 1
    rest = [result for result in results if not isinstance(result, JobView)]
    assert all(isinstance(error, JobError) and error.code is ErrorCode.JOB_NOT_RUNNING for error in rest)
    record = recorded(database, job)
    assert record is not None
    assert repr(record.phase) in phases


async def test_removing_takes_record_and_directory_and_keeps_the_trail(
    service: Service, database: Database, state: Path
) -> None:
    job = (await start(service)).record.id
    assert await refused(service.remove(ALICE, job, force=False)) is ErrorCode.JOB_RUNNING
    await service.stop(ALICE, job, grace=0, signal=15)
    await service.remove(ALICE, job, force=False)
    assert recorded(database, job) is None
    assert list((state / "jobs").iterdir()) == []
    assert await refused(service.status(ALICE, job)) is ErrorCode.JOB_NOT_FOUND
    assert [(what, decision) for _, what, _, decision in trail(database)] == [
        ("job.start", "allowed"),
        ("job.stop", "allowed"),
        ("job.remove", "allowed"),
    ]


async def test_a_removal_that_fails_is_on_record_as_failed_and_can_be_repeated(
    service: Service, database: Database, state: Path
) -> None:
    """U1: intent before, outcome after. The control: the one that works has no other record than its intent."""
    job = (await start(service, spec=TRUE)).record.id
    await service.wait(ALICE, job, None)
    stranger = state / "jobs" / job / "put here by somebody"
    stranger.touch()
    with pytest.raises(OSError, match="not empty"):
        await service.remove(ALICE, job, force=False)
    assert recorded(database, job) is not None
    stranger.unlink()
    await service.remove(ALICE, job, force=False)
    assert trail(database)[1:] == [
        ("alice", "job.remove", job, decision) for decision in ("allowed", "failed", "allowed")
    ]
    assert database.read(audit.verify) is None


async def test_removing_by_force_races_with_the_natural_end(service: Service, database: Database) -> None:
    """P5: whoever wins, the job is removed."""
    for number in range(20):
        job = (await start(service, spec=shell(f"sleep 0.0{number % 3}"))).record.id
        await service.remove(ALICE, job, force=True)
        assert recorded(database, job) is None


async def test_the_audit_trail_is_whole(service: Service, database: Database) -> None:
    """U2."""
    for who in (ALICE, BOB):
        job = (await start(service, who, TRUE)).record.id
        await service.wait(who, job, None)
        await refused(service.remove(principal("eve"), job, force=True))
    assert len(trail(database)) == 4
    assert database.read(audit.verify) is None
    record = json.loads(database.read(lambda connection: next(audit.export(connection))))
    assert (record["credential"], record["source"]) == (ALICE.credential, ALICE.source)


# Once and not twice.


async def test_the_same_key_is_the_same_job(service: Service, database: Database) -> None:
    """S11."""
    view, existed = await service.start(ALICE, SLEEP, "key")
    again, existed_then = await service.start(ALICE, JobSpec(program="other"), "key")
    assert (existed, existed_then, again.record.id) == (False, True, view.record.id)
    assert [what for _, what, _, _ in trail(database)] == ["job.start"]
    other, existed_for_bob = await service.start(BOB, SLEEP, "key")
    assert not existed_for_bob
    assert other.record.id != view.record.id
    await service.stop(ALICE, view.record.id, grace=0, signal=15)
    after_its_end, existed_still = await service.start(ALICE, SLEEP, "key")
    assert (after_its_end.record.id, existed_still) == (view.record.id, True)


async def test_the_same_key_a_hundred_times_at_once_is_one_job(
    service: Service, database: Database, state: Path
) -> None:
    """S11."""
    answers = await asyncio.gather(*(service.start(ALICE, SLEEP, "key") for _ in range(100)))
    assert len({view.record.id for view, _ in answers}) == 1
    assert sorted(existed for _, existed in answers) == [False] + [True] * 99
    assert {view.record.state for view, _ in answers} == {State.RUNNING}
    assert len({group.name for group in job_groups(state)}) == 1
    assert len(trail(database)) == 1


async def test_a_key_whose_start_fails_fails_for_everyone_who_uses_it(service: Service, database: Database) -> None:
    """S11."""
    starts = (service.start(ALICE, JobSpec(program="/no/such"), "key") for _ in range(20))
    results = await asyncio.gather(*starts, return_exceptions=True)
    codes = {result.code if isinstance(result, JobError) else repr(result) for result in results}
    assert codes == {ErrorCode.PROGRAM_NOT_FOUND}
    assert (await service.list(ROOT, ALL, None, 10))[0] == []


@pytest.mark.parametrize("key", ["", "k" * 256, "k k", "ké"])
async def test_what_is_no_key_is_refused(service: Service, key: str) -> None:
    assert await refused(service.start(ALICE, SLEEP, key)) is ErrorCode.INVALID_ARGUMENT


async def test_a_caller_that_goes_away_does_not_take_the_start_with_it(service: Service) -> None:
    caller = asyncio.create_task(service.start(ALICE, SLEEP, "key"))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    view, existed = await service.start(ALICE, SLEEP, "key")
    assert (existed, view.record.state) == (True, State.RUNNING)


# Quotas.


async def test_a_user_has_so_many_jobs_and_no_more(state: Path, database: Database) -> None:
    """R4: another user is not affected, and an end makes room."""
    async with serving(state, database, Quotas(max_jobs_per_user=2, max_jobs=4)) as service:
        first = await start(service)
        await start(service)
        assert await refused(service.start(ALICE, SLEEP, None)) is ErrorCode.EXHAUSTED
        await start(service, BOB)
        await service.stop(ALICE, first.record.id, grace=0, signal=15)
        await start(service)
        await start(service, ROOT)
        assert await refused(service.start(BOB, SLEEP, None)) is ErrorCode.EXHAUSTED, "the server is full"
        await end_everything(service)


async def test_starts_at_once_do_not_slip_past_the_quota(state: Path, database: Database) -> None:
    """R4."""
    async with serving(state, database, Quotas(max_jobs_per_user=3)) as service:
        starts = (service.start(ALICE, SLEEP, None) for _ in range(30))
        results = await asyncio.gather(*starts, return_exceptions=True)
        assert sum(isinstance(result, tuple) for result in results) == 3
        assert {result.code for result in results if isinstance(result, JobError)} == {ErrorCode.EXHAUSTED}
        await end_everything(service)


async def test_failed_starts_use_up_no_quota(state: Path, database: Database) -> None:
    async with serving(state, database, Quotas(max_jobs_per_user=1)) as service:
        for _ in range(5):
            assert await refused(service.start(ALICE, JobSpec(program="/no/such"), None)) is ErrorCode.PROGRAM_NOT_FOUND
        await start(service)
        await end_everything(service)


async def test_a_user_has_so_many_streams_and_no_more(state: Path, database: Database) -> None:
    """R4."""
    async with serving(state, database, Quotas(max_streams_per_user=2)) as service:
        job = (await start(service, spec=shell("echo out; exec sleep 1000"))).record.id
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(2):
                chunks = service.output(ALICE, job, OutputRequest(follow=True))
                await stack.enter_async_context(contextlib.aclosing(chunks))
                await anext(aiter(chunks))
            assert await refused(read(service, ALICE, job)) is ErrorCode.EXHAUSTED
            assert await refused(service.wait(ALICE, job, None)) is ErrorCode.EXHAUSTED
            assert (await service.wait(ROOT, job, 0)).record.state is State.RUNNING
            assert (await read(service, ROOT, job))[0] == b"out\n"
        assert (await read(service, ALICE, job))[0] == b"out\n", "closed ones make room"
        waits = [asyncio.create_task(service.wait(ALICE, job, None)) for _ in range(2)]
        await asyncio.sleep(0)
        assert await refused(read(service, ALICE, job)) is ErrorCode.EXHAUSTED
        await service.stop(ALICE, job, grace=0, signal=15)
        await asyncio.gather(*waits)


async def test_a_role_has_a_ceiling(state: Path, database: Database) -> None:
    quotas = Quotas(ceilings={Role.USER: Ceiling(memory=64 * MiB)})
    big = replace(SLEEP, limits=Limits(memory=65 * MiB))
    async with serving(state, database, quotas) as service:
        assert await refused(service.start(ALICE, big, None)) is ErrorCode.INVALID_ARGUMENT
        await start(service, ALICE, replace(SLEEP, limits=Limits(memory=64 * MiB)))
        await start(service, ROOT, big)
        await end_everything(service)


async def test_while_it_shuts_down_nothing_is_started_and_everything_else_works(service: Service) -> None:
    """R5."""
    job = (await start(service, key="key")).record.id
    service.refuse_new_jobs()
    assert await refused(service.start(ALICE, SLEEP, None)) is ErrorCode.UNAVAILABLE
    assert (await service.status(ALICE, job)).record.state is State.RUNNING
    assert (await service.stop(ALICE, job, grace=0, signal=15)).record.state is State.STOPPED


# Restart.


async def test_jobs_are_adopted_and_ends_are_recorded_after_a_restart(state: Path, database: Database) -> None:
    """C1."""
    async with serving(state, database) as service:
        running = (await start(service, spec=shell("echo out; exec sleep 1000"))).record
        ending = (await start(service, spec=shell("sleep 0.3; exit 4"))).record
    await eventually((state / "jobs" / ending.id / "outcome.json").exists)
    async with serving(state, database) as service:
        view = await service.status(ALICE, running.id)
        assert (view.record.state, view.record.owner, view.record.spec) == (State.RUNNING, "alice", running.spec)
        phase = (await service.wait(ALICE, ending.id, None)).record.phase
        assert phase == (recorded(database, ending.id) or ending).phase
        assert isinstance(phase, Ended)
        assert phase.ending.outcome == Exited(4)
        assert (await service.stop(ALICE, running.id, grace=0, signal=15)).record.state is State.STOPPED
        await end_everything(service)


async def test_a_row_without_a_directory_is_a_job_that_was_never_started(state: Path, database: Database) -> None:
    """C3: the server died between the record and the directory."""
    record = JobRecord(id=new_job_id(), owner="alice", spec=TRUE, created_at=1.0, node="here", idempotency_key="key")
    await database.write(lambda connection: jobs.insert(connection, record))
    async with serving(state, database) as service:
        view = await service.status(ALICE, record.id)
        assert isinstance(view.record.phase, Ended)
        assert view.record.phase.ending.outcome == Lost("the server stopped before the job was started")
        assert view.record == recorded(database, record.id)
        assert await refused(service.stop(ALICE, record.id, grace=0, signal=15)) is ErrorCode.JOB_NOT_RUNNING
        again, existed = await service.start(ALICE, TRUE, "key")
        assert (again.record.id != record.id, existed) == (True, False), "S11: what never ran may be tried again"
        assert recorded(database, record.id) is None
        await service.wait(ALICE, again.record.id, None)
        await service.remove(ALICE, again.record.id, force=False)
        assert recorded(database, again.record.id) is None


async def test_a_job_that_has_run_is_lost_with_its_directory_and_its_key_is_used_up(
    state: Path, database: Database
) -> None:
    """C3, S11: somebody has deleted it while no server ran; that it had never been started would be untrue."""
    async with serving(state, database) as service:
        job, _ = await service.start(ALICE, SLEEP, "key")
        await eventually(lambda: (recorded(database, job.record.id) or job.record).state is State.RUNNING)
    os.kill(monitor_of(job.record.id), signal.SIGKILL)
    await eventually(lambda: titled_as_monitor(job.record.id) == [])
    shutil.rmtree(state / "jobs" / job.record.id)
    async with serving(state, database) as service:
        await assert_lost_with_its_key(service, job.record.id, "its directory was deleted")


@pytest.mark.parametrize("name", ["spec.json", "outcome.json"])
@pytest.mark.parametrize(
    "damage", [b"", b"\xff\xfe{", b'{"outcome": {"kind": "exi', None], ids=["empty", "bytes", "cut", "eio"]
)
async def test_a_job_whose_files_are_damaged_is_lost_for_that_reason_and_its_key_is_used_up(
    state: Path, database: Database, name: str, damage: bytes | None
) -> None:
    """C5, S11: it may have run. None: the file cannot be read at all."""
    async with serving(state, database) as service:
        job, _ = await service.start(ALICE, TRUE, "key")
        await service.wait(ALICE, job.record.id, None)
    record = replace(job.record, phase=Running(1.0))
    for expected in (State.COMPLETED, State.RUNNING):
        await database.write(lambda connection, state=expected: jobs.compare_and_set(connection, state, record))  # type: ignore[misc]
    place = state / "jobs" / record.id / name
    place.unlink()
    if damage is None:
        place.mkdir()
    else:
        place.write_bytes(damage)
    async with serving(state, database) as service:
        await assert_lost_with_its_key(service, record.id, "the job's files are damaged")


async def test_a_row_whose_directory_a_reset_has_cost_was_started_for_all_one_knows(
    state: Path, database: Database
) -> None:
    """C4, S11: the host lost what nobody had synced; the job may have run, so that its key is used up."""
    record = JobRecord(id=new_job_id(), owner="alice", spec=TRUE, created_at=1.0, node="here", idempotency_key="key")
    await database.write(lambda connection: jobs.insert(connection, record))
    await database.write(lambda connection: boot.replace(connection, "00000000-0000-4000-8000-000000000000"))
    async with serving(state, database) as service:
        await assert_lost_with_its_key(service, record.id, "host rebooted")
        await eventually(
            lambda: database.read(boot.known) == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        )


async def test_a_removal_that_was_cut_short_can_be_finished(state: Path, database: Database) -> None:
    """C3: the directory is gone, the row is not."""
    async with serving(state, database) as service:
        job = (await start(service, spec=TRUE)).record.id
        await service.wait(ALICE, job, None)
        await service._worker.remove(job)
    async with serving(state, database) as service:
        assert (await service.status(ALICE, job)).record.state is State.COMPLETED
        await service.remove(ALICE, job, force=False)
        assert recorded(database, job) is None


async def test_a_stop_that_was_on_record_is_carried_out_after_a_restart(state: Path, database: Database) -> None:
    """C3: the server died before it could tell the monitor."""
    async with serving(state, database) as service:
        record = (await start(service)).record
        await eventually(lambda: (recorded(database, record.id) or record).state is State.RUNNING)
    wanted = replace(record, desired=jobs.Desired.STOP)
    event = service._event(ROOT, Action.JOB_STOP, record.id, "allowed")
    assert await database.write(lambda connection: jobs.compare_and_set(connection, State.RUNNING, wanted))
    await database.write(lambda connection: audit.append(connection, event))
    async with serving(state, database) as service:
        view = await service.wait(ALICE, record.id, 60)
        assert (view.record.state, outcome_of(view)) == (State.STOPPED, Stopped("root", 9))
        await end_everything(service)


async def test_a_stop_stays_on_record_when_the_news_of_the_start_is_recorded_after_it(
    service: Service, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C3: what the server was told to do it still knows after its death."""
    release, begin = asyncio.Event(), service._chores.begin

    def begin_later(name: str, chore: Chore) -> asyncio.Event:
        async def wait_and_do() -> None:
            await release.wait()
            await chore()

        return begin(name, wait_and_do)

    monkeypatch.setattr(service._chores, "begin", begin_later)
    job = (await start(service, spec=shell("trap '' TERM; while :; do sleep 1; done"))).record.id
    stopping = asyncio.create_task(service.stop(ALICE, job, grace=60, signal=signal.SIGTERM))
    await eventually(lambda: ("alice", "job.stop", job, "allowed") in trail(database))
    release.set()
    await eventually(lambda: (record := recorded(database, job)) is not None and record.state is State.RUNNING)
    record = recorded(database, job)
    assert record is not None
    assert record.desired is jobs.Desired.STOP
    await service.stop(ALICE, job, grace=0, signal=signal.SIGTERM)
    await stopping


async def test_jobs_beyond_retention_are_removed_with_their_output_and_stay_in_the_audit(
    state: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C6. The control is a server without bounds, which keeps them all."""
    # It looks again at once for as long as there is more: the pause is longer than the test.
    monkeypatch.setattr(pruner, "_PAUSE_SECONDS", 1000)
    monkeypatch.setattr(pruner, "_AT_ONCE", 1)
    async with serving(state, database) as service:
        ended = [(await start(service, ALICE, shell("echo output"))).record.id for _ in range(3)]
        for job_id in ended:
            await service.wait(ALICE, job_id, None)
        running = (await start(service, BOB, SLEEP)).record.id
        await asyncio.sleep(0.2)
        assert len((await service.list(ROOT, ALL, None, 1000))[0]) == 4
    async with serving(state, database, Quotas(retention=Retention(jobs=1))) as service:
        await eventually(lambda: not any((state / "jobs" / job_id).exists() for job_id in ended[:2]))
        await eventually(lambda: len(database.read(lambda rows: jobs.select(rows, ALL, None, 10)).jobs) == 2)
        views, _ = await service.list(ROOT, ALL, None, 1000)
        assert [view.record.id for view in views] == [running, ended[2]]
        records = trail(database)
        removed = [("server:retention", "job.remove", job_id, "allowed") for job_id in ended[:2]]
        assert [record for record in records if record[1] == "job.remove"] == removed
        assert [target for _, action, target, _ in records if action == "job.start"] == [*ended, running]
        await end_everything(service)
