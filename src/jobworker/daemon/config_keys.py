"""The keys of jobworker.toml, each with the parser of its value.

A parser gets the key's full name, for its message, and the TOML value; INVALID_ARGUMENT or ConfigRefused.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from jobworker.access.policy import Role
from jobworker.access.principal import check_trust_domain
from jobworker.core.errors import invalid
from jobworker.core.units import parse_cpu, parse_duration, parse_size
from jobworker.daemon.address import Address
from jobworker.daemon.refusal import ConfigRefused

_UNLIMITED: Final = "unlimited"
_NODE: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_MAX_GRACE: Final = 3600.0
_MIN_JOB_UID: Final = 1000  # below are the accounts of the host itself
_MAX_UID: Final = (1 << 32) - 2  # the last one means "unchanged" to the kernel

Parser = Callable[[str, Any], Any]


def read_table(table: Mapping[str, Any], section: str, parsers: Mapping[str, Parser]) -> dict[str, Any]:
    """The values of `table` by the parsers of its keys; absent keys stay absent, unknown ones are refused."""
    names = {key: f"{section}.{key}" if section else key for key in (*parsers, *table)}
    for key in table:
        if key not in parsers:
            raise ConfigRefused(f"there is no key {names[key]}; {_nearest(key, parsers, names)}")
    return {key: parsers[key](names[key], value) for key, value in table.items()}


def _nearest(key: str, known: Iterable[str], names: Mapping[str, str]) -> str:
    import difflib  # noqa: PLC0415 - needed only to explain a mistake

    if near := difflib.get_close_matches(key, known, n=1):
        return f"did you mean {names[near[0]]}?"
    return "known are " + ", ".join(names[name] for name in known)


def _table(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise invalid(name, value, f"a section, as in [{name}]")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise invalid(name, value, "text in quotes")
    return value


def _count(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise invalid(name, value, "a whole number of 1 or more")
    return value


def _measure(parse: Callable[[str, str], float]) -> Parser:
    """A parser of numbers, taken as they are, and of text with units, by `parse`."""

    def parser(name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise invalid(name, value, 'a number, or text in quotes with a unit as in "512M", "0.5", "90s"')
        return parse(value if isinstance(value, str) else str(value), name)

    return parser


def _or_unlimited(parser: Parser) -> Parser:
    return lambda name, value: None if value == _UNLIMITED else parser(name, value)


def _address(name: str, value: Any) -> Address:
    return Address.parse(_text(name, value), name)


def _user(name: str, value: Any) -> str | int:
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 < value <= _MAX_UID:
            raise invalid(name, value, f'the number of a user, 1 to {_MAX_UID}, or a name as in "jobworker"')
        return value
    return _text(name, value)


def _grace(name: str, value: Any) -> timedelta:
    seconds = _measure(parse_duration)(name, value)
    if seconds > _MAX_GRACE:
        raise invalid(name, value, "0s to 1h")
    return timedelta(seconds=seconds)


def _node(name: str, value: Any) -> str:
    if not _NODE.fullmatch(_text(name, value)):
        raise invalid(name, value, "up to 63 letters, digits, . _ and -")
    return str(value)


def _trust_domain(name: str, value: Any) -> str:
    return check_trust_domain(_text(name, value), name)


def _uid_range(name: str, value: Any) -> range:
    low, dash, high = _text(name, value).partition("-")
    if not (dash and low.isdecimal() and high.isdecimal() and _MIN_JOB_UID <= int(low) <= int(high) <= _MAX_UID):
        raise invalid(name, value, f'two numbers from {_MIN_JOB_UID} on, as in "200000-265535"')
    return range(int(low), int(high) + 1)


def _programs(name: str, value: Any) -> tuple[str, ...]:
    return _paths(name, value, 'a list of absolute paths, as in ["/usr/bin/python3"]')


def _roots(name: str, value: Any) -> tuple[Path, ...]:
    allowed = 'a list of absolute paths without .., as in ["/srv/rootfs"]'
    paths = tuple(map(Path, _paths(name, value, allowed)))
    if any(".." in path.parts for path in paths):
        raise invalid(name, value, allowed)
    return paths


def _paths(name: str, value: Any, allowed: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise invalid(name, value, allowed)
    for item in value:
        if not _text(name, item).startswith("/"):
            raise invalid(name, item, allowed)
    return tuple(value)


def _controls(name: str, value: Any) -> frozenset[str]:
    if not isinstance(value, list):
        raise invalid(name, value, 'a list of names, as in ["memory-limit"]')
    return frozenset(_control(name, item) for item in value)


def _control(name: str, value: Any) -> str:
    from jobworker.runtime.controls import CONTROLS, DISPENSABLE, Need  # noqa: PLC0415 - most configurations allow none

    known = {control.name: control for control in CONTROLS}
    if _text(name, value) in DISPENSABLE:
        return str(value)
    if value not in known:
        names = {key: key for key in DISPENSABLE}
        raise ConfigRefused(f"{name}: there is no control {value!r}; {_nearest(value, names, names)}")
    if known[value].need is Need.ALL:
        raise ConfigRefused(f"{name}: no job can run without {value}; take it out")
    raise ConfigRefused(f"{name}: {value} is not needed by all jobs, so it need not be allowed to be missing")


SECTIONS: Final[Mapping[str, Parser]] = dict.fromkeys(("server", "tls", "jobs", "retention", "isolation"), _table)

SERVER_KEYS: Final[Mapping[str, Parser]] = {
    "grpc": _address,
    "advertise": _address,
    "https": _address,
    "advertise_https": _address,
    "user": _user,
    "shutdown_grace": _grace,
    "node": _node,
}

TLS_KEYS: Final[Mapping[str, Parser]] = {
    "ca": _text,
    "certificate": _text,
    "key": _text,
    "trust_domain": _trust_domain,
}

JOBS_KEYS: Final[Mapping[str, Parser]] = {
    "uid_range": _uid_range,
    "max_jobs": _count,
    "max_jobs_per_user": _count,
    "max_streams_per_user": _count,
    "default": _table,
    "ceiling": _table,
    "programs": _table,
}

_LIMIT_KEYS: Final[Mapping[str, Parser]] = {
    "cpu": _or_unlimited(_measure(parse_cpu)),
    "memory": _or_unlimited(_measure(parse_size)),
    "pids": _or_unlimited(_count),
    "timeout": _or_unlimited(_measure(parse_duration)),
}
DEFAULT_KEYS: Final = {**_LIMIT_KEYS, "output": _measure(parse_size)}  # there is always a cap on output
CEILING_KEYS: Final = {**_LIMIT_KEYS, "output": _or_unlimited(_measure(parse_size))}

#: The keys of jobs.ceiling and jobs.programs are roles.
CEILING_ROLES: Final[Mapping[str, Parser]] = {role.value: _table for role in Role}
PROGRAM_ROLES: Final[Mapping[str, Parser]] = {role.value: _programs for role in Role}

RETENTION_KEYS: Final[Mapping[str, Parser]] = {
    "max_age": _or_unlimited(_measure(parse_duration)),
    "max_jobs": _or_unlimited(_count),
    "max_output": _or_unlimited(_measure(parse_size)),
}

ISOLATION_KEYS: Final[Mapping[str, Parser]] = {
    "allow_degraded": _controls,
    "rootfs": _roots,
}
