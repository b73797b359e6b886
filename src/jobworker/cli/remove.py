"""jobctl rm: deletes ended jobs with their output."""

from typing import Annotated

import typer

from jobworker.cli.options import ContextOption, Format, FormatOption, JobsArgument, TransportOption
from jobworker.cli.report import Report
from jobworker.cli.session import Target, for_each, talk
from jobworker.client.job_client import JobClient
from jobworker.core.errors import ErrorCode, JobError


def remove(
    *,
    ids: JobsArgument,
    force: Annotated[bool, typer.Option("--force", "-f", help="End a job that still runs first.")] = False,
    output: FormatOption = Format.TABLE,
    context: ContextOption = None,
    transport: TransportOption = None,
) -> None:
    """Delete ended jobs with their output.

    Their records go too, the audit trail stays. Prints the ids of what is gone.

    Examples:
      jobctl rm 3f2a91c0
      jobctl rm --force 3f2a91c0
      jobctl rm $(jobctl list -a -q --state completed)
    """
    target = Target(context, transport)

    async def remove_one(client: JobClient, job_id: str, report: Report) -> None:
        try:
            await client.remove(job_id, force=force)
        except JobError as error:
            if error.code is ErrorCode.JOB_RUNNING:
                hint = target.command("rm", "--force", job_id)
                raise JobError(error.code, f"the job still runs; to end it first: {hint}") from error
            raise
        report.add({"id": job_id})

    async def remove_all(client: JobClient) -> None:
        with Report(output, ids) as report:
            await for_each(client, ids, lambda job_id: remove_one(client, job_id, report))

    talk(target, remove_all)
