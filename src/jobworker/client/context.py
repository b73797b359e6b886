"""Contexts: which server to talk to, and with which identity."""

import json
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final, Self

from jobworker.core.errors import ErrorCode, JobError, invalid

_FILE: Final = "context.toml"
_PATHS: Final = ("ca", "certificate", "key", "token")
_KEYS: Final = ("user", "server", "https", *_PATHS)
_BEARER: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750, section 2.1
_LONGESTTOKEN: Final = 4096


class Transport(Enum):
    """A way to a server: each has its own port, and its own proof of who is calling."""

    GRPC = "grpc"  # mutual TLS, with a certificate
    HTTPS = "https"  # TLS, with a bearer token


#: The keys that a context needs for a transport.
_NEEDED: Final = {
    Transport.GRPC: ("server", "ca", "certificate", "key"),
    Transport.HTTPS: ("https", "token"),
}


class Token:
    """A bearer token: whoever has it can act as its user, so its repr does not show it."""

    def __init__(self, secret: str) -> None:
        if not _BEARER.fullmatch(secret) or len(secret) > _LONGESTTOKEN:
            raise _broken("that is no token: a token is one word, as jobworkerd token create prints it")
        self._secret = secret

    def reveal(self) -> str:
        """The token itself, for the one header and the one file that it belongs in."""
        return self._secret

    def __repr__(self) -> str:
        return "<token>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Where a server is, with the files that prove who is calling; all paths are absolute.

    It holds what gRPC needs (server, ca, certificate, key), what HTTPS needs (https, token;
    without a ca the system's are trusted), or both.
    """

    directory: Path
    user: str
    server: str | None = None
    https: str | None = None
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token: Path | None = None

    @classmethod
    def load(cls, directory: Path) -> Self:
        """The context in `directory`; UNAUTHENTICATED names what is missing or wrong in it."""
        file = directory / _FILE
        try:
            values = tomllib.loads(_read(file).decode())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise _broken(f"{file} is not valid TOML: {error}") from error
        if unknown := sorted(set(values) - set(_KEYS)):
            raise _broken(f"{file} has unknown keys: {', '.join(unknown)}; known are {', '.join(_KEYS)}")
        if wrong := [key for key in _KEYS if key in values and not (isinstance(values[key], str) and values[key])]:
            raise _broken(f"{file} has no text for {', '.join(wrong)}")
        if missing := missing_keys(values):
            raise _broken(f"{file} lacks {', '.join(missing)}; {WHAT_IS_NEEDED}")
        for key in ("server", "https"):
            if key in values:
                check_server(values[key])
        directory = directory.absolute()
        return cls(
            directory=directory,
            **{key: directory / value if key in _PATHS else value for key, value in values.items()},
        )

    @property
    def transports(self) -> tuple[Transport, ...]:
        """The ways to the server that this context has an identity for, the preferred one first."""
        return tuple(transport for transport, needed in _NEEDED.items() if all(getattr(self, key) for key in needed))

    def choose(self, transport: Transport | None = None) -> Transport:
        """`transport`, or the preferred one; UNAUTHENTICATED when the context has no identity for it."""
        if transport is None:
            return self.transports[0]
        if transport not in self.transports:
            lacking = ", ".join(key for key in _NEEDED[transport] if not getattr(self, key))
            raise _broken(f"the context of {self.user} has no way over {transport.value}: it lacks {lacking}")
        return transport

    def address(self, transport: Transport) -> str:
        """HOST:PORT of the server's door of this kind, which the context must have."""
        return self.values()[_NEEDED[transport][0]]

    def values(self) -> dict[str, str]:
        """What the context's file says, with absolute paths."""
        return {key: str(value) for key in _KEYS if (value := getattr(self, key)) is not None}

    def read(self, key: str) -> bytes:
        """The bytes of the file that the context has under `key`; UNAUTHENTICATED when it is missing."""
        return _read(self._path(key))

    def read_key(self) -> bytes:
        """The private key; UNAUTHENTICATED when anyone but its owner has access to it."""
        return _read_private(self._path("key"), "private key")

    def read_token(self) -> Token:
        """The token; UNAUTHENTICATED when the file holds none, or anyone but its owner has access to it."""
        file = self._path("token")
        secret = _read_private(file, "token")
        try:
            return Token(secret.decode("ascii", "replace").strip())
        except JobError as error:
            raise _broken(f"{file} holds no token; store one with: jobctl login") from error

    def save(self) -> None:
        """Writes the context's file, readable for its owner only; its directory is made when missing."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A JSON string is a TOML string too.
        text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in self.values().items())
        _write(self.directory / _FILE, text)

    def save_token(self, token: Token) -> None:
        """Writes the token's file, readable for its owner only."""
        file = self._path("token")
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(file, token.reveal() + "\n")

    def _path(self, key: str) -> Path:
        path: Path | None = getattr(self, key)
        if path is None:
            raise _broken(f"the context of {self.user} has no {key}")
        return path


WHAT_IS_NEEDED: Final = "it needs user, and {} for gRPC or {} for HTTPS".format(
    *(", ".join(needed) for needed in _NEEDED.values())
)


def missing_keys(values: Mapping[str, Any]) -> list[str]:
    """What `values` lack to be a context. A transport of which nothing but the ca is there is not missed."""
    begun = [needed for needed in _NEEDED.values() if any(values.get(key) for key in needed if key != "ca")]
    needed_keys = [key for needed in begun or [_NEEDED[Transport.GRPC]] for key in needed]
    return [key for key in ("user", *needed_keys) if not values.get(key)]


def find_context(choice: str | None = None) -> Context:
    """The context to use: `choice`, else JOBCTL_CONTEXT, else the current one.

    Each is a name or a directory. A name means the context saved under it; where the
    environment or the current context points to one directory of several users, as in
    clients/bob, it also means the directory of that user beside it.
    """
    ambient = os.environ.get("JOBCTL_CONTEXT") or current_context()
    if choice is not None:  # also when it is empty: what an unset variable left must not mean another identity
        return Context.load(_locate(choice, ambient))
    if ambient:
        return Context.load(_locate(ambient, None))
    raise _broken(
        "no context chosen; name one with --context NAME|DIR, set JOBCTL_CONTEXT, or run: jobctl context use NAME"
    )


def ambient_transport() -> Transport | None:
    """The transport that JOBCTL_TRANSPORT asks for, if any; INVALID_ARGUMENT when there is no such transport."""
    text = os.environ.get("JOBCTL_TRANSPORT")
    if not text:
        return None
    try:
        return Transport(text)
    except ValueError:
        raise invalid("JOBCTL_TRANSPORT", text, " or ".join(each.value for each in Transport)) from None


def current_context() -> str | None:
    """The name or directory that `use_context` recorded; None when none is."""
    try:
        return (_home() / "current").read_text().strip() or None
    except FileNotFoundError:
        return None


def use_context(choice: str) -> Context:
    """Makes `choice`, a name or a directory, the current context."""
    context = find_context(choice)
    is_named = context.directory == _named(context.directory.name)
    _home().mkdir(mode=0o700, parents=True, exist_ok=True)
    _write(_home() / "current", (context.directory.name if is_named else str(context.directory)) + "\n")
    return context


def remove_context(name: str) -> None:
    """Deletes the context saved under `name` with the token that a login has kept in it; files elsewhere stay."""
    directory = named_directory(name)
    if not is_context(directory):
        raise _no_context(name)
    for file in (directory / "token", directory / _FILE):
        file.unlink(missing_ok=True)
    with suppress(OSError):  # there is something of the user's in it
        directory.rmdir()
    if current_context() == name:
        (_home() / "current").unlink()


def named_contexts() -> list[str]:
    """The names of all saved contexts, sorted."""
    return sorted(file.parent.name for file in _named("any").parent.glob(f"*/{_FILE}"))


def named_directory(name: str) -> Path:
    """Where the context `name` is saved; INVALID_ARGUMENT when `name` cannot be a name."""
    if not name or name.startswith((".", "-")) or "/" in name or not name.isprintable():
        raise invalid("context name", name, "a word without /, not starting with . or -")
    return _named(name)


def is_context(directory: Path) -> bool:
    """Whether `directory` holds a context."""
    return (directory / _FILE).is_file()


def check_server(server: str) -> str:
    """`server` when it is HOST:PORT; otherwise INVALID_ARGUMENT."""
    host, _, port = server.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise invalid("server", server, "HOST:PORT, as in example.com:50051")
    return server


def _locate(choice: str, ambient: str | None) -> Path:
    """The directory that `choice` names."""
    if "/" in choice or choice in {".", ".."}:
        return Path(choice)
    candidates = [_named(choice)]
    if ambient and "/" in ambient:
        candidates.append(Path(ambient).absolute().parent / choice)
    candidates.append(Path(choice))
    for candidate in candidates if choice else ():
        if is_context(candidate):
            return candidate
    raise _no_context(choice)


def _no_context(name: str) -> JobError:
    known = ", ".join(named_contexts()) or "none"
    word = name or "NAME"
    remedy = f"add one with: jobctl context add {word} DIR, or: jobctl login {word}"
    return _broken(f"no context {name!r}; known: {known}; {remedy}")


def _home() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "jobctl"


def _named(name: str) -> Path:
    return _home() / "contexts" / name


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise _broken(f"missing file: {file}") from None
    except OSError as error:
        raise _broken(f"cannot read {file}: {error.strerror}") from error


def _read_private(file: Path, what: str) -> bytes:
    """The bytes of `file`; UNAUTHENTICATED when anyone but its owner has access to it."""
    data = _read(file)
    if stat.S_IMODE(file.stat().st_mode) & 0o077:
        raise _broken(f"{what} {file} is open to other users; run: chmod 600 {file}")
    return data


def _write(file: Path, text: str) -> None:
    """Replaces `file` as a whole, so that no reader sees half of it."""
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as target:
        target.write(text)
    fresh.replace(file)


def _broken(message: str) -> JobError:
    return JobError(ErrorCode.UNAUTHENTICATED, message)
