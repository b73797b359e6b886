"""jobctl run: starts a job, shows its output, and exits as it does."""

from typing import Annotated

import typer

from jobworker.cli.follow import copy_output
from jobworker.cli.job_options import Order, takes_job_options
from jobworker.cli.notice import say_how_it_ended, say_what_is_missing
from jobworker.cli.output import Output
from jobworker.cli.session import talk
from jobworker.client.job_client import JobClient
from jobworker.client.model import End
from jobworker.core.errors import ErrorCode, JobError
from jobworker.core.outcome import exit_status


@takes_job_options
def run(
    order: Order,
    *,
    raw: Annotated[bool, typer.Option("--raw", help="Let the output's control sequences reach the terminal.")] = False,
) -> int:
    """Start a program as a job, show its output, exit as it does.

    Its stdout goes to stdout and its stderr to stderr, byte for byte. Ctrl-C leaves the output
    and not the job, and tells how to come back.

    The exit code is the job's: 128+n after signal n, 124 after its timeout. It is 125 when jobctl
    or the server fails, 126 or 127 when the program is not executable or not found.

    Examples:
      jobctl run -- echo hello
      jobctl run --memory 256M --timeout 10m -- pytest -q
      jobctl run -e LEVEL=9 -- sh -c 'dmesg | tail -$LEVEL' > report
    """

    async def start_and_follow(client: JobClient) -> tuple[str, End]:
        started = await client.start(
            order.spec,
            asked_limits=order.asked_limits,
            idempotency_key=order.idempotency_key,
        )
        job_id = started.job.id
        say_what_is_missing(started.job)
        return job_id, await copy_output(client.stream(job_id), job_id, Output(raw=raw), order.target)

    job_id, end = talk(order.target, start_and_follow)
    if end.outcome is None:
        raise JobError(
            ErrorCode.INTERNAL, f"the output of job {job_id} ended before the job; see: jobctl wait {job_id}"
        )
    say_how_it_ended(job_id, end.outcome)
    return exit_status(end.outcome)
