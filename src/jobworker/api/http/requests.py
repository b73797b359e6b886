"""What callers send over HTTPS, bodies and queries, and what it is in our own types."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel

from jobworker.api.http.answers import status_of
from jobworker.api.http.measures import (
    Cap,
    Cpu,
    Duration,
    Grace,
    Moment,
    Operations,
    Patience,
    Processes,
    Rate,
    Signal,
    Size,
    number,
    plain,
)
from jobworker.api.http.words import Argument, Place, Program, Word
from jobworker.api.page import DEFAULT_PAGE, MAX_PAGE, cursor_of
from jobworker.core.errors import invalid
from jobworker.core.lifecycle import State
from jobworker.core.requests import LARGEST, MOST_SECONDS
from jobworker.core.spec import MAX_LABELS, JobSpec, Limits, Network, OnOutputLimit
from jobworker.core.times import parse_time
from jobworker.core.units import parse_cpu, parse_duration, parse_rate, parse_size
from jobworker.runtime.output_log import BOTH, Stream
from jobworker.service import OutputRequest
from jobworker.store.jobs import JobFilter

# What it may be is decided by the worker; here it is only told.
_POSITION: Final = WithJsonSchema({"type": "integer", "minimum": 0, "maximum": LARGEST})


class _Body(BaseModel):
    """What a caller sends: names in camelCase, types to the letter, and nothing that nobody asked for."""

    model_config = ConfigDict(alias_generator=to_camel, strict=True, extra="forbid", allow_inf_nan=False)


class _Query(BaseModel):
    """What stands behind the `?`: as `_Body`, but everything is spelled as text there."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid")


# What a name may be is decided by the spec; here it is only told.
EnvName = Annotated[str, WithJsonSchema({"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*$"})]
LabelKey = Annotated[
    str, WithJsonSchema({"type": "string", "pattern": "^[A-Za-z0-9]([A-Za-z0-9_./-]{0,61}[A-Za-z0-9])?$"})
]
LabelValue = Annotated[str, WithJsonSchema({"type": "string", "pattern": "^[ -~]{0,255}$"})]

_PARSERS: Final[Mapping[str, Callable[[str, str], float]]] = {
    "cpu": parse_cpu,
    "memory": parse_size,
    "io_read_bps": parse_rate,
    "io_write_bps": parse_rate,
    "timeout": parse_duration,
    "output_bytes": parse_size,
}
_LIMITS: Final = (*_PARSERS, "pids", "io_read_iops", "io_write_iops", "io_device")


def _without_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


class StartJob(_Body):
    """A program and how it is to run. A limit that is absent is the server's default; null lifts it."""

    program: Program
    args: list[Argument] = Field(default=[], examples=[[5]])
    env: dict[EnvName, Word] = Field(default={}, json_schema_extra={"additionalProperties": False})
    workdir: Place | None = None
    rootfs: Place | None = None
    name: str | None = Field(None, json_schema_extra={"pattern": "^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"})
    labels: dict[LabelKey, LabelValue] = Field(
        default={}, json_schema_extra={"maxProperties": MAX_LABELS, "additionalProperties": False}
    )
    network: Literal["none", "host"] = "none"
    cpu: Cpu = None
    memory: Size = None
    pids: Processes = None
    io_read_bps: Rate = None
    io_write_bps: Rate = None
    io_read_iops: Operations = None
    io_write_iops: Operations = None
    io_device: Place | None = None
    timeout: Duration = None
    output_bytes: Cap = Field(0, json_schema_extra=_without_default)
    on_output_limit: Literal["drop", "kill"] | None = None

    def to_spec(self, defaults: Limits) -> JobSpec:
        """The spec that is asked for; INVALID_ARGUMENT."""
        limits = {name: _limit(name, getattr(self, name)) for name in _LIMITS if name in self.model_fields_set}
        if self.on_output_limit is not None:
            limits["on_output_limit"] = OnOutputLimit(self.on_output_limit)
        return JobSpec(
            program=self.program,
            args=tuple(self.args),
            env=self.env,
            workdir=self.workdir,
            rootfs=self.rootfs,
            name=self.name,
            labels=self.labels,
            network=Network(self.network),
            limits=replace(defaults, **limits),
        )


