"""Draws jobs as tables for people and as JSON for programs."""

import json
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from jobworker.cli.escape import escape_text
from jobworker.client.model import Job
from jobworker.core.lifecycle import State
from jobworker.core.outcome import Exited, Outcome, Signaled, Usage, describe, outcome_kind
from jobworker.core.signals import signal_name
from jobworker.core.times import rfc3339
from jobworker.core.units import format_duration, format_size

_SHORT_ID: Final = 12
_GAP: Final = 3  # between two columns
_COLORS: Final = {
    State.PENDING.value: "yellow",
    State.RUNNING.value: "cyan",
    State.COMPLETED.value: "green",
    State.FAILED.value: "red",
    State.STOPPED.value: "magenta",
}
_Fact = TypeVar("_Fact")


def print_json(document: Any, *, is_compact: bool = False) -> None:
    """Prints one JSON document, on one line when `is_compact`; ASCII only, so it is safe to show."""
    text = json.dumps(document) if is_compact else json.dumps(document, indent=2)
    sys.stdout.write(text + "\n")


def print_jobs(jobs: Sequence[Job], now: float) -> None:
    """Prints a line a job; on a terminal with short ids. How isolated they are is a column when it is not in full.

    What was run comes last, so that it is what a narrow terminal does without.
    """
    is_any_degraded = any(job.is_degraded for job in jobs)
    rows = [
        [
            short_id(job),
            job.spec.name or "-",
            job.owner,
            job.state.value,
            _exit_word(job.outcome),
            f"{format_duration(max(0.0, now - job.created_at))} ago",
            _running_time(job, now),
            *([job.isolation or "-"] if is_any_degraded else []),
            command_line(job),
        ]
        for job in jobs
    ]
    isolation = ["ISOLATION"] if is_any_degraded else []
    print_table(["ID", "NAME", "OWNER", "STATE", "EXIT", "CREATED", "DURATION", *isolation, "COMMAND"], rows)


def print_job(job: Job, now: float) -> None:
    """Prints everything about one job, a line a fact."""
    usage, output = job.usage, job.output
    facts = {
        "ID": job.id,
        "NAME": job.spec.name or "",
        "OWNER": job.owner,
        "STATE": job.state.value,
        "OUTCOME": describe(job.outcome) if job.outcome else "",
        "EXIT CODE": _given(job.exit_code, str),
        "COMMAND": command_line(job),
        "LABELS": _pairs(job.spec.labels),
        "CREATED": rfc3339(job.created_at),
        "STARTED": _given(job.started_at, rfc3339),
        "ENDED": _given(job.ended_at, rfc3339),
        "DURATION": _running_time(job, now),
        "CPU TIME": _cpu_time(usage),
        "THROTTLED": _throttled(usage),
        "MEMORY": _given(usage.memory_current, format_size),
        "MEMORY PEAK": _given(usage.memory_peak, format_size),
        "OOM KILLS": _given(usage.oom_kills, str),
        "IO READ": _io(usage.io_read_bytes, usage.io_read_operations),
        "IO WRITTEN": _io(usage.io_write_bytes, usage.io_write_operations),
        "PROCESSES": _given(usage.pids_current, str),
        "PROCESSES PEAK": _processes_peak(usage),
        "STDOUT": format_size(output.stdout_bytes),
        "STDERR": format_size(output.stderr_bytes),
        "DROPPED": f"{output.dropped_bytes} bytes ({output.dropped_reason})" if output.dropped_bytes else "",
        "LIMITS": _pairs(job.effective_limits),
        "ISOLATION": job.isolation,
        "SANDBOX": _pairs({name: fact for name, fact in job.sandbox.items() if name != "isolation"}),
    }
    print_facts(facts)


def print_facts(facts: Mapping[str, str]) -> None:
    """Prints a line a fact; those that are empty are left out."""
    shown = {name: fact for name, fact in facts.items() if fact}
    width = max(map(len, shown))
    sys.stdout.writelines(f"{name:{width}}   {escape_text(fact)}\n" for name, fact in shown.items())


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints columns without borders, in full; on a terminal in colour, and each line cut to its width."""
    if sys.stdout.isatty():
        _draw(headers, [[escape_text(cell) for cell in row] for row in rows])
    else:
        sys.stdout.writelines(line + "\n" for line in table_lines(headers, rows))


def table_lines(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in plain text, safe to show on a terminal."""
    safe = [[escape_text(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *safe, strict=True)]
    return [
        (" " * _GAP).join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (headers, *safe)
    ]


def _draw(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.cells import cell_len  # noqa: PLC0415 - only a terminal needs Rich, and it takes long to load
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    # Left to itself, the table would make every column narrower, the ids too.
    width = sum(max(map(cell_len, column)) + _GAP for column in zip(headers, *rows, strict=True)) - _GAP
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold", width=width)
    for header in headers:
        table.add_column(header, no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell, style=_COLORS.get(cell, "")) for cell in row))
    Console(width=shutil.get_terminal_size().columns).print(table)


def short_id(job: Job) -> str:
    """The job's id; on a terminal its beginning, which is enough for people."""
    return job.id[: _SHORT_ID if sys.stdout.isatty() else None]


def command_line(job: Job) -> str:
    """The job's program and arguments as one would type them."""
    return shlex.join([job.spec.program, *job.spec.args])


def _exit_word(outcome: Outcome | None) -> str:
    """Why a job ended, in one word: its exit code, a signal's name, or what else it was."""
    match outcome:
        case None:
            return "-"
        case Exited(code):
            return str(code)
        case Signaled(number):
            return signal_name(number)
        case _:
            return outcome_kind(outcome)


def _running_time(job: Job, now: float) -> str:
    if job.started_at is None:
        return "-"
    return format_duration(max(0.0, (job.ended_at or now) - job.started_at))


def _cpu_time(usage: Usage) -> str:
    if usage.cpu_seconds is None:
        return ""
    total = format_duration(usage.cpu_seconds)
    if usage.cpu_user_seconds is None or usage.cpu_system_seconds is None:
        return total
    return (
        f"{total} ({format_duration(usage.cpu_user_seconds)} user, {format_duration(usage.cpu_system_seconds)} system)"
    )


def _throttled(usage: Usage) -> str:
    if not usage.throttled_seconds:
        return _given(usage.throttled_seconds, format_duration)
    return f"{format_duration(usage.throttled_seconds)} (in {usage.throttled_periods} of {usage.cpu_periods} periods)"


def _io(size: int | None, operations: int | None) -> str:
    counted = f" in {operations} operations" if operations else ""
    return "" if size is None else format_size(size) + counted


def _processes_peak(usage: Usage) -> str:
    refused = f"more were refused {usage.pids_limit_hits} times" if usage.pids_limit_hits else ""
    return ", ".join(filter(None, (_given(usage.pids_peak, str), refused)))


def _given(value: _Fact | None, show: Callable[[_Fact], str]) -> str:
    """`value` for people; nothing when it is not known."""
    return "" if value is None else show(value)


def _pairs(values: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(values.items()))
