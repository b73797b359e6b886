"""A job's output over HTTP: as lines of JSON, as raw bytes, or in frames; in constant memory, live."""

import codecs
import contextlib
import json
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from enum import IntEnum
from typing import Final

from jobworker.api.http.answers import JobOutputTotals, status_of
from jobworker.core.job_id import check_job_id
from jobworker.core.outcome import outcome_to_document
from jobworker.core.times import LineStamps
from jobworker.runtime.output_log import Chunk, Stream
from jobworker.service import OutputEnd, OutputRequest, Reading

FRAMES_TYPE: Final = "application/vnd.jobworker.frames"
RAW_TYPE: Final = "application/octet-stream"
#: Larger than over gRPC, since no message is made of it; from 128 KiB on malloc maps and faults each piece anew.
MAX_CHUNK: Final = 127 * 1024
_FRAME: Final = struct.Struct(">BxxxIQQ")  # kind, payload length, offset, time in nanoseconds

Event = Chunk | OutputEnd
Encode = Callable[[Event], bytes]


class _Kind(IntEnum):
    STDOUT = 1
    STDERR = 2
    END = 3


@contextlib.asynccontextmanager
async def encoded(
    reading: AbstractAsyncContextManager[Reading], encode: Encode, *, follow: bool
) -> AsyncIterator[tuple[bool, AsyncIterator[bytes]]]:
    """The bytes of a reading, and whether the first of them may be long in coming."""
    async with reading as found:
        pieces = (encode(event) async for event in found.events)
        yield found.is_live and follow, pieces


def raw(*, timestamps: bool) -> Encode:
    """Encodes output as it is, or with a time before each line."""
    stamps = {stream: LineStamps() for stream in Stream}

    def encode(event: Event) -> bytes:
        if isinstance(event, OutputEnd):
            return b""
        return stamps[event.stream].stamp(event.data, event.time_ns / 1e9) if timestamps else event.data

    return encode


def framed(event: Event) -> bytes:
    """A frame for a piece of output, or the one for the end."""
    if isinstance(event, OutputEnd):
        payload = json.dumps(
            {
                "status": status_of(event.state),
                "outcome": None if event.outcome is None else outcome_to_document(event.outcome),
                "output": JobOutputTotals.of(event.output).model_dump(by_alias=True),
                "offset": event.offset,
            }
        ).encode()
        return _FRAME.pack(_Kind.END, len(payload), event.offset, 0) + payload
    return _FRAME.pack(_Kind(event.stream), len(event.data), event.offset, event.time_ns) + event.data


class JsonLines:
    """Makes the inside of a JSON list of lines from bytes in pieces, whatever their size."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._is_begun = False
        self._at_line_start = False

    def feed(self, data: bytes) -> bytes:
        """What these bytes add to the list."""
        return self._add(self._decoder.decode(data))

    def finish(self) -> bytes:
        """What ends the last line."""
        return self._add(self._decoder.decode(b"", final=True)) + (b'"' if self._is_begun else b"")

    def _add(self, text: str) -> bytes:
        if not text:
            return b""
        opening = "" if self._is_begun else '"'
        if self._at_line_start:
            opening = '","'
        self._is_begun = True
        self._at_line_start = text.endswith("\n")
        lines = (text[:-1] if self._at_line_start else text).split("\n")
        return (opening + json.dumps(lines, ensure_ascii=False, separators=(",", ":"))[2:-2]).encode()


async def as_json(
    job_id: str,
    read: Callable[[OutputRequest], AbstractAsyncContextManager[Reading]],
    wanted: OutputRequest,
    *,
    timestamps: bool,
) -> AsyncIterator[bytes]:
    """The document with the lines of each stream, in pieces; a stream that is not wanted is an empty list."""
    head = b'{"id":%s,' % json.dumps(job_id).encode()
    for stream in Stream:
        head += b'"%s":[' % stream.name.lower().encode()
        if stream in wanted.streams:
            lines, encode = JsonLines(), raw(timestamps=timestamps)
            async with read(replace(wanted, streams=frozenset({stream}))) as reading:
                async for event in reading.events:
                    yield head + lines.feed(encode(event))
                    head = b""
            head += lines.finish()
        head += b"],"
    yield head + b'"error":null}'


def attachment(job_id: str) -> dict[str, str]:
    """The headers of output in raw bytes: never shown by a browser, whatever is in them."""
    return {"content-disposition": f'attachment; filename="{check_job_id(job_id)}.output"'}
