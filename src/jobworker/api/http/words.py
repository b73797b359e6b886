"""Words that are bytes, in JSON: text where they are text, an object with their base64 where they are not."""

import binascii
import os
from base64 import b64decode, b64encode
from decimal import Decimal
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_TEXT: Final = {"type": "string", "pattern": "^[^\\x00]*$"}
_PART: Final = "[A-Za-z0-9_+.-]*[A-Za-z0-9_+-]"
_PROGRAM: Final = {"type": "string", "pattern": f"^((/{_PART})+|{_PART})$"}
_PLACE: Final = {"type": "string", "pattern": "^/[^\\x00]*$"}
_BYTES: Final = {
    "type": "object",
    "properties": {"base64": {"type": "string", "format": "byte", "pattern": "^([A-Za-z0-9+/]{4})*$"}},
    "required": ["base64"],
    "additionalProperties": False,
}
_NUMBER: Final = {"type": "number"}
_ALLOWED: Final = 'text, or {"base64": "…"} for bytes that are not UTF-8'


def _read(value: Any) -> str:
    """The word as a spec holds it; ValueError for anything else."""
    if isinstance(value, str) and _is_unicode(value):
        return value
    if isinstance(value, dict) and value.keys() == {"base64"}:
        try:
            return os.fsdecode(b64decode(value["base64"], validate=True))
        except (binascii.Error, TypeError, ValueError):
            pass
    raise ValueError(f"expected {_ALLOWED}")


def _read_argument(value: Any) -> str:
    """A word, or a number as its decimal text."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and Decimal(value).is_finite():
        return format(Decimal(repr(value)), "f")
    return _read(value)


def _is_unicode(text: str) -> bool:
    # JSON can spell halves of surrogate pairs, which would be taken for raw bytes.
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _write(word: str) -> str | dict[str, str]:
    return word if _is_unicode(word) else {"base64": b64encode(os.fsencode(word)).decode("ascii")}


Word = Annotated[str, BeforeValidator(_read), PlainSerializer(_write), WithJsonSchema({"anyOf": [_TEXT, _BYTES]})]
Program = Annotated[
    str,
    BeforeValidator(_read),
    PlainSerializer(_write),
    WithJsonSchema(
        {
            "anyOf": [_PROGRAM, _BYTES],
            "description": f"A path, or a name in the server's PATH: {_ALLOWED}.",
            "examples": ["/bin/sleep"],
        }
    ),
]
Place = Annotated[
    str,
    BeforeValidator(_read),
    PlainSerializer(_write),
    WithJsonSchema({"anyOf": [_PLACE, _BYTES], "description": f"An absolute path: {_ALLOWED}."}),
]
Argument = Annotated[
    str, BeforeValidator(_read_argument), PlainSerializer(_write), WithJsonSchema({"anyOf": [_TEXT, _NUMBER, _BYTES]})
]
