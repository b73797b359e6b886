"""The bodies and queries of the HTTPS API, and what they are in our own types."""

import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel

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
from jobworker.core.errors import invalid
from jobworker.core.lifecycle import Ended, Pending, Phase, State
from jobworker.core.outcome import Exited, OutputTotals, Usage, outcome_to_document
from jobworker.core.requests import LARGEST, MOST_SECONDS
from jobworker.core.spec import MAX_LABELS, JobSpec, Limits, Network, OnOutputLimit
from jobworker.core.times import parse_time, rfc3339
from jobworker.core.units import parse_cpu, parse_duration, parse_rate, parse_size
from jobworker.runtime.output_log import BOTH, Stream
from jobworker.service import JobView, OutputRequest
from jobworker.store.jobs import JobFilter

DEFAULT_PAGE: Final = 100
MAX_PAGE: Final = 1000
_CURSOR: Final = struct.Struct(">Q")

# What it may be is decided by the worker; here it is only told.
_POSITION: Final = WithJsonSchema({"type": "integer", "minimum": 0, "maximum": LARGEST})

EXAMPLE_ID: Final = "6f0c1fd2-8a52-4c0b-9d1a-0c5b1f6f7a01"


class _Body(BaseModel):
    """What a caller sends: names in camelCase, types to the letter, and nothing that nobody asked for."""

    model_config = ConfigDict(alias_generator=to_camel, strict=True, extra="forbid", allow_inf_nan=False)


class _Query(BaseModel):
    """What stands behind the `?`: as `_Body`, but everything is spelled as text there."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid")


class Answer(BaseModel):
    """What a caller is told."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class Failure(Answer):
    """What went wrong, in words; nothing else is told."""

    error: str = Field(examples=["Error: job not found"])


# Asking.

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
        if self.page_token is None:
            return None
        try:
            (cursor,) = _CURSOR.unpack(urlsafe_b64decode(self.page_token.encode("ascii")))
        except (ValueError, struct.error):
            cursor = LARGEST + 1
        if cursor > LARGEST:
            raise invalid("pageToken", self.page_token, "nextPageToken of the page before, unchanged")
        return int(cursor)


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


# Answering.

_Moment = Annotated[str | None, Field(examples=["2026-01-31T12:00:00.000000Z"])]
_Outcome = Annotated[
    dict[str, int | str] | None,
    WithJsonSchema(
        {
            "anyOf": [
                {
                    "type": "object",
                    "properties": {
                        "kind": {
                            "enum": [
                                "exited",
                                "signaled",
                                "oom_killed",
                                "timed_out",
                                "stopped",
                                "output_limit",
                                "lost",
                            ]
                        },
                        "code": {"type": "integer"},
                        "signal": {"type": "integer"},
                        "by": {"type": "string"},
                        "reason": {"type": "string"},
                    },
                    "required": ["kind"],
                },
                {"type": "null"},
            ]
        }
    ),
]


class JobLimits(Answer):
    """The limits of a job; null is unlimited."""

    cpu: float | None
    memory: int | None
    pids: int | None
    io_read_bps: int | None
    io_write_bps: int | None
    io_read_iops: int | None
    io_write_iops: int | None
    io_device: Word | None
    timeout: float | None
    output_bytes: int
    on_output_limit: Literal["drop", "kill"]

    @classmethod
    def of(cls, limits: Limits) -> Self:
        """The limits as they are told."""
        values = {name: getattr(limits, name) for name in _LIMITS}
        return cls.model_construct(**values, on_output_limit=limits.on_output_limit.value)


# The amounts that are called otherwise here: ours → the protocol's.
_USAGE: Final = {"memory_current": "memory_current_bytes", "memory_peak": "memory_peak_bytes"}


class JobUsage(Answer):
    """What a job has used so far; null where the host cannot tell."""

    cpu_seconds: float | None
    cpu_user_seconds: float | None
    cpu_system_seconds: float | None
    cpu_periods: int | None
    throttled_periods: int | None
    throttled_seconds: float | None
    memory_current_bytes: int | None
    memory_peak_bytes: int | None
    oom_kills: int | None
    io_read_bytes: int | None
    io_write_bytes: int | None
    io_read_operations: int | None
    io_write_operations: int | None
    pids_current: int | None
    pids_peak: int | None
    pids_limit_hits: int | None

    @classmethod
    def of(cls, usage: Usage) -> Self:
        """The usage as it is told."""
        return cls.model_construct(**{_USAGE.get(name, name): amount for name, amount in usage.to_document().items()})


