"""Bearer tokens in use, on a real database and by a clock that tests turn."""

import asyncio
from dataclasses import replace

import pytest

from jobworker.access.principal import EVERY_SCOPE, Scope
from jobworker.access.tokens import ACCESS_TTL, Token
from jobworker.api.held_calls import HeldCalls
from jobworker.core.errors import ErrorCode, JobError
from jobworker.credentials import Credentials, ScopeRefused, TooManyAttempts
from jobworker.daemon.tokens import new_token
from jobworker.store import audit, tokens, users
from jobworker.store.database import Database

HERE = "192.0.2.1"
SOURCE = f"{HERE}:5000"


class Clock:
    now = 1_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def database(tmp_path):
    with Database.open(tmp_path / "jobworker.db") as database:
        yield database


@pytest.fixture
def credentials(database, clock):
    return Credentials(database, clock, clock)


@pytest.fixture
def personal(database, clock):
    """A personal token of alice's for an hour."""
    made = new_token("alice", EVERY_SCOPE, clock.now, 3600)
    database.write_now(lambda rows: (users.add(rows, "alice", "admin", clock.now), tokens.add(rows, made.record)))
    return made.token


def refused(call):
    with pytest.raises(JobError) as error:
        call()
    return error.value.code, error.value.message


NOBODY = (ErrorCode.UNAUTHENTICATED, "bad authentication")


async def test_an_access_token_lives_for_a_quarter_of_an_hour(credentials, clock, personal):
    granted = await credentials.exchange("alice", personal.reveal(), None, SOURCE, HERE)
    text = granted.token.reveal()
    assert (granted.expires_in, granted.scopes) == (900, EVERY_SCOPE)
    clock.now += ACCESS_TTL - 1
    assert credentials.prove(text, HERE).user == "alice"
    clock.now += 1
    assert refused(lambda: credentials.prove(text, HERE)) == NOBODY
    assert credentials.prove(personal.reveal(), HERE).user == "alice"


async def test_an_access_token_never_outlives_or_exceeds_the_one_it_was_given_for(credentials, clock, personal):
    clock.now += 3000
    granted = await credentials.exchange("alice", personal.reveal(), "jobs:read", SOURCE, HERE)
    assert (granted.expires_in, granted.scopes) == (600, {Scope.JOBS_READ})
    text = granted.token.reveal()
    assert credentials.prove(text, HERE).scopes == {Scope.JOBS_READ}
    with pytest.raises(JobError, match="bad authentication"):
        await credentials.exchange("alice", text, None, SOURCE, HERE)  # it buys no other one


async def test_more_scopes_than_the_token_has_are_refused(credentials, database, clock, personal):
    few = new_token("alice", {Scope.JOBS_READ}, clock.now, 60)
    database.write_now(lambda rows: tokens.add(rows, few.record))
    for asked in ("admin", "jobs:read admin", ""):
        with pytest.raises(ScopeRefused):
            await credentials.exchange("alice", few.token.reveal(), asked, SOURCE, HERE)
    await credentials.exchange("alice", few.token.reveal(), "jobs:read", SOURCE, HERE)  # positive control


async def test_with_a_token_ends_what_was_given_for_it(credentials, personal):
    granted = await credentials.exchange("alice", personal.reveal(), None, SOURCE, HERE)
    found = credentials.prove(granted.token.reveal(), HERE)
    found.check()
    await credentials.revoke(personal.reveal(), SOURCE, HERE)
    assert refused(found.check) == NOBODY


async def test_a_revocation_is_told_when_it_counts_and_told_once(database, clock, personal):
    """A3: calls that last are looked at again by then, and by nobody's token that was not good."""
    told = []
    credentials = Credentials(database, clock, clock, on_revoke=lambda: told.append(refused(found.check)))
    found = credentials.prove(personal.reveal(), HERE)
    await credentials.revoke(Token.new().reveal(), SOURCE, HERE)
    assert told == []
    for _ in range(2):
        await credentials.revoke(personal.reveal(), SOURCE, HERE)
    assert told == [NOBODY]


