"""jobctl start: starts a job and prints its id."""

from jobworker.cli.job_options import Order, takes_job_options
from jobworker.cli.notice import say, say_what_is_missing
from jobworker.cli.options import Format, FormatOption
from jobworker.cli.render import print_json
from jobworker.cli.session import talk
from jobworker.client.job_client import JobClient
from jobworker.client.model import Started


@takes_job_options
def start(order: Order, *, output: FormatOption = Format.TABLE) -> None:
    """Start a program as a job and print the job's id.

    Returns when the program really runs. The job goes on whatever happens to this terminal.
    With -o json or jsonl the whole job is printed, as status does.

    Examples:
      jobctl start -- /bin/sleep 60
      jobctl start --cpu 0.5 --memory 64M --timeout 1h -e MODE=fast -- python3 train.py --epochs 3
      jobctl logs "$(jobctl start --name build -l team=web -- make -j4)"
    """

    async def send(client: JobClient) -> Started:
        return await client.start(
            order.spec,
            asked_limits=order.asked_limits,
            idempotency_key=order.idempotency_key,
        )

    started = talk(order.target, send)
    how = "this key started it before" if started.existed else "started"
    say(f"{how}; see its output with: {order.target.command('logs', started.job.id)}")
    say_what_is_missing(started.job)
    if output is Format.TABLE:
        print(started.job.id)  # noqa: T201 - the data
    else:
        print_json(started.job.to_document(), is_compact=output is Format.JSONL)
