"""The jobctl command: finds the verb, runs it, and turns how that went into an exit code.

This is the only place that knows exit codes: the job's own (128+n after a signal, 124 after
a timeout), 125 for a failure of ours, 126 and 127 for a program that cannot be executed or
found, 2 for a wrong command line, and 141 when whoever reads our output has gone, as if
SIGPIPE had ended us.
"""

import inspect
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Annotated, Any, ClassVar, Final

import typer
from typer._click.exceptions import NoSuchOption
from typer.core import TyperCommand, TyperGroup

from jobworker.cli.interruption import Interrupted
from jobworker.cli.notice import SomeFailed, say
from jobworker.cli.options import ContextOption, TransportOption
from jobworker.core.errors import ErrorCode, JobError

_OUR_FAILURE: Final = 125
_STDERR: Final = 2
_NEAR_MISS: Final = 0.7  # a letter or two too many, missing or swapped
_EXIT_CODES: Final = {
    ErrorCode.INVALID_ARGUMENT: 2,
    ErrorCode.PROGRAM_NOT_EXECUTABLE: 126,
    ErrorCode.PROGRAM_NOT_FOUND: 127,
}


class VerbGroup(TyperGroup):
    """Commands that are imported when they are used: a verb starts in the time that it needs itself."""

    # A verb's module and function; aliases work too and are left out of the help.
    verbs: ClassVar[Mapping[str, str]]
    aliases: ClassVar[Mapping[str, str]] = {}

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - the signature is Typer's
        """The verbs in the order of the help."""
        return list(self.verbs)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of this name; a usage error that names similar ones when there is none."""
        known = {**self.verbs, **self.aliases}
        if cmd_name in known:
            return _command(cmd_name, known[cmd_name])
        if ctx.resilient_parsing or cmd_name.startswith("-"):
            return None
        similar = " or ".join(repr(name) for name in get_close_matches(cmd_name, known, cutoff=_NEAR_MISS))
        hint = f"did you mean {similar}?" if similar else f"see: {ctx.command_path} --help"
        return ctx.fail(f"no such command {cmd_name!r}; {hint}")


class Verb(TyperCommand):
    """A command whose usage is written as manuals write it: what must be given is bare, the rest in brackets."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The words of the usage line behind the command's name."""
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]


class _ContextVerbs(VerbGroup):
    verbs: ClassVar = {
        "list": "context:list_contexts",
        "use": "context:use",
        "show": "context:show",
        "add": "context:add",
        "rm": "context:remove",
    }
    aliases: ClassVar = {"ls": "context:list_contexts"}


class _Jobctl(VerbGroup):
    verbs: ClassVar = {
        "start": "start:start",
        "run": "run:run",
        "status": "status:status",
        "why": "why:why",
        "stats": "stats:stats",
        "logs": "logs:logs",
        "list": "list:list_jobs",
        "wait": "wait:wait",
        "stop": "stop:stop",
        "signal": "signal:signal",
        "rm": "remove:remove",
        "context": "context:context",
        "login": "login:login",
        "whoami": "whoami:whoami",
        "version": "version:version",
        "completion": "completion:completion",
    }
    aliases: ClassVar = {
        "inspect": "status:inspect",
        "output": "logs:logs",
        "stream": "logs:logs",
        "follow": "logs:follow",
        "ps": "list:list_jobs",
        "ls": "list:list_jobs",
        "cancel": "stop:stop",
        "kill": "signal:kill",
    }

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Reads the words before the verb; a usage error tells where a verb's own options go."""
        try:
            return super().parse_args(ctx, args)
        except NoSuchOption as error:
            hint = f"a command's options go behind it, as in: {ctx.command_path} list -o json"
            return ctx.fail(f"no such option {error.option_name} before a command; {hint}")

    def invoke(self, ctx: Any) -> Any:
        """Runs the verb and leaves with the exit code that belongs to how it went."""
        verb = super().invoke
        raise typer.Exit(_exit_code(lambda: verb(ctx)))


