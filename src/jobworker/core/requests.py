"""What may be asked of a job beside its spec: one rule for the library, the server and the clients."""

import re
import signal
from typing import Final

from jobworker.core.errors import invalid

MOST_SECONDS: Final = 10_000_000_000.0  # three hundred years, or the year 2286
LARGEST: Final = (1 << 63) - 1  # bytes or lines: beyond every file, and what every wire format has room for
_KEY: Final = re.compile(r"[!-~]{1,255}")


def check_idempotency_key(text: str, field: str = "idempotency_key") -> str:
    """`text` when it can be a key, which is what a header can hold without a doubt about its spelling."""
    if not _KEY.fullmatch(text):
        raise invalid(field, text, "1 to 255 visible ASCII characters")
    return text


def check_signal(number: int) -> int:
    """`number` when it is a signal's that a program can be sent."""
    if number not in signal.valid_signals():
        raise invalid("signal", number, "1 to 64, but not 32 and 33")
    return number


def check_grace(seconds: float) -> float:
    """`seconds` when a job can be given as long to end."""
    if not 0 <= seconds <= MOST_SECONDS:  # NaN is not either
        raise invalid("grace", seconds, f"0 to {MOST_SECONDS:.0f} seconds")
    return seconds


def check_place(*, offset: int, tail_lines: int | None, since: float | None) -> None:
    """Returns when output can be read from there."""
    for name, value in (("offset", offset), ("tail_lines", tail_lines)):
        if value is not None and not 0 <= value <= LARGEST:
            raise invalid(name, value, f"0 to {LARGEST}")
    if since is not None and not -MOST_SECONDS <= since <= MOST_SECONDS:
        raise invalid("since", since, f"seconds since the epoch, at most {MOST_SECONDS:.0f}")
