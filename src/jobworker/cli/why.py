"""jobctl why: says in plain words why a job ended and what to change."""

import sys
import time
from dataclasses import asdict

from jobworker.cli.escape import escape_text
from jobworker.cli.options import ContextOption, Format, FormatOption, JobArgument, TransportOption
from jobworker.cli.render import print_json
from jobworker.cli.session import Target, find_job, talk
from jobworker.client.job_client import JobClient
from jobworker.client.model import Job
from jobworker.core.explanation import explain


def why(
    *,
    job_id: JobArgument,
    output: FormatOption = Format.TABLE,
    context: ContextOption = None,
    transport: TransportOption = None,
) -> None:
    """Say in plain words why a job ended, which limits it met, and what to change.

    While it runs, what has held it up so far.

    Examples:
      jobctl why 3f2a91c0
      jobctl why $(jobctl list -q --state failed -n 1)
      jobctl why -o json 3f2a91c0 | jq -r '.remarks[].advice'
    """

    async def look(client: JobClient) -> Job:
        return await client.status(await find_job(client, job_id))

    job = talk(Target(context, transport), look)
    seconds = (job.ended_at or time.time()) - job.started_at if job.started_at is not None else 0.0
    remarks = explain(job.spec, job.outcome, job.usage, job.output, max(0.0, seconds))
    if output is Format.TABLE:
        sys.stdout.writelines(f"{escape_text(str(remark))}\n" for remark in remarks)
    else:
        document = {"id": job.id, "state": job.state.value, "remarks": [asdict(remark) for remark in remarks]}
        print_json(document, is_compact=output is Format.JSONL)
