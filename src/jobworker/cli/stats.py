"""jobctl stats: shows what running jobs use, live."""

import asyncio
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Self

import typer

from jobworker.cli.interruption import write_all
from jobworker.cli.notice import say
from jobworker.cli.options import ContextOption, Format, TransportOption
from jobworker.cli.output import STDOUT
from jobworker.cli.render import print_json, short_id, table_lines
from jobworker.cli.session import Target, find_job, talk
from jobworker.client.connection import MAX_PAGE
from jobworker.client.job_client import JobClient
from jobworker.client.model import Job
from jobworker.core.errors import ErrorCode, JobError
from jobworker.core.lifecycle import State
from jobworker.core.times import rfc3339
from jobworker.core.units import format_size

_INTERVAL: Final = 1.0
_ASKED_AT_ONCE: Final = 16
_HEADERS: Final = (
    "ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "IO READ", "IO WRITTEN", "PIDS", "THROTTLED",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sample:
    """A job as it was at `at`, in seconds of a clock that never goes back."""

    at: float
    job: Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What a job used from one sample to the next; None where the host cannot tell.

    `cpu` in cores, `read` and `written` in bytes a second, `throttled` as the part of the time in
    which the job wanted to run and its cpu limit kept it from it.
    """

    cpu: float | None
    read: float | None
    written: float | None
    throttled: float | None

    @classmethod
    def between(cls, before: Sample, after: Sample) -> Self:
        """The rates from `before` to `after`, which is a later sample of the same job."""
        seconds = after.at - before.at

        def grown(name: str) -> float | None:
            first, last = getattr(before.job.usage, name), getattr(after.job.usage, name)
            return None if first is None or last is None else max(0.0, last - first)

        def per_second(name: str) -> float | None:
            amount = grown(name)
            return None if amount is None or seconds <= 0 else amount / seconds

        withheld, periods = grown("throttled_periods"), grown("cpu_periods")
        return cls(
            cpu=per_second("cpu_seconds"),
            read=per_second("io_read_bytes"),
            written=per_second("io_write_bytes"),
            throttled=None if withheld is None or periods is None else withheld / max(periods, 1.0),
        )


def stats(
    *,
    job_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Ids, or their beginnings. Default: what runs.")
    ] = None,
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Print once and leave.")] = False,
    output: Annotated[
        Format | None,
        typer.Option("--output", "-o", help="How to print the result. Default: jsonl into a pipe, else table."),
    ] = None,
    context: ContextOption = None,
    transport: TransportOption = None,
) -> None:
    """Show what jobs use, once a second, until they have ended.

    Without ids all that run, until Ctrl-C. 100 % of cpu is one core.

    Examples:
      jobctl stats
      jobctl stats --no-stream 3f2a91c0
      jobctl stats -o jsonl | jq -r '[.id, .cpu_percent] | @tsv'
    """
    show = _view(output, is_live=not no_stream)

    async def watch(client: JobClient) -> None:
        wanted = [await find_job(client, text) for text in job_ids or ()]
        before = await _samples(client, wanted)
        while True:
            await asyncio.sleep(_INTERVAL)
            after = await _samples(client, wanted)
            if wanted and not after:
                say("none of these jobs runs any more")
                return
            pairs = [(before[job_id], sample) for job_id, sample in after.items() if job_id in before]
            show([(sample.job, Rates.between(earlier, sample)) for earlier, sample in pairs])
            if no_stream:
                return
            before = after

    talk(Target(context, transport), watch)


async def _samples(client: JobClient, wanted: Sequence[str]) -> dict[str, Sample]:
    """The jobs of these ids that run, or all that run when there are none, by their ids."""
    turns = asyncio.Semaphore(_ASKED_AT_ONCE)

    async def one(job_id: str) -> Sample | None:
        async with turns:
            try:
                job = await client.status(job_id)
            except JobError as error:
                if error.code is ErrorCode.JOB_NOT_FOUND and not wanted:
                    return None  # removed since it was listed
                raise
            return None if job.state.is_final else Sample(time.monotonic(), job)

    ids = wanted or await _running(client)
    samples = await asyncio.gather(*map(one, ids))
    return {sample.job.id: sample for sample in samples if sample is not None}


async def _running(client: JobClient) -> list[str]:
    async for page in client.list(states=[State.RUNNING], page_size=MAX_PAGE):
        return [job.id for job in page]
    return []


_Found = Sequence[tuple[Job, Rates]]


def _view(output: Format | None, *, is_live: bool) -> Callable[[_Found], None]:
    """What shows one round, for the place that stdout leads to."""
    is_terminal = sys.stdout.isatty()
    if output is None:
        output = Format.JSONL if is_live and not is_terminal else Format.TABLE
    if output is Format.JSON:
        return lambda found: print_json([document(job, rates) for job, rates in found])
    if output is Format.JSONL:
        return _print_lines
    return _LiveTable().show if is_live and is_terminal else _print_table


def _print_lines(found: _Found) -> None:
    for job, rates in found:
        print_json(document(job, rates), is_compact=True)
    sys.stdout.flush()


def _print_table(found: _Found) -> None:
    sys.stdout.writelines(line + "\n" for line in table_lines(_HEADERS, [_row(*one) for one in found]))
    sys.stdout.flush()


class _LiveTable:
    """A table that is written over itself: each round in one write, so that nothing flickers."""

    def __init__(self) -> None:
        self._height = 0

    def show(self, found: _Found) -> None:
        width, height = shutil.get_terminal_size()
        lines = table_lines(_HEADERS, [_row(*one) for one in found])[: height - 1]
        up = f"\x1b[{self._height}F" if self._height else ""
        # Each line is cut to the width and ends what an earlier one left; below the last one all is cleared.
        text = up + "".join(f"{line[:width]}\x1b[K\n" for line in lines) + "\x1b[J"
        self._height = len(lines)
        write_all(STDOUT, text.encode())


def _row(job: Job, rates: Rates) -> list[str]:
    usage, limits = job.usage, job.spec.limits
    memory = _shown(usage.memory_current, format_size)
    return [
        short_id(job),
        job.spec.name or "-",
        _percent(rates.cpu),
        f"{memory} / {format_size(limits.memory) if limits.memory is not None else 'unlimited'}",
        _percent(_part(usage.memory_current, limits.memory)),
        _flow(usage.io_read_bytes, rates.read),
        _flow(usage.io_write_bytes, rates.written),
        _shown(usage.pids_current, str),
        _percent(rates.throttled),
    ]


def document(job: Job, rates: Rates) -> Mapping[str, Any]:
    """One round of one job as plain JSON values; null where the host cannot tell or there is no limit."""
    usage, limits = job.usage, job.spec.limits
    return {
        "id": job.id,
        "name": job.spec.name,
        "time": rfc3339(time.time()),
        "cpu_percent": _hundredfold(rates.cpu),
        "throttled_percent": _hundredfold(rates.throttled),
        "memory_bytes": usage.memory_current,
        "memory_limit_bytes": limits.memory,
        "memory_percent": _hundredfold(_part(usage.memory_current, limits.memory)),
        "io_read_bytes": usage.io_read_bytes,
        "io_write_bytes": usage.io_write_bytes,
        "io_read_bytes_per_second": rates.read,
        "io_write_bytes_per_second": rates.written,
        "pids": usage.pids_current,
        "pids_limit": limits.pids,
    }


def _part(amount: float | None, most: float | None) -> float | None:
    return None if amount is None or most is None else amount / most


def _hundredfold(part: float | None) -> float | None:
    return None if part is None else round(100 * part, 2)


def _percent(part: float | None) -> str:
    return "-" if part is None else f"{100 * part:.1f}%"


def _flow(total: int | None, rate: float | None) -> str:
    """How many bytes so far, and how many a second now when there are any."""
    now = f" ({format_size(int(rate))}/s)" if rate else ""
    return _shown(total, format_size) + now


def _shown(amount: int | None, show: Callable[[int], str]) -> str:
    return "-" if amount is None else show(amount)
