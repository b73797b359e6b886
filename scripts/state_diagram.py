"""Prints the life of a job as a Mermaid diagram, found by trying every event in every phase."""

import re
import sys
from itertools import groupby
from pathlib import Path
from typing import Final, get_args

from jobworker.core.lifecycle import (
    Action,
    Emptying,
    Ended,
    Event,
    Finished,
    GraceOver,
    Launched,
    LimitReached,
    Pending,
    Phase,
    ProgramEnded,
    Running,
    State,
    StopOrdered,
    Stopping,
    advance,
    state_of,
)
from jobworker.core.outcome import Ending, Exited, Stopped, TimedOut

PAGE: Final = Path(__file__).parent.parent / "ARCHITECTURE.md"
MARKED: Final = re.compile(r"(?<=```mermaid\n)stateDiagram-v2\n.*?(?=```)", re.DOTALL)

# One of each kind, and two where the answer depends on more than the kind.
PHASES: Final[tuple[Phase, ...]] = (
    Pending(),
    Running(0.0),
    Stopping(0.0, Stopped("user", 0)),
    Emptying(0.0, Exited(0)),
    Ended(Ending(outcome=Exited(0), ended_at=0.0)),
)
EVENTS: Final[tuple[tuple[str, Event], ...]] = (
    ("Launched", Launched(0.0)),
    ("StopOrdered", StopOrdered("user", 15, 0)),
    ("StopOrdered with grace", StopOrdered("user", 15, 10)),
    ("LimitReached", LimitReached(TimedOut())),
    ("GraceOver", GraceOver()),
    ("ProgramEnded", ProgramEnded(Exited(0))),
    ("Finished", Finished(Ending(outcome=Exited(0), ended_at=0.0))),
)


def render() -> str:
    """The diagram as text; a kind of phase or event that is missing above is an error."""
    for union, examples in ((Phase, PHASES), (Event, [event for _, event in EVENTS])):
        if missing := set(get_args(union)) - {type(example) for example in examples}:
            raise ValueError(f"no example of {', '.join(sorted(kind.__name__ for kind in missing))}")
    lines = ["stateDiagram-v2", f"    [*] --> {_name(PHASES[0])}"]
    for visible, phases in groupby(PHASES, key=_visible):
        lines += [f"    state {visible} {{", *(f"        {_name(phase)}" for phase in phases), "    }"]
    lines += [arrow for phase in PHASES for arrow in _arrows(phase)]
    lines += [f"    {_name(PHASES[-1])} --> [*]"]
    return "".join(line + "\n" for line in lines)


def _visible(phase: Phase) -> str:
    """The box that `phase` belongs to: what a caller sees of it."""
    state = state_of(phase)
    if not state.is_final:
        return state.value
    return f'"{", ".join(final.value for final in State if final.is_final)}" as FINAL'


def _arrows(phase: Phase) -> list[str]:
    """One line for every event that does something in `phase`."""
    arrows = []
    for label, event in EVENTS:
        after, actions = advance(phase, event)
        if after != phase or actions:
            arrows.append(f"    {_name(phase)} --> {_name(after)}: {label} / {', '.join(map(_name, actions))}")
    return arrows


def _name(value: Phase | Action) -> str:
    return type(value).__name__


def main() -> None:
    """Prints the diagram; with --write it goes into ARCHITECTURE.md."""
    diagram = render()
    if "--write" in sys.argv:
        PAGE.write_text(MARKED.sub(lambda _: diagram, PAGE.read_text(), count=1))
    else:
        sys.stdout.write(diagram)


if __name__ == "__main__":
    main()
