"""Turns the client's values into wire messages, and wire messages into the client's values."""

import os
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any, Final, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from jobworker.api.grpc._generated import jobworker_pb2 as pb2
from jobworker.client.connection import newer_protocol, utf8
from jobworker.client.model import Chunk, End, Identity, Job, OutputStream
from jobworker.core.lifecycle import State
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
from jobworker.core.spec import JobSpec, Limits, Network, OnOutputLimit

_Wire = TypeVar("_Wire", bound=int)
_Value = TypeVar("_Value")

STATES: Final = {
    pb2.JOB_STATE_PENDING: State.PENDING,
    pb2.JOB_STATE_RUNNING: State.RUNNING,
    pb2.JOB_STATE_COMPLETED: State.COMPLETED,
    pb2.JOB_STATE_FAILED: State.FAILED,
    pb2.JOB_STATE_STOPPED: State.STOPPED,
}
_NETWORKS: Final = {
    pb2.NETWORK_UNSPECIFIED: Network.NONE,
    pb2.NETWORK_NONE: Network.NONE,
    pb2.NETWORK_HOST: Network.HOST,
}
_ON_OUTPUT_LIMIT: Final = {
    pb2.ON_OUTPUT_LIMIT_UNSPECIFIED: OnOutputLimit.DROP,
    pb2.ON_OUTPUT_LIMIT_DROP: OnOutputLimit.DROP,
    pb2.ON_OUTPUT_LIMIT_KILL: OnOutputLimit.KILL,
}
STREAMS: Final = {
    pb2.OUTPUT_STREAM_STDOUT: OutputStream.STDOUT,
    pb2.OUTPUT_STREAM_STDERR: OutputStream.STDERR,
}
# Numeric limits by their name in the spec and on the wire.
_NUMBERS: Final = {
    "cpu": "cpu",
    "memory": "memory_bytes",
    "pids": "pids",
    "io_read_bps": "io_read_bps",
    "io_write_bps": "io_write_bps",
    "io_read_iops": "io_read_iops",
    "io_write_iops": "io_write_iops",
    "output_bytes": "output_bytes",
}
# The parts of a job's usage that have another name on the wire.
_USAGE: Final = {"memory_current": "memory_current_bytes", "memory_peak": "memory_peak_bytes"}


def wire_value(table: Mapping[_Wire, _Value], value: _Value) -> _Wire:
    """The wire's number for `value`: the last one that `table` has for it."""
    return {known: number for number, known in table.items()}[value]


def duration(seconds: float) -> Duration:
    """`seconds` as the wire's duration."""
    message = Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message


def timestamp(seconds: float) -> Timestamp:
    """`seconds` since the epoch as the wire's time."""
    message = Timestamp()
    message.FromNanoseconds(round(seconds * 1e9))
    return message


def spec_to_message(spec: JobSpec, asked_limits: Collection[str]) -> pb2.JobSpec:
    """`spec` with those of its limits that were asked for; the server decides about the others."""
    return pb2.JobSpec(
        program=os.fsencode(spec.program),
        args=[os.fsencode(argument) for argument in spec.args],
        env={name: os.fsencode(value) for name, value in spec.env.items()},
        workdir=utf8("workdir", spec.workdir or ""),
        rootfs=utf8("rootfs", spec.rootfs or ""),
        name=spec.name or "",
        labels=dict(spec.labels),
        network=wire_value(_NETWORKS, spec.network),
        limits=_limits_to_message(spec.limits, asked_limits),
    )


def _limits_to_message(limits: Limits, asked: Collection[str]) -> pb2.Limits:
    message = pb2.Limits()
    for name, field in _NUMBERS.items():
        if name in asked:
            # 0 lifts a limit, which None means in a spec.
            setattr(message, field, getattr(limits, name) or 0)
    if "io_device" in asked:
        message.io_device = utf8("io_device", limits.io_device or "")
    if "timeout" in asked:
        message.timeout.CopyFrom(duration(limits.timeout or 0))
    if "on_output_limit" in asked:
        message.on_output_limit = wire_value(_ON_OUTPUT_LIMIT, limits.on_output_limit)
    return message


