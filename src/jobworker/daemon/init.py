"""A new state directory: configuration, database, certificates and the first admin, all or nothing."""

import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from jobworker.access.authority import (
    USER_TTL,
    CertifiedKey,
    create_issuing_ca,
    create_root_ca,
    issue_server,
    issue_user,
)
from jobworker.access.policy import Role
from jobworker.access.principal import check_trust_domain
from jobworker.access.tokens import DEFAULT_SCOPES
from jobworker.core.errors import invalid
from jobworker.daemon.account import Account
from jobworker.daemon.address import Address
from jobworker.daemon.config import FILE_NAME, LIMITS, Config, Server, initial_text
from jobworker.daemon.refusal import ConfigRefused
from jobworker.daemon.state import DATABASE
from jobworker.daemon.tokens import new_token, record_token
from jobworker.daemon.users import AUTHORITY, CLIENTS, Context, context_files, record_user, write_files
from jobworker.runtime.controls import CONTROLS, try_all
from jobworker.store.database import Database

FIRST_ADMIN: Final = "admin"
_SERVICE_NAME: Final = "jobworker"
_SERVICE_UID: Final = 199_999  # just below the jobs' uids; needs no account
_ALWAYS_SERVED: Final = ("localhost", "127.0.0.1", "::1")

# What the service itself opens. The rest, the CA's keys above all, stays with who ran init.
_OF_THE_SERVICE: Final = (
    ".",
    DATABASE,
    "jobs",
    "pki",
    "pki/bundle.crt",
    "pki/server.crt",
    "pki/server.key",
)


class InitRefused(Exception):  # noqa: N818 - it says what happened, as every refusal here does
    """The state directory cannot be made; nothing was left behind, and the message says what to do."""


@dataclass(frozen=True, slots=True)
class Initialized:
    """What `init` has made: the configuration's path, the service's account, and the admin's context.

    `allow_degraded` names the limits that jobs of this configuration may run without.
    """

    config: Path
    account: Account
    admin: Context
    allow_degraded: tuple[str, ...]


def init(  # noqa: PLR0913 - one parameter an option
    directory: Path,
    hosts: Sequence[str],
    user: str | None,
    trust_domain: str,
    listen: Address,
    *,
    listen_https: Address | None = None,
) -> Initialized:
    """The state directory of a new jobworkerd, complete on return; after a failure there is none.

    Clients dial the first of `hosts`, or `listen` and `listen_https` when there are none; without
    the latter there is no HTTPS. As root, what the service opens belongs to `user`, by default to
    the account jobworker, or to a bare number without it.
    """
    check_trust_domain(trust_domain)
    directory = directory.resolve()
    if not directory.parent.is_dir():
        raise InitRefused(f"{directory.parent} is not a directory; create it first, or name another place")
    account = _service_account(user, directory)
    _check_place(directory, account)
    server = Server(
        grpc=listen,
        advertise=_advertised("listen", listen, hosts),
        https=listen_https,
        advertise_https=listen_https and _advertised("listen-https", listen_https, hosts),
        user=account.configured,
    )
    missing = _missing_limits()
    text = initial_text(server, trust_domain, missing)
    config = Config.parse(text, directory / FILE_NAME)
    if os.geteuid() == 0:
        config.check_account(account)
    with ExitStack() as on_failure:
        draft = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
        on_failure.callback(shutil.rmtree, draft)
        write_files(draft, {FILE_NAME: text.encode()})
        not_after = _fill(draft, server, hosts, trust_domain)
        if account.uid != os.geteuid():
            for path in _OF_THE_SERVICE:
                os.chown(draft / path, account.uid, account.gid, follow_symlinks=False)
            # Root acts on the configuration: the service may read it, where it has never been root, and no more.
            os.chown(draft / FILE_NAME, -1, account.gid)
            (draft / FILE_NAME).chmod(0o640)
        _put_in_place(draft, directory)
        on_failure.pop_all()
    admin = Context(directory / CLIENTS / FIRST_ADMIN, not_after)
    return Initialized(directory / FILE_NAME, account, admin, missing)


def _missing_limits() -> tuple[str, ...]:
    """The limits that cannot be had without root here; root, who could have them, is to see that they are missing."""
    if os.geteuid() == 0:
        return ()
    findings = try_all(control for control in CONTROLS if control.name in LIMITS)
    return tuple(finding.control.name for finding in findings if not finding.works)


def _put_in_place(draft: Path, directory: Path) -> None:
    try:
        draft.rename(directory)
    except OSError as error:  # something has come there meanwhile, or it is a mount point
        raise InitRefused(f"{directory} cannot be made: {error.strerror}; name a new directory") from None


