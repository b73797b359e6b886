"""The most that a job of one role may ask for."""

from dataclasses import dataclass, fields
from typing import Final

from jobworker.core.errors import invalid
from jobworker.core.spec import Limits
from jobworker.core.units import format_duration, format_size

_FORMATS: Final = {"memory": format_size, "output_bytes": format_size, "timeout": format_duration}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """Upper bounds of limits; None means no bound. Units as in `Limits`."""

    cpu: float | None = None
    memory: int | None = None
    pids: int | None = None
    timeout: float | None = None
    output_bytes: int | None = None

    def check(self, limits: Limits) -> None:
        """Returns when `limits` stay below; INVALID_ARGUMENT names the first one that does not."""
        for item in fields(self):
            highest = getattr(self, item.name)
            asked = getattr(limits, item.name)
            if highest is not None and (asked is None or asked > highest):
                shown = _FORMATS.get(item.name, str)(highest)
                raise invalid(item.name, "unlimited" if asked is None else asked, f"at most {shown} for your role")
