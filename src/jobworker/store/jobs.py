"""The records of jobs: plain functions on a connection, so that several can share one transaction."""

import json
import math
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from jobworker.core.lifecycle import Ended, Pending, Phase, Running, State, state_of
from jobworker.core.outcome import Ending
from jobworker.core.spec import JobSpec, MiB


class Desired(Enum):
    """What the job's owner wants of it now."""

    RUN = "run"
    STOP = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """Everything that is on record about a job; times are seconds since the epoch.

    A phase between running and ended is stored as running: which one it is only the monitor knows.
    """

    id: str
    owner: str
    spec: JobSpec
    phase: Phase = field(default_factory=Pending)
    created_at: float
    attempt: int = 1
    desired: Desired = Desired.RUN
    idempotency_key: str | None = None
    node: str
    effective_limits: Mapping[str, str] = field(default_factory=dict)
    sandbox: Mapping[str, str] = field(default_factory=dict)

    @property
    def state(self) -> State:
        """What a caller sees of the job's life."""
        return state_of(self.phase)

    @property
    def isolation(self) -> str:
        """How complete the job's isolation is, in words; empty until it has a sandbox."""
        return self.sandbox.get("isolation", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs a list shows: those that meet every condition given; without any, all jobs."""

    owner: str | None = None
    states: frozenset[State] = frozenset()
    labels: Mapping[str, str] = field(default_factory=dict)
    name: str | None = None
    id_prefix: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """Some jobs, newest first, and where the next page begins; None behind the last job."""

    jobs: tuple[JobRecord, ...]
    next_after: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Which ended jobs are kept: those within every bound that there is, the latest to end first."""

    age: float | None = None  # seconds since the end
    jobs: int | None = None
    output_bytes: int | None = None  # of all jobs together


class KeyTaken(Exception):  # noqa: N818 - it says what happened, as every name here does
    """The owner has used this idempotency key before, for the job `existing_id`."""

    def __init__(self, existing_id: str) -> None:
        super().__init__(f"the idempotency key belongs to job {existing_id}")
        self.existing_id = existing_id


_COLUMNS: Final = (
    "id",
    "owner",
    "state",
    "name",
    "created_at",
    "started_at",
    "attempt",
    "desired",
    "idempotency_key",
    "node",
    "spec",
    "effective_limits",
    "sandbox",
    "ending",
)
_CHANGING: Final = ("state", "started_at", "attempt", "desired", "node", "effective_limits", "sandbox", "ending")

_NAMED: Final = ", ".join(_COLUMNS)
_INSERT: Final = (
    f"INSERT INTO jobs ({_NAMED}) VALUES ({', '.join(':' + name for name in _COLUMNS)})"  # noqa: S608 - constants
    " ON CONFLICT (owner, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING"
)
_UPDATE: Final = (
    f"UPDATE jobs SET {', '.join(f'{name} = :{name}' for name in _CHANGING)}"  # noqa: S608 - constants
    " WHERE id = :id AND state = :expected"
)
_SELECT: Final = f"SELECT sequence, {_NAMED} FROM jobs"  # noqa: S608 - constants

# The very words of the partial index: SQLite uses it for a query that says the same.
_UNFINISHED: Final = "state IN ('PENDING', 'RUNNING')"
_NEWEST: Final = (1 << 63) - 1  # no sequence number is larger
# From an index alone, which has all ended jobs in the order of their ends.
_OUTLIVED: Final = """
    SELECT id FROM (
        SELECT id, ended_at, row_number() OVER latest AS place, sum(kept_bytes) OVER latest AS bytes
        FROM jobs INDEXED BY jobs_by_end WHERE ending IS NOT NULL
        WINDOW latest AS (ORDER BY ended_at DESC, id DESC ROWS UNBOUNDED PRECEDING)
    )
    WHERE ended_at < :before OR place > :jobs OR bytes > :bytes
    ORDER BY ended_at LIMIT :limit
"""
_PAGE_SPACE: Final = 2 * MiB  # characters of specs on one page: any number of such pages fits into a message each
_SPEC: Final = 1 + _COLUMNS.index("spec")


def insert(connection: sqlite3.Connection, record: JobRecord) -> None:
    """Puts a new job on record; raises KeyTaken when its owner has used its idempotency key."""
    added = connection.execute(_INSERT, _to_row(record))
    if added.rowcount == 0:
        (existing_id,) = connection.execute(
            "SELECT id FROM jobs WHERE owner = ? AND idempotency_key = ?", (record.owner, record.idempotency_key)
        ).fetchone()
        raise KeyTaken(existing_id)
    connection.executemany(
        "INSERT INTO job_labels (key, value, sequence) VALUES (?, ?, ?)",
        [(key, value, added.lastrowid) for key, value in record.spec.labels.items()],
    )


def compare_and_set(connection: sqlite3.Connection, expected: State, record: JobRecord) -> bool:
    """Replaces what may change of a job, if it is still in the state `expected`; returns whether it was.

    Id, owner, spec, creation time and idempotency key never change.
    """
    return connection.execute(_UPDATE, _to_row(record) | {"expected": expected.value}).rowcount == 1


def delete(connection: sqlite3.Connection, job_id: str) -> bool:
    """Forgets a job; returns whether there was one."""
    return connection.execute("DELETE FROM jobs WHERE id = ?", (job_id,)).rowcount == 1


def get(connection: sqlite3.Connection, job_id: str) -> JobRecord | None:
    """The job with exactly this id."""
    row = connection.execute(f"{_SELECT} WHERE id = ?", (job_id,)).fetchone()
    return _from_row(row) if row else None


def by_idempotency_key(connection: sqlite3.Connection, owner: str, key: str) -> JobRecord | None:
    """The job that `owner` started with `key`."""
    row = connection.execute(f"{_SELECT} WHERE owner = ? AND idempotency_key = ?", (owner, key)).fetchone()
    return _from_row(row) if row else None


def unfinished(connection: sqlite3.Connection) -> list[JobRecord]:
    """Every job that has not ended, oldest first."""
    return [_from_row(row) for row in connection.execute(f"{_SELECT} WHERE {_UNFINISHED} ORDER BY sequence")]


def outlived(connection: sqlite3.Connection, kept: Retention, now: float, limit: int) -> list[str]:
    """The ids of ended jobs that are beyond a bound, at most `limit`, those that ended first before the others."""
    rows = connection.execute(
        _OUTLIVED,
        {
            "before": -math.inf if kept.age is None else now - kept.age,
            "jobs": _NEWEST if kept.jobs is None else kept.jobs,
            "bytes": _NEWEST if kept.output_bytes is None else kept.output_bytes,
            "limit": limit,
        },
    )
    return [job_id for (job_id,) in rows]


def select(connection: sqlite3.Connection, wanted: JobFilter, after: int | None, limit: int) -> Page:
    """At most `limit` jobs of a filter, newest first, behind `after`, the page before's `next_after`.

    A job that is there all the while is on exactly one page, whatever is added or removed
    between the pages. A page with long specs is shorter, and has one job at least.
    """
    shown: list[tuple[Any, ...]] = []
    room = _PAGE_SPACE
    for row in connection.execute(*page_query(wanted, after, limit)):
        room -= len(row[_SPEC])
        if shown and (len(shown) == limit or room < 0):
            return Page(tuple(map(_from_row, shown)), shown[-1][0])
        shown.append(row)
    return Page(tuple(map(_from_row, shown)), None)


def page_query(wanted: JobFilter, after: int | None, limit: int) -> tuple[str, list[Any]]:
    """The statement and values behind `select`; it asks for one job more than `limit`.

    Each condition is a narrow index in the order of the list. SQLite walks them side by side
    and stops at the limit: nothing is sorted, and wide rows are read for this page only.
    """
    before = _NEWEST if after is None else after
    conditions = ["sequence < ?"]
    values: list[Any] = [before]
    index = "jobs_by_age"
    if wanted.owner is not None:
        index = "jobs_of_owner"
        conditions.append("owner = ?")
        values.append(wanted.owner)
    if wanted.states:
        if not any(state.is_final for state in wanted.states):
            index = "jobs_unfinished"
            conditions.append(_UNFINISHED)
        conditions.append(f"state IN ({', '.join('?' * len(wanted.states))})")
        values += sorted(state.value for state in wanted.states)
    if wanted.name is not None:
        conditions.append("name = ?")
        values.append(wanted.name)
    if wanted.id_prefix:
        id_conditions, id_values = _id_range(wanted.id_prefix)
        conditions += id_conditions
        values += id_values
    streams = [f"SELECT sequence FROM jobs INDEXED BY {index} WHERE {' AND '.join(conditions)}"]  # noqa: S608 - constants
    for key, value in wanted.labels.items():
        streams.append("SELECT sequence FROM job_labels WHERE key = ? AND value = ? AND sequence < ?")
        values += [key, value, before]
    sequences = " INTERSECT ".join(streams) + " ORDER BY sequence DESC LIMIT ?"
    return f"{_SELECT} WHERE sequence IN ({sequences}) ORDER BY sequence DESC", [*values, limit + 1]


def _id_range(prefix: str) -> tuple[list[str], list[Any]]:
    """The condition that an id begins with `prefix`: "g" sorts behind everything an id holds."""
    return ["id >= ?", "id < ?"], [prefix, prefix + "g"]


def _to_row(record: JobRecord) -> dict[str, Any]:
    started_at, ending = None, None
    match record.phase:
        case Pending():
            pass
        case Ended(ended):
            started_at, ending = ended.started_at, _to_json(ended.to_document())
        case underway:
            started_at = underway.started_at
    return {
        "id": record.id,
        "owner": record.owner,
        "state": record.state.value,
        "name": record.spec.name,
        "created_at": record.created_at,
        "started_at": started_at,
        "attempt": record.attempt,
        "desired": record.desired.value,
        "idempotency_key": record.idempotency_key,
        "node": record.node,
        "spec": _to_json(record.spec.to_document()),
        "effective_limits": _to_json(dict(record.effective_limits)),
        "sandbox": _to_json(dict(record.sandbox)),
        "ending": ending,
    }


def _from_row(row: tuple[Any, ...]) -> JobRecord:
    values = dict(zip(_COLUMNS, row[1:], strict=True))
    return JobRecord(
        id=values["id"],
        owner=values["owner"],
        spec=JobSpec.from_document(json.loads(values["spec"])),
        phase=_phase(State(values["state"]), values["started_at"], values["ending"]),
        created_at=values["created_at"],
        attempt=values["attempt"],
        desired=Desired(values["desired"]),
        idempotency_key=values["idempotency_key"],
        node=values["node"],
        effective_limits=json.loads(values["effective_limits"]),
        sandbox=json.loads(values["sandbox"]),
    )


def _phase(state: State, started_at: float, ending: str | None) -> Phase:
    if ending is not None:
        return Ended(Ending.from_document(json.loads(ending)))
    return Pending() if state is State.PENDING else Running(started_at)


def _to_json(document: Mapping[str, Any]) -> str:
    """ASCII only, so that bytes that are not UTF-8, held as lone surrogates, survive a text column."""
    return json.dumps(document, separators=(",", ":"))
