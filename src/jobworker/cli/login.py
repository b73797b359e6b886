"""jobctl login: tries a token and keeps it in a context."""

import getpass
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from jobworker.cli import interruption
from jobworker.cli.context import print_contexts
from jobworker.cli.notice import say
from jobworker.cli.options import ContextOption
from jobworker.client.context import (
    Context,
    Token,
    Transport,
    check_server,
    find_context,
    is_context,
    named_directory,
    use_context,
)
from jobworker.client.job_client import JobClient
from jobworker.core.errors import ErrorCode, JobError

_MOST_BYTES = 1 << 16


def login(
    *,
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="The context's name. Default: the one in use gets the new token."),
    ] = None,
    server: Annotated[str | None, typer.Option("--server", metavar="HOST:PORT", help="Its HTTPS port.")] = None,
    ca: Annotated[
        Path | None, typer.Option("--ca", metavar="FILE", help="The CA's certificate. Default: the system's CAs.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", metavar="FILE", help="Where the token is. Default: stdin.")
    ] = None,
    context: ContextOption = None,
) -> None:
    """Try a token against its server, and keep it in a context.

    The token is read from a prompt, from stdin or from a file, never from the command line, and
    kept in a file for you alone. The server tells whose it is. With a NAME the context becomes
    the current one.

    Examples:
      jobctl login alice --server jobs.example.com:8443 --ca ca.crt
      jobctl login alice --server jobs.example.com:8443 < token
      jobctl -u alice login --token-file new-token
    """
    former = _former(name, context)
    directory = former.directory if former else named_directory(name or "")
    address = check_server(server) if server else former and former.https
    if not address:
        raise JobError(ErrorCode.INVALID_ARGUMENT, "where is the server? name its HTTPS port with --server HOST:PORT")
    base = former or Context(directory=directory, user=directory.name)  # until the server has told whose the token is
    wanted = replace(
        base,
        https=address,
        ca=ca.absolute() if ca else base.ca,
        token=base.token or directory / "token",
    )
    token = Token(_read_token(token_file))
    user = _whose(wanted, token)
    if former and user != former.user:
        hint = "keep it in another one: jobctl login NAME"
        raise JobError(ErrorCode.PERMISSION_DENIED, f"the token is {user}'s, and the context {former.user}'s; {hint}")
    wanted = replace(wanted, user=user)
    replaces = former is not None and former.token is not None and former.token.exists()
    wanted.save_token(token)
    if wanted != former:
        wanted.save()
    if name:
        use_context(name)
    instead = " in place of the one before" if replaces else ""
    say(f"the token is {user}'s, good for {wanted.https}, and kept in {wanted.token}{instead}")
    print_contexts({directory.name: wanted})


def _former(name: str | None, choice: str | None) -> Context | None:
    """The context that is to be changed; None when it is a new one."""
    if name:
        directory = named_directory(name)
        return Context.load(directory) if is_context(directory) else None
    try:
        return find_context(choice)
    except JobError as error:
        if choice:
            raise
        raise JobError(
            ErrorCode.INVALID_ARGUMENT, "no context is in use; name a new one: jobctl login NAME --server HOST:PORT"
        ) from error


def _read_token(file: Path | None) -> str:
    if file is not None:
        try:
            text = file.read_bytes()[:_MOST_BYTES]
        except OSError as error:
            raise JobError(ErrorCode.INVALID_ARGUMENT, f"--token-file: cannot read {file}: {error.strerror}") from error
    elif sys.stdin.isatty():
        return getpass.getpass("Token: ").strip()
    else:
        text = sys.stdin.buffer.read(_MOST_BYTES)
    return text.decode("ascii", "replace").strip()


def _whose(context: Context, token: Token) -> str:
    """The user whose token it is, as the context's server says; the JobError says why it does not take it."""

    async def ask() -> str:
        with tempfile.TemporaryDirectory() as private:
            tried = replace(context, token=Path(private) / "token")
            tried.save_token(token)
            async with JobClient.connect(tried, Transport.HTTPS) as client:
                return (await client.who_am_i()).user

    return interruption.run(ask())
