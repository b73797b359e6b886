"""jobctl context: keeps the servers and identities that jobctl knows by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from jobworker.cli.options import ContextOption, Format, FormatOption
from jobworker.cli.render import print_json, print_table
from jobworker.client.context import (
    Context,
    Transport,
    check_server,
    current_context,
    find_context,
    missing_keys,
    named_contexts,
    named_directory,
    remove_context,
    use_context,
)
from jobworker.core.errors import ErrorCode, JobError

_NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="What to call the context.")]


def context() -> None:
    """Keep the servers and identities that jobctl knows by name.

    Examples:
      jobctl context add work ./clients/alice
      jobctl context use work
      jobctl context list
    """


def list_contexts(output: FormatOption = Format.TABLE) -> None:
    """List the saved contexts; a star marks the current one.

    Examples:
      jobctl context list
      jobctl context list -o json
      jobctl context ls
    """
    current = current_context()
    contexts = {name: Context.load(named_directory(name)) for name in named_contexts()}
    if output is Format.TABLE:
        print_contexts(contexts, current)
        return
    documents = [_document(context) | {"name": name, "current": name == current} for name, context in contexts.items()]
    for document in documents if output is Format.JSONL else [documents]:
        print_json(document, is_compact=output is Format.JSONL)


def use(choice: Annotated[str, typer.Argument(metavar="NAME|DIR", help="A context's name or directory.")]) -> None:
    """Make a context the current one, which is used when no other is asked for.

    Examples:
      jobctl context use work
      jobctl context use ./clients/alice
      jobctl context use alice
    """
    used = use_context(choice)
    print_contexts({used.directory.name: used})


def show(
    choice: Annotated[str | None, typer.Argument(metavar="[NAME|DIR]", help="Default: the one in use.")] = None,
    output: FormatOption = Format.TABLE,
    context: ContextOption = None,
) -> None:
    """Show the context that a command here and now would use, or another one.

    Examples:
      jobctl context show
      jobctl context show work
      jobctl context show -o json
    """
    document = _document(find_context(choice or context))
    if output is Format.TABLE:
        words = document | {"transports": ", ".join(document["transports"])}
        print_table(["KEY", "VALUE"], [[key, str(value)] for key, value in words.items()])
    else:
        print_json(document, is_compact=output is Format.JSONL)


def add(  # noqa: PLR0913 - one parameter an option
    *,
    name: _NameArgument,
    directory: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="A context directory to take everything from.")
    ] = None,
    server: Annotated[str | None, typer.Option("--server", metavar="HOST:PORT", help="Its gRPC port.")] = None,
    https: Annotated[str | None, typer.Option("--https", metavar="HOST:PORT", help="Its HTTPS port.")] = None,
    user: Annotated[str | None, typer.Option("--as", metavar="USER", help="Whose identity it is.")] = None,
    ca: Annotated[Path | None, typer.Option("--ca", metavar="FILE", help="The CA's certificate.")] = None,
    certificate: Annotated[Path | None, typer.Option("--certificate", metavar="FILE", help="The user's.")] = None,
    key: Annotated[Path | None, typer.Option("--key", metavar="FILE", help="The certificate's private key.")] = None,
    token: Annotated[Path | None, typer.Option("--token-file", metavar="FILE", help="The user's token.")] = None,
) -> None:
    """Save a context under a name. The files stay where they are.

    Examples:
      jobctl context add work ./clients/alice
      jobctl context add office ./clients/alice --server jobs.example.com:50051
      jobctl context add lab --server lab:50051 --as bob --ca ca.crt --certificate bob.crt --key bob.key
    """
    given = {
        "user": user,
        "server": server and check_server(server),
        "https": https and check_server(https),
        "ca": ca and ca.absolute(),
        "certificate": certificate and certificate.absolute(),
        "key": key and key.absolute(),
        "token": token and token.absolute(),
    }
    values = _values(Context.load(directory)) if directory else {}
    values |= {field: value for field, value in given.items() if value}
    if missing := missing_keys(values):
        raise JobError(
            ErrorCode.INVALID_ARGUMENT, f"a directory is needed, or all options; missing: {', '.join(missing)}"
        )
    saved = Context(directory=named_directory(name), **values)
    if Transport.GRPC in saved.transports:
        saved.read_key()
    if Transport.HTTPS in saved.transports:
        saved.read_token()
    saved.save()
    print_contexts({name: saved})


def remove(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="The names of saved contexts.")],
) -> None:
    """Delete saved contexts, with the tokens that login has kept in them.

    Files elsewhere stay, and what they prove stays good. Prints the names of what is gone.

    Examples:
      jobctl context rm work
      jobctl context rm lab office
      jobctl context rm $(jobctl context list -o jsonl | jq -r .name)
    """
    for name in names:
        remove_context(name)
        print(name, flush=True)  # noqa: T201 - the data


def _values(context: Context) -> dict[str, Any]:
    return {key: getattr(context, key) for key in context.values()}


def print_contexts(contexts: Mapping[str, Context], current: str | None = None) -> None:
    """Prints a line a context, with the address of each door that it has an identity for."""
    rows = [
        [
            ("* " if name == current else "") + name,
            context.user,
            *(context.address(each) if each in context.transports else "-" for each in Transport),
        ]
        for name, context in contexts.items()
    ]
    print_table(["NAME", "USER", "GRPC", "HTTPS"], rows)


def _document(context: Context) -> dict[str, Any]:
    transports = [transport.value for transport in context.transports]
    return {"directory": str(context.directory)} | context.values() | {"transports": transports}
