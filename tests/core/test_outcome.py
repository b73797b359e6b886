"""Why a job ended is one of seven things, each with its document, its exit status and its words."""

import json
from dataclasses import fields
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobworker.core.outcome import (
    Ending,
    Exited,
    Lost,
    OomKilled,
    Outcome,
    OutputLimit,
    OutputTotals,
    Signaled,
    Stopped,
    TimedOut,
    Usage,
    describe,
    exit_status,
    outcome_from_document,
    outcome_kind,
    outcome_to_document,
)

# One row an outcome: document, exit status, words.
TABLE: list[tuple[Outcome, dict[str, Any], int, str]] = [
    (Exited(0), {"kind": "exited", "code": 0}, 0, "exited with code 0"),
    (Exited(255), {"kind": "exited", "code": 255}, 255, "exited with code 255"),
    (Signaled(11), {"kind": "signaled", "signal": 11}, 139, "killed by signal 11, SIGSEGV"),
    (OomKilled(), {"kind": "oom_killed"}, 137, "killed: out of memory"),
    (TimedOut(), {"kind": "timed_out"}, 124, "killed: timeout reached"),
    (Stopped("alice", 9), {"kind": "stopped", "by": "alice", "signal": 9}, 137, "stopped by alice"),
    (Stopped("alice", 15), {"kind": "stopped", "by": "alice", "signal": 15}, 143, "stopped by alice"),
    (Stopped("alice", 0), {"kind": "stopped", "by": "alice", "signal": 0}, 143, "stopped by alice"),
    (OutputLimit(), {"kind": "output_limit"}, 137, "killed: output limit reached"),
    (Lost("host rebooted"), {"kind": "lost", "reason": "host rebooted"}, 125, "lost: host rebooted"),
]


@pytest.mark.parametrize(("outcome", "document", "status", "description"), TABLE)
def test_an_outcome_has_one_document_one_exit_status_and_one_description(
    outcome: Outcome, document: dict[str, Any], status: int, description: str
) -> None:  # P8
    assert outcome_to_document(outcome) == document
    assert outcome_from_document(document) == outcome
    assert outcome_kind(outcome) == document["kind"]
    assert exit_status(outcome) == status
    assert describe(outcome) == description


def test_every_kind_of_outcome_is_in_the_table() -> None:
    assert {type(row[0]) for row in TABLE} == set(get_args(Outcome))


@pytest.mark.parametrize("code", range(256))
def test_an_exit_code_is_passed_on_exactly(code: int) -> None:  # P8
    assert exit_status(Exited(code)) == code


def test_stopped_killed_out_of_memory_and_timed_out_differ() -> None:  # P8
    alike: list[Outcome] = [Stopped("alice", 9), Signaled(9), OomKilled(), TimedOut(), OutputLimit(), Exited(137)]
    assert len({outcome_kind(outcome) for outcome in alike}) == len(alike)
    assert len({describe(outcome) for outcome in alike}) == len(alike)


@pytest.mark.parametrize("document", [{"kind": "vanished"}, {"kind": "exited"}, {"kind": "oom_killed", "code": 1}, {}])
def test_a_document_of_no_outcome_is_an_error(document: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError)):
        outcome_from_document(document)


def test_reading_a_document_leaves_it_as_it_was() -> None:
    document = {"kind": "exited", "code": 1}
    outcome_from_document(document)
    assert document == {"kind": "exited", "code": 1}


COUNTS = st.integers(min_value=0, max_value=1 << 62)
SECONDS = st.floats(min_value=0, max_value=1e10)
ENDINGS = st.builds(
    Ending,
    outcome=st.sampled_from([row[0] for row in TABLE]),
    ended_at=SECONDS,
    started_at=st.none() | SECONDS,
    usage=st.builds(
        Usage,
        **{item.name: st.none() | (SECONDS if item.name.endswith("seconds") else COUNTS) for item in fields(Usage)},
    ),
    output=st.builds(
        OutputTotals,
        stdout_bytes=COUNTS,
        stderr_bytes=COUNTS,
        dropped_bytes=COUNTS,
        dropped_reason=st.sampled_from([None, "limit", "ENOSPC"]),
    ),
)


@given(ENDINGS)
def test_an_ending_comes_back_from_its_document_unchanged(ending: Ending) -> None:
    document = json.loads(json.dumps(ending.to_document()))
    assert Ending.from_document(document) == ending
    for part, kind in ((document, Ending), (document["usage"], Usage), (document["output"], OutputTotals)):
        assert part.keys() == {item.name for item in fields(kind)}


def test_an_ending_that_an_earlier_release_wrote_is_read() -> None:
    """What it did not count is unknown."""
    document = json.loads("""{
        "outcome": {"kind": "exited", "code": 3}, "started_at": 1.5, "ended_at": 2.5,
        "usage": {"cpu_seconds": 0.5, "throttled_seconds": 0.0, "memory_peak": 4096, "oom_kills": 0,
                  "io_read_bytes": 1, "io_write_bytes": 2},
        "output": {"stdout_bytes": 3, "stderr_bytes": 0, "dropped_bytes": 0, "dropped_reason": null}
    }""")
    usage = Ending.from_document(document).usage
    assert (usage.cpu_seconds, usage.memory_peak, usage.io_write_bytes) == (0.5, 4096, 2)
    assert (usage.pids_peak, usage.cpu_periods, usage.memory_current) == (None, None, None)


def test_what_the_host_cannot_tell_is_none_and_not_zero() -> None:
    assert set(Usage().to_document().values()) == {None}


def test_the_combined_output_is_as_long_as_both_streams_without_what_was_dropped() -> None:
    assert OutputTotals(stdout_bytes=3, stderr_bytes=4, dropped_bytes=100, dropped_reason="limit").kept_bytes == 7
