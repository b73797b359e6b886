"""Contexts: which server to talk to, and with which identity."""

import json
import os
import stat
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from jobworker.core.errors import ErrorCode, JobError, invalid

_FILE: Final = "context.toml"
_PATHS: Final = ("ca", "certificate", "key")
_KEYS: Final = ("server", "user", *_PATHS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """A server's address with the files that prove who is calling; all paths are absolute."""

    directory: Path
    server: str
    user: str
    ca: Path
    certificate: Path
    key: Path

    @classmethod
    def load(cls, directory: Path) -> Self:
        """The context in `directory`; UNAUTHENTICATED names what is missing or wrong in it."""
        file = directory / _FILE
        try:
            values = tomllib.loads(_read(file).decode())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise _broken(f"{file} is not valid TOML: {error}") from error
        missing = [key for key in _KEYS if not isinstance(values.get(key), str) or not values[key]]
        if missing:
            raise _broken(f"{file} lacks {', '.join(missing)}; it needs {', '.join(_KEYS)}, each as text")
        if unknown := sorted(set(values) - set(_KEYS)):
            raise _broken(f"{file} has unknown keys: {', '.join(unknown)}; known are {', '.join(_KEYS)}")
        check_server(values["server"])
        files = {key: directory.absolute() / values[key] for key in _PATHS}
        return cls(directory=directory.absolute(), server=values["server"], user=values["user"], **files)

    def read(self, file: Path) -> bytes:
        """The bytes of one of the context's files; UNAUTHENTICATED when it is missing."""
        return _read(file)

    def read_key(self) -> bytes:
        """The private key; UNAUTHENTICATED when anyone but its owner has access to it."""
        key = _read(self.key)
        if stat.S_IMODE(self.key.stat().st_mode) & 0o077:
            raise _broken(f"private key {self.key} is open to other users; run: chmod 600 {self.key}")
        return key

    def save(self) -> None:
        """Writes the context's file, readable for its owner only; its directory is made when missing."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        values = {key: str(getattr(self, key)) for key in _KEYS}
        # A JSON string is a TOML string too.
        text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
        _write(self.directory / _FILE, text)


def find_context(choice: str | None = None) -> Context:
    """The context to use: `choice`, else JOBCTL_CONTEXT, else the current one.

    Each is a name or a directory. A name means the context saved under it; where the
    environment or the current context points to one directory of several users, as in
    clients/bob, it also means the directory of that user beside it.
    """
    ambient = os.environ.get("JOBCTL_CONTEXT") or current_context()
    if choice:
        return Context.load(_locate(choice, ambient))
    if ambient:
        return Context.load(_locate(ambient, None))
    raise _broken(
        "no context chosen; name one with --context NAME|DIR, set JOBCTL_CONTEXT, or run: jobctl context use NAME"
    )


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


def named_contexts() -> list[str]:
    """The names of all saved contexts, sorted."""
    return sorted(file.parent.name for file in _named("any").parent.glob(f"*/{_FILE}"))


def named_directory(name: str) -> Path:
    """Where the context `name` is saved; INVALID_ARGUMENT when `name` cannot be a name."""
    if not name or name.startswith((".", "-")) or "/" in name or not name.isprintable():
        raise invalid("context name", name, "a word without /, not starting with . or -")
    return _named(name)


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
    for candidate in candidates:
        if (candidate / _FILE).is_file():
            return candidate
    known = ", ".join(named_contexts()) or "none"
    raise _broken(f"no context {choice!r}; known: {known}; add one with: jobctl context add {choice} DIR")


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


def _write(file: Path, text: str) -> None:
    """Replaces `file` as a whole, so that no reader sees half of it."""
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as target:
        target.write(text)
    fresh.replace(file)


def _broken(message: str) -> JobError:
    return JobError(ErrorCode.UNAUTHENTICATED, message)
