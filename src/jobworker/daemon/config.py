"""The configuration of one jobworkerd: jobworker.toml, read once and checked whole."""

import json
import os
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Self

from jobworker.access.ceiling import Ceiling
from jobworker.access.policy import Role
from jobworker.core.errors import JobError
from jobworker.core.spec import Limits, MiB
from jobworker.daemon.account import Account
from jobworker.daemon.address import Address
from jobworker.daemon.config_keys import (
    CEILING_KEYS,
    CEILING_ROLES,
    DEFAULT_KEYS,
    ISOLATION_KEYS,
    JOBS_KEYS,
    PROGRAM_ROLES,
    RETENTION_KEYS,
    SECTIONS,
    SERVER_KEYS,
    TLS_KEYS,
    read_table,
)
from jobworker.daemon.refusal import ConfigRefused
from jobworker.store.jobs import Retention

FILE_NAME: Final = "jobworker.toml"


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
    retention: Retention = Retention()
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
        """Returns when the service may run as `account`; ConfigRefused when jobs could share its uid."""
        if account.uid in self.jobs.uid_range:
            raise ConfigRefused(
                f"server.user: uid {account.uid} is within jobs.uid_range; choose a user outside of it, "
                "since a job of the same uid could act as the server"
            )

    @classmethod
    def _from_document(cls, document: Mapping[str, Any], directory: Path) -> Self:
        sections = read_table(document, "", SECTIONS)
        config = cls(
            directory=directory,
            tls=_tls(sections.get("tls", {}), directory),
            server=Server(**read_table(sections.get("server", {}), "server", SERVER_KEYS)),
            jobs=_jobs(sections.get("jobs", {})),
            retention=_retention(sections.get("retention", {})),
            isolation=Isolation(**read_table(sections.get("isolation", {}), "isolation", ISOLATION_KEYS)),
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


def _tls(table: Mapping[str, Any], directory: Path) -> Tls:
    values = read_table(table, "tls", TLS_KEYS)
    if missing := [key for key in TLS_KEYS if key not in values]:
        raise ConfigRefused(f"tls.{missing[0]} is missing; it must be set")
    trust_domain = values.pop("trust_domain")
    return Tls(**{key: directory / value for key, value in values.items()}, trust_domain=trust_domain)


def _jobs(table: Mapping[str, Any]) -> Jobs:
    values = read_table(table, "jobs", JOBS_KEYS)
    if "default" in values:
        given = read_table(values["default"], "jobs.default", DEFAULT_KEYS)
        try:
            values["default"] = Limits(**_in_bytes(given))
        except JobError as error:
            raise ConfigRefused(f"jobs.default.{error}") from None
    if "ceiling" in values:
        sections = read_table(values.pop("ceiling"), "jobs.ceiling", CEILING_ROLES)
        given_by_role = {
            Role(role): Ceiling(**_in_bytes(read_table(section, f"jobs.ceiling.{role}", CEILING_KEYS)))
            for role, section in sections.items()
        }
        values["ceilings"] = {**_CEILINGS, **given_by_role}
    if "programs" in values:
        given = read_table(values["programs"], "jobs.programs", PROGRAM_ROLES)
        values["programs"] = {Role(role): paths for role, paths in given.items()}
    return Jobs(**values)


def _retention(table: Mapping[str, Any]) -> Retention:
    values = read_table(table, "retention", RETENTION_KEYS)
    return Retention(age=values.get("max_age"), jobs=values.get("max_jobs"), output_bytes=values.get("max_output"))


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

# The limits of a job that does not ask for any; all but output may be "unlimited".
[jobs.default]
cpu = "unlimited"
memory = "512M"
pids = 256
timeout = "unlimited"
output = "1G"

# The most that a job may ask for, by the role of its owner.
[jobs.ceiling.user]
cpu = "unlimited"
memory = "4G"
pids = 4096
timeout = "unlimited"
output = "16G"

[jobs.ceiling.admin]

# The only programs that jobs of a role may start, such as user = ["/usr/bin/python3"]; a role not listed may start any.
[jobs.programs]

# Which ended jobs are kept with their output: those within every bound, the latest to end first; the audit keeps all.
[retention]
max_age = "unlimited"
max_jobs = "unlimited"
max_output = "unlimited"

[isolation]
# Controls that jobs may run without if this host lacks them; see jobworkerd check.
allow_degraded = {json.dumps(list(allow_degraded))}
# Directories that jobs may have, themselves or any below, as their read-only root instead of this host's files.
rootfs = []
"""
