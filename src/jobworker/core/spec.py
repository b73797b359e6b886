"""What a caller asks for: a program with its limits; an invalid request cannot be built."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from types import MappingProxyType
from typing import Any, Final, Self, TypeVar

from jobworker.core.errors import ErrorCode, JobError, invalid
from jobworker.core.units import format_size

MiB: Final = 1024 * 1024
_MIN_MEMORY: Final = 4 * MiB  # below it the kernel kills the job before its program is loaded
_MAX_BYTES: Final = 1 << 62
_MAX_CPU: Final = 4096.0
_MIN_CPU: Final = 0.01  # the kernel's shortest quota: 1 ms in a period of 100 ms
_MAX_PIDS: Final = 4_194_304  # PID_MAX_LIMIT, include/linux/threads.h
_MAX_TIMEOUT: Final = 10 * 365 * 86400.0
MAX_LABELS: Final = 64
_MAX_WORDS: Final = 65_536
_MAX_WORDS_SIZE: Final = 2 * MiB  # of the kernel too, with the stack limit that jobs have; execve(2)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_LABEL_KEY: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_./-]{0,61}[A-Za-z0-9])?")
_ENV_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TEXT_ALLOWED: Final = "text without a NUL byte"


class Network(Enum):
    """Which network the job sees."""

    NONE = "none"  # a loopback interface of its own, nothing else
    HOST = "host"  # the host's network, where the policy allows it


class OnOutputLimit(Enum):
    """What happens when a job has written more than `output_bytes`."""

    DROP = "drop"  # it runs on; what is over the limit is counted and dropped
    KILL = "kill"  # it ends with the outcome output_limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a job may use at most; None means unlimited.

    cpu in cores, sizes in bytes, rates in bytes or operations a second, timeout in seconds.
    Memory includes swap. `io_device` is a device node or any path on the device to limit;
    without it the io limits are for the device under `/`.
    """

    cpu: float | None = None
    memory: int | None = 512 * MiB
    pids: int | None = 256
    io_read_bps: int | None = None
    io_write_bps: int | None = None
    io_read_iops: int | None = None
    io_write_iops: int | None = None
    io_device: str | None = None
    timeout: float | None = None
    output_bytes: int = 1024 * MiB
    on_output_limit: OnOutputLimit = OnOutputLimit.DROP

    def __post_init__(self) -> None:
        _check_number("cpu", self.cpu, _MIN_CPU, _MAX_CPU, f"{_MIN_CPU:g} to {_MAX_CPU:g} cores")
        _check_integer("memory", self.memory, _MIN_MEMORY, f"{format_size(_MIN_MEMORY)} or more")
        _check_integer("pids", self.pids, 1, f"1 to {_MAX_PIDS}", _MAX_PIDS)
        for name in ("io_read_bps", "io_write_bps", "io_read_iops", "io_write_iops"):
            _check_integer(name, getattr(self, name), 1, "1 or more a second")
        _check_number("timeout", self.timeout, 0.001, _MAX_TIMEOUT, "0.001 seconds to 10 years")
        if self.output_bytes is None:
            raise invalid("output_bytes", None, "0 or more bytes")
        _check_integer("output_bytes", self.output_bytes, 0, "0 or more bytes")
        if self.io_device is not None:
            _check_path("io_device", self.io_device)
            if not self.limits_io():
                raise invalid("io_device", self.io_device, "a device only together with an io limit")

    def limits_io(self) -> bool:
        """Whether any of the four io limits is set."""
        return any(
            limit is not None for limit in (self.io_read_bps, self.io_write_bps, self.io_read_iops, self.io_write_iops)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """One run of one program, as asked for.

    `program` is an absolute path, or a bare name that is looked up in the server's fixed PATH.
    `rootfs` is a directory that the job has as its root, read-only, instead of the host's tree.
    Text holds raw bytes as `os.fsdecode` makes them, so arguments arrive byte for byte.
    """

    program: str
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str | None = None
    rootfs: str | None = None
    name: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    network: Network = Network.NONE
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        _check_program(self.program)
        if not isinstance(self.args, (tuple, list)):
            raise invalid("args", self.args, "a list of words")
        # Copies, so that nobody can change an accepted spec.
        object.__setattr__(self, "args", tuple(self.args))
        object.__setattr__(self, "env", _frozen("env", self.env))
        object.__setattr__(self, "labels", _frozen("labels", self.labels))
        _check_count("args", len(self.args), _MAX_WORDS)
        for position, argument in enumerate(self.args):
            _check_text(f"args[{position}]", argument)
        _check_env(self.env)
        _check_size(self.args, self.env)
        if self.workdir is not None:
            _check_path("workdir", self.workdir)
        if self.rootfs is not None:
            _check_path("rootfs", self.rootfs)
        if self.name is not None and not _matches(_NAME, self.name):
            raise invalid("name", self.name, "up to 63 letters, digits, _ . and -, starting with a letter or digit")
        _check_labels(self.labels)

    def __repr__(self) -> str:
        # Values of the environment may be secrets, so only the names are shown.
        return f"JobSpec(program={self.program!r}, args={self.args!r}, env={sorted(self.env)}, limits={self.limits!r})"

    def to_document(self) -> dict[str, Any]:
        """The spec as plain JSON values; `from_document` gives it back unchanged."""
        document = {name: getattr(self, name) for name in _SPEC_FIELDS}
        limits = {name: getattr(self.limits, name) for name in _LIMIT_FIELDS}
        limits["on_output_limit"] = self.limits.on_output_limit.value
        return document | {
            "args": list(self.args),
            "env": dict(self.env),
            "labels": dict(self.labels),
            "network": self.network.value,
            "limits": limits,
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """The spec in `document`, checked again as if it were new; unknown fields are refused."""
        values = _fields_of("spec", document, _SPEC_FIELDS)
        limits = _fields_of("limits", values.get("limits", {}), _LIMIT_FIELDS)
        if "on_output_limit" in limits:
            limits["on_output_limit"] = _member("on_output_limit", OnOutputLimit, limits["on_output_limit"])
        if "network" in values:
            values["network"] = _member("network", Network, values["network"])
        return cls(**{"program": None} | values | {"limits": Limits(**limits)})


_SPEC_FIELDS: Final = tuple(item.name for item in fields(JobSpec))
_LIMIT_FIELDS: Final = tuple(item.name for item in fields(Limits))


def _fields_of(name: str, document: object, known: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(document, Mapping):
        raise invalid(name, document, "an object with the fields " + ", ".join(known))
    if unknown := sorted(str(key) for key in document if key not in known):
        raise invalid(name, ", ".join(unknown), "the fields " + ", ".join(known))
    return dict(document)


_Member = TypeVar("_Member", bound=Enum)


def _member(name: str, kind: type[_Member], value: object) -> _Member:
    for member in kind:
        if member.value == value:
            return member
    raise invalid(name, value, " or ".join(member.value for member in kind))


def _frozen(name: str, mapping: object) -> Mapping[str, str]:
    if not isinstance(mapping, Mapping):
        raise invalid(name, mapping, "names with their values")
    return MappingProxyType(dict(mapping))


def _matches(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _check_count(name: str, count: int, most: int) -> None:
    if count > most:
        raise invalid(name, count, f"at most {most} of them")


def _check_number(name: str, value: float | None, low: float, high: float, allowed: str) -> None:
    if value is None:
        return
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
        raise invalid(name, value, allowed)


def _check_integer(name: str, value: int | None, low: int, allowed: str, high: int = _MAX_BYTES) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise invalid(name, value, allowed)


def _is_word(value: object) -> bool:
    """Whether `value` is text that stands for exactly one string of bytes without a NUL."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _check_text(name: str, value: str) -> None:
    if not _is_word(value):
        raise invalid(name, value, _TEXT_ALLOWED)


def _check_path(name: str, value: str) -> None:
    _check_text(name, value)
    if not value.startswith("/") or ".." in value.split("/"):
        raise invalid(name, value, "an absolute path without ..")


def _check_program(program: str) -> None:
    _check_text("program", program)
    if not program or ("/" in program and not program.startswith("/")):
        raise invalid("program", program, "an absolute path such as /bin/sleep, or a bare name such as sleep")
    if program.endswith("/") or program in {".", ".."} or ".." in program.split("/"):
        raise invalid("program", program, "the path of a file, without ..")


def _check_env(env: Mapping[str, str]) -> None:
    _check_count("env", len(env), _MAX_WORDS)
    for name, value in env.items():
        if not _matches(_ENV_NAME, name):
            raise invalid("env", name, "names of letters, digits and _, not starting with a digit")
        if not _is_word(value):
            # The value may be a secret, and messages are logged.
            raise JobError(ErrorCode.INVALID_ARGUMENT, f"env {name}: its value is not valid; allowed: {_TEXT_ALLOWED}")


def _check_size(args: Sequence[str], env: Mapping[str, str]) -> None:
    size = sum(len(word.encode("utf-8", "surrogateescape")) + 1 for word in (*args, *env, *env.values()))
    if size > _MAX_WORDS_SIZE:
        raise invalid("args and env", format_size(size), f"together at most {format_size(_MAX_WORDS_SIZE)}")


def _check_labels(labels: Mapping[str, str]) -> None:
    _check_count("labels", len(labels), MAX_LABELS)
    for key, value in labels.items():
        if not _matches(_LABEL_KEY, key):
            raise invalid("labels", key, "keys of up to 63 letters, digits, _ . / and -")
        if not isinstance(value, str) or len(value) > 255 or not value.isprintable():
            raise invalid(f"labels {key}", value, "up to 255 printable characters")


def words(command: Sequence[str | bytes]) -> tuple[str, ...]:
    """Program and arguments as a spec holds them: text, with raw bytes kept by surrogateescape."""
    return tuple(word.decode("utf-8", "surrogateescape") if isinstance(word, bytes) else word for word in command)
