"""Calls that last: each ends with the reason it was ended for, and one that is slow to go keeps none of the others."""

import asyncio
import time

import pytest

from jobworker.api.held_calls import HeldCalls
from jobworker.core.errors import ErrorCode, JobError


class Proof:
    """A proof that is good until it is told otherwise."""

    def __init__(self, seconds: float = 1000.0) -> None:
        self.expires_at = time.time() + seconds
        self.expired = JobError(ErrorCode.UNAUTHENTICATED, "expired")
        self.is_good = True

    def check(self) -> None:
        if not self.is_good:
            raise JobError(ErrorCode.UNAUTHENTICATED, "revoked")


async def _call(held: HeldCalls, proof: Proof, farewell: asyncio.Event) -> str:
    """The reason for which a call was ended that does not go before `farewell`."""
    try:
        async with held.hold(proof):
            try:
                await asyncio.Event().wait()
            finally:
                await farewell.wait()
    except JobError as error:
        return error.message
    return "ended by itself"


async def _settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_call_ends_when_its_proof_expires() -> None:
    """A3."""
    farewell = asyncio.Event()
    farewell.set()
    assert await _call(HeldCalls(), Proof(seconds=0.01), farewell) == "expired"


async def test_only_the_calls_of_those_who_may_not_go_on_are_ended() -> None:
    """A3."""
    held, farewell, proofs = HeldCalls(), asyncio.Event(), [Proof() for _ in range(3)]
    farewell.set()
    calls = [asyncio.create_task(_call(held, proof, farewell)) for proof in proofs]
    await _settle()
    proofs[1].is_good = False
    held.recheck()
    assert await calls[1] == "revoked"
    assert not calls[0].done()
    held.end_all(JobError(ErrorCode.UNAVAILABLE, "shutting down"))
    assert [await call for call in calls] == ["shutting down", "revoked", "shutting down"]
    with pytest.raises(JobError, match="shutting down"):
        async with held.hold(Proof()):
            pass


async def test_a_call_that_is_slow_to_go_keeps_no_other_from_being_ended() -> None:
    """A3."""
    held, farewell, proofs = HeldCalls(), asyncio.Event(), [Proof() for _ in range(4)]
    calls = [asyncio.create_task(_call(held, proof, farewell)) for proof in proofs]
    await _settle()
    for count in range(1, 5):
        for proof in proofs[:count]:
            proof.is_good = False
        held.recheck()
        await _settle()
    farewell.set()
    assert [await call for call in calls] == ["revoked"] * 4
