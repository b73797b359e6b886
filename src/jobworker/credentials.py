"""Bearer tokens in use: proven on every call, exchanged for short-lived ones, and revoked.

A token is good when it is known, its secret is right, neither it nor the token that it was given for
has expired or been revoked, and its user is still the one that it was made for and is not denied. Why
one is not good is told to nobody.
"""

import hashlib
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from jobworker.access.attempts import Attempts
from jobworker.access.principal import Role, Scope
from jobworker.access.tokens import ACCESS_TTL, Token, format_scopes, parse_scopes
from jobworker.core.errors import ErrorCode, JobError
from jobworker.store import audit, tokens, users
from jobworker.store.audit import AuditEvent
from jobworker.store.database import Database
from jobworker.store.tokens import TokenRecord
from jobworker.store.users import User

_MOST_CHILDREN: Final = 100  # access tokens of one personal token at a time
_KEPT_SECONDS: Final = 3600.0  # how long an expired access token stays on record
_NO_HASH: Final = hashlib.sha256(b"no token has this secret").digest()


class TooManyAttempts(JobError):  # noqa: N818 - it says what happened, as every refusal here does
    """Nothing is looked at before `retry_after` seconds have passed."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(ErrorCode.EXHAUSTED, f"too many wrong attempts; try again in {retry_after} seconds")
        self.retry_after = retry_after


class ScopeRefused(JobError):  # noqa: N818 - it says what happened, as every refusal here does
    """A token was asked for with scopes that it cannot have."""

    def __init__(self) -> None:
        super().__init__(ErrorCode.PERMISSION_DENIED, "the token does not have these scopes; ask for fewer")


def refused() -> JobError:
    """The one answer to every credential that is not good."""
    return JobError(ErrorCode.UNAUTHENTICATED, "bad authentication")


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """An access token in clear, with what it is good for and for how many seconds."""

    token: Token
    scopes: frozenset[Scope]
    expires_in: int


class ProvenToken:
    """A token that was good for the call at hand, and can be asked whether it still is."""

    def __init__(self, credentials: "Credentials", token_id: str, held: "_Held") -> None:
        self._credentials = credentials
        self.id = token_id
        self.user = held.user.name
        self.role = held.role
        self.scopes = held.scopes
        self.expires_at = held.expires_at
        self.expired = refused()

    def check(self) -> None:
        """Returns while the token is good; UNAUTHENTICATED afterwards."""
        self._credentials.check(self.id)


class Credentials:
    """The bearer tokens of one database."""

    def __init__(
        self,
        database: Database,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
        *,
        on_revoke: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_revoke` is called after each revocation, once it counts."""
        self._database = database
        self._on_revoke = on_revoke
        self._clock = clock
        self._attempts = Attempts(steady)

    def prove(self, text: str, address: str) -> ProvenToken:
        """The token that `text` spells, shown from `address`; UNAUTHENTICATED, or TooManyAttempts after wrong ones."""
        token = Token.parse(text)
        if token is None:
            raise refused()
        return ProvenToken(self, token.id, self._held(token, address))

    def check(self, token_id: str) -> None:
        """Returns while the token is good; otherwise UNAUTHENTICATED."""
        self._database.read(lambda rows: _find(rows, token_id)).check(self._clock())

    async def exchange(self, user: str, text: str, scopes: str | None, source: str, address: str) -> Granted:
        """A new access token for the personal token `text` of `user`; on record when this returns."""
        token = Token.parse(text)
        if token is None:
            raise refused()
        held = self._held(token, address)
        if held.parent is not None or held.user.name != user:
            raise refused()
        asked = held.scopes if scopes is None else parse_scopes(scopes.split())
        if not asked or not asked <= held.scopes:
            raise ScopeRefused
        now = self._clock()
        if self._database.read(lambda rows: tokens.count_children(rows, token.id, now)) >= _MOST_CHILDREN:
            raise TooManyAttempts(int(ACCESS_TTL))
        fresh = Token.new()
        record = TokenRecord(
            id=fresh.id,
            hash=fresh.secret_hash(),
            user=user,
            scopes=format_scopes(asked),
            parent=token.id,
            created_at=now,
            expires_at=min(now + ACCESS_TTL, held.expires_at),
        )
        event = self._event(
            user, token, source, action="token.grant", target=fresh.id, detail=f"scopes {record.scopes}"
        )

        def give(connection: sqlite3.Connection) -> None:
            tokens.forget_expired_children(connection, now - _KEPT_SECONDS)
            tokens.add(connection, record)
            audit.append(connection, event)

        await self._database.write(give)
        return Granted(token=fresh, scopes=asked, expires_in=int(record.expires_at - now))

    async def revoke(self, text: str, source: str, address: str) -> None:
        """Refuses the token `text` from now on, for whoever holds it; does nothing when it is not good anyway."""
        token = Token.parse(text)
        if token is None:
            return
        try:
            held = self._held(token, address)
        except TooManyAttempts:
            raise
        except JobError:
            return
        event = self._event(held.user.name, token, source, action="token.revoke", target=token.id)

        def take(connection: sqlite3.Connection) -> bool:
            is_taken = tokens.revoke(connection, token.id, self._clock())
            if is_taken:
                audit.append(connection, event)
            return is_taken

        if await self._database.write(take):
            self._on_revoke()

    def _held(self, token: Token, address: str) -> "_Held":
        """What is on record of a token whose secret is right and which is good."""
        if wait := self._attempts.seconds_to_wait(token.id, address):
            raise TooManyAttempts(wait)
        held = self._database.read(lambda rows: _find(rows, token.id))
        # Compared also when there is no such token, so that the time tells nothing.
        if not token.is_proven_by(held.record.hash if held.record else _NO_HASH):
            if wait := self._attempts.note_failure(token.id, address):
                raise TooManyAttempts(wait)
            raise refused()
        held.check(self._clock())
        return held

    def _event(self, user: str, token: Token, source: str, **what: str) -> AuditEvent:
        return AuditEvent(
            time=self._clock(),
            principal=user,
            credential=f"token {token.id}",
            source=source,
            decision="allowed",
            **what,
        )


class _Held:
    """A token with everything that decides about it."""

    def __init__(self, record: TokenRecord | None, parent: TokenRecord | None, user: User | None) -> None:
        self.record = record
        self.parent = parent
        self._user = user

    def check(self, now: float) -> None:
        """Returns when the token is good; otherwise UNAUTHENTICATED."""
        record, user = self.record, self._user
        if record is None or user is None or user.removed_at is not None or record.created_at < user.valid_from:
            raise refused()
        if not record.is_good(now) or (self.parent is not None and not self.parent.is_good(now)):
            raise refused()

    @property
    def user(self) -> User:
        """Whose it is."""
        if self._user is None:
            raise refused()
        return self._user

    @property
    def role(self) -> Role:
        """What its user may do today."""
        return Role(self.user.role)

    @property
    def scopes(self) -> frozenset[Scope]:
        """What it may be used for: never more than the token it was given for."""
        chain = [record for record in (self.record, self.parent) if record is not None]
        return frozenset.intersection(*(parse_scopes(record.scopes.split()) for record in chain))

    @property
    def expires_at(self) -> float:
        """When it ends by itself."""
        return min(record.expires_at for record in (self.record, self.parent) if record is not None)


def _find(rows: sqlite3.Connection, token_id: str) -> _Held:
    record = tokens.get(rows, token_id)
    if record is None:
        return _Held(None, None, None)
    parent = tokens.get(rows, record.parent) if record.parent else None
    user = None if users.is_denied(rows, identity=record.user) else users.get(rows, record.user)
    return _Held(record, parent, user)
