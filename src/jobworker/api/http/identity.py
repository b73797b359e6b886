"""Who calls over HTTPS: told by one bearer token in the header, and by nothing else."""

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final

from starlette.types import Scope

from jobworker.access.principal import Principal, identified
from jobworker.api.held_calls import HeldCalls
from jobworker.credentials import Credentials, ProvenToken, refused

_SCHEME: Final = b"bearer"
Header = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and what proves it."""

    principal: Principal
    proof: ProvenToken


class BearerIdentity:
    """Tells who calls, and ends calls of those who may not go on."""

    def __init__(self, credentials: Credentials, held: HeldCalls) -> None:
        self._credentials = credentials
        self._held = held

    def identify(self, scope: Scope) -> Caller:
        """Who asks; UNAUTHENTICATED when the header proves nobody at this moment."""
        source, address = source_of(scope)
        proof = self._credentials.prove(_bearer_token(scope["headers"]), address)
        principal = identified(
            name=proof.user,
            role=proof.role,
            credential=f"token {proof.id}",
            source=source,
            scopes=proof.scopes,
            expires_at=proof.expires_at,
        )
        return Caller(principal, proof)

    def hold(self, caller: Caller) -> AbstractAsyncContextManager[None]:
        """Ends what is done inside when the caller may not go on; see `HeldCalls.hold`."""
        return self._held.hold(caller.proof)


def source_of(scope: Scope) -> tuple[str, str]:
    """Where a request comes from: for the audit with its port, and the address alone."""
    host, port = scope["client"] or ("", 0)
    return (f"[{host}]:{port}" if ":" in host else f"{host}:{port}"), host


def _bearer_token(headers: Iterable[Header]) -> str:
    """The token of the one header that may hold it."""
    found = [value for name, value in headers if name == b"authorization"]
    if len(found) != 1:
        raise refused()
    scheme, _, token = found[0].partition(b" ")
    if scheme.lower() != _SCHEME:
        raise refused()
    return token.strip(b" ").decode("latin-1")