def _limit(name: str, value: Any) -> Any:
    """A limit as a number, however it is spelled."""
    parse = _PARSERS.get(name)
    return parse(value, to_camel(name)) if parse is not None and isinstance(value, str) else plain(value)


class StopJob(_Body):
    """How a job is to be stopped: at once, or by a signal first and `grace` seconds to obey it."""

    grace: Grace = 0
    signal: Signal = "TERM"


class SignalJob(_Body):
    """The signal to send, by name or number."""

    signal: Signal


StateWord = Annotated[str, WithJsonSchema({"type": "string", "enum": [state.value.capitalize() for state in State]})]
LabelPair = Annotated[str, WithJsonSchema({"type": "string", "pattern": "^[A-Za-z0-9]+=[ -~]*$"})]


class ListJobs(_Query):
    """Which jobs to list: those that meet every condition."""

    state: list[StateWord] = []
    label: list[LabelPair] = []
    owner: str | None = None
    name: str | None = None
    id_prefix: str = ""
    page_size: int = Field(DEFAULT_PAGE, ge=1, le=MAX_PAGE)
    page_token: str | None = Field(None, json_schema_extra={"pattern": "^[A-Za-f][A-Za-z0-9_-]{10}=$"})

    def to_filter(self) -> JobFilter:
        """The conditions; INVALID_ARGUMENT."""
        return JobFilter(
            owner=self.owner,
            states=frozenset(_state(text) for text in self.state),
            labels=dict(_label(text) for text in self.label),
            name=self.name,
            id_prefix=self.id_prefix,
        )

    def cursor(self) -> int | None:
        """Where the page begins; None for the first one."""
        return None if self.page_token is None else cursor_of(self.page_token, "pageToken")


class WaitForJob(_Query):
    """How long to wait at most, in seconds or as in 30s."""

    timeout: Patience = None

    def seconds(self) -> float | None:
        """The time to wait; None: as long as it takes."""
        return _seconds(self.timeout, "timeout", parse_duration)


class RemoveJob(_Query):
    """Whether a running job is ended first."""

    force: bool = False


class ReadOutput(_Query):
    """Which part of an output to read."""

    stream: Literal["stdout", "stderr"] | None = None
    tail: Annotated[int, _POSITION] | None = None
    since: Moment = None
    timestamps: bool = False

    def to_request(self, *, offset: int = 0, follow: bool = False, max_chunk: int) -> OutputRequest:
        """The same as the service asks for it; INVALID_ARGUMENT."""
        return OutputRequest(
            offset=offset,
            streams=frozenset({Stream[self.stream.upper()]}) if self.stream else BOTH,
            follow=follow,
            since=_seconds(self.since, "since", parse_time),
            tail_lines=self.tail,
            max_chunk=max_chunk,
        )


class StreamOutput(ReadOutput):
    """Which part of an output to read, and whether to wait for more of it."""

    offset: Annotated[int, _POSITION] = 0
    follow: bool = True


def _seconds(text: str | None, field: str, parse: Callable[[str, str], float]) -> float | None:
    """Seconds as a plain number, or as `parse` reads them."""
    if text is None:
        return None
    seconds = number(text)
    if seconds is None:
        seconds = parse(text, field)
    if seconds > MOST_SECONDS:
        raise invalid(field, text, f"at most {MOST_SECONDS:.0f} seconds")
    return seconds


def _state(text: str) -> State:
    try:
        return State(text.upper())
    except ValueError:
        raise invalid("state", text, ", ".join(status_of(state) for state in State)) from None


def _label(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator:
        raise invalid("label", text, "KEY=VALUE")
    return key, value
