"""Signals as people write them."""

import signal
from typing import Final

from jobworker.core.errors import invalid

_HIGHEST: Final = 64  # SIGRTMAX of Linux


def signal_name(number: int) -> str:
    """A signal's name, such as SIGTERM."""
    if number in set(signal.Signals):
        return signal.Signals(number).name
    return f"SIGRTMIN+{number - signal.SIGRTMIN}"


def parse_signal(text: str, field: str = "signal") -> int:
    """The number of the signal that `text` names: TERM, SIGTERM, RTMIN+1 or 15."""
    if text.isascii() and text.isdecimal() and len(text) < 4 and 1 <= int(text) <= _HIGHEST:
        return int(text)
    named = {signal_name(number): number for number in signal.valid_signals()} | signal.Signals.__members__
    try:
        return int(named["SIG" + text.upper().removeprefix("SIG")])
    except KeyError:
        raise invalid(field, text, f"a name such as TERM or SIGHUP, or a number from 1 to {_HIGHEST}") from None
