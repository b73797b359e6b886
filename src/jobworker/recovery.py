"""What to do at start with each job that an earlier server left: a pure decision from the facts."""

from dataclasses import dataclass
from typing import Final, assert_never

from jobworker.core.outcome import Lost

#: Nothing of it has ever run, so that it may be started again under the same key.
NEVER_STARTED: Final = Lost("the server stopped before the job was started")


@dataclass(frozen=True, slots=True)
class Facts:
    """What the disk and the kernel tell about one job."""

    has_directory: bool
    has_outcome: bool
    is_supervised: bool  # a living monitor holds the lock
    is_same_boot: bool


@dataclass(frozen=True, slots=True)
class Adopt:
    """Its monitor lives: go on as if nothing had been."""


@dataclass(frozen=True, slots=True)
class Believe:
    """It ended meanwhile and said how."""


@dataclass(frozen=True, slots=True)
class DeclareLost:
    """It is gone and did not say how: clean up, and say so."""

    outcome: Lost


Verdict = Adopt | Believe | DeclareLost


def judge(facts: Facts) -> Verdict:
    """What became of the job; the monitor's own word, where there is one, is always believed."""
    match facts:
        case Facts(has_outcome=True):
            return Believe()
        case Facts(is_supervised=True):
            return Adopt()
        # A reset may also have cost the host a directory that nobody had synced.
        case Facts(is_same_boot=False):
            return DeclareLost(Lost("host rebooted"))
        case Facts(has_directory=False):
            return DeclareLost(NEVER_STARTED)
        case Facts():
            return DeclareLost(Lost("its monitor was killed"))
        case _:
            assert_never(facts)
