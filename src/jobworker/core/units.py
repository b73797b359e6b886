"""Sizes, cpu shares and durations as people write them, parsed once into plain numbers."""

import math
import re
from typing import Final

from jobworker.core.errors import invalid

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)")
_SIZE_FACTORS: Final = {
    "": 1,
    "b": 1,
    **{
        unit: 1024 ** (power + 1)
        for power, prefix in enumerate("kmgt")
        for unit in (prefix, prefix + "b", prefix + "i", prefix + "ib")
    },
}
_SIZE_ALLOWED: Final = "a number with an optional unit b, k, M, G, T (1024-based), as in 64M or 512MiB"

_CPU: Final = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(m?)")
_CPU_ALLOWED: Final = "cores as in 0.5, 2 or 500m"

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|us|d|h|min|m|sec|s)?")
_DURATION_FACTORS: Final = {
    "us": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "sec": 1.0,
    "m": 60.0,
    "min": 60.0,
    "h": 3600.0,
    "d": 86400.0,
}
_DURATION_ALLOWED: Final = "seconds, or a duration as in 90s, 1h30m, 500ms or 2d"


def parse_size(text: str, field: str = "size") -> int:
    """Bytes in `text`; docker's and Kubernetes' spellings, every unit 1024-based."""
    match = _SIZE.fullmatch(text.strip())
    factor = _SIZE_FACTORS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise invalid(field, text, _SIZE_ALLOWED)
    return int(float(match[1]) * factor) if "." in match[1] else int(match[1]) * factor


def parse_rate(text: str, field: str = "rate") -> int:
    """Bytes a second in `text`: a size, with an optional `/s` behind it."""
    return parse_size(text.strip().removesuffix("/s"), field)


def parse_cpu(text: str, field: str = "cpu") -> float:
    """Cores in `text`: `0.5`, `2`, or Kubernetes' thousandths, `500m`."""
    match = _CPU.fullmatch(text.strip())
    if match is None:
        raise invalid(field, text, _CPU_ALLOWED)
    return float(match[1]) / 1000 if match[2] else float(match[1])


def parse_duration(text: str, field: str = "duration") -> float:
    """Seconds in `text`: a plain number, or parts such as `1h30m` in any of d h m s ms us."""
    compact = text.replace(" ", "")
    position = 0
    seconds = 0.0
    while position < len(compact):
        match = _DURATION.match(compact, position)
        bare_number_in_a_compound = match is not None and match[2] is None and match[0] != compact
        if match is None or bare_number_in_a_compound:
            raise invalid(field, text, _DURATION_ALLOWED)
        seconds += float(match[1]) * _DURATION_FACTORS[match[2] or "s"]
        position = match.end()
    if not compact or not math.isfinite(seconds):
        raise invalid(field, text, _DURATION_ALLOWED)
    return seconds


def format_size(count: int) -> str:
    """`count` bytes for people: the largest 1024-based unit that keeps it at 1 or more."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            break
        value /= 1024
    else:
        unit = "TiB"
    return f"{value:.1f}".removesuffix(".0") + " " + unit


def format_duration(seconds: float) -> str:
    """`seconds` for people, in at most two units: `1h30m`, `42s`, `350ms`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    whole = int(seconds)
    for unit, size, smaller, smaller_size in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // smaller_size
            return f"{whole // size}{unit}{rest}{smaller}" if rest else f"{whole // size}{unit}"
    return f"{whole}s"
