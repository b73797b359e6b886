"""Which tokens there are: their hashes, scopes and times, and never a secret."""

import sqlite3
from dataclasses import dataclass
from typing import Final

_COLUMNS: Final = "id, hash, user, scopes, parent, created_at, expires_at, revoked_at"
_SELECT: Final = f"SELECT {_COLUMNS} FROM tokens"  # noqa: S608 - a constant


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRecord:
    """A token on record; times are seconds since the epoch, `scopes` words with spaces between.

    `parent` is the personal token that an access token was given for.
    """

    id: str
    hash: bytes
    user: str
    scopes: str
    parent: str | None = None
    created_at: float
    expires_at: float
    revoked_at: float | None = None

    def is_good(self, now: float) -> bool:
        """Whether the token by itself is neither expired nor revoked."""
        return now < self.expires_at and self.revoked_at is None


def add(connection: sqlite3.Connection, record: TokenRecord) -> None:
    """Puts a new token on record."""
    connection.execute(
        f"INSERT INTO tokens ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608 - constants
        (
            record.id,
            record.hash,
            record.user,
            record.scopes,
            record.parent,
            record.created_at,
            record.expires_at,
            record.revoked_at,
        ),
    )


def get(connection: sqlite3.Connection, token_id: str) -> TokenRecord | None:
    """The token with exactly this id, whatever has become of it."""
    row = connection.execute(f"{_SELECT} WHERE id = ?", (token_id,)).fetchone()
    return _from_row(row) if row else None


def personal(connection: sqlite3.Connection, user: str | None = None) -> list[TokenRecord]:
    """Every personal token, or those of one user, oldest first."""
    rows = connection.execute(
        f"{_SELECT} WHERE parent IS NULL AND (?1 IS NULL OR user = ?1) ORDER BY created_at, id", (user,)
    )
    return [_from_row(row) for row in rows]


def revoke(connection: sqlite3.Connection, token_id: str, at: float) -> bool:
    """Refuses a token from now on, and with it every token given for it; returns whether it was still good."""
    revoked = connection.execute("UPDATE tokens SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", (at, token_id))
    return revoked.rowcount == 1


def count_children(connection: sqlite3.Connection, parent: str, now: float) -> int:
    """How many tokens that were given for `parent` have not expired."""
    (count,) = connection.execute(
        "SELECT count(*) FROM tokens WHERE parent = ? AND expires_at > ?", (parent, now)
    ).fetchone()
    return int(count)


def forget_expired_children(connection: sqlite3.Connection, before: float) -> None:
    """Drops the tokens with a parent that expired before then: nobody can ask about them any more."""
    connection.execute("DELETE FROM tokens WHERE parent IS NOT NULL AND expires_at < ?", (before,))


def _from_row(row: tuple[str, bytes, str, str, str | None, float, float, float | None]) -> TokenRecord:
    token_id, digest, user, scopes, parent, created_at, expires_at, revoked_at = row
    return TokenRecord(
        id=token_id,
        hash=digest,
        user=user,
        scopes=scopes,
        parent=parent,
        created_at=created_at,
        expires_at=expires_at,
        revoked_at=revoked_at,
    )
