"""Options that several verbs share."""

from enum import Enum
from typing import Annotated, Any

import typer

from jobworker.client.context import Transport
from jobworker.core.errors import invalid


class Format(Enum):
    """How a verb prints what it found."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"


def _inherited(ctx: typer.Context, param: typer.CallbackParam, value: Any) -> Any:
    """The option's value, or the one given before the verb."""
    found = ctx.find_root().params.get(str(param.name)) if value is None else value
    # Typer makes the member of an enumeration once more of what is returned here.
    return found.value if isinstance(found, Enum) else found


ContextOption = Annotated[
    str | None,
    typer.Option(
        "--context",
        "-u",
        "--user",
        metavar="NAME|DIR",
        callback=_inherited,
        help="Server and identity, by a context's name or directory. Default: JOBCTL_CONTEXT, then the current one.",
    ),
]
TransportOption = Annotated[
    Transport | None,
    typer.Option(
        "--transport",
        callback=_inherited,
        help="How to reach it. Default: JOBCTL_TRANSPORT, then grpc when the context has a certificate.",
    ),
]
FormatOption = Annotated[Format, typer.Option("--output", "-o", help="How to print the result.")]
JobArgument = Annotated[str, typer.Argument(metavar="ID", help="The job's id, or its unique beginning.")]
JobsArgument = Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of jobs, or their unique beginnings.")]


def parse_label(text: str, option: str = "--label") -> tuple[str, str]:
    """The key and the value of a label written as K=V; INVALID_ARGUMENT names the option otherwise."""
    key, separator, value = text.partition("=")
    if not (key and separator):
        raise invalid(option, text, "K=V")
    return key, value
