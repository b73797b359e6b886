"""Signals as people write them."""

import signal
from typing import Final

from jobworker.core.errors import invalid

_HIGHEST: Final = 64  # SIGRTMAX of Linux


def parse_signal(text: str, field: str = "signal") -> int:
    """The number of the signal that `text` names: TERM, SIGTERM or 15."""
    if text.isascii() and text.isdecimal() and len(text) < 4 and 1 <= int(text) <= _HIGHEST:
        return int(text)
    try:
        return signal.Signals["SIG" + text.upper().removeprefix("SIG")]
    except KeyError:
        raise invalid(field, text, f"a name such as TERM or SIGHUP, or a number from 1 to {_HIGHEST}") from None
