"""jobctl list: shows the jobs there are, newest first."""

import asyncio
import sys
import time
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from jobworker.cli.notice import say
from jobworker.cli.options import ContextOption, Format, FormatOption, TransportOption
from jobworker.cli.render import print_jobs, print_json
from jobworker.cli.session import Target, talk
from jobworker.client.job_client import JobClient
from jobworker.client.model import Job
from jobworker.core.errors import invalid
from jobworker.core.lifecycle import State

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
    last: Annotated[int | None, typer.Option("--last", "-n", metavar="N", min=1, help="Only the newest N.")] = None,
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
    query = _query(
        [*(conditions or []), *(f"state={name}" for name in state or []), *(f"label={x}" for x in label or [])]
    )
    # A question for particular states is about all of them.
    is_brief = not (everything or query["states"] or last)

    async def look(client: JobClient) -> list[Job]:
        if not is_brief:
            return await _jobs(client, query, last)
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
    async for page in client.list(**query, page_size=min(most or 1000, 1000)):
        jobs += page
        if most is not None and len(jobs) >= most:
            break
    return jobs[:most]


def _query(conditions: Iterable[str]) -> dict[str, Any]:
    """What to ask the server for, from conditions such as `state=running` and `label=team=web`."""
    states: list[State] = []
    labels: dict[str, str] = {}
    query: dict[str, Any] = {}
    for condition in conditions:
        key, _, value = condition.partition("=")
        match key:
            case "state" | "status" if value.upper() in State.__members__:
                states.append(State[value.upper()])
            case "state" | "status":
                raise invalid("--state", value, ", ".join(state.value.lower() for state in State))
            case "label" if "=" in value:
                name, _, text = value.partition("=")
                labels[name] = text
            # No name means any name to the server; what an unset variable left must not mean every job.
            case "name" | "owner" if value:
                query[key] = value
            case "id" if value:
                query["id_prefix"] = value
            case _:
                raise invalid("--filter", condition, "id=, name=, owner=, state= or label=K=V")
    return query | {"states": states, "labels": labels}