class JobOutputTotals(Answer):
    """How much a job has written, and how much of it was dropped and why."""

    stdout_bytes: int
    stderr_bytes: int
    dropped_bytes: int
    dropped_reason: str | None

    @classmethod
    def of(cls, totals: OutputTotals) -> Self:
        """The totals as they are told."""
        return cls.model_construct(**totals.to_document())


class Job(Answer):
    """A job as it is now."""

    id: str = Field(examples=[EXAMPLE_ID])
    status: Literal["Pending", "Running", "Completed", "Failed", "Stopped"]
    exit_code: int | None
    error: None = None
    owner: str
    name: str | None
    labels: dict[str, str]
    program: Word
    args: list[Word]
    env: dict[str, Word]
    workdir: Word | None
    rootfs: Word | None
    network: Literal["none", "host"]
    limits: JobLimits
    created_at: _Moment
    started_at: _Moment
    ended_at: _Moment
    outcome: _Outcome
    usage: JobUsage
    output: JobOutputTotals
    effective_limits: dict[str, str]
    sandbox: dict[str, str]
    isolation: str = Field(description="full, degraded(controls that the host lacks), or empty while pending")

    @classmethod
    def of(cls, view: JobView) -> Self:
        """The job as its owner sees it."""
        record = view.record
        started_at: float | None = None
        ended_at: float | None = None
        outcome = None
        match record.phase:
            case Pending():
                pass
            case Ended(ending):
                started_at, ended_at, outcome = ending.started_at, ending.ended_at, ending.outcome
            case underway:
                started_at = underway.started_at
        # Our own values need no checking.
        return cls.model_construct(
            id=record.id,
            status=status_of(record.state),
            exit_code=exit_code_of(record.phase),
            owner=record.owner,
            name=record.spec.name,
            labels=dict(record.spec.labels),
            program=record.spec.program,
            args=list(record.spec.args),
            env=dict(record.spec.env),
            workdir=record.spec.workdir,
            rootfs=record.spec.rootfs,
            network=record.spec.network.value,
            limits=JobLimits.of(record.spec.limits),
            created_at=rfc3339(record.created_at),
            started_at=None if started_at is None else rfc3339(started_at),
            ended_at=None if ended_at is None else rfc3339(ended_at),
            outcome=None if outcome is None else outcome_to_document(outcome),
            usage=JobUsage.of(view.usage),
            output=JobOutputTotals.of(view.output),
            effective_limits=dict(record.effective_limits),
            sandbox=dict(record.sandbox),
            isolation=record.isolation,
        )

    @classmethod
    def listed(cls, view: JobView) -> Self:
        """The job as lists show it: with the names of its environment and without the values, maybe secrets."""
        job = cls.of(view)
        job.env = dict.fromkeys(job.env, "")
        return job


class JobRef(Answer):
    """The job that was acted on."""

    id: str = Field(examples=[EXAMPLE_ID])
    error: None = None


class JobPage(Answer):
    """Some jobs, newest first, and where the next page begins; null behind the last job."""

    jobs: list[Job]
    next_page_token: str | None
    error: None = None


class JobLines(Answer):
    """What a job has written so far, as lines."""

    id: str = Field(examples=[EXAMPLE_ID])
    stdout: list[str]
    stderr: list[str]
    error: None = None


class Health(Answer):
    """That the server is there."""

    status: Literal["ok"] = "ok"


def status_of(state: State) -> str:
    """A state as this API spells it."""
    return state.value.capitalize()


def exit_code_of(phase: Phase) -> int | None:
    """The program's own exit code; None while it runs and when something else ended it."""
    outcome = phase.ending.outcome if isinstance(phase, Ended) else None
    return outcome.code if isinstance(outcome, Exited) else None


def token_of(cursor: int | None) -> str | None:
    """The page token for a cursor."""
    return None if cursor is None else urlsafe_b64encode(_CURSOR.pack(cursor)).decode("ascii")
