"""Says in plain words why a job ended, which limits it met, and what to change."""

import math
import signal
from dataclasses import dataclass
from typing import Final, assert_never

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
    describe,
)
from jobworker.core.signals import signal_name
from jobworker.core.spec import JobSpec, Limits, MiB
from jobworker.core.units import format_duration, format_size

_WORTH_TELLING: Final = 0.1  # the part of its periods in which a cpu limit has to hold a job back
_FEWEST_PERIODS: Final = 10  # a second: less says little
_SIGNAL_BASE: Final = 128  # what a shell adds to the number of the signal that ended its command

_SIGNALS: Final = {
    signal.SIGABRT: "it gave up by itself, as after a failed assertion",
    signal.SIGALRM: "an alarm that it had set went off",
    signal.SIGBUS: "it accessed memory with nothing behind it, such as a mapped file that was cut short",
    signal.SIGFPE: "it divided by zero or did other impossible arithmetic",
    signal.SIGHUP: "it was told that its terminal is gone",
    signal.SIGILL: "it ran into an illegal instruction, as in a program built for another processor",
    signal.SIGINT: "it was interrupted",
    signal.SIGKILL: "something on the server killed it; it was neither a stop nor one of the job's limits",
    signal.SIGPIPE: "it wrote to a pipe that nobody reads any more",
    signal.SIGQUIT: "it was told to quit",
    signal.SIGSEGV: "it accessed memory that it may not, which is a bug in the program",
    signal.SIGSYS: "it made a system call that the sandbox does not allow",
    signal.SIGTERM: "something other than a stop asked it to end",
    signal.SIGTRAP: "it ran into a breakpoint",
    signal.SIGXCPU: "it used more cpu time than it had allowed itself",
    signal.SIGXFSZ: "it wrote a larger file than it had allowed itself",
}
_EXIT_CODES: Final = {
    125: "often means that a program that runs others failed itself",
    126: "a shell found the command and could not execute it",
    127: "a shell did not find the command",
}
_EXIT_ADVICE: Final = {
    126: "check that the file is executable and that its #! line names an interpreter that exists",
    127: "check its spelling and PATH; jobs see PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    " unless --env PATH=… says otherwise",
}


@dataclass(frozen=True, slots=True)
class Remark:
    """Something worth knowing about a job, and what to do about it if something can be done."""

    what: str
    advice: str | None = None

    def __str__(self) -> str:
        return f"{self.what}; {self.advice}" if self.advice else self.what


def explain(spec: JobSpec, outcome: Outcome | None, usage: Usage, output: OutputTotals, seconds: float) -> list[Remark]:
    """Why a job ended, then what else held it up, the weightiest first.

    `outcome` is None while it runs; `seconds` is how long it has run so far or ran.
    """
    limits = spec.limits
    if outcome is None:
        remarks = [Remark(f"still runs, for {format_duration(seconds)} so far")]
    else:
        remarks = [_cause(outcome, limits, usage)]
    also = (_memory(outcome, usage), _pids(limits, usage), _cpu(limits, usage), _dropped(output, limits))
    return remarks + [remark for remark in also if remark is not None]


def _cause(outcome: Outcome, limits: Limits, usage: Usage) -> Remark:
    match outcome:
        case Exited(code):
            return _exit(code)
        case Signaled(number):
            return Remark(f"{describe(outcome)}{_meaning(number)}")
        case OomKilled():
            return Remark(f"{describe(outcome)}{_peak(limits, usage)}", _more_memory(limits))
        case TimedOut():
            allowed = limits.timeout or 0.0
            what = f"killed: it ran longer than its timeout of {format_duration(allowed)}"
            return Remark(what, f"try --timeout {format_duration(2 * allowed)}")
        case OutputLimit():
            size = format_size(limits.output_bytes)
            advice = f"try {_more_output(limits)}, or --on-output-limit drop to let it run on"
            return Remark(f"killed: it wrote more than its output limit of {size}", advice)
        case Stopped(_, number):
            how = f"{signal_name(number)} ended it" if number else "it left by itself when it was asked to"
            return Remark(f"{describe(outcome)}; {how}")
        case Lost():
            return Remark(f"{describe(outcome)}; how its program ended is not known", "start it again if it is needed")
        case _:
            assert_never(outcome)


