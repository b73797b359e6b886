"""The operator's command that renews the server's certificate, while the server runs or not."""

import os
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from jobworker.access.authority import SERVER_TTL, hosts_of, issue_server
from jobworker.daemon.state import UserRefused
from jobworker.daemon.users import Issuer

_PKI: Final = "pki"
_KEY: Final = "server.key"
_CERTIFICATE: Final = "server.crt"


def renew(state: Path, hosts: Sequence[str] = (), *, ttl: float = SERVER_TTL) -> float:
    """A new key and certificate for `hosts`, or for those of the old one, in place on return; when it expires."""
    issuer = Issuer.of(state)
    tls = issuer.config.tls
    if {tls.key, tls.certificate} != {tls.key.parent / _KEY, tls.key.parent / _CERTIFICATE} or (
        tls.key.parent != issuer.config.directory / _PKI
    ):
        raise UserRefused("the server's certificate is not one of jobworkerd init; renew it where it came from")
    names = list(hosts) or hosts_of(tls.certificate.read_bytes())
    issued = issue_server(issuer.authority, names, time.time(), ttl)
    chain = issued.certificate_pem() + issuer.authority.certificate_pem()
    # By descriptor: the directory is the service's, whose user must not lead root's writing elsewhere.
    pki = os.open(tls.key.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        owner = os.fstat(pki)
        if owner.st_uid != state.stat().st_uid:
            raise UserRefused(f"{tls.key.parent} does not belong to the service's user; mend that first")
        # The server takes the two when they fit each other, which is after the second one.
        _replace(pki, _KEY, issued.key_pem(), owner)
        _replace(pki, _CERTIFICATE, chain, owner)
        os.fsync(pki)
    finally:
        os.close(pki)
    return issued.not_after


def _replace(directory: int, name: str, data: bytes, owner: os.stat_result) -> None:
    """A new file of mode 0600 in place of the old one, whole or not at all."""
    fresh = f".{name}.{os.getpid()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(fresh, flags, stat.S_IRUSR | stat.S_IWUSR, dir_fd=directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            os.fsync(file.fileno())
        os.rename(fresh, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        os.unlink(fresh, dir_fd=directory)
        raise