async def test_a_grant_and_a_revocation_are_one_record_each(credentials, database, personal):
    """U1."""
    granted = await credentials.exchange("alice", personal.reveal(), None, SOURCE, HERE)
    for _ in range(2):
        await credentials.revoke(granted.token.reveal(), SOURCE, HERE)
    records = database.read(lambda rows: list(audit.export(rows)))
    assert [record.count('"token.grant"') + 2 * record.count('"token.revoke"') for record in records] == [1, 2]
    assert not any(granted.token.reveal() in record or personal.reveal() in record for record in records)


async def test_a_personal_token_has_so_many_children_at_a_time(credentials, clock, personal):
    for _ in range(100):
        await credentials.exchange("alice", personal.reveal(), None, SOURCE, HERE)
    with pytest.raises(TooManyAttempts):
        await credentials.exchange("alice", personal.reveal(), None, SOURCE, HERE)
    clock.now += ACCESS_TTL
    await credentials.exchange("alice", personal.reveal(), None, SOURCE, HERE)


async def test_tokens_that_have_expired_long_ago_are_forgotten(credentials, database, clock, personal):
    first = await credentials.exchange("alice", personal.reveal(), None, SOURCE, HERE)
    longer = new_token("alice", EVERY_SCOPE, clock.now, 86_400)
    database.write_now(lambda rows: tokens.add(rows, longer.record))
    clock.now += 10_000
    await credentials.exchange("alice", longer.token.reveal(), None, SOURCE, HERE)
    assert database.read(lambda rows: tokens.get(rows, first.token.id)) is None
    assert database.read(lambda rows: tokens.get(rows, personal.id)) is not None


def test_the_clock_that_is_set_back_revives_no_revoked_token(credentials, database, clock, personal):
    database.write_now(lambda rows: tokens.revoke(rows, personal.id, clock.now))
    clock.now -= 100
    assert refused(lambda: credentials.prove(personal.reveal(), HERE)) == NOBODY


def test_wrong_secrets_have_to_wait(credentials, personal):
    wrong = Token(personal.id, "x" * 43).reveal()
    for _ in range(10):
        assert refused(lambda: credentials.prove(wrong, HERE)) == NOBODY
    with pytest.raises(TooManyAttempts) as waiting:
        credentials.prove(wrong, HERE)
    assert 0 < waiting.value.retry_after <= 60
    with pytest.raises(TooManyAttempts):
        credentials.prove(personal.reveal(), HERE)  # the right one has to wait too
    assert credentials.prove(personal.reveal(), "192.0.2.2").user == "alice"  # from elsewhere


class Proof:
    """A proof that a test takes away."""

    def __init__(self, expires_at):
        self.expires_at = expires_at
        self.expired = JobError(ErrorCode.UNAUTHENTICATED, "expired")
        self.is_good = True

    def check(self):
        if not self.is_good:
            raise JobError(ErrorCode.UNAUTHENTICATED, "revoked")


async def test_a_call_that_lasts_ends_for_the_reason_that_came_first(clock):
    """A3."""
    held = HeldCalls(clock)

    async def last(proof):
        with pytest.raises(JobError) as error:
            async with held.hold(proof):
                await asyncio.sleep(60)
        return error.value.message

    proofs = [Proof(clock.now + 60), Proof(clock.now + 60), Proof(clock.now)]
    calls = [asyncio.create_task(last(proof)) for proof in proofs]
    assert await calls[2] == "expired"
    proofs[0].is_good = False
    held.recheck()
    assert await calls[0] == "revoked"
    assert not calls[1].done()  # positive control
    held.end_all(JobError(ErrorCode.UNAVAILABLE, "closing"))
    assert await calls[1] == "closing"
    assert await last(Proof(clock.now + 60)) == "closing"  # and whoever comes later


async def test_a_timeout_inside_a_call_stays_what_it_is(clock):
    with pytest.raises(TimeoutError):
        async with HeldCalls(clock).hold(Proof(clock.now + 60)):
            raise TimeoutError


def test_a_record_is_good_until_it_expires_or_is_revoked(clock):
    record = new_token("alice", EVERY_SCOPE, clock.now, 10).record
    assert record.is_good(clock.now + 9)
    assert not record.is_good(clock.now + 10)
    assert not replace(record, revoked_at=clock.now).is_good(clock.now)
