"""What every operator's command does with a state directory: open its database, and leave a record."""

import sqlite3
from pathlib import Path
from typing import Final

from jobworker.daemon.account import Account
from jobworker.store import audit
from jobworker.store.database import Database

DATABASE: Final = "jobworker.db"


class UserRefused(Exception):  # noqa: N818 - it says what happened, as every refusal here does
    """What was asked about a user cannot be done; the message says why and what to do."""


def open_database(state: Path) -> Database:
    """The database of `state`, which `init` has made; UserRefused when there is none."""
    path = state / DATABASE
    if not path.is_file():
        raise UserRefused(f"{state} holds no {DATABASE}; name the directory that jobworkerd init has made")
    return Database.open(path)


def record_operation(connection: sqlite3.Connection, action: str, target: str, at: float, detail: str = "") -> None:
    """Notes in the audit what the operator who runs this does."""
    operator = Account.current()
    event = audit.AuditEvent(
        time=at,
        principal=f"unix:{operator.name}",
        credential=f"uid {operator.uid}",
        source="local",
        action=action,
        target=target,
        decision="allowed",
        detail=detail,
    )
    audit.append(connection, event)
