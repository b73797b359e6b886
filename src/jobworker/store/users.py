"""Who may log in: the users with their roles, and the credentials that are denied for good."""

import sqlite3
from dataclasses import dataclass
from typing import Final, Literal

CredentialKind = Literal["serial", "key", "identity"]  # a certificate, every one of a key, or all that proves a user

_SELECT: Final = "SELECT name, role, created_at, removed_at FROM users"


@dataclass(frozen=True, slots=True)
class User:
    """A person or program with a name and a role; times are seconds since the epoch."""

    name: str
    role: str
    created_at: float
    removed_at: float | None = None

    @property
    def valid_from(self) -> float:
        """Credentials issued before this moment belong to an earlier user of the same name."""
        return self.created_at


class UserExists(Exception):  # noqa: N818 - it says what happened, as every name here does
    """There is a user of this name already."""

    def __init__(self, name: str) -> None:
        super().__init__(f"user {name} exists already; remove the user first, or choose another name")


def add(connection: sqlite3.Connection, name: str, role: str, at: float) -> User:
    """A new user; raises UserExists. A removed name may come back, without its old credentials."""
    added = connection.execute(
        "INSERT INTO users (name, role, created_at) VALUES (?, ?, ?)"
        " ON CONFLICT (name) DO UPDATE SET role = excluded.role, created_at = excluded.created_at, removed_at = NULL"
        " WHERE removed_at IS NOT NULL",
        (name, role, at),
    )
    if added.rowcount == 0:
        raise UserExists(name)
    return User(name, role, at)


def remove(connection: sqlite3.Connection, name: str, at: float) -> bool:
    """Takes a user's access away; returns whether there was such a user. The record stays."""
    removed = connection.execute("UPDATE users SET removed_at = ? WHERE name = ? AND removed_at IS NULL", (at, name))
    return removed.rowcount == 1


def get(connection: sqlite3.Connection, name: str) -> User | None:
    """The user of this name, also when removed; None when there never was one."""
    row = connection.execute(f"{_SELECT} WHERE name = ?", (name,)).fetchone()
    return User(*row) if row else None


def everyone(connection: sqlite3.Connection) -> list[User]:
    """Every user by name, the removed ones too."""
    return [User(*row) for row in connection.execute(f"{_SELECT} ORDER BY name")]


def deny(connection: sqlite3.Connection, kind: CredentialKind, value: str, reason: str, at: float) -> None:
    """Refuses a credential from now on; a second denial changes nothing."""
    connection.execute(
        "INSERT INTO denied_credentials (kind, value, reason, at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (kind, value, reason, at),
    )


def is_denied(
    connection: sqlite3.Connection, *, identity: str, serial: str | None = None, key: str | None = None
) -> bool:
    """Whether a credential is denied by whom it names or, as certificates are, by its serial number or its key."""
    found = connection.execute(
        "SELECT 1 FROM denied_credentials"
        " WHERE (kind, value) IN (VALUES ('serial', ?), ('key', ?), ('identity', ?)) LIMIT 1",
        (serial, key, identity),
    )
    return found.fetchone() is not None