def _fill(state: Path, server: Server, hosts: Sequence[str], trust_domain: str) -> float:
    """Makes everything in `state` but the configuration; returns when the admin's certificate expires."""
    now = float(int(time.time()))  # whole seconds, as certificates hold them
    root = create_root_ca(now)
    issuing = create_issuing_ca(root, now)
    listening = [server.grpc, *([server.https] if server.https else [])]
    served = issue_server(issuing, _served_names(listening, hosts), now)
    admin = issue_user(issuing, FIRST_ADMIN, trust_domain, now)
    bundle = root.certificate_pem() + issuing.certificate_pem()
    for folder in ("jobs", "pki", AUTHORITY, CLIENTS, f"{CLIENTS}/{FIRST_ADMIN}"):
        (state / folder).mkdir(mode=0o700)
    write_files(
        state / "pki",
        {"bundle.crt": bundle, "server.crt": _chain(served, issuing), "server.key": served.key_pem()},
    )
    for name, authority in (("root", root), ("issuing", issuing)):
        files = {f"{name}.crt": authority.certificate_pem(), f"{name}.key": authority.key_pem()}
        write_files(state / AUTHORITY, files)
    token = new_token(FIRST_ADMIN, DEFAULT_SCOPES[Role.ADMIN], now, USER_TTL)
    write_files(
        state / CLIENTS / FIRST_ADMIN,
        context_files(
            server,
            FIRST_ADMIN,
            bundle=bundle,
            chain=_chain(admin, issuing),
            key=admin.key_pem(),
            token=token.token,
        ),
    )

    def record(connection: sqlite3.Connection) -> None:
        record_user(connection, FIRST_ADMIN, Role.ADMIN, now)
        if server.https:
            record_token(connection, token, now)

    with Database.open(state / DATABASE) as database:
        database.write_now(record)
    return admin.not_after


def _chain(leaf: CertifiedKey, issuing: CertifiedKey) -> bytes:
    return leaf.certificate_pem() + issuing.certificate_pem()


def _service_account(user: str | None, directory: Path) -> Account:
    """As root `user`, else jobworker, else a bare number; otherwise the caller, who can give files to nobody.

    Where nobody but root can get into the directory's place, and nobody else was asked for, it is root.
    """
    caller = Account.current()
    if caller.uid != 0:
        if user is not None and user not in {caller.name, str(caller.uid)}:
            raise InitRefused(f"only root can make a service of another user; run this as root, or as {user}")
        return caller
    if user is not None:
        return Account.find(int(user) if user.isdecimal() else user)
    try:
        account = Account.find(_SERVICE_NAME)
    except ConfigRefused:
        account = Account.find(_SERVICE_UID)
    return account if _closed_parent(directory, account) is None else caller


def _check_place(directory: Path, account: Account) -> None:
    if (directory / FILE_NAME).exists() or (directory / DATABASE).exists():
        raise InitRefused(f"{directory} holds the state of a jobworkerd already; name a new directory")
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise InitRefused(f"{directory} is not an empty directory; name a new one")
    folder = _closed_parent(directory, account)
    if folder is not None:
        raise InitRefused(
            f"user {account.name} cannot get into {folder}; choose a place that is open to all, such as /var/lib"
        )


def _closed_parent(directory: Path, account: Account) -> Path | None:
    """The first folder on the way to `directory` that the account cannot pass."""
    if account.uid == os.geteuid():
        return None
    return next((folder for folder in directory.parents if not _can_pass(folder.stat(), account)), None)


def _can_pass(folder: os.stat_result, account: Account) -> bool:
    if folder.st_uid == account.uid:
        return bool(folder.st_mode & 0o100)
    if folder.st_gid == account.gid:
        return bool(folder.st_mode & 0o010)
    return bool(folder.st_mode & 0o001)


def _advertised(option: str, listen: Address, hosts: Sequence[str]) -> Address | None:
    if hosts:
        return Address(hosts[0], listen.port)
    if _is_wildcard(listen.host):
        raise invalid(option, str(listen), "all addresses only together with --host, the name that clients dial")
    return None


def _served_names(listening: Sequence[Address], hosts: Sequence[str]) -> list[str]:
    listened = (address.host for address in listening if not _is_wildcard(address.host))
    return list(dict.fromkeys((*hosts, *listened, *_ALWAYS_SERVED)))


def _is_wildcard(host: str) -> bool:
    try:
        return ip_address(host).is_unspecified
    except ValueError:
        return False
