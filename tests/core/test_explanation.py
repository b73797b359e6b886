"""Why a job ended, which limits it met, and what to change: one row a sentence."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobworker.core.explanation import Remark, explain
from jobworker.core.outcome import (
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
)
from jobworker.core.spec import JobSpec, Limits, MiB
from jobworker.core.units import parse_duration, parse_size

NOTHING = OutputTotals()
FREE = Limits(memory=None, pids=None)

# limits, outcome, usage → the first remark.
CAUSES: list[tuple[Limits, Outcome | None, Usage, str]] = [
    (Limits(), None, Usage(), "still runs, for 1m30s so far"),
    (Limits(), Exited(0), Usage(), "completed: the program exited with code 0"),
    (
        Limits(),
        Exited(3),
        Usage(),
        (
            "failed: the program exited with code 3, whose meaning is up to the program; "
            "see its output: jobctl logs --stderr"
        ),
    ),
    (
        Limits(),
        Exited(126),
        Usage(),
        (
            "failed: the program exited with code 126: a shell found the command and could not execute it; "
            "check that the file is executable and that its #! line names an interpreter that exists"
        ),
    ),
    (
        Limits(),
        Exited(127),
        Usage(),
        (
            "failed: the program exited with code 127: a shell did not find the command; check its spelling and PATH; "
            "jobs see PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "
            "unless --env PATH=… says otherwise"
        ),
    ),
    (
        Limits(),
        Exited(139),
        Usage(),
        (
            "failed: the program exited with code 139, as a shell does when its command was ended by SIGSEGV: "
            "it accessed memory that it may not, which is a bug in the program"
        ),
    ),
    (
        Limits(),
        Signaled(11),
        Usage(),
        "killed by signal 11, SIGSEGV: it accessed memory that it may not, which is a bug in the program",
    ),
    (
        Limits(),
        Signaled(9),
        Usage(),
        (
            "killed by signal 9, SIGKILL: something on the server killed it; "
            "it was neither a stop nor one of the job's limits"
        ),
    ),
    (
        Limits(),
        Signaled(31),
        Usage(),
        "killed by signal 31, SIGSYS: it made a system call that the sandbox does not allow",
    ),
    (Limits(), Signaled(40), Usage(), "killed by signal 40, SIGRTMIN+6"),
    (
        Limits(memory=512 * MiB),
        OomKilled(),
        Usage(memory_peak=512 * MiB),
        "killed: out of memory, peak 512 of 512 MiB; try --memory 768M",
    ),
    (
        Limits(memory=2048 * MiB),
        OomKilled(),
        Usage(memory_peak=1000 * MiB),
        "killed: out of memory, peak 1000 MiB of 2 GiB; try --memory 3G",
    ),
    (Limits(memory=5 * MiB), OomKilled(), Usage(), "killed: out of memory; try --memory 8M"),
    (FREE, OomKilled(), Usage(memory_peak=5), "killed: out of memory"),
    (
        Limits(timeout=3600),
        TimedOut(),
        Usage(),
        "killed: it ran longer than its timeout of 1h; try --timeout 2h",
    ),
    (
        Limits(output_bytes=64 * MiB),
        OutputLimit(),
        Usage(),
        (
            "killed: it wrote more than its output limit of 64 MiB; "
            "try --output-limit 128M, or --on-output-limit drop to let it run on"
        ),
    ),
    (Limits(), Stopped("bob", 9), Usage(), "stopped by bob; SIGKILL ended it"),
    (Limits(), Stopped("bob", 0), Usage(), "stopped by bob; it left by itself when it was asked to"),
    (
        Limits(),
        Lost("host rebooted"),
        Usage(),
        "lost: host rebooted; how its program ended is not known; start it again if it is needed",
    ),
]

# limits, usage, output → what else is said.
ALSO: list[tuple[Limits, Usage, OutputTotals, list[str]]] = [
    (Limits(), Usage(), NOTHING, []),
    (
        Limits(),
        Usage(oom_kills=2),
        NOTHING,
        ["2 of its processes were killed because memory ran out; try a higher --memory"],
    ),
    (
        Limits(pids=256),
        Usage(pids_limit_hits=7, pids_peak=256),
        NOTHING,
        ["7 times it could not make a process or thread: its limit is 256; try --pids 512"],
    ),
    (
        Limits(pids=256),
        Usage(pids_limit_hits=None, pids_peak=256),
        NOTHING,
        ["it had as many processes and threads as its limit allows, 256; more may have been refused; try --pids 512"],
    ),
    (Limits(pids=256), Usage(pids_limit_hits=0, pids_peak=255), NOTHING, []),
    (Limits(pids=1), Usage(pids_peak=1), NOTHING, []),
    (FREE, Usage(pids_peak=10_000), NOTHING, []),
    (
        Limits(cpu=0.5),
        Usage(cpu_periods=40, throttled_periods=30),
        NOTHING,
        ["its cpu limit of 0.5 held it back in 75% of the time in which it wanted to run; try --cpu 1"],
    ),
    (Limits(cpu=0.5), Usage(cpu_periods=40, throttled_periods=3), NOTHING, []),
    (Limits(cpu=0.5), Usage(cpu_periods=9, throttled_periods=9), NOTHING, []),
    (Limits(cpu=0.5), Usage(), NOTHING, []),
    (Limits(), Usage(cpu_periods=40, throttled_periods=30), NOTHING, []),
    (
        Limits(output_bytes=MiB),
        Usage(),
        OutputTotals(dropped_bytes=3 * MiB, dropped_reason="limit"),
        ["3 MiB of its output were not kept: its output limit is 1 MiB; try --output-limit 2M"],
    ),
    (
        Limits(),
        Usage(),
        OutputTotals(dropped_bytes=5, dropped_reason="ENOSPC"),
        ["5 B of its output were not kept: the server could not write them (ENOSPC); tell the server's operator"],
    ),
]


def said(limits: Limits, outcome: Outcome | None, usage: Usage, output: OutputTotals = NOTHING) -> list[str]:
    return [str(remark) for remark in explain(JobSpec(program="p", limits=limits), outcome, usage, output, 90.0)]


@pytest.mark.parametrize(("limits", "outcome", "usage", "sentence"), CAUSES)
def test_the_first_remark_says_why_the_job_ended(
    limits: Limits, outcome: Outcome | None, usage: Usage, sentence: str
) -> None:
    assert said(limits, outcome, usage)[0] == sentence


def test_every_outcome_is_explained() -> None:
    assert {type(row[1]) for row in CAUSES} == {*get_args(Outcome), type(None)}


@pytest.mark.parametrize(("limits", "usage", "output", "sentences"), ALSO)
def test_further_remarks_name_the_limits_that_were_met(
    limits: Limits, usage: Usage, output: OutputTotals, sentences: list[str]
) -> None:
    """Whether it still runs or has ended."""
    for outcome in (None, Exited(1)):
        assert said(limits, outcome, usage, output)[1:] == sentences


def test_a_job_that_ran_out_of_memory_is_told_so_once() -> None:
    assert len(said(Limits(), OomKilled(), Usage(oom_kills=3))) == 1


@given(st.integers(4 * MiB, 1 << 40), st.floats(0.001, 1e7), st.integers(0, 1 << 40))
def test_what_is_advised_is_more_than_there_was_and_is_accepted(memory: int, timeout: float, output: int) -> None:
    limits = Limits(memory=memory, timeout=timeout, output_bytes=output)
    spec = JobSpec(program="p", limits=limits)

    def advised(outcome: Outcome, option: str) -> str:
        advice = explain(spec, outcome, Usage(), NOTHING, 1.0)[0].advice
        assert advice is not None
        return advice.partition(f"{option} ")[2].partition(",")[0]

    assert parse_size(advised(OomKilled(), "--memory")) > memory
    assert parse_size(advised(OutputLimit(), "--output-limit")) > output
    assert parse_duration(advised(TimedOut(), "--timeout")) > timeout


def test_a_remark_without_advice_is_only_what_happened() -> None:
    assert (str(Remark("it rained")), str(Remark("it rained", "take an umbrella"))) == (
        "it rained",
        "it rained; take an umbrella",
    )
