"""Who is asking: a user in a role, proven by a credential."""

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final, NoReturn

from jobworker.core.errors import invalid

_USER_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_TRUST_DOMAIN: Final = re.compile(r"[a-z0-9]([a-z0-9._-]{0,253}[a-z0-9])?")  # SPIFFE-ID §2.1


class Role(Enum):
    """What a user is to this server; kept on the server, never taken from a client."""

    ADMIN = "admin"  # acts on every job
    USER = "user"  # acts on the jobs it has started


class Scope(Enum):
    """What a credential may be used for, whatever its holder's role; a token has some, a certificate all."""

    JOBS_READ = "jobs:read"
    JOBS_START = "jobs:start"
    JOBS_STOP = "jobs:stop"
    JOBS_OUTPUT = "jobs:output"
    AUDIT_READ = "audit:read"
    METRICS_READ = "metrics:read"
    ADMIN = "admin"  # to use what the role gives beyond the holder's own jobs


EVERY_SCOPE: Final = frozenset(Scope)


class _OnlyProven(type):
    """The type of classes that cannot be called, so that no value of theirs is made in passing."""

    def __call__(cls, *_values: object, **_fields: object) -> NoReturn:
        raise TypeError(f"{cls.__name__} has no public constructor: an identity module proves who is asking")


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal(metaclass=_OnlyProven):
    """A user whose identity has been proven for the call at hand.

    `credential` says how, such as `certificate serial 5f3a…`, and `expires_at` until when, where
    that is known; `source` is the peer's address. None of them holds a secret.
    """

    name: str
    role: Role
    credential: str
    source: str
    scopes: frozenset[Scope]
    expires_at: float | None


def identified(  # noqa: PLR0913 - one parameter a field
    *,
    name: str,
    role: Role,
    credential: str,
    source: str,
    scopes: frozenset[Scope] = EVERY_SCOPE,
    expires_at: float | None = None,
) -> Principal:
    """The principal that a transport's identity module has just proven; nobody else calls this."""
    principal: Principal = type.__call__(
        Principal,
        name=check_user_name(name),
        role=role,
        credential=credential,
        source=source,
        scopes=scopes,
        expires_at=expires_at,
    )
    return principal


def check_user_name(text: str) -> str:
    """`text` when it can be a user's name; otherwise INVALID_ARGUMENT.

    Names become parts of paths, certificates and queries, so what passes here needs no quoting anywhere.
    """
    if not _USER_NAME.fullmatch(text):
        raise invalid("user", text, "1 to 32 characters a-z, 0-9, _ and -, starting with a letter")
    return text


def check_trust_domain(text: str, name: str = "trust_domain") -> str:
    """`text` when it can be a SPIFFE trust domain, within which names are users; otherwise INVALID_ARGUMENT."""
    if not _TRUST_DOMAIN.fullmatch(text):
        raise invalid(name, text, "up to 255 characters a-z, 0-9, . _ and -, as in jobs.example.org")
    return text
