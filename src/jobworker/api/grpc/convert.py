"""Between the messages of the protocol and our own types, on the server's side."""

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar, assert_never

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from jobworker.access.principal import Principal
from jobworker.access.tokens import usable_scopes
from jobworker.api.grpc._generated import jobworker_pb2 as pb2
from jobworker.api.page import DEFAULT_PAGE, MAX_PAGE, cursor_of
from jobworker.core.errors import invalid
from jobworker.core.lifecycle import Ended, Pending, State
from jobworker.core.outcome import (
    Exited,
    Lost,
    OomKilled,
    Outcome,
    OutputLimit,
    OutputTotals,
    Signaled,
    Stopped,
    TimedOut,
    Usage,
)
from jobworker.core.spec import MAX_LABELS, JobSpec, Limits, Network, OnOutputLimit
from jobworker.runtime.output_log import BOTH, Chunk, Stream
from jobworker.service import JobView, OutputEnd, OutputRequest
from jobworker.store.jobs import JobFilter

_T = TypeVar("_T")


_STATES: Final = {
    State.PENDING: pb2.JOB_STATE_PENDING,
    State.RUNNING: pb2.JOB_STATE_RUNNING,
    State.COMPLETED: pb2.JOB_STATE_COMPLETED,
    State.FAILED: pb2.JOB_STATE_FAILED,
    State.STOPPED: pb2.JOB_STATE_STOPPED,
}
_STATE_OF: Final = {number: state for state, number in _STATES.items()}
_NETWORKS: Final = {
    pb2.NETWORK_UNSPECIFIED: Network.NONE,
    pb2.NETWORK_NONE: Network.NONE,
    pb2.NETWORK_HOST: Network.HOST,
}
_ON_OUTPUT_LIMIT: Final = {
    pb2.ON_OUTPUT_LIMIT_DROP: OnOutputLimit.DROP,
    pb2.ON_OUTPUT_LIMIT_KILL: OnOutputLimit.KILL,
}
_STREAM_OF: Final = {pb2.OUTPUT_STREAM_STDOUT: Stream.STDOUT, pb2.OUTPUT_STREAM_STDERR: Stream.STDERR}
_STREAMS: Final = {stream: number for number, stream in _STREAM_OF.items()}
# The limits that are plain numbers: ours → the protocol's. On the wire 0 lifts a limit.
_NUMBERS: Final = {
    "cpu": "cpu",
    "memory": "memory_bytes",
    "pids": "pids",
    "io_read_bps": "io_read_bps",
    "io_write_bps": "io_write_bps",
    "io_read_iops": "io_read_iops",
    "io_write_iops": "io_write_iops",
}
# The parts of a job's usage that have another name in the protocol.
_USAGE: Final = {"memory_current": "memory_current_bytes", "memory_peak": "memory_peak_bytes"}


# From the wire.


def spec_from(message: pb2.JobSpec, defaults: Limits) -> JobSpec:
    """The spec in a message; what it leaves out is as in `defaults`."""
    return JobSpec(
        program=os.fsdecode(message.program),
        args=tuple(os.fsdecode(argument) for argument in message.args),
        env={name: os.fsdecode(value) for name, value in message.env.items()},
        workdir=message.workdir or None,
        rootfs=message.rootfs or None,
        name=message.name or None,
        labels=dict(message.labels),
        network=_known(_NETWORKS, message.network, "network"),
        limits=_limits_from(message.limits, defaults),
    )


def _limits_from(message: pb2.Limits, defaults: Limits) -> Limits:
    given: dict[str, Any] = {
        ours: getattr(message, theirs) or None for ours, theirs in _NUMBERS.items() if message.HasField(theirs)
    }
    if message.HasField("timeout"):
        given["timeout"] = seconds_of(message.timeout) or None
    if message.HasField("output_bytes"):
        given["output_bytes"] = message.output_bytes
    if message.io_device:
        given["io_device"] = message.io_device
    if message.on_output_limit:
        given["on_output_limit"] = _known(_ON_OUTPUT_LIMIT, message.on_output_limit, "on_output_limit")
    return replace(defaults, **given)


def seconds_of(message: Duration) -> float:
    """A duration in seconds."""
    return message.ToNanoseconds() / 1e9


def output_request_from(message: pb2.StreamRequest) -> OutputRequest:
    """Which output a reader wants."""
    streams = frozenset(_known(_STREAM_OF, stream, "streams") for stream in message.streams)
    return OutputRequest(
        offset=message.offset,
        streams=streams or BOTH,
        follow=message.follow,
        since=message.since.seconds + message.since.nanos / 1e9 if message.HasField("since") else None,
        tail_lines=message.tail_lines if message.HasField("tail_lines") else None,
    )


def filter_from(message: pb2.ListRequest) -> JobFilter:
    """Which jobs a list is to show."""
    if len(message.labels) > MAX_LABELS:
        raise invalid("labels", len(message.labels), f"at most {MAX_LABELS} of them")
    return JobFilter(
        owner=message.owner or None,
        states=frozenset(_known(_STATE_OF, state, "states") for state in message.states),
        labels=dict(message.labels),
        name=message.name or None,
        id_prefix=message.id_prefix,
    )


def page_size_from(message: pb2.ListRequest) -> int:
    """How many jobs a page has."""
    return min(message.page_size or DEFAULT_PAGE, MAX_PAGE)


