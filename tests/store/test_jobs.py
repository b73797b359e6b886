"""The promises of the jobs' records: complete, compared before they are set, and paged without a gap."""

import dataclasses
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobworker.core.lifecycle import Emptying, Ended, Pending, Running, State, Stopping
from jobworker.core.outcome import Ending, Exited, Lost, OutputTotals, Stopped, TimedOut, Usage
from jobworker.core.spec import JobSpec, Limits, Network
from jobworker.store import jobs
from jobworker.store.database import Database
from jobworker.store.jobs import Desired, JobFilter, JobRecord, KeyTaken, Retention

PHASES = [
    Pending(),
    Running(2.5),
    Ended(Ending(outcome=Exited(0), started_at=2.5, ended_at=3.0, usage=Usage(cpu_seconds=0.5))),
    Ended(Ending(outcome=Exited(7), started_at=2.5, ended_at=3.0)),
    Ended(Ending(outcome=Lost("host rebooted"), ended_at=3.0)),
    Ended(Ending(outcome=Stopped("alice", 9), started_at=2.5, ended_at=3.0, output=OutputTotals(stdout_bytes=4))),
]


@pytest.mark.parametrize("phase", PHASES, ids=str)
def test_a_record_comes_back_exactly_as_it_went_in(connection, phase):
    record = JobRecord(
        id="6f0c1fd2-8a52-4c0b-9d1a-0c5b1f6f7a01",
        owner="alice",
        spec=JobSpec(
            program="/bin/echo",
            args=("", "a b", "new\nline", "; rm -rf", b"\xff\x80".decode("utf-8", "surrogateescape")),
            env={"TOKEN": b"\xfe".decode("utf-8", "surrogateescape")},
            workdir="/tmp",
            name="echo",
            labels={"env": "prod", "team": "blue ✓"},
            network=Network.HOST,
            limits=Limits(cpu=0.5, io_write_bps=10, io_device="/dev/vda", timeout=1.5),
        ),
        phase=phase,
        created_at=1.25,
        attempt=2,
        desired=Desired.STOP,
        idempotency_key="key ✓",
        node="here",
        effective_limits={"memory": "536870912"},
        sandbox={"namespaces": "pid,mount"},
    )
    jobs.insert(connection, record)
    assert jobs.get(connection, record.id) == record
    assert jobs.by_idempotency_key(connection, "alice", "key ✓") == record


@pytest.mark.parametrize("phase", [Stopping(2.5, TimedOut()), Emptying(2.5, Exited(0))], ids=str)
def test_a_phase_on_the_way_to_the_end_is_stored_as_running(connection, make_record, phase):
    record = make_record(phase=phase)
    jobs.insert(connection, record)
    assert jobs.get(connection, record.id).phase == Running(2.5)


def test_an_unknown_job_is_none(connection):
    assert jobs.get(connection, "6f0c1fd2-8a52-4c0b-9d1a-0c5b1f6f7a01") is None
    assert jobs.by_idempotency_key(connection, "alice", "key") is None


def test_a_key_belongs_to_the_first_job_of_its_owner(connection, make_record):  # S11
    first = make_record(idempotency_key="k")
    jobs.insert(connection, first)
    with pytest.raises(KeyTaken) as taken:
        jobs.insert(connection, make_record(idempotency_key="k", labels={"a": "b"}))
    assert taken.value.existing_id == first.id
    jobs.insert(connection, make_record(idempotency_key="k", owner="bob"))
    jobs.insert(connection, make_record())
    jobs.insert(connection, make_record())
    assert connection.execute("SELECT count(*) FROM jobs").fetchone() == (4,)


def test_setting_happens_only_from_the_expected_state(connection, make_record):
    record = make_record()
    jobs.insert(connection, record)
    running = dataclasses.replace(
        record,
        phase=Running(2.0),
        attempt=2,
        desired=Desired.STOP,
        effective_limits={"pids": "5"},
        sandbox={"uid": "7"},
    )
    assert jobs.compare_and_set(connection, State.PENDING, running)
    assert not jobs.compare_and_set(connection, State.PENDING, running)
    assert jobs.get(connection, record.id) == running
    assert not jobs.compare_and_set(connection, State.PENDING, make_record())


def test_setting_never_changes_who_asked_for_what(connection, make_record):
    record = make_record(idempotency_key="k")
    jobs.insert(connection, record)
    forged = make_record("/bin/false", id=record.id, owner="eve", created_at=9.0, phase=Running(2.0))
    assert jobs.compare_and_set(connection, State.PENDING, forged)
    assert jobs.get(connection, record.id) == dataclasses.replace(record, phase=Running(2.0))


def test_a_deleted_job_leaves_nothing(connection, make_record):
    record = make_record(labels={"env": "prod"}, idempotency_key="k")
    jobs.insert(connection, record)
    assert jobs.delete(connection, record.id)
    assert not jobs.delete(connection, record.id)
    assert jobs.get(connection, record.id) is None
    assert connection.execute("SELECT count(*) FROM job_labels").fetchone() == (0,)
    jobs.insert(connection, make_record(idempotency_key="k"))


def test_unfinished_are_the_pending_and_the_running(connection, make_record):
    records = [make_record(phase=phase, owner=owner) for phase in PHASES for owner in ("alice", "bob")]
    for record in records:
        jobs.insert(connection, record)
    assert jobs.unfinished(connection) == records[:4]


# Paging, checked against the plain definition of a filter.

