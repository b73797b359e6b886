"""jobctl logs: shows the output of jobs, from any place and live to the end."""

from typing import Annotated, Final

import typer

from jobworker.cli.follow import Sink, copy_output
from jobworker.cli.frames import FrameOutput
from jobworker.cli.notice import say_how_it_ended
from jobworker.cli.options import ContextOption, Format, FormatOption, JobsArgument, TransportOption
from jobworker.cli.output import STDOUT, Output
from jobworker.cli.session import Target, find_job, talk
from jobworker.client.job_client import JobClient
from jobworker.client.model import OutputStream
from jobworker.core.outcome import exit_status
from jobworker.core.times import parse_time
from jobworker.core.units import parse_count

_ALL: Final = "all"


def logs(  # noqa: PLR0913 - one parameter an option
    *,
    ids: JobsArgument,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", "-f", help="Wait for more until the job ends.")
    ] = True,
    stdout: Annotated[bool, typer.Option("--stdout", help="Only what it wrote to stdout.")] = False,
    stderr: Annotated[bool, typer.Option("--stderr", help="Only what it wrote to stderr.")] = False,
    tail: Annotated[
        str, typer.Option("--tail", "-n", metavar="N", help="Begin this many lines before the end.")
    ] = _ALL,
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="Begin at an RFC 3339 or Unix time, or 10m ago.")
    ] = None,
    timestamps: Annotated[bool, typer.Option("--timestamps", "-t", help="Show when each line was written.")] = False,
    offset: Annotated[str, typer.Option("--offset", metavar="BYTES", help="Begin at this byte.")] = "0",
    raw: Annotated[bool, typer.Option("--raw", help="Let control sequences reach the terminal.")] = False,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with the job's code.")] = False,
    output: FormatOption = Format.TABLE,
    context: ContextOption = None,
    transport: TransportOption = None,
) -> int:
    """Show what jobs write, live to the end.

    Also called output, stream and follow. Both streams appear in the order of arrival. Ctrl-C
    leaves the output and not the job. A terminal sees control sequences escaped unless --raw; a
    pipe or file gets every byte as it is. With -o json or jsonl, one frame a line.

    Examples:
      jobctl logs 3f2a91c0
      jobctl logs --tail 20 --stderr -t 3f2a91c0
      jobctl logs --no-follow --since 10m 3f2a91c0 | grep error
    """
    target = Target(context, transport)
    begin = parse_time(since, "--since") if since else None
    lines = None if tail == _ALL else parse_count(tail, "--tail")
    first = parse_count(offset, "--offset")
    wanted = {OutputStream.STDOUT: stdout, OutputStream.STDERR: stderr}
    streams = [stream for stream, is_wanted in wanted.items() if is_wanted]

    async def copy(client: JobClient, text: str) -> int:
        job_id = await find_job(client, text)
        events = client.stream(job_id, offset=first, streams=streams, follow=follow, since=begin, tail_lines=lines)
        sink: Sink
        if output is Format.TABLE:
            sink = Output(stderr=STDOUT, raw=raw, timestamps=timestamps, offset=first)
        else:
            sink = FrameOutput(job_id, offset=first)
        end = await copy_output(events, job_id, sink, target)
        if not exit_code or end.outcome is None:
            return 0
        say_how_it_ended(job_id, end.outcome)
        return exit_status(end.outcome)

    async def copy_all(client: JobClient) -> int:
        return max([await copy(client, text) for text in ids])

    return talk(target, copy_all)


def follow(ids: JobsArgument, context: ContextOption = None, transport: TransportOption = None) -> int:
    """Show what jobs write until they end; the same as: jobctl logs -f.

    Examples:
      jobctl follow 3f2a91c0
      jobctl follow 3f2a91c0 | grep --line-buffered error
      jobctl follow 3f2a91c0 > everything
    """
    return logs(ids=ids, context=context, transport=transport)
