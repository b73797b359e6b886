"""The promises of the database: durable, grouped, isolated, shared, and refused when it is not whole."""

import asyncio
import json
import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from jobworker.core.errors import ErrorCode, JobError
from jobworker.store import jobs, schema, users
from jobworker.store.database import Database, DatabaseRefused

PROGRAMS = Path(__file__).parent / "programs"


def count_jobs(connection):
    return connection.execute("SELECT count(*) FROM jobs").fetchone()[0]


def names(connection):
    return [user.name for user in users.everyone(connection)]


def add(name):
    return lambda connection: users.add(connection, name, "user", 1.0)


class Gate:
    """A change that holds the writer thread until it is opened, so that others queue up behind it."""

    def __init__(self):
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self, connection):
        self.entered.set()
        assert self.opened.wait(30)


# Durable.


def test_every_acknowledged_insert_survives_kill_9(path):  # C4
    with subprocess.Popen(
        [sys.executable, PROGRAMS / "keeps_inserting.py", path], stdout=subprocess.PIPE, text=True
    ) as writer:
        acknowledged = [next(writer.stdout).strip() for _ in range(300)]
        writer.kill()
        # A last line may be torn by the kill; it was not acknowledged to anyone.
        acknowledged += [line.strip() for line in writer.stdout if line.endswith("\n")]
    with Database.open(path) as database:
        recorded = database.read(lambda c: {row[0] for row in c.execute("SELECT id FROM jobs")})
    assert set(acknowledged) <= recorded
    assert len(recorded) - len(acknowledged) <= 8  # what the 8 tasks had under way


def test_a_write_is_visible_to_other_processes_when_it_returns(database, path):
    asyncio.run(database.write(add("alice")))
    other = sqlite3.connect(path)
    assert names(other) == ["alice"]
    other.close()


def test_a_commit_waits_for_the_disk(database):  # C4: what only a power cut would show
    assert database._connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert database._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_label_without_its_job_cannot_be_stored(database):
    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
        database.write_now(lambda c: c.execute("INSERT INTO job_labels VALUES ('env', 'prod', 7)"))


def test_closing_commits_what_is_queued(path):
    database = Database.open(path)
    gate = Gate()

    async def queue_and_close():
        writes = [asyncio.ensure_future(database.write(gate))]
        writes += [asyncio.ensure_future(database.write(add(name))) for name in ("alice", "bob")]
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(database.close())
        gate.opened.set()
        await asyncio.gather(closing, *writes)

    asyncio.run(queue_and_close())
    with Database.open(path) as again:
        assert again.read(names) == ["alice", "bob"]


def test_a_closed_database_refuses_requests_instead_of_hanging(path):
    database = Database.open(path)
    database.close_now()
    database.close_now()
    for request in (lambda: database.write_now(add("alice")), lambda: database.read(names)):
        with pytest.raises(JobError) as refused:
            request()
        assert refused.value.code is ErrorCode.UNAVAILABLE


# Grouped.


def test_changes_that_wait_share_one_commit_and_one_wake_up(database, monkeypatch):
    statements = []
    database._connection.set_trace_callback(statements.append)
    gate = Gate()

    async def burst():
        loop = asyncio.get_running_loop()
        wake_ups = []
        call_soon_threadsafe = loop.call_soon_threadsafe
        first = asyncio.ensure_future(database.write(gate))
        await asyncio.sleep(0)
        assert gate.entered.wait(30)
        rest = [asyncio.ensure_future(database.write(add(f"user{number}"))) for number in range(50)]
        await asyncio.sleep(0)
        monkeypatch.setattr(
            loop, "call_soon_threadsafe", lambda *call: (wake_ups.append(call), call_soon_threadsafe(*call))[1]
        )
        gate.opened.set()
        await asyncio.gather(first, *rest)
        return len(wake_ups)

    assert asyncio.run(burst()) == 2  # the gate's batch, and the batch of the 50
    assert statements.count("COMMIT") == 2
    assert len(database.read(names)) == 50


