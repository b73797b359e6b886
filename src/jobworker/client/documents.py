"""Turns the client's values into JSON documents, and documents and frames into the client's values."""

import json
import struct
from base64 import b64decode, b64encode
from collections.abc import Collection, Mapping
from dataclasses import fields
from datetime import datetime
from typing import Any, Final

from jobworker.client.connection import Page, newer_protocol, utf8
from jobworker.client.model import Chunk, End, Identity, Job, OutputStream
from jobworker.core.lifecycle import State
from jobworker.core.outcome import Outcome, OutputTotals, Usage, outcome_from_document
from jobworker.core.spec import JobSpec, Limits, Network, OnOutputLimit

FRAMES: Final = "application/vnd.jobworker.frames"
FRAME_HEADER: Final = struct.Struct(">BxxxIQQ")  # kind, length, offset, time in ns
_END: Final = 3
_STREAMS: Final = {1: OutputStream.STDOUT, 2: OutputStream.STDERR}
#: What a document that does not hold what it must raises when it is read.
_UNREADABLE: Final = (KeyError, TypeError, ValueError, AttributeError)


def _camel(name: str) -> str:
    """A field's name as documents spell it: `io_read_bps` is `ioReadBps`."""
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


_LIMITS: Final = {item.name: _camel(item.name) for item in fields(Limits)}
_USAGE: Final = {item.name: _camel(item.name) for item in fields(Usage)} | {
    "memory_current": "memoryCurrentBytes",
    "memory_peak": "memoryPeakBytes",
}
_TOTALS: Final = {item.name: _camel(item.name) for item in fields(OutputTotals)}


def spec_to_document(spec: JobSpec, asked_limits: Collection[str]) -> dict[str, Any]:
    """`spec` with those of its limits that were asked for; the server decides about the others."""
    document: dict[str, Any] = {
        "program": _from_word(spec.program),
        "args": [_from_word(argument) for argument in spec.args],
        "env": {name: _from_word(value) for name, value in spec.env.items()},
        "labels": dict(spec.labels),
        "network": spec.network.value,
    }
    if spec.workdir is not None:
        document["workdir"] = _from_word(spec.workdir)
    if spec.rootfs is not None:
        document["rootfs"] = _from_word(spec.rootfs)
    if spec.name is not None:
        document["name"] = spec.name
    for name in asked_limits:
        limit = getattr(spec.limits, name)
        if isinstance(limit, OnOutputLimit):
            limit = limit.value
        elif isinstance(limit, str):
            limit = utf8(name, limit)
        document[_LIMITS[name]] = limit
    return document


def job_from_document(document: Any) -> Job:
    """The job in `document`."""
    try:
        return Job(
            id=document["id"],
            owner=document["owner"],
            spec=_spec_from_document(document),
            state=State(document["status"].upper()),
            created_at=_seconds(document["createdAt"]),
            started_at=_seconds(document["startedAt"]) if document["startedAt"] else None,
            ended_at=_seconds(document["endedAt"]) if document["endedAt"] else None,
            outcome=_outcome(document["outcome"]),
            usage=Usage(**_known(_USAGE, document["usage"])),
            output=OutputTotals(**_known(_TOTALS, document["output"])),
            effective_limits=dict(document["effectiveLimits"]),
            sandbox=dict(document["sandbox"]),
            isolation=document["isolation"],
        )
    except _UNREADABLE as error:
        raise newer_protocol() from error


def page_from_document(document: Any) -> Page:
    """The page of a list in `document`."""
    try:
        return Page([job_from_document(job) for job in document["jobs"]], document["nextPageToken"] or "")
    except _UNREADABLE as error:
        raise newer_protocol() from error


def identity_from_document(document: Any) -> Identity:
    """The identity in `document`."""
    try:
        return Identity(
            user=document["user"],
            role=document["role"],
            scopes=tuple(document["scopes"]),
            credential=document["credential"],
            expires_at=_seconds(document["expiresAt"]) if document["expiresAt"] else None,
        )
    except _UNREADABLE as error:
        raise newer_protocol() from error


def event_from_frame(kind: int, offset: int, time: int, payload: bytes) -> Chunk | End:
    """The piece of output, or the end, in a frame."""
    try:
        if kind == _END:
            document = json.loads(payload)
            return End(
                State(document["status"].upper()),
                _outcome(document["outcome"]),
                OutputTotals(**_known(_TOTALS, document["output"])),
                document["offset"],
            )
        return Chunk(offset, _STREAMS[kind], time / 1e9, payload)
    except _UNREADABLE as error:
        raise newer_protocol() from error


def _spec_from_document(document: Any) -> JobSpec:
    limits = _known(_LIMITS, document["limits"])
    if "on_output_limit" in limits:
        limits["on_output_limit"] = OnOutputLimit(limits["on_output_limit"])
    if limits.get("io_device") is not None:
        limits["io_device"] = _to_word(limits["io_device"])
    return JobSpec(
        program=_to_word(document["program"]),
        args=tuple(_to_word(argument) for argument in document["args"]),
        env={name: _to_word(value) for name, value in document["env"].items()},
        workdir=_to_word(document["workdir"]) if document["workdir"] else None,
        rootfs=_to_word(document["rootfs"]) if document.get("rootfs") else None,
        name=document["name"] or None,
        labels=document["labels"],
        network=Network(document["network"]),
        limits=Limits(**limits),
    )


def _outcome(document: Any) -> Outcome | None:
    return None if document is None else outcome_from_document(document)


def _known(names: Mapping[str, str], document: Any) -> dict[str, Any]:
    """Our fields that `document` has; what a newer server tells besides is left out."""
    return {ours: document[theirs] for ours, theirs in names.items() if theirs in document}


def _from_word(word: str) -> str | dict[str, str]:
    """A word as a document holds it: text, or raw bytes that are not UTF-8 in base64."""
    raw = word.encode("utf-8", "surrogateescape")
    return word if _is_utf8(raw) else {"base64": b64encode(raw).decode("ascii")}


def _to_word(value: Any) -> str:
    if isinstance(value, str):
        return value
    return b64decode(value["base64"]).decode("utf-8", "surrogateescape")


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
