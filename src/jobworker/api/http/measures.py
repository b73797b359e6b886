"""Amounts as callers write them, a number or text with a unit, with what the document says about each."""

import math
import re
import signal
from typing import Annotated, Any, Final

from pydantic import WithJsonSchema

from jobworker.core.requests import MOST_SECONDS

_NUMBER: Final = re.compile(r"[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_LARGEST: Final = 1 << 62
_SIZE: Final = "^[1-9][0-9]{1,5}(M|MiB|G|GiB)$"
_RATE: Final = "^[1-9][0-9]{0,5}(k|K|KiB|M|MiB|G|GiB)$"
_CPU: Final = "^([1-9][0-9]{0,2}|[1-9][0-9]{1,4}m|0\\.[1-9][0-9]{0,2})$"
_DURATION: Final = "^([1-9][0-9]{0,5}(s|m|h)|[1-9][0-9]{0,5})$"
_MOMENT: Final = (
    "^([1-9][0-9]{0,9}|[1-9][0-9]{0,3}(s|m|h|d)"
    "|20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z)$"
)
_SIGNALS: Final = "|".join(number.name.removeprefix("SIG") for number in signal.Signals)


def _amount(number: dict[str, Any], text: str | None, example: str) -> WithJsonSchema:
    spellings: list[dict[str, Any]] = [number, {"type": "null"}]
    if text is not None:
        spellings.insert(1, {"type": "string", "pattern": text})
    return WithJsonSchema({"anyOf": spellings, "examples": [example if text else int(example)]})


def _in_query(text: str, example: str) -> WithJsonSchema:
    spellings = [{"type": "number", "minimum": 0, "maximum": MOST_SECONDS}, {"type": "string", "pattern": text}]
    return WithJsonSchema({"anyOf": spellings, "examples": [example]})


def _whole(least: int, most: int = _LARGEST) -> dict[str, Any]:
    return {"type": "integer", "minimum": least, "maximum": most}


_Measure = int | float | str | None
_Count = int | float | None

Cpu = Annotated[_Measure, _amount({"type": "number", "minimum": 0.01, "maximum": 4096}, _CPU, "500m")]
Size = Annotated[_Measure, _amount(_whole(4 << 20), _SIZE, "64M")]
Rate = Annotated[_Measure, _amount(_whole(1), _RATE, "10M")]
Processes = Annotated[_Count, _amount(_whole(1, 1 << 22), None, "64")]
Operations = Annotated[_Count, _amount(_whole(1), None, "100")]
Duration = Annotated[_Measure, _amount({"type": "number", "minimum": 0.001, "maximum": 315360000}, _DURATION, "90s")]

#: There is always a cap on output, so that null does not lift it.
Cap = Annotated[
    int | float | str, WithJsonSchema({"anyOf": [_whole(0), {"type": "string", "pattern": _SIZE}], "examples": ["1G"]})
]
Grace = Annotated[
    int | float | str,
    WithJsonSchema(
        {"anyOf": [{"type": "number", "minimum": 0, "maximum": MOST_SECONDS}, {"type": "string", "pattern": _DURATION}]}
    ),
]
Signal = Annotated[
    int | float | str,
    WithJsonSchema(
        {"anyOf": [_whole(1, 64), {"type": "string", "pattern": f"^(SIG)?({_SIGNALS})$"}], "examples": ["HUP"]}
    ),
]
Patience = Annotated[str | None, _in_query(_DURATION, "30s")]
Moment = Annotated[str | None, _in_query(_MOMENT, "10m")]


def number(text: str) -> float | None:
    """The number that `text` spells as JSON would, such as 2.5e3; None when it is anything else."""
    return float(text) if _NUMBER.fullmatch(text) and math.isfinite(float(text)) else None


def plain(value: Any) -> Any:
    """A number that is written as 5.0 and means 5."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