def test_writes_of_several_event_loops_and_plain_threads_all_return(database):
    def from_a_loop(prefix):
        async def some():
            await asyncio.gather(*(database.write(add(f"{prefix}{number}")) for number in range(20)))

        asyncio.run(some())

    def from_a_thread():
        for number in range(20):
            database.write_now(add(f"plain{number}"))

    threads = [threading.Thread(target=from_a_loop, args=(prefix,)) for prefix in "ab"]
    threads.append(threading.Thread(target=from_a_thread))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(database.read(names)) == 60


# Isolated.


def test_an_error_undoes_its_own_change_and_no_other_of_the_batch(database):
    gate = Gate()

    def half(connection):
        users.add(connection, "half", "user", 1.0)
        raise ValueError("on purpose")

    def exhausted(connection):
        return next(connection.execute("SELECT 1 WHERE 0"))

    async def batch():
        first = asyncio.ensure_future(database.write(gate))
        await asyncio.sleep(0)
        assert gate.entered.wait(30)
        changes = [add("alice"), half, add("alice"), exhausted, add("bob")]
        rest = [asyncio.ensure_future(database.write(change)) for change in changes]
        await asyncio.sleep(0)
        gate.opened.set()
        await first
        return await asyncio.gather(*rest, return_exceptions=True)

    alice, half_error, taken, stopped, bob = asyncio.run(batch())
    assert (alice.name, bob.name) == ("alice", "bob")
    assert isinstance(half_error, ValueError)
    assert isinstance(taken, users.UserExists)
    assert isinstance(stopped, RuntimeError)  # a coroutine cannot raise StopIteration (PEP 479)
    assert database.read(names) == ["alice", "bob"]


def test_a_cancelled_caller_does_not_disturb_the_others(database):
    gate = Gate()

    async def cancel_one():
        writes = [asyncio.ensure_future(database.write(change)) for change in (gate, add("alice"), add("bob"))]
        await asyncio.sleep(0)
        writes[1].cancel()
        gate.opened.set()
        return await asyncio.gather(*writes, return_exceptions=True)

    _, cancelled, bob = asyncio.run(cancel_one())
    assert isinstance(cancelled, asyncio.CancelledError)
    assert bob.name == "bob"


def test_readers_cannot_write(database):
    with pytest.raises(JobError, match="cannot be written"):
        database.read(add("alice"))


# Reading.


def test_a_read_in_a_thread_sees_every_write_queued_before_it(database):
    async def write_then_read():
        writes = [asyncio.ensure_future(database.write(add(f"user{number}"))) for number in range(20)]
        await asyncio.sleep(0)
        seen = await database.read_in_thread(names)
        await asyncio.gather(*writes)
        return seen

    assert len(asyncio.run(write_then_read())) == 20


def test_an_error_in_a_reader_thread_reaches_the_caller(database):
    with pytest.raises(ZeroDivisionError):
        asyncio.run(database.read_in_thread(lambda _: 1 / 0))


def test_a_read_is_one_snapshot_whatever_is_written_meanwhile(database):
    def twice(connection):
        before = names(connection)
        database.write_now(add("alice"))
        return before, names(connection)

    assert database.read(twice) == ([], [])
    assert database.read(names) == ["alice"]


# Shared by processes.


def test_two_processes_write_at_once(database, path, make_record):
    with subprocess.Popen([sys.executable, PROGRAMS / "inserts_some.py", path, "100"]) as other:

        async def insert():
            for _ in range(100):
                await database.write(partial(jobs.insert, record=make_record()))

        asyncio.run(insert())
        assert other.wait(60) == 0
    assert database.read(count_jobs) == 200


def test_a_lock_held_too_long_by_another_process_is_unavailable_not_a_crash(database, path):
    database._connection.execute("PRAGMA busy_timeout = 0")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(JobError) as failed:
        database.write_now(add("alice"))
    assert failed.value.code is ErrorCode.UNAVAILABLE
    assert database.read(names) == []
    other.execute("ROLLBACK")
    other.close()
    assert database.write_now(add("alice")).name == "alice"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (sqlite3.SQLITE_CORRUPT, "its database is damaged; nothing was changed, its operator must restore a backup"),
        (sqlite3.SQLITE_READONLY, "its database cannot be written; nothing was changed, its operator must make"),
        (sqlite3.SQLITE_FULL, "its disk is full; nothing was changed, try again later"),
    ],
)
def test_a_fault_of_the_storage_inside_a_change_is_unavailable_and_undoes_it(database, fault, words):  # R2
    def meet_fault(connection):
        add("lost")(connection)
        error = sqlite3.DatabaseError("as SQLite says it")
        error.sqlite_errorcode = fault
        raise error

    with pytest.raises(JobError, match=words) as refused:
        database.write_now(meet_fault)
    assert refused.value.code is ErrorCode.UNAVAILABLE
    database.write_now(add("kept"))
    assert database.read(names) == ["kept"]


