"""The life of a job as a pure function: the only place where its state changes.

The monitor feeds it what happens to the processes, the server feeds it what the monitor
reports; both act on what it returns, and neither decides anything by itself.
"""

from dataclasses import dataclass, replace
from enum import Enum
from typing import assert_never

from jobworker.core.outcome import Ending, Exited, Outcome, Signaled, Stopped


class State(Enum):
    """What a caller sees of a job's life."""

    PENDING = "PENDING"  # recorded; its program does not run yet
    RUNNING = "RUNNING"  # its program runs
    COMPLETED = "COMPLETED"  # its program exited with 0
    FAILED = "FAILED"  # it ended in any other way
    STOPPED = "STOPPED"  # a user stopped it

    @property
    def is_final(self) -> bool:
        """Whether the job has ended; a final state never changes."""
        return self not in {State.PENDING, State.RUNNING}


# Phases: finer than states, each carrying exactly what is true in it.


@dataclass(frozen=True, slots=True)
class Pending:
    """Asked for and recorded; nothing runs yet."""


@dataclass(frozen=True, slots=True)
class Running:
    """The program has been running since `started_at`."""

    started_at: float


@dataclass(frozen=True, slots=True)
class Stopping:
    """The program still runs; it has been decided that it ends, and that `cause` is why."""

    started_at: float
    cause: Outcome


@dataclass(frozen=True, slots=True)
class Emptying:
    """The program is gone with `outcome`; what it left behind is being killed and collected."""

    started_at: float
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Ended:
    """Everything of the job is gone and its record is complete."""

    ending: Ending


Phase = Pending | Running | Stopping | Emptying | Ended


# Events: what happened.


@dataclass(frozen=True, slots=True)
class Launched:
    """The kernel has loaded the program."""

    at: float


@dataclass(frozen=True, slots=True)
class StopOrdered:
    """User `by` wants the job gone: `signal` first, SIGKILL after `grace` seconds; 0 means at once."""

    by: str
    signal: int
    grace: float


@dataclass(frozen=True, slots=True)
class LimitReached:
    """The job went over a limit that ends it; `outcome` says which."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class GraceOver:
    """The grace of a stop is over."""


@dataclass(frozen=True, slots=True)
class ProgramEnded:
    """The main process has ended, by itself or by a signal."""

    how: Exited | Signaled


@dataclass(frozen=True, slots=True)
class Finished:
    """The job's end is on record."""

    ending: Ending


Event = Launched | StopOrdered | LimitReached | GraceOver | ProgramEnded | Finished


# Actions: what must be done now, by whoever passed the event in.


@dataclass(frozen=True, slots=True)
class SignalAll:
    """Send `signal` to every process of the job."""

    signal: int


@dataclass(frozen=True, slots=True)
class StartGrace:
    """Deliver GraceOver in `seconds`, or sooner when an earlier one is due before that."""

    seconds: float


@dataclass(frozen=True, slots=True)
class KillAll:
    """End every process of the job with SIGKILL."""


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell everyone who waits that the visible state has changed."""


Action = SignalAll | StartGrace | KillAll | Announce


def advance(phase: Phase, event: Event) -> tuple[Phase, tuple[Action, ...]]:
    """The phase that follows when `event` happens in `phase`, and what to do about it.

    An event that comes too late to matter changes nothing: a stop after the end, a timeout
    while a stop is under way.
    """
    match phase, event:
        case Pending(), Launched(at):
            return Running(at), (Announce(),)
        case Running(started_at), StopOrdered(by, signal, grace):
            stopping = Stopping(started_at, Stopped(by, 0))
            return stopping, (SignalAll(signal), StartGrace(grace)) if grace > 0 else (KillAll(),)
        case Stopping(), StopOrdered(_, _, grace):
            # A second stop may hurry the first one; it never lengthens or renames it.
            return phase, (StartGrace(grace),) if grace > 0 else (KillAll(),)
        case Running(started_at), LimitReached(outcome):
            return Stopping(started_at, outcome), (KillAll(),)
        case Stopping(), GraceOver() | LimitReached():
            return phase, (KillAll(),)
        case Running(started_at), ProgramEnded(how):
            return Emptying(started_at, how), (KillAll(),)
        case Stopping(started_at, cause), ProgramEnded(how):
            return Emptying(started_at, _with_signal(cause, how)), (KillAll(),)
        case ((Pending() | Running() | Stopping() | Emptying()), Finished(ending)):
            return Ended(ending), (Announce(),)
        case _:
            return phase, ()


def _with_signal(cause: Outcome, how: Exited | Signaled) -> Outcome:
    """A stop's outcome, completed with the signal that ended the program."""
    if isinstance(cause, Stopped) and isinstance(how, Signaled):
        return replace(cause, signal=how.signal)
    return cause


def state_of(phase: Phase) -> State:
    """What a caller sees of a job in `phase`."""
    match phase:
        case Pending():
            return State.PENDING
        case Running() | Stopping() | Emptying():
            return State.RUNNING
        case Ended(ending):
            return final_state(ending.outcome)
        case _:
            assert_never(phase)


def final_state(outcome: Outcome) -> State:
    """The final state that belongs to `outcome`: COMPLETED for exit code 0, STOPPED for a stop."""
    match outcome:
        case Exited(0):
            return State.COMPLETED
        case Stopped():
            return State.STOPPED
        case _:
            return State.FAILED
