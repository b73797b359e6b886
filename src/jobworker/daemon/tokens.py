"""The operator's commands about tokens: who may call over HTTPS, for what and how long."""

import sqlite3
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from jobworker.access.policy import Role
from jobworker.access.principal import Scope, check_user_name
from jobworker.access.tokens import DEFAULT_SCOPES, PERSONAL_TTL, Token, check_token_id, format_scopes
from jobworker.core.errors import invalid
from jobworker.core.units import format_duration
from jobworker.daemon.state import UserRefused, open_database, record_operation
from jobworker.store import tokens, users
from jobworker.store.tokens import TokenRecord


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token in clear and what is stored of it."""

    token: Token
    record: TokenRecord


def create(state: Path, user: str, *, ttl: float, scopes: Collection[Scope] = ()) -> NewToken:
    """A new personal token of `user`, on record when this returns; without `scopes` all that the role can use."""
    check_user_name(user)
    now = time.time()
    with open_database(state) as database:
        known = database.read(lambda rows: users.get(rows, user))
        if known is None or known.removed_at is not None:
            raise UserRefused(f"there is no user {user}; see jobworkerd user list")
        made = new_token(user, frozenset(scopes) or DEFAULT_SCOPES[Role(known.role)], now, ttl)
        database.write_now(lambda connection: record_token(connection, made, now))
    return made


def present(state: Path, user: str | None = None) -> list[TokenRecord]:
    """The personal tokens that are still good, of everybody or of one user, oldest first."""
    now = time.time()

    def good(rows: sqlite3.Connection) -> list[TokenRecord]:
        holders = {holder.name: holder for holder in users.everyone(rows) if holder.removed_at is None}
        return [
            token
            for token in tokens.personal(rows, user)
            if token.is_good(now) and token.user in holders and token.created_at >= holders[token.user].valid_from
        ]

    with open_database(state) as database:
        return database.read(good)


def revoke(state: Path, token_id: str) -> None:
    """Refuses a token and everything that was given for it, from now on and on open connections too."""

    def take(connection: sqlite3.Connection) -> None:
        if not tokens.revoke(connection, token_id, now):
            raise UserRefused(f"there is no token {token_id} to revoke; see jobworkerd token list")
        record_operation(connection, "token.revoke", token_id, now)

    check_token_id(token_id)
    now = time.time()
    with open_database(state) as database:
        database.write_now(take)


def new_token(user: str, scopes: Collection[Scope], now: float, ttl: float) -> NewToken:
    """A personal token, not on record yet; INVALID_ARGUMENT for one that would live too long or not at all."""
    if not 1 <= ttl <= PERSONAL_TTL:
        raise invalid("ttl", format_duration(ttl), f"1s to {format_duration(PERSONAL_TTL)}")
    token = Token.new()
    record = TokenRecord(
        id=token.id,
        hash=token.secret_hash(),
        user=user,
        scopes=format_scopes(scopes),
        created_at=now,
        expires_at=now + ttl,
    )
    return NewToken(token, record)


def record_token(connection: sqlite3.Connection, made: NewToken, at: float) -> None:
    """Puts a new token on record together with the audit's record of it."""
    tokens.add(connection, made.record)
    record_operation(connection, "token.create", made.record.id, at, f"user {made.record.user}, {made.record.scopes}")