owners = st.sampled_from(["alice", "bob"])
names = st.sampled_from([None, "build", "test"])
labels = st.dictionaries(st.sampled_from(["env", "team"]), st.sampled_from(["a", "b"]))
records = st.tuples(owners, names, labels, st.sampled_from(PHASES))
filters = st.builds(
    JobFilter,
    owner=st.none() | owners,
    states=st.frozensets(st.sampled_from(State)),
    labels=labels,
    name=names,
    id_prefix=st.text("0123456789abcdef", max_size=1),
)


def meets(wanted, record):
    return (
        wanted.owner in {None, record.owner}
        and (not wanted.states or record.state in wanted.states)
        and wanted.labels.items() <= record.spec.labels.items()
        and wanted.name in {None, record.spec.name}
        and record.id.startswith(wanted.id_prefix)
    )


def pages(connection, wanted, limit):
    after = None
    while True:
        page = jobs.select(connection, wanted, after, limit)
        yield page.jobs
        after = page.next_after
        if after is None:
            return


@given(stored=st.lists(records, max_size=30), wanted=filters, limit=st.integers(1, 10))
def test_pages_show_each_job_of_the_filter_once_and_newest_first(fresh_tables, make_record, stored, wanted, limit):
    with fresh_tables() as connection:
        made = [make_record(owner=o, name=n, labels=tags, phase=phase) for o, n, tags, phase in stored]
        for record in made:
            jobs.insert(connection, record)
        shown = list(pages(connection, wanted, limit))
        assert all(len(page) == limit for page in shown[:-1])
        assert [job for page in shown for job in page] == [job for job in reversed(made) if meets(wanted, job)]


@given(removed=st.sets(st.integers(0, 19)), added=st.integers(0, 3), limit=st.integers(1, 7))
def test_a_job_that_stays_is_neither_skipped_nor_repeated(fresh_tables, make_record, removed, added, limit):
    with fresh_tables() as connection:
        made = [make_record() for _ in range(20)]
        for record in made:
            jobs.insert(connection, record)
        seen = []
        leaving = [made[number] for number in sorted(removed)]
        for page in pages(connection, JobFilter(), limit):
            seen += [job.id for job in page]
            if leaving:
                jobs.delete(connection, leaving.pop().id)
            for _ in range(added):
                jobs.insert(connection, make_record())
        assert len(seen) == len(set(seen))
        assert {record.id for number, record in enumerate(made) if number not in removed} <= set(seen)


@pytest.mark.parametrize(
    "wanted",
    [
        JobFilter(),
        JobFilter(owner="alice"),
        JobFilter(states=frozenset({State.FAILED, State.STOPPED})),
        JobFilter(states=frozenset({State.RUNNING})),
        JobFilter(owner="alice", states=frozenset({State.RUNNING}), name="build"),
        JobFilter(owner="alice", name="build", id_prefix="ab", labels={"env": "a", "team": "b"}),
        JobFilter(labels={"env": "a"}),
    ],
    ids=str,
)
def test_a_list_sorts_nothing_and_scans_no_wide_row(connection, wanted):  # C6
    statement, values = jobs.page_query(wanted, None, 100)
    plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
    assert not [step for step in plan if "USE TEMP B-TREE" in step]
    assert not [step for step in plan if step.startswith("SCAN jobs") and "INDEX" not in step]


def test_a_list_is_the_same_through_the_database(database: Database, make_record):
    record = make_record(labels={"env": "a"})
    database.write_now(partial(jobs.insert, record=record))
    assert database.read(lambda c: jobs.select(c, JobFilter(labels={"env": "a"}), None, 1)).jobs == (record,)


def test_pages_with_long_specs_are_short_and_leave_nothing_out(fresh_tables, make_record):
    with fresh_tables() as connection:
        made = [make_record(spec=JobSpec(program="true", args=("x" * 700_000,))) for _ in range(7)]
        for record in made:
            jobs.insert(connection, record)
        shown = list(pages(connection, JobFilter(), 100))
        assert [len(page) for page in shown] == [2, 2, 2, 1]
        assert [job.id for page in shown for job in page] == [record.id for record in reversed(made)]


@pytest.mark.parametrize(
    ("kept", "gone"),
    [
        (Retention(), []),
        (Retention(age=60.0), []),
        (Retention(age=25.0), ["a", "b"]),
        (Retention(jobs=5), []),
        (Retention(jobs=2), ["a", "b", "c"]),
        (Retention(output_bytes=1500), []),
        (Retention(output_bytes=700), ["a", "b", "c"]),
        (Retention(age=35.0, jobs=4), ["a"]),
        (Retention(age=35.0, jobs=4, output_bytes=0), ["a", "b", "c", "d", "e"]),
    ],
    ids=str,
)
def test_jobs_outlive_retention_by_age_count_and_output_in_the_order_of_their_ends(connection, make_record, kept, gone):
    """C6. Those that have not ended are nobody's to remove, however old."""
    jobs.insert(connection, make_record(id="pending"))
    jobs.insert(connection, make_record(id="running", phase=Running(0.0)))
    for at, job_id in ((90.0, "e"), (50.0, "a"), (60.0, "b"), (80.0, "d"), (70.0, "c")):
        output = OutputTotals(stdout_bytes=200, stderr_bytes=100)
        jobs.insert(
            connection, make_record(id=job_id, phase=Ended(Ending(outcome=Exited(0), ended_at=at, output=output)))
        )
    assert jobs.outlived(connection, kept, 90.0, 10) == gone
    assert jobs.outlived(connection, kept, 90.0, 1) == gone[:1]
