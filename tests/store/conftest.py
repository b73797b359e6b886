"""A real database in a directory of its own, and records to put into it."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from jobworker.core.job_id import new_job_id
from jobworker.core.spec import JobSpec
from jobworker.store import schema
from jobworker.store.database import Database
from jobworker.store.jobs import JobRecord


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobworker.db"


@pytest.fixture
def database(path: Path) -> Iterator[Database]:
    with Database.open(path) as opened:
        yield opened


@contextmanager
def tables_in_memory() -> Iterator[sqlite3.Connection]:
    """The same tables without the database's threads and files."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as memory:
        schema.bring_up_to_date(memory, schema.migrations())
        memory.execute("PRAGMA foreign_keys = ON")
        yield memory


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    with tables_in_memory() as memory:
        yield memory


@pytest.fixture(scope="session")
def fresh_tables() -> Callable[[], AbstractContextManager[sqlite3.Connection]]:
    """For generated tests, which need empty tables for each example."""
    return tables_in_memory


@pytest.fixture(scope="session")
def make_record() -> Callable[..., JobRecord]:
    def make(program: str = "/bin/true", **values: Any) -> JobRecord:
        spec = JobSpec(program=program, labels=values.pop("labels", {}), name=values.pop("name", None))
        defaults = {"id": new_job_id(), "owner": "alice", "spec": spec, "created_at": 1.0, "node": "here"}
        return JobRecord(**defaults | values)

    return make
