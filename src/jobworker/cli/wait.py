"""jobctl wait: waits until jobs have ended and exits as they did."""

import asyncio
from typing import Annotated

import typer

from jobworker.cli.notice import say, say_how_it_ended
from jobworker.cli.options import ContextOption, Format, FormatOption, JobsArgument, TransportOption
from jobworker.cli.report import Report
from jobworker.cli.session import Target, find_job, for_each, talk
from jobworker.client.job_client import JobClient
from jobworker.client.model import Job
from jobworker.core.outcome import TimedOut, exit_status
from jobworker.core.units import parse_duration


def wait(  # noqa: PLR0913 - one parameter an option
    *,
    ids: JobsArgument,
    timeout: Annotated[
        str | None, typer.Option("--timeout", metavar="TIME", help="Wait no longer than this, then exit with 124.")
    ] = None,
    wait_for_any: Annotated[bool, typer.Option("--any", help="Wait for the first that ends only.")] = False,
    output: FormatOption = Format.TABLE,
    context: ContextOption = None,
    transport: TransportOption = None,
) -> int:
    """Wait until jobs have ended and exit with their code.

    Of several jobs it is the highest code. Works for jobs that have ended already, too. How a
    job failed is told on stderr.

    Examples:
      jobctl wait 3f2a91c0
      jobctl wait --timeout 10m 3f2a91c0 77b0c2d4
      jobctl wait --any -o json $(jobctl list -q --state running)
    """
    seconds = None if timeout is None else parse_duration(timeout, "--timeout")

    async def wait_for_one(client: JobClient, job_id: str, report: Report) -> Job:
        job = await client.wait(job_id, timeout=seconds)
        if output is not Format.TABLE:
            report.add(job.to_document())
        return job

    async def wait_for_all(client: JobClient, report: Report) -> list[Job]:
        return await for_each(client, ids, lambda job_id: wait_for_one(client, job_id, report))

    async def wait_for_first(client: JobClient, report: Report) -> list[Job]:
        full_ids = [await find_job(client, text) for text in ids]
        waits = [asyncio.create_task(wait_for_one(client, job_id, report)) for job_id in full_ids]
        done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        return [task.result() for task in done]

    async def wait_and_report(client: JobClient) -> list[Job]:
        with Report(output, ids) as report:
            return await (wait_for_first if wait_for_any else wait_for_all)(client, report)

    jobs = talk(Target(context, transport), wait_and_report)
    return max(_tell(job) for job in jobs)


def _tell(job: Job) -> int:
    """The job's exit status, with a word about it; a job that still runs counts as timed out."""
    if job.outcome is None:
        say(f"job {job.id} still runs")
        return exit_status(TimedOut())
    say_how_it_ended(job.id, job.outcome)
    return exit_status(job.outcome)
