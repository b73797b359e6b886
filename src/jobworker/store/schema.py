"""The numbered migrations that bring a database to the tables of this release."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

APPLICATION_ID: Final = 0x6A6F6277  # "jobw", set by the first migration


@dataclass(frozen=True, slots=True)
class Migration:
    """One step from version `number` - 1 to version `number`."""

    number: int
    statements: tuple[str, ...]


def migrations() -> tuple[Migration, ...]:
    """Every migration of this release, in order; each is a file `NNNN_what_it_adds.sql`."""
    scripts = sorted(
        (entry for entry in files(__package__).joinpath("migrations").iterdir() if entry.name.endswith(".sql")),
        key=lambda entry: entry.name,
    )
    return tuple(
        Migration(int(script.name.split("_")[0]), tuple(_statements(script.read_text("utf-8")))) for script in scripts
    )


def version(connection: sqlite3.Connection) -> int:
    """The number of the last migration that was applied; 0 for an empty database."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def missing_tables(connection: sqlite3.Connection, steps: Sequence[Migration]) -> list[str]:
    """The names of the tables that a database of this one's version has and this one lacks."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as whole:
        bring_up_to_date(whole, [step for step in steps if step.number <= version(connection)])
        return sorted(_tables(whole) - _tables(connection))


def bring_up_to_date(connection: sqlite3.Connection, steps: Sequence[Migration]) -> None:
    """Apply the steps that the database does not have yet, each whole or not at all.

    Several processes may do so at once: each step is applied by one of them.
    """
    for step in steps:
        if step.number <= version(connection):
            continue
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            # Another process may have been faster while this one waited for the lock.
            if version(connection) < step.number:
                for statement in step.statements:
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {step.number}")


def _tables(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}


def _statements(script: str) -> Iterator[str]:
    """The statements of `script` one by one: `executescript` would commit between them."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
