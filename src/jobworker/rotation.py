"""Turns that go round: who asks for much waits for itself, and keeps nobody else waiting."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Rotation:
    """Turns for everybody, at most `at_once` in all and `each` of one owner; those who wait are served in rotation."""

    def __init__(self, at_once: int, each: int) -> None:
        self._free = at_once
        self._each = each
        self._under_way: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def turn(self, owner: str) -> AsyncIterator[None]:
        """Waits for a turn of the owner's, and has it for as long as it is inside."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append(turn)
        self._serve()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self._end(owner)

    def _end(self, owner: str) -> None:
        self._free += 1
        self._under_way[owner] -= 1
        if not self._under_way[owner]:
            del self._under_way[owner]
        self._serve()

    def _serve(self) -> None:
        """Gives the free turns to those who may have them, one owner after the other."""
        for owner, queue in list(self._waiting.items()):
            while queue and queue[0].done():  # whoever waited was cancelled
                queue.popleft()
            if queue and self._free and self._under_way[owner] < self._each:
                queue.popleft().set_result(None)
                self._free -= 1
                self._under_way[owner] += 1
                self._waiting[owner] = self._waiting.pop(owner)  # behind the others
            if not queue:
                del self._waiting[owner]
