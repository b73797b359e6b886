"""Bearer tokens: how they are made, spelled, recognised and compared; never how they are kept in clear.

A token reads `jw1_<id>_<secret>_<checksum>`, with 12, 43 and 6 characters. The prefix lets scanners
find one that leaked, the checksum drops junk before anything is looked up, and the secret has 256 bits
of chance, so that its plain SHA-256 can be stored without fear of guessing.
"""

import hashlib
import hmac
import re
import secrets
import string
import zlib
from collections.abc import Iterable
from typing import Final, Self

from jobworker.access.principal import EVERY_SCOPE, Principal, Role, Scope
from jobworker.core.errors import invalid

_DAY: Final = 86400.0
PERSONAL_TTL: Final = 90 * _DAY  # the most that a personal token may have
ACCESS_TTL: Final = 900.0

_ALPHABET: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
_ID_LENGTH: Final = 12
_SECRET_LENGTH: Final = 43
_CHECKSUM_LENGTH: Final = 6
_SPELLING: Final = re.compile(
    rf"jw1_([0-9A-Za-z]{{{_ID_LENGTH}}})_([0-9A-Za-z]{{{_SECRET_LENGTH}}})_([0-9A-Za-z]{{{_CHECKSUM_LENGTH}}})"
)
_TOKEN_ID: Final = re.compile(rf"[0-9A-Za-z]{{{_ID_LENGTH}}}")

_USER_SCOPES: Final = frozenset({Scope.JOBS_READ, Scope.JOBS_START, Scope.JOBS_STOP, Scope.JOBS_OUTPUT})
#: What a token gets when nobody asked for less: all that its holder's role can use.
DEFAULT_SCOPES: Final = {Role.USER: _USER_SCOPES, Role.ADMIN: EVERY_SCOPE}


def usable_scopes(principal: Principal) -> list[str]:
    """What the credential is good for and the role can use, as they are spelled, sorted."""
    return sorted(scope.value for scope in principal.scopes & DEFAULT_SCOPES[principal.role])


class Token:
    """A token in clear, which shows itself to nobody who does not ask for it by name."""

    __slots__ = ("_secret", "id")

    def __init__(self, token_id: str, secret: str) -> None:
        self.id = token_id
        self._secret = secret

    @classmethod
    def new(cls) -> Self:
        """A token that nobody has seen before."""
        return cls(_random(_ID_LENGTH), _random(_SECRET_LENGTH))

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The token that `text` spells to the letter; None for everything else."""
        match = _SPELLING.fullmatch(text)
        if match is None:
            return None
        token = cls(match[1], match[2])
        return token if hmac.compare_digest(token.reveal(), text) else None

    def reveal(self) -> str:
        """The token as its holder gets it, once."""
        body = f"jw1_{self.id}_{self._secret}"
        return f"{body}_{_checksum(body)}"

    def secret_hash(self) -> bytes:
        """What is stored of the secret."""
        return hashlib.sha256(self._secret.encode()).digest()

    def is_proven_by(self, stored_hash: bytes) -> bool:
        """Whether the secret is the one that `stored_hash` is of; takes as long when it is not."""
        return hmac.compare_digest(self.secret_hash(), stored_hash)

    def __repr__(self) -> str:
        return f"<token {self.id}>"


def check_token_id(text: str) -> str:
    """`text` when it can be a token's id; otherwise INVALID_ARGUMENT, which shows no word as long as a secret."""
    if not _TOKEN_ID.fullmatch(text):
        shown = text if len(text) < 2 * _ID_LENGTH else "..."
        raise invalid("token id", shown, f"the {_ID_LENGTH} letters and digits that token list shows")
    return text


def parse_scopes(words: Iterable[str]) -> frozenset[Scope]:
    """The scopes that `words` name; INVALID_ARGUMENT for a word that names none."""
    known = {scope.value: scope for scope in Scope}
    found = set()
    for word in words:
        if word not in known:
            raise invalid("scope", word, ", ".join(known))
        found.add(known[word])
    return frozenset(found)


def format_scopes(scopes: Iterable[Scope]) -> str:
    """The scopes as OAuth spells them: words with spaces between, always in the same order."""
    return " ".join(sorted(scope.value for scope in scopes))


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _checksum(body: str) -> str:
    number = zlib.crc32(body.encode())
    digits = ""
    for _ in range(_CHECKSUM_LENGTH):
        number, digit = divmod(number, len(_ALPHABET))
        digits = _ALPHABET[digit] + digits
    return digits
