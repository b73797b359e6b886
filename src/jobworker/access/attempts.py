"""Wrong attempts at secrets, counted by whom they are about and where they come from, in bounded memory."""

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final

_WINDOW_SECONDS: Final = 60.0
_PER_PAIR: Final = 10  # of one address at one id
_PER_ADDRESS: Final = 60  # of one address at whatever id
_REMEMBERED: Final = 10_000  # the longest quiet ones are forgotten first


class Attempts:
    """The wrong attempts of the last minute."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` counts seconds and never runs backwards."""
        self._clock = clock
        self._windows: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()

    def seconds_to_wait(self, about: str, address: str) -> int:
        """How long `address` has to leave `about` alone; 0: it may try."""
        return self._seconds_left((about, address), _PER_PAIR)

    def note_failure(self, about: str, address: str) -> int:
        """Counts a wrong attempt; how long `address` has to wait before it is told more than that, or 0."""
        self._count((about, address))
        self._count(address)
        return max(self.seconds_to_wait(about, address), self._seconds_left(address, _PER_ADDRESS))

    def _count(self, key: Hashable) -> None:
        now = self._clock()
        begin, count = self._windows.pop(key, (now, 0))
        if now >= begin + _WINDOW_SECONDS:
            begin, count = now, 0
        self._windows[key] = begin, count + 1
        if len(self._windows) > _REMEMBERED:
            self._windows.popitem(last=False)

    def _seconds_left(self, key: Hashable, most: int) -> int:
        begin, count = self._windows.get(key, (-math.inf, 0))
        left = begin + _WINDOW_SECONDS - self._clock()
        return math.ceil(left) if count > most and left > 0 else 0
