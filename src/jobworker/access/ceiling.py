"""The most that a job of one role may ask for."""

from dataclasses import dataclass, fields

from jobworker.core.errors import invalid
from jobworker.core.spec import Limits


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
                raise invalid(item.name, "unlimited" if asked is None else asked, f"at most {highest:g} for your role")
