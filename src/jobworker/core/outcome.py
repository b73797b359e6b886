"""How a job ended: why, when, and what it used."""

from dataclasses import dataclass, fields
from typing import Any, Final, Self, assert_never

from jobworker.core.signals import signal_name


@dataclass(frozen=True, slots=True)
class Exited:
    """The program ended by itself with `code`, 0 to 255."""

    code: int


@dataclass(frozen=True, slots=True)
class Signaled:
    """A signal that nobody asked us to send ended the program."""

    signal: int


@dataclass(frozen=True, slots=True)
class OomKilled:
    """The job needed more memory than its limit, so the kernel ended it."""


@dataclass(frozen=True, slots=True)
class TimedOut:
    """The job ran longer than its timeout."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """The user `by` stopped it; `signal` is what ended the program, 0 when it left by itself."""

    by: str
    signal: int


@dataclass(frozen=True, slots=True)
class OutputLimit:
    """The job wrote more than its limit and its spec said that this ends it."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The job's end was not seen, for `reason`; nothing of it runs any more."""

    reason: str


Outcome = Exited | Signaled | OomKilled | TimedOut | Stopped | OutputLimit | Lost

_KINDS: Final[dict[str, type[Outcome]]] = {
    "exited": Exited,
    "signaled": Signaled,
    "oom_killed": OomKilled,
    "timed_out": TimedOut,
    "stopped": Stopped,
    "output_limit": OutputLimit,
    "lost": Lost,
}
_NAMES: Final = {kind: name for name, kind in _KINDS.items()}


def outcome_kind(outcome: Outcome) -> str:
    """The outcome's name on disk and on the wire, such as `oom_killed`."""
    return _NAMES[type(outcome)]


def outcome_to_document(outcome: Outcome) -> dict[str, Any]:
    """The outcome as plain JSON values with its name under `kind`."""
    return {"kind": outcome_kind(outcome)} | {item.name: getattr(outcome, item.name) for item in fields(outcome)}


def outcome_from_document(document: dict[str, Any]) -> Outcome:
    """The outcome that `outcome_to_document` wrote."""
    values = dict(document)
    return _KINDS[values.pop("kind")](**values)


def exit_status(outcome: Outcome) -> int:
    """The exit status a shell user expects: the program's own, 128+n, 124 timeout, 125 lost."""
    match outcome:
        case Exited(code):
            return code
        case Signaled(signal):
            return 128 + signal
        case Stopped(_, signal):
            return 128 + (signal or 15)
        case OomKilled() | OutputLimit():
            return 128 + 9
        case TimedOut():
            return 124
        case Lost():
            return 125
        case _:
            assert_never(outcome)


def describe(outcome: Outcome) -> str:
    """The outcome in a few plain words, for people."""
    match outcome:
        case Exited(code):
            return f"exited with code {code}"
        case Signaled(signal):
            return f"killed by signal {signal}, {signal_name(signal)}"
        case Stopped(by, _):
            return f"stopped by {by}"
        case OomKilled():
            return "killed: out of memory"
        case OutputLimit():
            return "killed: output limit reached"
        case TimedOut():
            return "killed: timeout reached"
        case Lost(reason):
            return f"lost: {reason}"
        case _:
            assert_never(outcome)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a job has used so far, as the kernel counts it; None where the host cannot tell.

    Times in seconds, sizes in bytes. A cpu limit is kept in periods: of `cpu_periods` in which
    the job wanted to run it was held back in `throttled_periods`, for `throttled_seconds` in all.
    `pids_limit_hits` counts the forks that the limit on processes refused. What is in use *now*,
    `memory_current` and `pids_current`, is None once the job has ended.
    """

    cpu_seconds: float | None = None
    cpu_user_seconds: float | None = None
    cpu_system_seconds: float | None = None
    cpu_periods: int | None = None
    throttled_periods: int | None = None
    throttled_seconds: float | None = None
    memory_current: int | None = None
    memory_peak: int | None = None
    oom_kills: int | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None
    io_read_operations: int | None = None
    io_write_operations: int | None = None
    pids_current: int | None = None
    pids_peak: int | None = None
    pids_limit_hits: int | None = None

    def to_document(self) -> dict[str, Any]:
        """The usage as plain JSON values."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputTotals:
    """How much a job wrote: bytes kept of each stream, and bytes that were dropped and why."""

    stdout_bytes: int = 0
    stderr_bytes: int = 0
    dropped_bytes: int = 0
    dropped_reason: str | None = None  # "limit", or the errno name of the write that failed

    @property
    def kept_bytes(self) -> int:
        """The length of the combined output, which is the end offset of every reader."""
        return self.stdout_bytes + self.stderr_bytes

    def to_document(self) -> dict[str, Any]:
        """The totals as plain JSON values."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """The complete, immutable record of a job's end; times are seconds since the epoch."""

    outcome: Outcome
    ended_at: float
    started_at: float | None = None
    usage: Usage = Usage()
    output: OutputTotals = OutputTotals()

    def to_document(self) -> dict[str, Any]:
        """The ending as plain JSON values; `from_document` gives it back unchanged."""
        return {
            "outcome": outcome_to_document(self.outcome),
            "started_at": self.started_at,
            "ended_at": self.ended_at,
            "usage": self.usage.to_document(),
            "output": self.output.to_document(),
        }

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Self:
        """The ending that `to_document` wrote."""
        return cls(
            outcome=outcome_from_document(document["outcome"]),
            started_at=document["started_at"],
            ended_at=document["ended_at"],
            usage=Usage(**document["usage"]),
            output=OutputTotals(**document["output"]),
        )
