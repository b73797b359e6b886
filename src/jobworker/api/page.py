"""The pages of a list: how long they are, and where the next one begins, as a word that callers hand back."""

import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Final

from jobworker.core.errors import invalid
from jobworker.core.requests import LARGEST

DEFAULT_PAGE: Final = 100
MAX_PAGE: Final = 1000
_CURSOR: Final = struct.Struct(">Q")


def token_of(cursor: int) -> str:
    """The word for a cursor."""
    return urlsafe_b64encode(_CURSOR.pack(cursor)).decode("ascii")


def cursor_of(token: str, field: str) -> int:
    """The cursor that `token_of` made the word of; INVALID_ARGUMENT, naming `field`, for any other word."""
    try:
        (cursor,) = _CURSOR.unpack(urlsafe_b64decode(token.encode("ascii")))
    except (ValueError, struct.error):
        cursor = LARGEST + 1
    if cursor > LARGEST:
        raise invalid(field, token, "the token of the next page, unchanged from the page before")
    return int(cursor)