def _exit(code: int) -> Remark:
    if code == 0:
        return Remark("completed: the program exited with code 0")
    what = f"failed: the program exited with code {code}"
    if code in _EXIT_CODES:
        return Remark(f"{what}: {_EXIT_CODES[code]}", _EXIT_ADVICE.get(code))
    if code - _SIGNAL_BASE in signal.valid_signals():
        number = code - _SIGNAL_BASE
        return Remark(f"{what}, as a shell does when its command was ended by {signal_name(number)}{_meaning(number)}")
    return Remark(f"{what}, whose meaning is up to the program", "see its output: jobctl logs --stderr")


def _meaning(number: int) -> str:
    meaning = _SIGNALS.get(signal.Signals(number)) if number in set(signal.Signals) else None
    return f": {meaning}" if meaning else ""


def _memory(outcome: Outcome | None, usage: Usage) -> Remark | None:
    """Processes that were killed because memory ran out, when that did not end the job."""
    if isinstance(outcome, OomKilled) or not usage.oom_kills:
        return None
    return Remark(f"{usage.oom_kills} of its processes were killed because memory ran out", "try a higher --memory")


def _pids(limits: Limits, usage: Usage) -> Remark | None:
    if limits.pids is None:
        return None
    if usage.pids_limit_hits:
        what = f"{usage.pids_limit_hits} times it could not make a process or thread: its limit is {limits.pids}"
    elif (usage.pids_peak or 0) >= limits.pids > 1:
        what = f"it had as many processes and threads as its limit allows, {limits.pids}; more may have been refused"
    else:
        return None
    return Remark(what, f"try --pids {2 * limits.pids}")


def _cpu(limits: Limits, usage: Usage) -> Remark | None:
    if limits.cpu is None or not usage.throttled_periods or (usage.cpu_periods or 0) < _FEWEST_PERIODS:
        return None
    share = usage.throttled_periods / (usage.cpu_periods or 1)
    if share < _WORTH_TELLING:
        return None
    what = f"its cpu limit of {limits.cpu:g} held it back in {share:.0%} of the time in which it wanted to run"
    return Remark(what, f"try --cpu {2 * limits.cpu:g}")


def _dropped(output: OutputTotals, limits: Limits) -> Remark | None:
    if not output.dropped_bytes:
        return None
    lost = f"{format_size(output.dropped_bytes)} of its output were not kept"
    if output.dropped_reason == "limit":
        return Remark(f"{lost}: its output limit is {format_size(limits.output_bytes)}", f"try {_more_output(limits)}")
    return Remark(f"{lost}: the server could not write them ({output.dropped_reason})", "tell the server's operator")


def _peak(limits: Limits, usage: Usage) -> str:
    if limits.memory is None or usage.memory_peak is None:
        return ""
    peak, most = format_size(usage.memory_peak), format_size(limits.memory)
    number, _, unit = peak.partition(" ")
    return f", peak {number if most.endswith(' ' + unit) else peak} of {most}"


def _more_memory(limits: Limits) -> str | None:
    return None if limits.memory is None else f"try --memory {_option_size(1.5 * limits.memory)}"


def _more_output(limits: Limits) -> str:
    return f"--output-limit {_option_size(2 * limits.output_bytes)}"


def _option_size(size: float) -> str:
    """`size` rounded up to whole MiB, as the options of jobctl take it."""
    mebibytes = math.ceil(size / MiB)
    return f"{mebibytes // 1024}G" if mebibytes % 1024 == 0 and mebibytes else f"{max(1, mebibytes)}M"
