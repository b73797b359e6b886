"""jobctl list: shows the jobs there are, newest first."""

import asyncio
import sys
import time
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from jobworker.cli.notice import say
from jobworker.cli.options import ContextOption, Format, FormatOption, TransportOption, parse_label
from jobworker.cli.render import print_jobs, print_json
from jobworker.cli.session import Target, talk
from jobworker.client.connection import MAX_PAGE
from jobworker.client.job_client import JobClient
from jobworker.client.model import Job
from jobworker.core.errors import invalid
from jobworker.core.lifecycle import State
from jobworker.core.units import parse_count

_RECENTLY_ENDED = 10
_ACTIVE = (State.PENDING, State.RUNNING)
_FINAL = tuple(state for state in State if state.is_final)


def list_jobs(  # noqa: PLR0913 - one parameter an option
    *,
    everything: Annotated[bool, typer.Option("--all", "-a", help="All jobs, however long ago they ended.")] = False,
    state: Annotated[
        list[str] | None, typer.Option("--state", metavar="STATE", help="Only jobs in this state, such as running.")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", "-l", metavar="K=V", help="Only jobs with this label.")
    ] = None,
    conditions: Annotated[
        list[str] | None,
        typer.Option("--filter", metavar="KEY=VALUE", help="Only jobs whose id, name, owner, state or label is this."),
    ] = None,
    last: Annotated[str | None, typer.Option("--last", "-n", metavar="N", help="Only the newest N.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print ids only.")] = False,
    output: FormatOption = Format.TABLE,
    context: ContextOption = None,
    transport: TransportOption = None,
) -> None:
    """List the jobs that run and the last ten that ended.

    Also called ps and ls. A terminal gets ids that are cut short and lines that are cut to its
    width, a pipe or file gets everything.

    Examples:
      jobctl list
      jobctl list -a --state failed -l team=web
      jobctl stop $(jobctl list -q --filter name=build)
    """
    query = _query(conditions or [], state or [], label or [])
    most = None if last is None else parse_count(last, "--last")
    # A question for particular states is about all of them.
    is_brief = not (everything or query["states"] or most is not None)

    async def look(client: JobClient) -> list[Job]:
        if not is_brief:
            return await _jobs(client, query, most)
        active, ended = await asyncio.gather(
            _jobs(client, query | {"states": _ACTIVE}, None),
            _jobs(client, query | {"states": _FINAL}, _RECENTLY_ENDED),
        )
        return active + ended

    jobs = talk(Target(context, transport), look)
    if quiet:
        sys.stdout.writelines(f"{job.id}\n" for job in jobs)
    elif output is Format.JSON:
        print_json([job.to_document() for job in jobs])
    elif output is Format.JSONL:
        for job in jobs:
            print_json(job.to_document(), is_compact=True)
    else:
        print_jobs(jobs, time.time())
        if is_brief and sum(job.state.is_final for job in jobs) == _RECENTLY_ENDED and sys.stdout.isatty():
            say(f"only the last {_RECENTLY_ENDED} ended jobs are shown; all: jobctl list -a")


async def _jobs(client: JobClient, query: dict[str, Any], most: int | None) -> list[Job]:
    """The newest jobs that match, all of them or `most`."""
    jobs: list[Job] = []
    async for page in client.list(**query, page_size=min(most or MAX_PAGE, MAX_PAGE)):
        jobs += page
        if most is not None and len(jobs) >= most:
            break
    return jobs[:most]


def _query(conditions: Iterable[str], state_names: Iterable[str], label_pairs: Iterable[str]) -> dict[str, Any]:
    """What to ask the server for; `conditions` are such as `state=running` and `label=team=web`."""
    states = [_parse_state(name, "--state") for name in state_names]
    labels = dict(map(parse_label, label_pairs))
    query: dict[str, Any] = {}
    for condition in conditions:
        key, _, value = condition.partition("=")
        match key:
            case "state" | "status":
                states.append(_parse_state(value, f"--filter {key}"))
            case "label":
                name, text = parse_label(value, "--filter label")
                labels[name] = text
            # No name means any name to the server; what an unset variable left must not mean every job.
            case "name" | "owner" if value:
                query[key] = value
            case "id" if value:
                query["id_prefix"] = value
            case _:
                raise invalid("--filter", condition, "id=, name=, owner=, state= or label=K=V")
    return query | {"states": states, "labels": labels}


def _parse_state(text: str, option: str) -> State:
    try:
        return State[text.upper()]
    except KeyError:
        raise invalid(option, text, ", ".join(state.value.lower() for state in State)) from None
