"""A job's life goes forward only, ends once, and every event has one answer in every phase."""

from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobworker.core.lifecycle import (
    Action,
    Announce,
    Emptying,
    Ended,
    Event,
    Finished,
    GraceOver,
    KillAll,
    Launched,
    LimitReached,
    Pending,
    Phase,
    ProgramEnded,
    Running,
    SignalAll,
    StartGrace,
    State,
    StopOrdered,
    Stopping,
    advance,
    final_state,
    state_of,
)
from jobworker.core.outcome import (
    Ending,
    Exited,
    Lost,
    OomKilled,
    Outcome,
    OutputLimit,
    Signaled,
    Stopped,
    TimedOut,
)

T = 1_700_000_000.0
STOP_NOW = StopOrdered("alice", 15, 0)
STOP_SOON = StopOrdered("alice", 15, 10)
DONE = Ending(outcome=Exited(0), ended_at=T + 1, started_at=T)
AGAIN = Ending(outcome=Lost("host rebooted"), ended_at=T + 2)

PENDING = Pending()
RUNNING = Running(T)
STOPPING = Stopping(T, Stopped("alice", 0))
TIMING_OUT = Stopping(T, TimedOut())
EMPTYING = Emptying(T, Exited(3))
ENDED = Ended(DONE)
KILL = (KillAll(),)
ANNOUNCE = (Announce(),)

# The events of every phase that change something; all others are asserted to change nothing.
TABLE: dict[tuple[Phase, Event], tuple[Phase, tuple[Action, ...]]] = {
    (PENDING, Launched(T)): (RUNNING, ANNOUNCE),
    (PENDING, Finished(DONE)): (ENDED, ANNOUNCE),
    (PENDING, Finished(AGAIN)): (Ended(AGAIN), ANNOUNCE),
    (RUNNING, STOP_NOW): (STOPPING, KILL),
    (RUNNING, STOP_SOON): (STOPPING, (SignalAll(15), StartGrace(10))),
    (RUNNING, StopOrdered("bob", 1, 2)): (Stopping(T, Stopped("bob", 0)), (SignalAll(1), StartGrace(2))),
    (RUNNING, LimitReached(TimedOut())): (TIMING_OUT, KILL),
    (RUNNING, LimitReached(OutputLimit())): (Stopping(T, OutputLimit()), KILL),
    (RUNNING, ProgramEnded(Exited(3))): (EMPTYING, KILL),
    (RUNNING, ProgramEnded(Signaled(9))): (Emptying(T, Signaled(9)), KILL),
    (RUNNING, Finished(DONE)): (ENDED, ANNOUNCE),
    (RUNNING, Finished(AGAIN)): (Ended(AGAIN), ANNOUNCE),
    # A second stop hurries the first; it neither lengthens nor renames it.
    (STOPPING, STOP_NOW): (STOPPING, KILL),
    (STOPPING, STOP_SOON): (STOPPING, (StartGrace(10),)),
    (STOPPING, StopOrdered("bob", 1, 2)): (STOPPING, (StartGrace(2),)),
    (STOPPING, GraceOver()): (STOPPING, KILL),
    # The stop came first, so it stays the reason, and the grace is over.
    (STOPPING, LimitReached(TimedOut())): (STOPPING, KILL),
    (STOPPING, LimitReached(OutputLimit())): (STOPPING, KILL),
    (STOPPING, ProgramEnded(Exited(3))): (Emptying(T, Stopped("alice", 0)), KILL),
    (STOPPING, ProgramEnded(Signaled(9))): (Emptying(T, Stopped("alice", 9)), KILL),
    (STOPPING, Finished(DONE)): (ENDED, ANNOUNCE),
    (STOPPING, Finished(AGAIN)): (Ended(AGAIN), ANNOUNCE),
    (TIMING_OUT, STOP_NOW): (TIMING_OUT, KILL),
    (TIMING_OUT, STOP_SOON): (TIMING_OUT, (StartGrace(10),)),
    (TIMING_OUT, StopOrdered("bob", 1, 2)): (TIMING_OUT, (StartGrace(2),)),
    (TIMING_OUT, GraceOver()): (TIMING_OUT, KILL),
    (TIMING_OUT, LimitReached(TimedOut())): (TIMING_OUT, KILL),
    (TIMING_OUT, LimitReached(OutputLimit())): (TIMING_OUT, KILL),
    (TIMING_OUT, ProgramEnded(Exited(3))): (Emptying(T, TimedOut()), KILL),
    (TIMING_OUT, ProgramEnded(Signaled(9))): (Emptying(T, TimedOut()), KILL),
    (TIMING_OUT, Finished(DONE)): (ENDED, ANNOUNCE),
    (TIMING_OUT, Finished(AGAIN)): (Ended(AGAIN), ANNOUNCE),
    (EMPTYING, Finished(DONE)): (ENDED, ANNOUNCE),
    (EMPTYING, Finished(AGAIN)): (Ended(AGAIN), ANNOUNCE),
}
PHASES: list[Phase] = [PENDING, RUNNING, STOPPING, TIMING_OUT, EMPTYING, ENDED]
EVENTS: list[Event] = [
    Launched(T),
    STOP_NOW,
    STOP_SOON,
    StopOrdered("bob", 1, 2),
    LimitReached(TimedOut()),
    LimitReached(OutputLimit()),
    GraceOver(),
    ProgramEnded(Exited(3)),
    ProgramEnded(Signaled(9)),
    Finished(DONE),
    Finished(AGAIN),
]


