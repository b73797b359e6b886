"""The configuration of one jobworkerd: jobworker.toml, read once and checked whole."""

import json
import os
import pwd
import re
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Self

from jobworker.access.ceiling import Ceiling
from jobworker.access.policy import Role
from jobworker.core.errors import JobError, invalid
from jobworker.core.spec import Limits, MiB
from jobworker.core.units import parse_cpu, parse_duration, parse_size

FILE_NAME: Final = "jobworker.toml"
_UNLIMITED: Final = "unlimited"
_NODE: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_MAX_GRACE: Final = 3600.0
_MIN_JOB_UID: Final = 1000  # below are the accounts of the host itself
_MAX_UID: Final = (1 << 32) - 2  # the last one means "unchanged" to the kernel


class ConfigRefused(Exception):  # noqa: N818 - it says what happened, as every refusal here does
    """The configuration cannot be used; the message names file, key, value and what is allowed."""


@dataclass(frozen=True, slots=True)
class Address:
    """A host name or IP address and a TCP port; port 0 picks a free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, name: str = "address") -> Self:
        """The address in `HOST:PORT` or `[IPV6]:PORT`; INVALID_ARGUMENT for anything else."""
        host, colon, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        if not colon or not host or not port.isascii() or not port.isdigit() or (":" in host and not bracketed):
            raise invalid(name, text, "HOST:PORT, as in 127.0.0.1:50051 or [::1]:50051")
        if int(port) > 65535:
            raise invalid(name, text, "a port of 0 to 65535")
        return cls(host.strip("[]"), int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Account:
    """The Unix user that the service runs as."""

    name: str
    uid: int
    gid: int

    @classmethod
    def find(cls, user: str | int) -> Self:
        """The account called `user`, or the bare number, which needs no entry; ConfigRefused when there is none."""
        if isinstance(user, int):
            return cls(str(user), user, user)
        try:
            entry = pwd.getpwnam(user)
        except KeyError:
            raise ConfigRefused(
                f"there is no user {user!r} on this host; create it (useradd --system {user}) or name another"
            ) from None
        return cls(entry.pw_name, entry.pw_uid, entry.pw_gid)

    @property
    def configured(self) -> str | int:
        """How the configuration names the account: by its number when it has nothing else."""
        return self.uid if self.name == str(self.uid) else self.name

    @classmethod
    def current(cls) -> Self:
        """The account of this process."""
        uid = os.geteuid()
        try:
            return cls(pwd.getpwuid(uid).pw_name, uid, os.getegid())
        except KeyError:
            return cls(str(uid), uid, os.getegid())


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where the server listens and as whom it runs.

    `advertise` and `advertise_https` are what clients dial when it is not `grpc` and `https`
    themselves; without `https` there is no such door. `shutdown_grace` is how long open calls may
    take to end once the server was told to stop.
    """

    grpc: Address = Address("127.0.0.1", 50051)
    advertise: Address | None = None
    https: Address | None = None
    advertise_https: Address | None = None
    user: str | int = field(default_factory=lambda: Account.current().configured)
    shutdown_grace: timedelta = timedelta(seconds=10)
    node: str = field(default_factory=lambda: os.uname().nodename)

    @property
    def dialed(self) -> Address:
        """What a client context names as the server."""
        return self.advertise or self.grpc

    @property
    def dialed_https(self) -> Address | None:
        """The same for HTTPS; None where there is no such door."""
        return (self.advertise_https or self.https) if self.https else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """The files that prove the server to clients, and whose users it believes."""

    ca: Path
    certificate: Path
    key: Path
    trust_domain: str


