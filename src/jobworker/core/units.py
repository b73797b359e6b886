"""Sizes, cpu shares and durations as people write them, parsed once into plain numbers."""

import re
from typing import Final

from jobworker.core.errors import invalid

# Bounded, so that no text can become a number beyond every type that it meets later.
_NUMBER: Final = r"([0-9]{1,18}(?:\.[0-9]{1,9})?)"

_SIZE: Final = re.compile(_NUMBER + r"\s*([a-zA-Z]*)")
_SIZE_FACTORS: Final = {
    "": 1,
    "b": 1,
    **{
        unit: 1024 ** (power + 1)
        for power, prefix in enumerate("kmgt")
        for unit in (prefix, prefix + "b", prefix + "i", prefix + "ib")
    },
}
_SIZE_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")
_SIZE_ALLOWED: Final = "a number with an optional unit b, k, M, G, T (1024-based), as in 64M or 512MiB"

_CPU: Final = re.compile(rf"(?:{_NUMBER}|(\.[0-9]{{1,9}}))(m?)")
_CPU_ALLOWED: Final = "cores as in 0.5, 2 or 500m"

_DURATION_PART: Final = re.compile(_NUMBER + r"\s*(ms|us|d|h|min|m|sec|s)\s*")
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

_COUNT_DIGITS: Final = 18  # so that every wire format has room for it
_COUNT: Final = re.compile(rf"[0-9]{{1,{_COUNT_DIGITS}}}")


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
    cores = float(match[1] or match[2])
    return cores / 1000 if match[3] else cores


def parse_duration(text: str, field: str = "duration") -> float:
    """Seconds in `text`: a plain number, or parts such as `1h30m` in any of d h m s ms us."""
    stripped = text.strip()
    if re.fullmatch(_NUMBER, stripped):
        return float(stripped)
    position = 0
    seconds = 0.0
    while match := _DURATION_PART.match(stripped, position):
        seconds += float(match[1]) * _DURATION_FACTORS[match[2]]
        position = match.end()
    if not stripped or position < len(stripped):
        raise invalid(field, text, _DURATION_ALLOWED)
    return seconds


def parse_count(text: str, field: str = "count") -> int:
    """The whole number in `text`."""
    if not _COUNT.fullmatch(text):
        raise invalid(field, text, f"a whole number of at most {_COUNT_DIGITS} digits")
    return int(text)


def format_size(count: int) -> str:
    """`count` bytes for people: the largest 1024-based unit that keeps it at 1 or more."""
    value = float(count)
    power = 0
    while round(value, 1) >= 1024 and power < len(_SIZE_UNITS) - 1:
        value /= 1024
        power += 1
    return f"{value:.1f}".removesuffix(".0") + " " + _SIZE_UNITS[power]


def format_duration(seconds: float) -> str:
    """`seconds` for people, in at most two units: `1h30m`, `42s`, `350ms`."""
    if round(seconds * 1000) < 1000:
        return f"{seconds * 1000:.0f}ms"
    whole = max(1, int(seconds))  # 0.9996 would be 1000ms
    for unit, size, smaller, smaller_size in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // smaller_size
            return f"{whole // size}{unit}{rest}{smaller}" if rest else f"{whole // size}{unit}"
    return f"{whole}s"
