"""What jobctl tells people: lines on stderr, so that stdout holds data only."""

import sys
from collections.abc import Sequence
from contextlib import suppress

from jobworker.cli.escape import escape_text
from jobworker.client.model import Job
from jobworker.core.errors import JobError
from jobworker.core.outcome import Outcome, OutputTotals, describe, exit_status


class SomeFailed(Exception):  # noqa: N818 - it holds the errors
    """Of several jobs some could not be acted on, for these reasons; the others were."""

    def __init__(self, errors: Sequence[JobError]) -> None:
        super().__init__(errors)
        self.errors = errors


def say(message: str) -> None:
    """Prints one line on stderr, with nothing in it that could command a terminal."""
    with suppress(BrokenPipeError):  # whoever closed stderr does not want to know
        print(f"jobctl: {escape_text(message)}", file=sys.stderr, flush=True)  # noqa: T201 - this is the place to print


def say_what_is_missing(job: Job) -> None:
    """Tells what the job's isolation lacks, if anything."""
    if job.is_degraded:
        say(f"job {job.id} has less isolation than it should: {job.isolation}")


def say_how_it_ended(job_id: str, outcome: Outcome) -> None:
    """Tells why a job ended, unless it simply succeeded."""
    if exit_status(outcome) != 0:
        say(f"job {job_id} {describe(outcome)}")


def say_what_was_dropped(job_id: str, output: OutputTotals) -> None:
    """Tells how much output is missing, if any is."""
    if output.dropped_bytes:
        reason = "its output limit" if output.dropped_reason == "limit" else output.dropped_reason
        say(f"job {job_id} lost {output.dropped_bytes} bytes of output to {reason}")