_LIMITS: Final = Limits()
_CEILINGS: Final[Mapping[Role, Ceiling]] = {
    Role.USER: Ceiling(memory=4096 * MiB, pids=4096, output_bytes=16384 * MiB),
    Role.ADMIN: Ceiling(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Jobs:
    """How many jobs there may be, under which uids, and within what limits."""

    uid_range: range = range(200_000, 265_536)
    max_jobs: int = 4000
    max_jobs_per_user: int = 1000
    max_streams_per_user: int = 256
    default: Limits = _LIMITS
    ceilings: Mapping[Role, Ceiling] = field(default_factory=lambda: _CEILINGS)
    programs: Mapping[Role, tuple[str, ...]] = field(default_factory=dict)  # a role that is not in it may start all

    def without(self, controls: Collection[str]) -> Self:
        """The same where the host lacks limits: nobody gets by default, or is held to, what cannot be enforced."""
        lifted: dict[str, Any] = {name: None for control, name in LIMITS.items() if control in controls}
        return replace(
            self,
            default=replace(self.default, **lifted),
            ceilings={role: replace(ceiling, **lifted) for role, ceiling in self.ceilings.items()},
        )


#: The limits that every job has unless it asks for none, by the names of the controls that they need.
LIMITS: Final = {"memory-limit": "memory", "pids-limit": "pids"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """The controls that jobs may run without where the host cannot give them, and where their roots may be.

    `rootfs` are directories that, or of which any below, a job may ask for as its root.
    """

    allow_degraded: frozenset[str] = frozenset()
    rootfs: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything an operator decides; `directory` is the state directory, where the file lies."""

    directory: Path
    tls: Tls
    server: Server = field(default_factory=Server)
    jobs: Jobs = field(default_factory=Jobs)
    isolation: Isolation = Isolation()

    @classmethod
    def load(cls, path: Path) -> Self:
        """The configuration in the file at `path`; ConfigRefused for anything that is not certainly meant.

        Root acts on no file that others could change.
        """
        try:
            with path.open("rb") as file:
                if os.geteuid() == 0:
                    _check_owner(path, os.fstat(file.fileno()))
                text = file.read().decode()
            return cls.parse(text, path)
        except OSError as error:
            raise ConfigRefused(f"{path} cannot be read: {error.strerror}; make it with jobworkerd init") from None
        except UnicodeDecodeError as error:
            raise ConfigRefused(f"{path} is not a TOML document: {error}") from None

    @classmethod
    def parse(cls, text: str, path: Path) -> Self:
        """The configuration in `text` as if it were the file at `path`; ConfigRefused as for `load`."""
        try:
            return cls._from_document(tomllib.loads(text), path.absolute().parent)
        except (ConfigRefused, JobError, tomllib.TOMLDecodeError) as error:
            raise ConfigRefused(f"{path}: {error}") from None

    def check_account(self, account: Account) -> None:
        """Return when the service may run as `account`; ConfigRefused when jobs could share its uid."""
        if account.uid in self.jobs.uid_range:
            raise ConfigRefused(
                f"server.user: uid {account.uid} is within jobs.uid_range; choose a user outside of it, "
                "since a job of the same uid could act as the server"
            )

    @classmethod
    def _from_document(cls, document: Mapping[str, Any], directory: Path) -> Self:
        sections = _read(document, "", dict.fromkeys(("server", "tls", "jobs", "isolation"), _table))
        config = cls(
            directory=directory,
            tls=_tls(sections.get("tls", {}), directory),
            server=Server(**_read(sections.get("server", {}), "server", _SERVER_KEYS)),
            jobs=_jobs(sections.get("jobs", {})),
            isolation=Isolation(**_read(sections.get("isolation", {}), "isolation", _ISOLATION_KEYS)),
        )
        config._check_roots()
        return config

    def _check_roots(self) -> None:
        for root in self.isolation.rootfs:
            for own in (self.directory.resolve(), self.tls.key.parent.resolve()):
                if root.is_relative_to(own) or own.is_relative_to(root):
                    raise ConfigRefused(
                        f"isolation.rootfs: {root} would let jobs read the server's own files in {own}; "
                        "list a directory apart from them"
                    )


def _check_owner(path: Path, status: os.stat_result) -> None:
    if status.st_uid != 0 or status.st_mode & 0o022:
        raise ConfigRefused(
            f"{path} can be changed by others than root, who could make themselves root by it; "
            "look at what it says, then: chown root and chmod 640"
        )


# From TOML values to ours. A parser gets the key's full name, for its message, and the value.

_Parser = Callable[[str, Any], Any]


def _read(table: Mapping[str, Any], section: str, parsers: Mapping[str, _Parser]) -> dict[str, Any]:
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


def _measure(parse: Callable[[str, str], float]) -> _Parser:
    """A parser of numbers, taken as they are, and of text with units, by `parse`."""

    def parser(name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise invalid(name, value, 'a number, or text in quotes with a unit as in "512M", "0.5", "90s"')
        return parse(value if isinstance(value, str) else str(value), name)

    return parser


def _or_unlimited(parser: _Parser) -> _Parser:
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
    raise ConfigRefused(f"{name}: {value} is not needed by all jobs, and so need not be allowed to be missing")


_SERVER_KEYS: Final[Mapping[str, _Parser]] = {
    "grpc": _address,
    "advertise": _address,
    "https": _address,
    "advertise_https": _address,
    "user": _user,
    "shutdown_grace": _grace,
    "node": _node,
}

_TLS_KEYS: Final[Mapping[str, _Parser]] = {
    "ca": _text,
    "certificate": _text,
    "key": _text,
    "trust_domain": _text,
}

_LIMIT_KEYS: Final[Mapping[str, _Parser]] = {
    "cpu": _or_unlimited(_measure(parse_cpu)),
    "memory": _or_unlimited(_measure(parse_size)),
    "pids": _or_unlimited(_count),
    "timeout": _or_unlimited(_measure(parse_duration)),
}

_JOBS_KEYS: Final[Mapping[str, _Parser]] = {
    "uid_range": _uid_range,
    "max_jobs": _count,
    "max_jobs_per_user": _count,
    "max_streams_per_user": _count,
    "default": _table,
    "ceiling": _table,
    "programs": _table,
}

_ISOLATION_KEYS: Final[Mapping[str, _Parser]] = {
    "allow_degraded": _controls,
    "rootfs": _roots,
}


def _tls(table: Mapping[str, Any], directory: Path) -> Tls:
    values = _read(table, "tls", _TLS_KEYS)
    if missing := [key for key in _TLS_KEYS if key not in values]:
        raise ConfigRefused(f"tls.{missing[0]} is missing; it must be set")
    trust_domain = values.pop("trust_domain")
    return Tls(**{key: directory / value for key, value in values.items()}, trust_domain=trust_domain)


def _jobs(table: Mapping[str, Any]) -> Jobs:
    values = _read(table, "jobs", _JOBS_KEYS)
    if "default" in values:
        output = {"output": _measure(parse_size)}  # there is always a cap on output
        given = _read(values["default"], "jobs.default", {**_LIMIT_KEYS, **output})
        try:
            values["default"] = Limits(**_in_bytes(given))
        except JobError as error:
            raise ConfigRefused(f"jobs.default.{error}") from None
    if "ceiling" in values:
        roles = {role.value: _table for role in Role}
        output = {"output": _or_unlimited(_measure(parse_size))}
        sections = _read(values.pop("ceiling"), "jobs.ceiling", roles)
        given_by_role = {
            Role(role): Ceiling(**_in_bytes(_read(section, f"jobs.ceiling.{role}", {**_LIMIT_KEYS, **output})))
            for role, section in sections.items()
        }
        values["ceilings"] = {**_CEILINGS, **given_by_role}
    if "programs" in values:
        given = _read(values["programs"], "jobs.programs", {role.value: _programs for role in Role})
        values["programs"] = {Role(role): paths for role, paths in given.items()}
    return Jobs(**values)


def _in_bytes(values: dict[str, Any]) -> dict[str, Any]:
    """`values` with `output` under the name that it has in `Limits`."""
    return {"output_bytes" if key == "output" else key: value for key, value in values.items()}


def initial_text(server: Server, trust_domain: str, allow_degraded: Sequence[str] = ()) -> str:
    """The file that `init` writes: what was decided, and the defaults of what may be decided later."""
    addresses = {key: getattr(server, key) for key in ("grpc", "advertise", "https", "advertise_https")}
    listening = "".join(f"{key} = {json.dumps(str(address))}\n" for key, address in addresses.items() if address)
    return f"""\
# jobworkerd's configuration. Paths are relative to this file; an unknown key is an error.

[server]
{listening}user = {json.dumps(server.user)}
shutdown_grace = "10s"
node = {json.dumps(server.node)}

[tls]
ca = "pki/bundle.crt"
certificate = "pki/server.crt"
key = "pki/server.key"
trust_domain = {json.dumps(trust_domain)}

[jobs]
uid_range = "200000-265535"
max_jobs = 4000
max_jobs_per_user = 1000
max_streams_per_user = 256

# What a job gets that does not ask; "unlimited" is a value too, except for output.
[jobs.default]
cpu = "unlimited"
memory = "512M"
pids = 256
timeout = "unlimited"
output = "1G"

# The most that a job may ask for, by its owner's role.
[jobs.ceiling.user]
cpu = "unlimited"
memory = "4G"
pids = 4096
timeout = "unlimited"
output = "16G"

[jobs.ceiling.admin]

# The only programs that the jobs of a role may be started with, such as user = ["/usr/bin/python3"]; others have all.
[jobs.programs]

[isolation]
# Controls that jobs may run without where this host lacks them; see jobworkerd check.
allow_degraded = {json.dumps(list(allow_degraded))}
# Directories that jobs may have as their read-only root, or any below, instead of this host's tree; none unless listed.
rootfs = []
"""
