"""Turns that go round: those who ask for much wait for themselves, and keep nobody else waiting."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

_PRESENT_SECONDS: Final = 1.0  # so long after asking an owner still counts as somebody who shares


class Rotation:
    """Turns for everybody, at most `at_once` in all; those who wait are served in rotation.

    An owner who is alone has `alone` of them at once, and one while others ask as well: what is under
    way is what a late comer has to wait for.
    """

    def __init__(self, at_once: int, alone: int) -> None:
        self._free = at_once
        self._alone = alone
        self._under_way: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._asked: dict[str, float] = {}  # when, by the loop's clock; the latest is the last

    @asynccontextmanager
    async def turn(self, owner: str) -> AsyncIterator[None]:
        """Waits for a turn of the owner's, and has it for as long as it is inside."""
        turn = asyncio.get_running_loop().create_future()
        self._asked.pop(owner, None)
        self._asked[owner] = asyncio.get_running_loop().time()
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
        """Gives the free turns to those who may have them, one after the other and round again."""
        share = self._share()
        is_served = True
        while is_served:
            is_served = False
            for owner, queue in list(self._waiting.items()):
                while queue and queue[0].done():  # whoever waited was cancelled
                    queue.popleft()
                if queue and self._free and self._under_way[owner] < share:
                    queue.popleft().set_result(None)
                    self._free -= 1
                    self._under_way[owner] += 1
                    self._waiting[owner] = self._waiting.pop(owner)  # behind the others
                    is_served = True
                if not queue:
                    del self._waiting[owner]

    def _share(self) -> int:
        """How many turns an owner may have at once just now."""
        since = asyncio.get_running_loop().time() - _PRESENT_SECONDS
        for owner, asked in list(self._asked.items()):
            if asked >= since:
                break
            if owner not in self._waiting:
                del self._asked[owner]
        return self._alone if len(self._asked) < 2 else 1
