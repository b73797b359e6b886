"""A turnstile on the event loop: long work passes piece by piece, and everything else gets its turn in between."""

import asyncio
from collections import deque


class Turnstile:
    """Lets `at_once` through between two looks of the event loop at everything else, in the order they come."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_turning = False

    async def wait_turn(self) -> None:
        """Returns when the caller may do the next piece of its work; the event loop has looked around meanwhile."""
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._waiting.append(turn)
        if not self._is_turning:
            self._is_turning = True
            loop.call_soon(self._turn)
        await turn

    def _turn(self) -> None:
        left = self._at_once
        while self._waiting and left:
            turn = self._waiting.popleft()
            if not turn.done():  # whoever waited was cancelled
                turn.set_result(None)
                left -= 1
        self._is_turning = bool(self._waiting)
        if self._is_turning:
            asyncio.get_running_loop().call_soon(self._turn)
