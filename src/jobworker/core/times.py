"""Times as people and programs write them: RFC 3339, and stamps before lines of output."""

import re
import time
from datetime import UTC, datetime

from jobworker.core.errors import JobError, invalid
from jobworker.core.units import parse_duration

_ALLOWED = "a time such as 2026-01-31T12:00:00Z or 1769860800, or a duration such as 10m"


def rfc3339(seconds: float) -> str:
    """`seconds` since the epoch as RFC 3339 in UTC with microseconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_time(text: str, field: str = "time") -> float:
    """Seconds since the epoch for an RFC 3339 or Unix time, or for a duration before now."""
    if re.fullmatch(r"[0-9]{1,18}(\.[0-9]{1,9})?", text):
        return float(text)
    try:
        return time.time() - parse_duration(text, field)
    except JobError:
        pass
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise invalid(field, text, _ALLOWED) from None


class LineStamps:
    """Puts a time before each line of one stream, however it is cut into pieces."""

    def __init__(self) -> None:
        self._at_line_start = True

    def stamp(self, data: bytes, seconds: float) -> bytes:
        """`data`, which was written at `seconds` since the epoch, with a time before each line that begins in it."""
        if not data:
            return data
        stamp = rfc3339(seconds).encode() + b" "
        starts_here = stamp if self._at_line_start else b""
        self._at_line_start = data.endswith(b"\n")
        body = data[:-1] if self._at_line_start else data
        return starts_here + body.replace(b"\n", b"\n" + stamp) + (b"\n" if self._at_line_start else b"")