@pytest.mark.parametrize("phase", PHASES, ids=str)
@pytest.mark.parametrize("event", EVENTS, ids=str)
def test_every_event_in_every_phase_has_the_answer_of_the_table(phase: Phase, event: Event) -> None:
    assert advance(phase, event) == TABLE.get((phase, event), (phase, ()))


def test_the_table_knows_every_kind_of_phase_and_event() -> None:
    assert {type(phase) for phase in PHASES} == set(get_args(Phase))
    assert {type(event) for event in EVENTS} == set(get_args(Event))
    assert all(phase in PHASES and event in EVENTS for phase, event in TABLE)


# What may follow what. Nothing else ever does.
LEGAL: dict[type[Phase], set[type[Phase]]] = {
    Pending: {Pending, Running, Ended},
    Running: {Running, Stopping, Emptying, Ended},
    Stopping: {Stopping, Emptying, Ended},
    Emptying: {Emptying, Ended},
    Ended: {Ended},
}
OUTCOMES: list[Outcome] = [
    Exited(0),
    Exited(1),
    Signaled(11),
    OomKilled(),
    TimedOut(),
    Stopped("alice", 9),
    OutputLimit(),
    Lost("host rebooted"),
]
ANY_EVENT: st.SearchStrategy[Event] = st.one_of(
    st.builds(Launched, at=st.floats(0, 1e10)),
    st.builds(
        StopOrdered,
        by=st.sampled_from(["alice", "bob"]),
        signal=st.integers(1, 64),
        grace=st.sampled_from([0, 10]),
    ),
    st.builds(LimitReached, outcome=st.sampled_from([TimedOut(), OutputLimit()])),
    st.just(GraceOver()),
    st.builds(ProgramEnded, how=st.sampled_from([Exited(0), Exited(1), Signaled(9)])),
    st.builds(Finished, ending=st.builds(Ending, outcome=st.sampled_from(OUTCOMES), ended_at=st.floats(0, 1e10))),
)


def walk(events: list[Event]) -> list[tuple[Phase, tuple[Action, ...]]]:
    """Every phase that a new job passes through, with the actions on entering it."""
    steps: list[tuple[Phase, tuple[Action, ...]]] = [(Pending(), ())]
    for event in events:
        steps.append(advance(steps[-1][0], event))
    return steps


@given(st.lists(ANY_EVENT, max_size=30))
def test_whatever_happens_only_legal_transitions_are_made(events: list[Event]) -> None:  # P12
    phases = [phase for phase, _ in walk(events)]
    assert all(type(after) in LEGAL[type(before)] for before, after in pairwise(phases))


@given(st.lists(ANY_EVENT, max_size=30))
def test_whatever_happens_there_is_at_most_one_final_state_and_it_never_changes(events: list[Event]) -> None:  # P5 P12
    finals = [phase for phase, _ in walk(events) if state_of(phase).is_final]
    assert all(phase == finals[0] for phase in finals)


@given(st.lists(ANY_EVENT, max_size=30))
def test_a_change_that_callers_can_see_is_announced_and_nothing_else_is(events: list[Event]) -> None:
    steps = walk(events)
    for (before, _), (after, actions) in pairwise(steps):
        assert (Announce() in actions) == (state_of(before) != state_of(after))


@given(st.lists(ANY_EVENT, max_size=30))
def test_the_reason_of_an_ordered_end_never_changes(events: list[Event]) -> None:  # P5
    causes = [phase.cause for phase, _ in walk(events) if isinstance(phase, Stopping)]
    assert len(set(causes)) <= 1


@given(st.lists(ANY_EVENT, max_size=30))
def test_nothing_is_signalled_before_the_launch_or_after_the_end(events: list[Event]) -> None:  # P7
    steps = walk(events)
    for (before, _), (_, actions) in pairwise(steps):
        if isinstance(before, (Pending, Ended)):
            assert set(actions) <= {Announce()}


@given(st.integers(0, 5), st.lists(st.sampled_from([STOP_NOW, STOP_SOON]), min_size=20, max_size=20))
def test_twenty_stops_around_a_natural_end_give_one_consistent_end(position: int, stops: list[Event]) -> None:  # P5
    events = [Launched(T), *stops[:position], ProgramEnded(Exited(0)), *stops[position:]]
    last = walk(events)[-1][0]
    assert last == Emptying(T, Stopped("alice", 0) if position else Exited(0))


@pytest.mark.parametrize(
    ("phase", "state"),
    [
        (PENDING, State.PENDING),
        (RUNNING, State.RUNNING),
        (STOPPING, State.RUNNING),
        (EMPTYING, State.RUNNING),  # P2: what is left behind still lives
        (ENDED, State.COMPLETED),
        (Ended(AGAIN), State.FAILED),
    ],
)
def test_callers_see_a_final_state_only_when_all_is_over(phase: Phase, state: State) -> None:
    assert state_of(phase) is state
    assert state.is_final == isinstance(phase, Ended)


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (Exited(0), State.COMPLETED),
        (Exited(1), State.FAILED),
        (Signaled(15), State.FAILED),
        (OomKilled(), State.FAILED),
        (TimedOut(), State.FAILED),
        (OutputLimit(), State.FAILED),
        (Lost("host rebooted"), State.FAILED),
        (Stopped("alice", 9), State.STOPPED),
        (Stopped("alice", 0), State.STOPPED),
    ],
)
def test_an_outcome_has_one_final_state(outcome: Outcome, state: State) -> None:
    assert final_state(outcome) is state
    assert state.is_final
