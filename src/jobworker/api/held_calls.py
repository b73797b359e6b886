"""Calls that are held open, each ended as soon as its caller may not go on; the same for every door."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from jobworker.core.errors import JobError


class Proof(Protocol):
    """What proves a caller: a certificate, a token. `expires_at` in seconds since the epoch."""

    @property
    def expires_at(self) -> float:
        """When it no longer proves anything."""

    @property
    def expired(self) -> JobError:
        """What its holder is told then."""

    def check(self) -> None:
        """Returns while the caller may go on; UNAUTHENTICATED when access has been taken away."""


class HeldCalls:
    """The held calls of one server, at every door."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._held: set[_Held] = set()
        self._closed: JobError | None = None

    @asynccontextmanager
    async def hold(self, proof: Proof) -> AsyncIterator[None]:
        """Ends what is done inside when the caller may not go on, with the error that says why.

        Costs nothing while nothing happens: one timer for the expiry, and `recheck`.
        """
        if self._closed is not None:
            raise self._closed
        held = _Held(proof, asyncio.timeout(proof.expires_at - self._clock()))
        self._held.add(held)
        try:
            async with held.scope:
                yield
        except TimeoutError:
            if not held.scope.expired():
                raise
            raise held.reason from None
        finally:
            self._held.discard(held)

    def recheck(self) -> None:
        """Ends the calls of everyone whose access has been taken away; for when the database changed."""
        for held in tuple(self._held):
            try:
                held.proof.check()
            except JobError as refused:
                held.end(refused)

    def end_all(self, reason: JobError) -> None:
        """Ends every call for `reason`, those that come later too."""
        self._closed = reason
        for held in tuple(self._held):
            held.end(reason)


class _Held:
    """A call that lasts."""

    def __init__(self, proof: Proof, scope: asyncio.Timeout) -> None:
        self.proof = proof
        self.scope = scope
        self.reason = proof.expired

    def end(self, reason: JobError) -> None:
        if self.scope.expired():
            return  # it is on its way out
        self.reason = reason
        self.scope.reschedule(asyncio.get_running_loop().time())
