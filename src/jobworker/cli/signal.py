"""jobctl signal: sends a signal to the main process of jobs."""

from typing import Annotated

import typer

from jobworker.cli.options import ContextOption, Format, FormatOption, JobsArgument, TransportOption
from jobworker.cli.report import Report
from jobworker.cli.session import Target, for_each, talk
from jobworker.client.job_client import JobClient
from jobworker.core.signals import parse_signal


def signal(
    *,
    ids: JobsArgument,
    signal: Annotated[str, typer.Option("--signal", "-s", metavar="SIGNAL", help="Its name or number.")],
    output: FormatOption = Format.TABLE,
    context: ContextOption = None,
    transport: TransportOption = None,
) -> None:
    """Send a signal to the main process of jobs.

    To end everything in a job, use stop.

    Examples:
      jobctl signal -s HUP 3f2a91c0
      jobctl signal -s SIGUSR1 3f2a91c0 77b0c2d4
      jobctl signal -s 15 3f2a91c0
    """
    _send(ids, parse_signal(signal, "--signal"), output, Target(context, transport))


def kill(
    *,
    ids: JobsArgument,
    signal: Annotated[str, typer.Option("--signal", "-s", metavar="SIGNAL", help="Its name or number.")] = "KILL",
    output: FormatOption = Format.TABLE,
    context: ContextOption = None,
    transport: TransportOption = None,
) -> None:
    """Send SIGKILL, or another signal, to the main process of jobs.

    Examples:
      jobctl kill 3f2a91c0
      jobctl kill -s INT 3f2a91c0
      jobctl kill -s 15 3f2a91c0 77b0c2d4
    """
    _send(ids, parse_signal(signal, "--signal"), output, Target(context, transport))


def _send(ids: list[str], number: int, output: Format, target: Target) -> None:
    async def send_one(client: JobClient, job_id: str, report: Report) -> None:
        await client.signal(job_id, number)
        report.add({"id": job_id, "signal": number})

    async def send_all(client: JobClient) -> None:
        with Report(output, ids) as report:
            await for_each(client, ids, lambda job_id: send_one(client, job_id, report))

    talk(target, send_all)