def job_from_message(message: pb2.Job) -> Job:
    """The job in `message`."""
    return Job(
        id=message.id,
        owner=message.owner,
        spec=_spec_from_message(message.spec),
        state=_known(STATES, message.state),
        created_at=_seconds(message.created_at),
        started_at=_seconds(message.started_at) if message.HasField("started_at") else None,
        ended_at=_seconds(message.ended_at) if message.HasField("ended_at") else None,
        outcome=_outcome_from_message(message.outcome) if message.HasField("outcome") else None,
        usage=_usage_from_message(message.usage),
        output=_totals_from_message(message.output),
        effective_limits=dict(message.effective_limits),
        sandbox=dict(message.sandbox),
        isolation=message.isolation,
    )


def chunk_from_message(message: pb2.OutputChunk) -> Chunk:
    """The piece of output in `message`."""
    return Chunk(message.offset, _known(STREAMS, message.stream), _seconds(message.time), message.data)


def end_from_message(message: pb2.OutputEnd) -> End:
    """The end of a stream in `message`."""
    outcome = _outcome_from_message(message.outcome) if message.HasField("outcome") else None
    return End(_known(STATES, message.state), outcome, _totals_from_message(message.output), message.offset)


def _spec_from_message(message: pb2.JobSpec) -> JobSpec:
    return JobSpec(
        program=os.fsdecode(message.program),
        args=tuple(os.fsdecode(argument) for argument in message.args),
        env={name: os.fsdecode(value) for name, value in message.env.items()},
        workdir=message.workdir or None,
        rootfs=message.rootfs or None,
        name=message.name or None,
        labels=dict(message.labels),
        network=_known(_NETWORKS, message.network),
        limits=_limits_from_message(message.limits),
    )


def _limits_from_message(message: pb2.Limits) -> Limits:
    present = {name: getattr(message, field) for name, field in _NUMBERS.items() if message.HasField(field)}
    lifted = {name: None for name, number in present.items() if number == 0 and name != "output_bytes"}
    values: dict[str, Any] = present | lifted
    timeout = message.timeout.ToNanoseconds() / 1e9 if message.HasField("timeout") else 0
    return Limits(
        **values,
        io_device=message.io_device or None,
        timeout=timeout or None,
        on_output_limit=_known(_ON_OUTPUT_LIMIT, message.on_output_limit),
    )


def _outcome_from_message(message: pb2.Outcome) -> Outcome:
    match message.WhichOneof("why"):
        case "exited":
            return Exited(message.exited)
        case "signaled":
            return Signaled(message.signaled)
        case "oom_killed":
            return OomKilled()
        case "timed_out":
            return TimedOut()
        case "stopped":
            return Stopped(message.stopped.by, message.stopped.signal)
        case "output_limit":
            return OutputLimit()
        case "lost":
            return Lost(message.lost.reason)
        case _:
            raise newer_protocol()


def identity_from_message(message: pb2.WhoAmIResponse) -> Identity:
    """The identity in `message`."""
    return Identity(
        user=message.user,
        role=message.role,
        scopes=tuple(message.scopes),
        credential=message.credential,
        expires_at=_seconds(message.expires_at) if message.HasField("expires_at") else None,
    )


def _usage_from_message(message: pb2.Usage) -> Usage:
    names = {_USAGE.get(item.name, item.name): item.name for item in fields(Usage)}
    return Usage(**{ours: getattr(message, theirs) for theirs, ours in names.items() if message.HasField(theirs)})


def _totals_from_message(message: pb2.OutputTotals) -> OutputTotals:
    return OutputTotals(
        stdout_bytes=message.stdout_bytes,
        stderr_bytes=message.stderr_bytes,
        dropped_bytes=message.dropped_bytes,
        dropped_reason=message.dropped_reason or None,
    )


def _seconds(time: Timestamp) -> float:
    return time.seconds + time.nanos / 1e9


def _known(table: Mapping[_Wire, _Value], number: _Wire) -> _Value:
    if number not in table:
        raise newer_protocol()
    return table[number]
