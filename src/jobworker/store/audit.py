"""The audit trail: events in a chain of hashes, where every later change shows.

A record is one line of JSON. Its SHA-256 is in the next record as `previous`, so anyone can
check an export with standard tools. The chain finds edits, removals and reorders; someone who
cuts the tail and also resets SQLite's counter is found with a checkpoint: a `head` that was
kept elsewhere.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

_NO_HASH: Final = "0" * 64  # what the first record holds as its predecessor's


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEvent:
    """One decision: who asked for what, from where, and what was decided; or that what was allowed has failed.

    `time` in seconds since the epoch; `credential` names a certificate or token, never a secret.
    """

    time: float
    principal: str
    credential: str
    source: str
    action: str
    target: str
    decision: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Head:
    """The end of the chain: number and hash of the latest record."""

    sequence: int
    hash: str


def append(connection: sqlite3.Connection, event: AuditEvent) -> Head:
    """Adds an event to the trail, durable together with the change that it documents."""
    previous = head(connection)
    sequence = _last_given(connection) + 1
    record = _canonical(asdict(event) | {"time": float(event.time), "sequence": sequence, "previous": previous.hash})
    latest = Head(sequence, _hash(record))
    connection.execute(
        "INSERT INTO audit (sequence, record, hash) VALUES (?, ?, ?)", (latest.sequence, record, latest.hash)
    )
    return latest


def head(connection: sqlite3.Connection) -> Head:
    """The end of the chain now, to be kept where this host cannot change it."""
    row = connection.execute("SELECT sequence, hash FROM audit ORDER BY sequence DESC LIMIT 1").fetchone()
    return Head(*row) if row else Head(0, _NO_HASH)


def verify(connection: sqlite3.Connection, checkpoint: Head | None = None) -> int | None:
    """The first sequence number at which the trail is not as it was written; None when it is whole.

    With a `checkpoint`, also proves that the trail still contains it.
    """
    expected = Head(0, _NO_HASH)
    for sequence, record, found in connection.execute("SELECT sequence, record, hash FROM audit ORDER BY sequence"):
        number = expected.sequence + 1
        if sequence != number or not _follows(expected, record, found):
            return number
        expected = Head(number, found)
        if checkpoint is not None and checkpoint.sequence == number and checkpoint != expected:
            return number
    written = max(_last_given(connection), checkpoint.sequence if checkpoint else 0)
    return expected.sequence + 1 if expected.sequence < written else None


def export(connection: sqlite3.Connection) -> Iterator[str]:
    """Every record as its line of JSON, oldest first."""
    for (record,) in connection.execute("SELECT record FROM audit ORDER BY sequence"):
        yield record


def last_principal(connection: sqlite3.Connection, action: str, target: str) -> str | None:
    """Who was last allowed to do `action` to `target`; None when the trail knows nobody."""
    row = connection.execute(
        "SELECT json_extract(record, '$.principal') FROM audit WHERE json_extract(record, '$.action') = ? "
        "AND json_extract(record, '$.target') = ? AND json_extract(record, '$.decision') = 'allowed' "
        "ORDER BY sequence DESC LIMIT 1",
        (action, target),
    ).fetchone()
    return str(row[0]) if row else None


def _last_given(connection: sqlite3.Connection) -> int:
    """The highest number ever given to a record; SQLite keeps it when records go."""
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'audit'").fetchone()
    return int(row[0]) if row else 0


def _follows(previous: Head, record: str, found: str) -> bool:
    """Whether a record is intact and the next one behind `previous`, whatever it was made into."""
    if not isinstance(record, str) or _hash(record) != found:
        return False
    try:
        document = json.loads(record)
    except ValueError:
        return False
    link = {"sequence": previous.sequence + 1, "previous": previous.hash}
    return isinstance(document, dict) and link.items() <= document.items()


def _canonical(document: dict[str, Any]) -> str:
    """The one spelling of a document: ASCII, sorted names, no spaces, no NaN."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _hash(record: str) -> str:
    return hashlib.sha256(record.encode()).hexdigest()
