"""The operator's commands about users: who may call, and with which certificate.

A user gets a context: a directory that jobctl takes as it is. It holds ca.crt, client.crt,
client.key and context.toml, which reads

    # a jobctl context: how to reach one jobworkerd as one user
    server = "127.0.0.1:50051"
    user = "alice"
    ca = "ca.crt"
    certificate = "client.crt"
    key = "client.key"
    https = "127.0.0.1:8443"
    token = "token"

with paths relative to itself; the last two are there when the server has that door. Directory and
files are their maker's alone.
"""

import json
import math
import os
import re
import shutil
import sqlite3
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jobworker.access.authority import USER_TTL, CertifiedKey, issue_user
from jobworker.access.key_files import read_key, write_private
from jobworker.access.policy import Role
from jobworker.access.principal import check_user_name
from jobworker.access.tokens import DEFAULT_SCOPES, PERSONAL_TTL, Token
from jobworker.daemon.config import FILE_NAME, Config, Server
from jobworker.daemon.state import UserRefused, open_database, record_operation
from jobworker.daemon.tokens import new_token, record_token
from jobworker.store import users

CLIENTS: Final = "clients"
AUTHORITY: Final = "pki/ca"
_CONTEXT: Final = "context.toml"


@dataclass(frozen=True, slots=True)
class Context:
    """A context that was written: where it lies and until when its certificate is valid."""

    directory: Path
    not_after: float


def add(state: Path, name: str, *, role: Role = Role.USER, ttl: float = USER_TTL, out: Path | None = None) -> Context:
    """A new user with a new context, in `state`/clients/`name` or in the new directory `out`.

    The user is on record before the context appears; if only that fails, `renew` makes it.
    """
    check_user_name(name)
    issuer = Issuer.of(state)
    directory = _context_directory(state, name, out)
    with open_database(state) as database:
        former = database.read(lambda connection: users.get(connection, name))
        if former is not None and former.removed_at is None:
            raise users.UserExists(name)
        if os.path.lexists(directory):
            raise UserRefused(f"{directory} exists already; move it away, or name a new directory with --out")
        at = _issue_time(time.time(), former)
        issued = issuer.issue(name, at, ttl)
        token = new_token(name, DEFAULT_SCOPES[role], at, min(ttl, PERSONAL_TTL))

        def record(connection: sqlite3.Connection) -> None:
            record_user(connection, name, role, at)
            if issuer.config.server.https:
                record_token(connection, token, at)

        with ExitStack() as on_failure:
            draft = _draft(directory, issuer.context_files(name, issued, token.token), on_failure)
            database.write_now(record)
            draft.rename(directory)
            on_failure.pop_all()
    return Context(directory, issued.not_after)


def renew(state: Path, name: str, *, ttl: float = USER_TTL, out: Path | None = None) -> Context:
    """A context with a new key and certificate for a user there is; what the old one can do stays until it expires."""
    check_user_name(name)
    issuer = Issuer.of(state)
    directory = _context_directory(state, name, out)
    if os.path.lexists(directory) and not (directory / _CONTEXT).is_file():
        raise UserRefused(f"{directory} exists and is not a context; name another directory with --out")
    with open_database(state) as database:
        user = database.read(lambda connection: users.get(connection, name))
        if user is None or user.removed_at is not None:
            raise _unknown(name)
        at = _issue_time(time.time(), user)
        issued = issuer.issue(name, at, ttl)
        token = new_token(name, DEFAULT_SCOPES[Role(user.role)], at, min(ttl, PERSONAL_TTL))

        def record(connection: sqlite3.Connection) -> None:
            record_operation(connection, "user.renew", name, time.time())
            if issuer.config.server.https:
                record_token(connection, token, time.time())

        with ExitStack() as on_failure:
            draft = _draft(directory, issuer.context_files(name, issued, token.token), on_failure)
            database.write_now(record)
            if directory.is_dir():
                for file in draft.iterdir():
                    file.replace(directory / file.name)
                draft.rmdir()
            else:
                draft.rename(directory)
            on_failure.pop_all()
    return Context(directory, issued.not_after)


def remove(state: Path, name: str) -> None:
    """Revokes everything that proves user `name`, from now on and on open connections too.

    The context in `state`/clients goes; copies of it elsewhere are worthless.
    """

    def revoke(connection: sqlite3.Connection) -> None:
        if not users.remove(connection, name, now):
            raise _unknown(name)
        record_operation(connection, "user.remove", name, now)

    check_user_name(name)
    now = time.time()
    with open_database(state) as database:
        database.write_now(revoke)
    _delete_context(state / CLIENTS, name)


