"""jobworkerd, the server's command line.

Nothing heavy is imported before a command needs it: `serve` forks its launcher first, and what
the launcher has loaded is part of every job's monitor.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from jobworker import __version__
from jobworker.access.principal import Role, Scope, check_user_name
from jobworker.access.tokens import parse_scopes
from jobworker.core.errors import JobError
from jobworker.core.units import parse_duration
from jobworker.daemon.address import Address

if TYPE_CHECKING:
    from jobworker.daemon.users import Context

_BROKEN_PIPE: Final = 141  # what a shell shows for a program that SIGPIPE has ended
_INTERRUPTED: Final = 130
#: What the help of each command ends with.
_EXAMPLES: Final = {
    "jobworkerd": """
  jobworkerd init --dir /var/lib/jobworker --host jobs.example.org --listen 0.0.0.0:50051
  jobworkerd user add alice --dir /var/lib/jobworker
  jobworkerd serve --config /var/lib/jobworker/jobworker.toml""",
    "jobworkerd init": """
  jobworkerd init --dir /var/lib/jobworker
  jobworkerd init --dir /var/lib/jobworker --host jobs.example.org --listen 0.0.0.0:50051""",
    "jobworkerd user": """
  jobworkerd user add alice --dir /var/lib/jobworker
  jobworkerd user list --dir /var/lib/jobworker""",
    "jobworkerd user add": """
  jobworkerd user add alice --dir /var/lib/jobworker
  jobworkerd user add carol --role admin --ttl 30d --out ./carol --dir /var/lib/jobworker""",
    "jobworkerd user renew": """
  jobworkerd user renew alice --ttl 7d --dir /var/lib/jobworker""",
    "jobworkerd user remove": """
  jobworkerd user remove alice --dir /var/lib/jobworker""",
    "jobworkerd user deny": """
  jobworkerd user deny serial 5f3a91c077b0 --reason "laptop stolen" --dir /var/lib/jobworker
  jobworkerd user deny identity alice --dir /var/lib/jobworker""",
    "jobworkerd user list": """
  jobworkerd user list --dir /var/lib/jobworker""",
    "jobworkerd token": """
  jobworkerd token create alice --dir /var/lib/jobworker
  jobworkerd token list --dir /var/lib/jobworker""",
    "jobworkerd token create": """
  jobworkerd token create alice --dir /var/lib/jobworker
  jobworkerd token create alice --ttl 90d --scope jobs:read --scope jobs:output --dir /var/lib/jobworker""",
    "jobworkerd token list": """
  jobworkerd token list --user alice --dir /var/lib/jobworker""",
    "jobworkerd token revoke": """
  jobworkerd token revoke 3yp7g8P4SGC9 --dir /var/lib/jobworker""",
    "jobworkerd cert": """
  jobworkerd cert renew --dir /var/lib/jobworker""",
    "jobworkerd cert renew": """
  jobworkerd cert renew --dir /var/lib/jobworker
  jobworkerd cert renew --host jobs.example.org --host 192.0.2.7 --dir /var/lib/jobworker""",
    "jobworkerd audit": """
  jobworkerd audit verify --dir /var/lib/jobworker
  jobworkerd audit export --dir /var/lib/jobworker""",
    "jobworkerd audit verify": """
  jobworkerd audit verify --dir /var/lib/jobworker
  jobworkerd audit verify --checkpoint "$(cat checkpoint)" --dir /var/lib/jobworker""",
    "jobworkerd audit export": """
  jobworkerd audit export --dir /var/lib/jobworker | jq 'select(.decision == "denied")'""",
    "jobworkerd serve": """
  jobworkerd serve --config /var/lib/jobworker/jobworker.toml""",
    "jobworkerd launcher": """
  jobworkerd launcher --listen /run/jobworker/launcher.sock --config /var/lib/jobworker/jobworker.toml""",
    "jobworkerd check": """
  jobworkerd check
  jobworkerd check -o json""",
    "jobworkerd version": """
  jobworkerd version""",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status; what an operator can mend is one line on stderr and status 1."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.command(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of stdout has gone; without this Python would complain about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        return _INTERRUPTED
    except _foreseen() as error:
        _say(f"jobworkerd: {_one_line(error)}")
        return 1
    return status


def _foreseen() -> tuple[type[Exception], ...]:
    """The errors that an operator can mend; looked up when one has happened, since their modules are heavy."""
    from jobworker.access.key_files import KeyRefused  # noqa: PLC0415
    from jobworker.daemon.init import InitRefused  # noqa: PLC0415
    from jobworker.daemon.refusal import ConfigRefused  # noqa: PLC0415
    from jobworker.daemon.state import UserRefused  # noqa: PLC0415
    from jobworker.store.database import DatabaseRefused  # noqa: PLC0415
    from jobworker.store.users import UserExists  # noqa: PLC0415

    return (JobError, ConfigRefused, KeyRefused, DatabaseRefused, InitRefused, UserRefused, UserExists, OSError)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


# The commands: each takes the parsed options and gives the exit status. Data goes to stdout, words to stderr.


def _init(options: argparse.Namespace) -> int:
    from jobworker.daemon.init import init  # noqa: PLC0415

    made = init(
        options.dir,
        options.host,
        options.user,
        options.trust_domain,
        options.listen,
        listen_https=options.listen_https,
    )
    if os.geteuid() == 0:
        _say(f"the service will run as user {made.account.name}{_why_root(made.account.uid)}")
    else:
        _say("without root, every job runs as the user who runs the server, and shows it; see jobworkerd check")
    if made.allow_degraded:
        _say(
            f"this host has no {', '.join(made.allow_degraded)} for you: jobs run without (allow_degraded), and show it"
        )
    _say(f"start it with: jobworkerd serve --config {made.config}")
    return _tell_context(made.admin)


def _why_root(uid: int) -> str:
    return "" if uid else ", since no other user can get into that directory; /var/lib would do"


def _user_add(options: argparse.Namespace) -> int:
    from jobworker.daemon import users  # noqa: PLC0415

    return _tell_context(
        users.add(options.dir, options.name, role=Role(options.role), ttl=options.ttl, out=options.out)
    )


def _user_renew(options: argparse.Namespace) -> int:
    from jobworker.daemon import users  # noqa: PLC0415

    return _tell_context(users.renew(options.dir, options.name, ttl=options.ttl, out=options.out))


def _user_remove(options: argparse.Namespace) -> int:
    from jobworker.daemon import users  # noqa: PLC0415

    users.remove(options.dir, options.name)
    _say(f"user {options.name} is removed; running jobs go on")
    return 0


def _user_deny(options: argparse.Namespace) -> int:
    from jobworker.daemon import users  # noqa: PLC0415

    users.deny(options.dir, options.kind, options.value, options.reason)
    _say(f"{options.kind} {options.value} is refused from now on; running jobs go on")
    return 0


def _user_list(options: argparse.Namespace) -> int:
    from jobworker.daemon import users  # noqa: PLC0415

    rows = [(user.name, user.role, _moment(user.created_at)) for user in users.present(options.dir)]
    for name, role, created in (("NAME", "ROLE", "CREATED"), *rows):
        _print(f"{name:<32}  {role:<8}  {created}")
    return 0


def _token_create(options: argparse.Namespace) -> int:
    from jobworker.daemon import tokens  # noqa: PLC0415

    made = tokens.create(options.dir, options.name, ttl=options.ttl, scopes=options.scope)
    _say(f"token {made.token.id} of {options.name}, valid until {_moment(made.record.expires_at)}; it is shown once:")
    _print(made.token.reveal())
    return 0


def _token_list(options: argparse.Namespace) -> int:
    from jobworker.daemon import tokens  # noqa: PLC0415

    rows = [
        (token.id, token.user, _moment(token.expires_at), token.scopes)
        for token in tokens.present(options.dir, options.user)
    ]
    for token_id, user, expires, scopes in (("ID", "USER", "EXPIRES", "SCOPES"), *rows):
        _print(f"{token_id:<12}  {user:<32}  {expires:<20}  {scopes}")
    return 0


def _token_revoke(options: argparse.Namespace) -> int:
    from jobworker.daemon import tokens  # noqa: PLC0415

    tokens.revoke(options.dir, options.id)
    _say(f"token {options.id} is refused from now on, and what was given for it; running jobs go on")
    return 0


def _cert_renew(options: argparse.Namespace) -> int:
    from jobworker.daemon import server_certificate  # noqa: PLC0415

    not_after = server_certificate.renew(options.dir, options.host, ttl=options.ttl)
    _say(f"the server's certificate is valid until {_moment(not_after)}; a running server takes it by itself")
    return 0


def _audit_verify(options: argparse.Namespace) -> int:
    from jobworker.daemon.state import open_database  # noqa: PLC0415
    from jobworker.store import audit  # noqa: PLC0415

    checkpoint = options.checkpoint and audit.Head(*options.checkpoint)
    with open_database(options.dir) as database:
        head, broken = database.read(lambda trail: (audit.head(trail), audit.verify(trail, checkpoint)))
    if broken is not None:
        _say(f"jobworkerd: the audit is not as it was written, from record {broken} on; compare it with a backup")
        return 1
    _say(f"the audit is whole; its {head.sequence} records end at this checkpoint, to be kept elsewhere:")
    _print(f"{head.sequence}:{head.hash}")
    return 0


def _audit_export(options: argparse.Namespace) -> int:
    import sqlite3  # noqa: PLC0415

    from jobworker.daemon.state import open_database  # noqa: PLC0415
    from jobworker.store import audit  # noqa: PLC0415

    def write_out(trail: sqlite3.Connection) -> None:
        for line in audit.export(trail):
            _print(line)

    with open_database(options.dir) as database:
        database.read(write_out)
    return 0


def _serve(options: argparse.Namespace) -> int:
    from jobworker.daemon.serve import serve  # noqa: PLC0415

    return serve(options.config, options.launcher)


def _launcher(options: argparse.Namespace) -> int:
    from jobworker.daemon.launcher import serve_launchers  # noqa: PLC0415

    return serve_launchers(options.config, options.listen)


def _check(options: argparse.Namespace) -> int:
    from jobworker.daemon.check import check  # noqa: PLC0415

    return check(options.output)


def _version(_options: argparse.Namespace) -> int:
    _print(f"jobworkerd {__version__}")
    return 0


def _tell_context(context: "Context") -> int:
    _say(f"context valid until {_moment(context.not_after)}; use it with: jobctl --context {context.directory} list")
    _print(str(context.directory))
    return 0


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# The grammar.


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jobworkerd",
        description="Run any Linux program as an isolated, resource-limited job for remote users.",
        **_SHAPE,
    )
    _add_examples(parser)
    parser.add_argument(
        "--version", action="version", version=f"jobworkerd {__version__}", help="print the version and leave"
    )
    verbs = parser.add_subparsers(metavar="COMMAND", required=True)

    init = _verb(verbs, "init", _init, "make a state directory: configuration, certificates, first admin")
    _add_dir(init, "the directory to make")
    _add_hosts(init, "a name or address that clients dial; contexts name the first")
    for option, default, door in (
        ("--listen", "127.0.0.1:50051", "gRPC with certificates"),
        ("--listen-https", "127.0.0.1:8443", "HTTPS with bearer tokens"),
    ):
        meaning = f"where to listen for {door}; port 0 takes a free one; default: {default}"
        init.add_argument(option, type=_word(Address.parse), default=default, metavar="HOST:PORT", help=meaning)
    init.add_argument("--user", metavar="USER", help="who the service runs as, when init is run by root")
    init.add_argument(
        "--trust-domain",
        default="jobworker.internal",
        metavar="DOMAIN",
        help="the realm of user identities; default: jobworker.internal",
    )

    user = _group(verbs, "user", "who may call")
    add = _verb(user, "add", _user_add, "add a user and write a context for jobctl")
    add.add_argument(
        "--role",
        choices=[role.value for role in Role],
        default=Role.USER.value,
        help="an admin acts on everybody's jobs, a user on the own ones; default: user",
    )
    renew = _verb(user, "renew", _user_renew, "write a user's context anew, with a new certificate")
    remove = _verb(user, "remove", _user_remove, "refuse a user from now on, on open connections too")
    for verb in (add, renew, remove):
        _add_name(verb)
    for verb in (add, renew):
        _add_ttl(verb, "24h", "how long certificate and token are valid")
        verb.add_argument("--out", type=Path, metavar="DIR", help="where the context goes, instead of clients/NAME")
    deny = _verb(user, "deny", _user_deny, "refuse one certificate, or all of a key or user, from now on")
    deny.add_argument("kind", choices=["serial", "key", "identity"], help="what VALUE is")
    deny.add_argument("value", metavar="VALUE", help="a serial or the SHA-256 of a public key in hex, or a user's name")
    deny.add_argument("--reason", default="", metavar="TEXT", help="why, for the record")
    listing = _verb(user, "list", _user_list, "show who may call")

    token = _group(verbs, "token", "with what to call over HTTPS")
    create = _verb(token, "create", _token_create, "make a token for a user; it goes to stdout, and nowhere else")
    _add_name(create)
    _add_ttl(create, "24h", "how long it is valid, at most 90d")
    create.add_argument(
        "--scope",
        type=_word(_scope),
        action="append",
        default=[],
        metavar="SCOPE",
        help="what it may be used for: "
        + ", ".join(scope.value for scope in Scope)
        + "; may be repeated; default: all that the role can use",
    )
    tokens = _verb(token, "list", _token_list, "show the tokens that are good, without their secrets")
    tokens.add_argument("--user", type=_word(check_user_name), metavar="NAME", help="only those of one user")
    revoke = _verb(token, "revoke", _token_revoke, "refuse a token from now on, on open connections too")
    revoke.add_argument("id", metavar="ID", help="as token list shows it")

    cert = _group(verbs, "cert", "what the server proves itself with")
    cert_renew = _verb(cert, "renew", _cert_renew, "make a new key and certificate for the server")
    _add_hosts(cert_renew, "a name or address that clients dial; default: those of the old certificate")
    _add_ttl(cert_renew, "30d", "how long it is valid")

    audit = _group(verbs, "audit", "who did what")
    verify = _verb(audit, "verify", _audit_verify, "prove that no record was changed, removed or moved")
    verify.add_argument("--checkpoint", type=_checkpoint, metavar="NUMBER:HASH", help="what an earlier verify printed")
    export = _verb(audit, "export", _audit_export, "print every record as a line of JSON")
    for verb in (add, renew, remove, deny, listing, create, tokens, revoke, cert_renew, verify, export):
        _add_dir(verb, "the directory that init has made")

    serve = _verb(verbs, "serve", _serve, "run the server until SIGTERM")
    serve.add_argument(
        "--launcher", type=Path, metavar="SOCKET", help="where jobworkerd launcher listens; without it, start one"
    )
    launcher = _verb(verbs, "launcher", _launcher, "make jobs, as root, for a server that has never been root")
    launcher.add_argument(
        "--listen", type=Path, required=True, metavar="SOCKET", help="opened to the server's user only"
    )
    for verb in (serve, launcher):
        verb.add_argument("--config", type=Path, required=True, metavar="FILE", help="the file that init has made")
    check = _verb(verbs, "check", _check, "tell what this host can enforce, and how to get what it cannot")
    check.add_argument(
        "-o", "--output", choices=["table", "json"], default="table", help="for people or for programs; default: table"
    )
    _verb(verbs, "version", _version, "print the version")
    return parser


_Verbs = Any  # argparse gives its type of subcommands no public name
_SHAPE: Final[dict[str, Any]] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}


def _verb(
    verbs: _Verbs, name: str, command: Callable[[argparse.Namespace], int], promise: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=promise, description=promise, **_SHAPE)
    _add_examples(parser)
    parser.set_defaults(command=command)
    return parser


def _group(verbs: _Verbs, name: str, about: str) -> _Verbs:
    parser = verbs.add_parser(name, help=about, description=about, **_SHAPE)
    _add_examples(parser)
    return parser.add_subparsers(metavar="COMMAND", required=True)


def _add_examples(parser: argparse.ArgumentParser) -> None:
    parser.epilog = f"examples:{_EXAMPLES[parser.prog]}"


def _add_name(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("name", type=_word(check_user_name), metavar="NAME", help="the user's name")


def _add_ttl(verb: argparse.ArgumentParser, default: str, meaning: str) -> None:
    verb.add_argument(
        "--ttl", type=_word(parse_duration), default=default, metavar="TIME", help=f"{meaning}; default: {default}"
    )


def _add_dir(verb: argparse.ArgumentParser, meaning: str) -> None:
    verb.add_argument("--dir", type=Path, required=True, metavar="DIR", help=meaning)


def _add_hosts(verb: argparse.ArgumentParser, meaning: str) -> None:
    verb.add_argument("--host", action="append", default=[], metavar="HOST", help=f"{meaning}; may be repeated")


def _word(parse: Callable[[str], object]) -> Callable[[str], object]:
    """`parse` as argparse wants it: what it refuses is a usage error."""

    def parser(text: str) -> object:
        try:
            return parse(text)
        except JobError as refused:
            raise argparse.ArgumentTypeError(refused.message) from None

    return parser


def _scope(text: str) -> Scope:
    (scope,) = parse_scopes([text])
    return scope


def _checkpoint(text: str) -> tuple[int, str]:
    number, colon, digest = text.partition(":")
    if not colon or not number.isdecimal() or len(digest) != 64:
        raise argparse.ArgumentTypeError(f"{text!r} is not what audit verify prints")
    return int(number), digest


if __name__ == "__main__":
    sys.exit(main())