def test_only_the_owner_may_read_the_files(database, path):
    database.write_now(add("alice"))
    for file in path.parent.iterdir():
        assert file.stat().st_mode & 0o777 == 0o600, file.name


def test_a_loose_mode_is_tightened(path):
    Database.open(path).close_now()
    path.chmod(0o644)
    Database.open(path).close_now()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a second user id")
def test_what_root_leaves_stays_usable_by_the_service_user():
    service = 65534
    insert = "INSERT INTO users VALUES ('service', 'user', 1.0, NULL)"
    script = (
        "import os, sqlite3, sys; os.setgroups([]); os.setgid(65534); os.setuid(65534);"
        "c = sqlite3.connect(sys.argv[1]); c.execute(sys.argv[2]); c.commit(); c.close()"
    )
    # Not below tmp_path: its parents are closed to the service user.
    with tempfile.TemporaryDirectory() as home:
        os.chown(home, service, service)
        path = Path(home) / "jobworker.db"
        with Database.open(path) as database:
            database.write_now(add("root"))
            owners = {file.name: (file.stat().st_uid, file.stat().st_gid) for file in path.parent.iterdir()}
            assert owners == dict.fromkeys(("jobworker.db", "jobworker.db-wal", "jobworker.db-shm"), (service, service))
            subprocess.run([sys.executable, "-I", "-c", script, path, insert], check=True, timeout=60)
            assert database.read(names) == ["root", "service"]


# Migrated.


def test_a_new_database_has_the_newest_version_and_no_leftover_files(path):
    with Database.open(path) as database:
        assert database.read(schema.version) == schema.migrations()[-1].number
    assert [file.name for file in path.parent.iterdir()] == ["jobworker.db"]