def main() -> None:
    """Runs jobctl with the arguments of this process and exits."""
    # The transport's own log would only repeat, in its words, what our messages say.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    _occupy_standard_descriptors()
    if "_JOBCTL_COMPLETE" in os.environ:
        from typer._completion_classes import completion_init  # noqa: PLC0415 - only the shell asks for it

        completion_init()
    try:
        _jobctl().main(prog_name="jobctl")
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 0
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    # Connections are closed and output is flushed; taking the interpreter apart would only cost time.
    os._exit(code)


def _occupy_standard_descriptors() -> None:
    """A stream that the caller has closed leads nowhere, and never into a connection that got its number."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        pass
    os.close(fd)
    sys.stdin, sys.stdout, sys.stderr = (
        stream or open(fd, mode, closefd=False)  # noqa: SIM115 - for the life of the process
        for fd, (stream, mode) in enumerate(((sys.stdin, "r"), (sys.stdout, "w"), (sys.stderr, "w")))
    )


def _jobctl() -> Any:
    app = typer.Typer(name="jobctl", cls=_Jobctl, add_completion=False, rich_markup_mode=None)
    app.callback(no_args_is_help=True, **_help(_global_options))(_global_options)
    return typer.main.get_command(app)


def _command(name: str, target: str) -> Any:
    """The command `name`, made from the function that `target` names."""
    module, _, function = target.partition(":")
    verb = getattr(import_module(f"jobworker.cli.{module}"), function)
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    if name == "context":
        app = typer.Typer(name=name, cls=_ContextVerbs, add_completion=False, rich_markup_mode=None)
        app.callback(no_args_is_help=True, **_help(verb))(verb)
    else:
        app.command(name, cls=Verb, **_help(verb))(verb)
    command: Any = typer.main.get_command(app)
    if name in {"start", "run"}:
        # Behind the program's name, every word belongs to the program.
        command.allow_interspersed_args = False
    return command


def _help(verb: Callable[..., Any]) -> dict[str, Any]:
    """What Typer shows as help: the docstring, with its examples as they are laid out there."""
    text, _, examples = (inspect.getdoc(verb) or "").partition("\nExamples:\n")
    return {
        "help": text,
        "epilog": f"\b\nExamples:\n{examples}" if examples else None,
        "context_settings": {"help_option_names": ["--help", "-h"]},
    }


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - the signature is Typer's
    if wanted:
        import_module("jobworker.cli.version").version()
        raise typer.Exit


def _global_options(
    *,
    context: ContextOption = None,
    transport: TransportOption = None,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and leave."),
    ] = False,
) -> None:
    """Run programs on a remote machine as isolated, resource-limited jobs.

    Words before -- are options of jobctl, words behind it are the program and its arguments,
    which no shell reads. An id may be shortened as long as it stays unique.

    Examples:
      jobctl run -- echo hello
      jobctl start --cpu 0.5 --memory 64M -- /bin/sleep 60
      jobctl logs 3f2a91c0
    """


def _exit_code(act: Callable[[], int | None]) -> int:
    """The exit code for what `act` returned or raised; what it raised is told on stderr."""
    try:
        status = act() or 0
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes stdout once more on its way out, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        # What else is read or written has its errors told where it is; this is a full disk, as a rule.
        say(f"cannot write the output: {error.strerror}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _OUR_FAILURE
    except Interrupted as interruption:
        return 128 + interruption.signal
    except JobError as error:
        return _told([error])
    except SomeFailed as some:
        return _told(some.errors)
    return status


def _told(errors: Sequence[JobError]) -> int:
    """The highest exit code of `errors`, each of which is told on stderr."""
    for error in errors:
        say(error.message)
    return max(_EXIT_CODES.get(error.code, _OUR_FAILURE) for error in errors)
