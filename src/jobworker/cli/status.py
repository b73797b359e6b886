"""jobctl status: shows what a job is and how it is doing."""

import time

from jobworker.cli.options import ContextOption, Format, FormatOption, JobArgument, TransportOption
from jobworker.cli.render import print_job, print_json
from jobworker.cli.session import Target, find_job, talk
from jobworker.client.job_client import JobClient
from jobworker.client.model import Job


def status(
    *,
    job_id: JobArgument,
    output: FormatOption = Format.TABLE,
    context: ContextOption = None,
    transport: TransportOption = None,
) -> None:
    """Show a job's state, how it ended, and what it has used.

    With -o json it is called inspect, too.

    Examples:
      jobctl status 3f2a91c0
      jobctl status -o json 3f2a91c0 | jq .outcome
      jobctl -u alice status 3f2a91c0
    """

    async def look(client: JobClient) -> Job:
        return await client.status(await find_job(client, job_id))

    job = talk(Target(context, transport), look)
    if output is Format.TABLE:
        print_job(job, time.time())
    else:
        print_json(job.to_document(), is_compact=output is Format.JSONL)


def inspect(
    *,
    job_id: JobArgument,
    output: FormatOption = Format.JSON,
    context: ContextOption = None,
    transport: TransportOption = None,
) -> None:
    """Show everything about a job as JSON; the same as: jobctl status -o json.

    Examples:
      jobctl inspect 3f2a91c0
      jobctl inspect 3f2a91c0 | jq .effective_limits
      jobctl inspect -o table 3f2a91c0
    """
    status(job_id=job_id, output=output, context=context, transport=transport)