def deny(state: Path, kind: users.CredentialKind, value: str, reason: str) -> None:
    """Refuses one certificate by its serial, or all of a key or user, from now on and on open connections too."""
    spelled = value if kind == "identity" else value.replace(":", "").lower()
    if kind == "serial":
        spelled = spelled.lstrip("0")  # a number, while a key's hash is text
    if kind != "identity" and not re.fullmatch("[0-9a-f]+", spelled):
        raise UserRefused(f"{value!r} is not the {kind} of a certificate; give it in hex, as the audit shows it")

    def refuse(connection: sqlite3.Connection) -> None:
        users.deny(connection, kind, spelled, reason, now)
        record_operation(connection, f"credential.deny.{kind}", spelled, now, reason)

    now = time.time()
    with open_database(state) as database:
        database.write_now(refuse)


def present(state: Path) -> list[users.User]:
    """The users who may call, by name."""
    with open_database(state) as database:
        return [user for user in database.read(users.everyone) if user.removed_at is None]


def record_user(connection: sqlite3.Connection, name: str, role: Role, at: float) -> None:
    """Adds user `name` together with the audit's record of it."""
    users.add(connection, name, role.value, at)
    record_operation(connection, "user.add", name, at, f"role {role.value}")


def write_files(directory: Path, files: dict[str, bytes]) -> None:
    """Writes private files into the private directory `directory`."""
    for name, data in files.items():
        write_private(directory / name, data)


def context_files(  # noqa: PLR0913 - one parameter a file
    server: Server, name: str, *, bundle: bytes, chain: bytes, key: bytes, token: Token
) -> dict[str, bytes]:
    """The files of a context: `bundle` for believing the server; `chain`, `key` and `token` for being believed."""
    text = f"""\
# a jobctl context: how to reach one jobworkerd as one user
server = {json.dumps(str(server.dialed))}
user = {json.dumps(name)}
ca = "ca.crt"
certificate = "client.crt"
key = "client.key"
"""
    files = {"ca.crt": bundle, "client.crt": chain, "client.key": key}
    if server.dialed_https is not None:
        text += f'https = {json.dumps(str(server.dialed_https))}\ntoken = "token"\n'
        files["token"] = f"{token.reveal()}\n".encode()
    return {_CONTEXT: text.encode(), **files}


@dataclass(frozen=True, slots=True)
class Issuer:
    """The issuing CA of one state directory, with what its certificates and contexts say."""

    config: Config
    authority: CertifiedKey

    @classmethod
    def of(cls, state: Path) -> "Issuer":
        """The issuer of `state`; UserRefused for anyone but the user who made it."""
        config = Config.load(state / FILE_NAME)
        authority = _own_directory(state / AUTHORITY)
        key = read_key(authority / "issuing.key", "issuing CA's key")
        return cls(config, CertifiedKey.from_pem((authority / "issuing.crt").read_bytes(), key))

    def issue(self, name: str, at: float, ttl: float) -> CertifiedKey:
        """A new key and certificate for a user."""
        return issue_user(self.authority, name, self.config.tls.trust_domain, at, ttl)

    def context_files(self, name: str, issued: CertifiedKey, token: Token) -> dict[str, bytes]:
        """The files of a user's context."""
        chain = issued.certificate_pem() + self.authority.certificate_pem()
        bundle = self.config.tls.ca.read_bytes()
        return context_files(self.config.server, name, bundle=bundle, chain=chain, key=issued.key_pem(), token=token)


def _context_directory(state: Path, name: str, out: Path | None) -> Path:
    return _own_directory(state / CLIENTS).absolute() / name if out is None else out.absolute()


def _delete_context(clients: Path, name: str) -> None:
    """Deletes the context of `name`, if the caller is the one who keeps the contexts."""
    if not os.access(clients, os.W_OK):
        return
    # By descriptor, so that no link put at `clients` meanwhile can turn this against other directories.
    descriptor = os.open(_own_directory(clients), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with suppress(FileNotFoundError):
            shutil.rmtree(name, dir_fd=descriptor)
    finally:
        os.close(descriptor)


def _own_directory(path: Path) -> Path:
    """`path` when it is a directory of the caller; otherwise UserRefused.

    The service's user owns the directory around it: what that user may have put here in its
    place must neither choose the CA nor lead root's writing elsewhere.
    """
    if path.is_symlink() or not path.is_dir() or path.stat().st_uid != os.geteuid():
        raise UserRefused(f"{path} is not a directory of yours; run this as the user who ran jobworkerd init")
    return path


def _draft(directory: Path, files: dict[str, bytes], on_failure: ExitStack) -> Path:
    """A complete private directory beside `directory`, which goes away on failure."""
    draft = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    on_failure.callback(shutil.rmtree, draft)
    write_files(draft, files)
    return draft


def _issue_time(now: float, user: users.User | None) -> float:
    """When a certificate counts as issued: whole seconds, as certificates hold them.

    Not before the user's own beginning, and after everything that an earlier user of the name had.
    """
    if user is None:
        return math.floor(now)
    beginning = user.created_at if user.removed_at is None else math.floor(user.removed_at) + 1
    return max(math.floor(now), beginning)


def _unknown(name: str) -> UserRefused:
    return UserRefused(f"there is no user {name}; see jobworkerd user list")