def test_migrations_are_numbered_without_a_gap():
    numbers = [step.number for step in schema.migrations()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_database_of_version_1_opens_with_everything_in_it(path):  # C5
    dump = (Path(__file__).parent / "data" / "version_1.sql").read_text()
    old = sqlite3.connect(path)
    old.executescript(dump)
    old.close()
    with Database.open(path) as database:
        job = database.read(partial(jobs.get, job_id="6f0c1fd2-8a52-4c0b-9d1a-0c5b1f6f7a01"))
        assert job.owner == "alice"
        assert job.state.value == "COMPLETED"
        assert database.read(names) == ["alice"]
        assert database.read(schema.version) == schema.migrations()[-1].number


def test_a_later_migration_applies_once_and_keeps_the_rows(path):
    next_number = schema.migrations()[-1].number + 1
    step = schema.Migration(next_number, ("ALTER TABLE users ADD COLUMN note TEXT NOT NULL DEFAULT 'none'",))
    with Database.open(path) as database:
        database.write_now(add("alice"))
    connection = sqlite3.connect(path, isolation_level=None)
    for _ in range(2):
        schema.bring_up_to_date(connection, (*schema.migrations(), step))
    assert connection.execute("SELECT name, note FROM users").fetchall() == [("alice", "none")]
    assert schema.version(connection) == next_number
    connection.close()


def test_a_migration_that_fails_leaves_no_trace(path):
    Database.open(path).close_now()
    number = schema.migrations()[-1].number
    step = schema.Migration(number + 1, ("CREATE TABLE half (x)", "CREATE TABLE half (x)"))
    connection = sqlite3.connect(path, isolation_level=None)
    with pytest.raises(sqlite3.OperationalError, match="already exists"):
        schema.bring_up_to_date(connection, (step,))
    assert schema.version(connection) == number
    assert connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'half'").fetchone() == (0,)
    connection.close()


# Refused.


def fill_and_close(path, make_record):
    with Database.open(path) as database:
        database.write_now(lambda c: [jobs.insert(c, make_record()) for _ in range(200)])


def overwrite(path, offset, data):
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize(
    ("damage", "hint"),
    [
        pytest.param(lambda path: overwrite(path, 0, b"\xff" * 100), "not a jobworker database", id="header"),
        pytest.param(lambda path: overwrite(path, 20 * 4096, b"\xff" * 4096), "damaged", id="page"),
        pytest.param(lambda path: os.truncate(path, 8 * 4096), "damaged", id="truncated"),
        pytest.param(lambda path: os.truncate(path, 0), "cut to nothing", id="empty"),
        pytest.param(lambda path: path.write_text("[server]\n" * 1000), "not a jobworker database", id="text"),
    ],
)
def test_a_damaged_file_is_refused_with_a_hint_and_left_alone(path, make_record, damage, hint):  # C5
    fill_and_close(path, make_record)
    damage(path)
    content = path.read_bytes()
    with pytest.raises(DatabaseRefused, match=hint) as refused:
        Database.open(path)
    assert "restore a backup" in str(refused.value)
    assert path.read_bytes() == content


def test_a_truncated_file_is_refused_also_when_it_is_too_big_to_be_read_in_full(path, make_record, monkeypatch):  # C5
    fill_and_close(path, make_record)
    os.truncate(path, path.stat().st_size - 4096)
    monkeypatch.setattr("jobworker.store.database._WHOLE_CHECK_BYTES", 0)
    with pytest.raises(DatabaseRefused, match="damaged"):
        Database.open(path)


@pytest.mark.parametrize("table", ["jobs", "audit", "tokens", "users", "denied_credentials"])
def test_a_database_without_one_of_its_tables_is_refused(path, table):
    """C5, U2: an audit that is gone as a whole is no empty one."""
    Database.open(path).close_now()
    with closing(sqlite3.connect(path)) as other:
        other.execute(f"DROP TABLE {table}")
    with pytest.raises(DatabaseRefused, match=f"damaged; restore a backup .*no table {table}"):
        Database.open(path)


def test_a_newer_database_is_refused_and_left_alone(path):  # C5
    Database.open(path).close_now()
    newer = sqlite3.connect(path)
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    content = path.read_bytes()
    with pytest.raises(DatabaseRefused, match=r"newer release \(version 99.*install that release"):
        Database.open(path)
    assert path.read_bytes() == content


def test_a_database_of_another_program_is_refused(path):
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE jobs (x)")
    other.close()
    with pytest.raises(DatabaseRefused, match="another program"):
        Database.open(path)


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(DatabaseRefused, match=r"jobworker\.db cannot be opened"):
        Database.open(tmp_path / "missing" / "jobworker.db")


def test_two_processes_that_make_the_database_at_once_share_one(path):
    makers = [subprocess.Popen([sys.executable, PROGRAMS / "inserts_some.py", path, "5"]) for _ in range(3)]
    assert [maker.wait(60) for maker in makers] == [0, 0, 0]
    with Database.open(path) as database:
        assert database.read(count_jobs) == 15
    assert [file.name for file in path.parent.iterdir()] == ["jobworker.db"]


# A full disk.


def can_mount() -> bool:
    return (
        os.geteuid() == 0
        and shutil.which("unshare") is not None
        and subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode == 0
    )


@pytest.mark.skipif(not can_mount(), reason="needs CAP_SYS_ADMIN: a private mount namespace for a small disk")
def test_a_full_disk_refuses_writes_and_recovers_without_restart(tmp_path):  # R2
    program = shlex.join([sys.executable, str(PROGRAMS / "meets_a_full_disk.py"), str(tmp_path)])
    small_disk = f"mount -t tmpfs -o size=4m,mode=700 tmpfs {shlex.quote(str(tmp_path))} && exec {program}"
    ran = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", small_disk],
        check=True,
        capture_output=True,
        timeout=60,
    )
    assert json.loads(ran.stdout) == {
        "before": "durable",
        "full": "unavailable",
        "larger than the cache": "unavailable",
        "read while full": ["before"],
        "after": "durable",
        "users": ["after", "before"],
        "integrity": "ok",
    }
