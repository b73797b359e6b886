"""The promises of the audit trail: written with its change, and every later tampering is found."""

import hashlib
import json
import sqlite3
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobworker.store import audit, users
from jobworker.store.audit import AuditEvent, Head


def event(number=0, **values):
    defaults = {
        "time": number,
        "principal": "alice",
        "credential": "cert:01",
        "source": "127.0.0.1",
        "action": "job.start",
        "target": f"job{number}",
        "decision": "allowed",
    }
    return AuditEvent(**defaults | values)


@pytest.fixture
def trail(connection):
    """Ten events, in the hands of someone who can do anything with the file."""
    for number in range(1, 11):
        audit.append(connection, event(number))
    connection.execute("DROP TRIGGER audit_refuses_edits")
    connection.execute("DROP TRIGGER audit_refuses_removals")
    return connection


def test_an_empty_trail_is_whole(connection):
    assert audit.verify(connection) is None
    assert audit.head(connection).sequence == 0


def test_every_field_is_in_the_export_and_lines_prove_each_other(connection):  # U1
    audit.append(connection, event(1, detail="program=\udcff ✓"))
    latest = audit.append(connection, event(2, decision="denied"))
    lines = list(audit.export(connection))
    first, second = map(json.loads, lines)
    assert first == {
        "sequence": 1,
        "previous": "0" * 64,
        "time": 1.0,
        "principal": "alice",
        "credential": "cert:01",
        "source": "127.0.0.1",
        "action": "job.start",
        "target": "job1",
        "decision": "allowed",
        "detail": "program=\udcff ✓",
    }
    assert second["previous"] == hashlib.sha256(lines[0].encode()).hexdigest()
    assert latest == Head(2, hashlib.sha256(lines[1].encode()).hexdigest()) == audit.head(connection)
    assert audit.verify(connection) is None


def test_a_change_that_fails_takes_its_record_along(database):
    def add_twice(connection):
        audit.append(connection, event(1))
        for _ in range(2):
            users.add(connection, "alice", "user", 1.0)

    with pytest.raises(users.UserExists):
        database.write_now(add_twice)
    assert list(database.read(lambda c: list(audit.export(c)))) == []
    assert database.write_now(partial(audit.append, event=event(2))).sequence == 1
    assert database.read(audit.verify) is None


@pytest.mark.parametrize("statement", ["UPDATE audit SET hash = ''", "DELETE FROM audit"])
def test_the_database_itself_refuses_to_rewrite_the_trail(connection, statement):
    audit.append(connection, event(1))
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(statement)


def test_an_untouched_trail_is_whole(trail):  # the control of the next three
    assert audit.verify(trail) is None


def rehash(trail, sequence):
    """Make the hash of a changed record fit it, as a careful forger would."""
    (record,) = trail.execute("SELECT record FROM audit WHERE sequence = ?", (sequence,)).fetchone()
    fitting = hashlib.sha256(record.encode()).hexdigest()
    trail.execute("UPDATE audit SET hash = ? WHERE sequence = ?", (fitting, sequence))


@given(st.data())
def test_an_edit_is_found(fresh_tables, data):  # U2
    with fresh_tables() as trail:
        for number in range(1, 6):
            audit.append(trail, event(number))
        trail.execute("DROP TRIGGER audit_refuses_edits")
        sequence = data.draw(st.integers(1, 5))
        (record,) = trail.execute("SELECT record FROM audit WHERE sequence = ?", (sequence,)).fetchone()
        position = data.draw(st.integers(0, len(record) - 1))
        letter = data.draw(st.characters(codec="ascii").filter(lambda other: other != record[position]))
        forged = record[:position] + letter + record[position + 1 :]
        trail.execute("UPDATE audit SET record = ? WHERE sequence = ?", (forged, sequence))
        assert audit.verify(trail) == sequence
        if sequence < 5:
            rehash(trail, sequence)
            assert audit.verify(trail) in {sequence, sequence + 1}


@pytest.mark.parametrize("value", [None, b"\xff", "no json", "[]", "{}"], ids=repr)
def test_a_record_made_into_anything_else_is_found(trail, value):
    trail.execute("UPDATE audit SET record = ? WHERE sequence = 4 AND ? IS NOT NULL", (value, value))
    if value is None:
        trail.execute("UPDATE audit SET hash = '' WHERE sequence = 4")
    elif isinstance(value, str):
        rehash(trail, 4)
    assert audit.verify(trail) == 4


@pytest.mark.parametrize("sequence", [1, 4, 10])
def test_a_removal_is_found_also_of_the_last_record(trail, sequence):  # U2
    trail.execute("DELETE FROM audit WHERE sequence = ?", (sequence,))
    assert audit.verify(trail) == sequence
    audit.append(trail, event(11))
    assert audit.verify(trail) == sequence


def test_a_removal_closed_up_by_renumbering_is_found(trail):  # U2
    trail.execute("DELETE FROM audit WHERE sequence = 4")
    trail.execute("UPDATE audit SET sequence = sequence - 1 WHERE sequence > 4")
    assert audit.verify(trail) == 4


def test_a_reorder_is_found(trail):  # U2
    for old, new in ((4, 99), (5, 4), (99, 5)):
        trail.execute("UPDATE audit SET sequence = ? WHERE sequence = ?", (new, old))
    assert audit.verify(trail) == 4


def test_the_removal_of_everything_is_found(trail):
    trail.execute("DELETE FROM audit")
    assert audit.verify(trail) == 1


def test_a_tail_cut_without_a_trace_is_found_by_a_checkpoint(trail):
    checkpoint = audit.head(trail)
    assert audit.verify(trail, checkpoint) is None
    trail.execute("DELETE FROM audit WHERE sequence > 7")
    trail.execute("UPDATE sqlite_sequence SET seq = 7 WHERE name = 'audit'")
    assert audit.verify(trail) is None  # nothing inside the database can tell
    assert audit.verify(trail, checkpoint) == 8


def test_a_trail_written_anew_is_found_by_a_checkpoint(trail):
    checkpoint = audit.head(trail)
    trail.execute("DELETE FROM audit")
    trail.execute("DELETE FROM sqlite_sequence WHERE name = 'audit'")
    for number in range(1, 13):
        audit.append(trail, event(number, principal="bob"))
    assert audit.verify(trail) is None
    assert audit.verify(trail, checkpoint) == 10
