"""Who calls over gRPC: told by the verified leaf certificate of the connection, and by nothing else.

The handshake has proven the chain and the key. Everything it leaves open is checked here on every
call, and again inside calls that last: when the certificate expires, and when access is taken away.
"""

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import lru_cache
from typing import Any, Final

import grpc

from jobworker.access.certificates import CertificateRefused, TrustBundle, VerifiedUser, read_user
from jobworker.access.principal import Principal, Role, identified
from jobworker.api.held_calls import HeldCalls
from jobworker.core.errors import JobError
from jobworker.store import users
from jobworker.store.database import Database

_LEAF: Final = "x509_pem_cert"
_CHAIN: Final = "x509_pem_cert_chain"
_KNOWN_CERTIFICATES: Final = 4096  # as many are kept parsed


class CertificateIdentity:
    """Tells who calls, and ends calls of those who may not go on."""

    def __init__(
        self,
        database: Database,
        bundle: TrustBundle,
        trust_domain: str,
        held: HeldCalls,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._bundle = bundle
        self._trust_domain = trust_domain
        self._held = held
        self._clock = clock
        self._read = lru_cache(_KNOWN_CERTIFICATES)(self._verify)

    def believe(self, bundle: TrustBundle) -> None:
        """From now on these are the CAs whose users are believed."""
        if bundle is not self._bundle:
            self._bundle = bundle
            self._read.cache_clear()

    def identify(self, context: grpc.aio.ServicerContext[Any, Any]) -> Principal:
        """The principal of a call; UNAUTHENTICATED when the certificate proves none at this moment."""
        user = self.user_of(*_shown(context))
        role = self.check(user)
        return identified(
            name=user.name,
            role=role,
            credential=f"certificate serial {user.serial}",
            source=context.peer(),
            expires_at=user.not_after,
        )

    def hold(self, context: grpc.aio.ServicerContext[Any, Any]) -> AbstractAsyncContextManager[None]:
        """Ends what is done inside when the caller may not go on; see `HeldCalls.hold`."""
        return self._held.hold(_ProvenCertificate(self, *_shown(context)))

    def check(self, user: VerifiedUser) -> Role:
        """The user's role now, when certificate and user are still good; otherwise CertificateRefused."""
        user.check_time(self._clock())
        known, denied = self._database.read(
            lambda rows: (
                users.get(rows, user.name),
                users.is_denied(rows, serial=user.serial, key=user.key_hash, identity=user.name),
            )
        )
        if known is None or known.removed_at is not None:
            raise CertificateRefused("this server has no such user; ask its operator")
        if denied or user.issued_at < known.valid_from:
            raise CertificateRefused("it has been revoked; ask the operator for a new one")
        return Role(known.role)

    def user_of(self, leaf: bytes, chain: bytes) -> VerifiedUser:
        """Whose certificate it is; CertificateRefused when the CAs of this moment do not vouch for it."""
        return self._read(leaf, chain)

    def _verify(self, leaf: bytes, chain: bytes) -> VerifiedUser:
        """Everything that time cannot change, once for each certificate; no leaf of ours outlives its issuer."""
        user = read_user(leaf, self._trust_domain)
        self._bundle.verify_chain(leaf + chain, self._clock())
        return user


def _shown(context: grpc.aio.ServicerContext[Any, Any]) -> tuple[bytes, bytes]:
    """Leaf and chain that the handshake has proven."""
    proven = context.auth_context()
    leaf = b"".join(proven.get(_LEAF) or ())
    if not leaf:
        raise CertificateRefused("a client certificate is needed")
    return leaf, b"".join(proven.get(_CHAIN) or ())


class _ProvenCertificate:
    """The certificate of a call that lasts."""

    def __init__(self, identity: CertificateIdentity, leaf: bytes, chain: bytes) -> None:
        self._identity = identity
        self._shown = leaf, chain
        self.expires_at = identity.user_of(leaf, chain).not_after
        self.expired: JobError = CertificateRefused("it has expired meanwhile")

    def check(self) -> None:
        self._identity.check(self._identity.user_of(*self._shown))