def cursor_from(token: str) -> int | None:
    """Where a page begins; None for the first one."""
    return cursor_of(token, "page_token") if token else None


def _known(table: Mapping[Any, _T], number: int, field: str) -> _T:
    if number not in table:
        raise invalid(field, number, "the values that the protocol names")
    return table[number]


# To the wire.


def job_message(view: JobView) -> pb2.Job:
    """A job as its owner sees it."""
    record = view.record
    message = pb2.Job(
        id=record.id,
        owner=record.owner,
        spec=_spec_message(record.spec),
        state=_STATES[record.state],
        created_at=_timestamp(record.created_at),
        usage=_usage_message(view.usage),
        output=_totals_message(view.output),
        effective_limits=record.effective_limits,
        sandbox=record.sandbox,
        isolation=record.isolation,
    )
    match record.phase:
        case Pending():
            pass
        case Ended(ending):
            message.ended_at.CopyFrom(_timestamp(ending.ended_at))
            message.outcome.CopyFrom(_outcome_message(ending.outcome))
            if ending.started_at is not None:
                message.started_at.CopyFrom(_timestamp(ending.started_at))
            if isinstance(ending.outcome, Exited):
                message.exit_code = ending.outcome.code
        case underway:
            message.started_at.CopyFrom(_timestamp(underway.started_at))
    return message


def listed_job_message(view: JobView) -> pb2.Job:
    """A job as lists show it: with the names of its environment and without the values, which may be secrets."""
    message = job_message(view)
    for name in message.spec.env:
        message.spec.env[name] = b""
    return message


def chunk_message(chunk: Chunk) -> pb2.StreamResponse:
    """A piece of output."""
    seconds, nanos = divmod(chunk.time_ns, 1_000_000_000)
    return pb2.StreamResponse(
        chunk=pb2.OutputChunk(
            offset=chunk.offset,
            stream=_STREAMS[chunk.stream],
            time=Timestamp(seconds=seconds, nanos=nanos),
            data=chunk.data,
        )
    )


def end_message(end: OutputEnd) -> pb2.StreamResponse:
    """The end of a stream."""
    return pb2.StreamResponse(
        end=pb2.OutputEnd(
            state=_STATES[end.state],
            outcome=_outcome_message(end.outcome) if end.outcome is not None else None,
            output=_totals_message(end.output),
            offset=end.offset,
        )
    )


def identity_message(principal: Principal) -> pb2.WhoAmIResponse:
    """Who asks, as the server knows them."""
    return pb2.WhoAmIResponse(
        user=principal.name,
        role=principal.role.value,
        scopes=usable_scopes(principal),
        credential=principal.credential,
        expires_at=None if principal.expires_at is None else _timestamp(principal.expires_at),
    )


def _spec_message(spec: JobSpec) -> pb2.JobSpec:
    numbers: dict[str, Any] = {theirs: getattr(spec.limits, ours) or 0 for ours, theirs in _NUMBERS.items()}
    limits = pb2.Limits(
        **numbers,
        output_bytes=spec.limits.output_bytes,
        io_device=spec.limits.io_device or "",
        on_output_limit={known: number for number, known in _ON_OUTPUT_LIMIT.items()}[spec.limits.on_output_limit],
    )
    if spec.limits.timeout is not None:
        limits.timeout.FromNanoseconds(round(spec.limits.timeout * 1e9))
    return pb2.JobSpec(
        program=os.fsencode(spec.program),
        args=[os.fsencode(argument) for argument in spec.args],
        env={name: os.fsencode(value) for name, value in spec.env.items()},
        workdir=spec.workdir or "",
        rootfs=spec.rootfs or "",
        name=spec.name or "",
        labels=spec.labels,
        network=pb2.NETWORK_HOST if spec.network is Network.HOST else pb2.NETWORK_NONE,
        limits=limits,
    )


def _outcome_message(outcome: Outcome) -> pb2.Outcome:
    match outcome:
        case Exited(code):
            return pb2.Outcome(exited=code)
        case Signaled(signal):
            return pb2.Outcome(signaled=signal)
        case OomKilled():
            return pb2.Outcome(oom_killed=pb2.Outcome.OomKilled())
        case TimedOut():
            return pb2.Outcome(timed_out=pb2.Outcome.TimedOut())
        case Stopped(by, signal):
            return pb2.Outcome(stopped=pb2.Outcome.Stopped(by=by, signal=signal))
        case OutputLimit():
            return pb2.Outcome(output_limit=pb2.Outcome.OutputLimitReached())
        case Lost(reason):
            return pb2.Outcome(lost=pb2.Outcome.Lost(reason=reason))
        case _:
            assert_never(outcome)


def _usage_message(usage: Usage) -> pb2.Usage:
    return pb2.Usage(**{_USAGE.get(name, name): amount for name, amount in usage.to_document().items()})


def _totals_message(totals: OutputTotals) -> pb2.OutputTotals:
    return pb2.OutputTotals(
        stdout_bytes=totals.stdout_bytes,
        stderr_bytes=totals.stderr_bytes,
        dropped_bytes=totals.dropped_bytes,
        dropped_reason=totals.dropped_reason or "",
    )


def _timestamp(seconds: float) -> Timestamp:
    message = Timestamp()
    message.FromNanoseconds(round(seconds * 1e9))
    return message
