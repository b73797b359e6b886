"""jobctl stop: ends jobs and everything in them."""

from typing import Annotated

import typer

from jobworker.cli.notice import say
from jobworker.cli.options import ContextOption, Format, FormatOption, JobsArgument, TransportOption
from jobworker.cli.report import Report
from jobworker.cli.session import Target, for_each, talk
from jobworker.client.job_client import JobClient
from jobworker.core.errors import ErrorCode, JobError
from jobworker.core.signals import parse_signal
from jobworker.core.units import parse_duration


def stop(  # noqa: PLR0913 - one parameter an option
    *,
    ids: JobsArgument,
    grace: Annotated[
        str,
        typer.Option("--grace", "-t", "--time", metavar="TIME", help="Time to leave after a signal, as in 10s."),
    ] = "0",
    signal: Annotated[
        str | None, typer.Option("--signal", "-s", metavar="SIGNAL", help="The signal before the grace. Default: TERM.")
    ] = None,
    output: FormatOption = Format.TABLE,
    context: ContextOption = None,
    transport: TransportOption = None,
) -> None:
    """End jobs and everything in them.

    Also called cancel. Without a grace they end at once. Prints each job's id, or with -o json
    the whole job, when nothing of it lives any more. A job that had ended before is no error.

    Examples:
      jobctl stop 3f2a91c0
      jobctl stop --grace 10s 3f2a91c0 77b0c2d4
      jobctl stop --grace 1m -s INT $(jobctl list -q --state running)
    """
    seconds = parse_duration(grace, "--grace")
    number = parse_signal(signal or "TERM", "--signal")
    if signal and not seconds:
        raise JobError(ErrorCode.INVALID_ARGUMENT, "--signal needs --grace: without it jobs are killed at once")

    async def stop_one(client: JobClient, job_id: str, report: Report) -> None:
        try:
            job = await client.stop(job_id, grace=seconds, signal=number)
        except JobError as error:
            if error.code is not ErrorCode.JOB_NOT_RUNNING:
                raise
            say(f"job {job_id} had already ended")
            job = await client.status(job_id)
        report.add(job.to_document())

    async def stop_all(client: JobClient) -> None:
        with Report(output, ids) as report:
            await for_each(client, ids, lambda job_id: stop_one(client, job_id, report))

    talk(Target(context, transport), stop_all)
