"""Output as HTTP carries it: lines of JSON from bytes in any pieces, frames, and times before lines."""

import itertools
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobworker.api.http.output import JsonLines, framed, raw
from jobworker.core.errors import JobError
from jobworker.core.lifecycle import State
from jobworker.core.outcome import Exited, OutputTotals
from jobworker.core.times import LineStamps, parse_time, rfc3339
from jobworker.runtime.output_log import Chunk, Stream
from jobworker.service import OutputEnd

FRAME = struct.Struct(">BxxxIQQ")


def lines_of(data, cuts):
    """What the list holds when the bytes come in the pieces that `cuts` makes of them."""
    lines, places = JsonLines(), sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    inside = b"".join(lines.feed(data[begin:end]) for begin, end in itertools.pairwise(places))
    return json.loads(b"[" + inside + lines.finish() + b"]")


@given(st.binary(max_size=200), st.lists(st.integers(0, 200)))
def test_lines_are_those_of_the_whole_however_it_is_cut(data, cuts):
    """O2: split at newlines only, without them, and with replacements for what is no UTF-8."""
    text = data.decode("utf-8", "replace")
    expected = text.split("\n") if text else []
    if text.endswith("\n"):
        expected.pop()
    assert lines_of(data, cuts) == expected


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"a", ["a"]),
        (b"a\n", ["a"]),
        (b"a\n\n", ["a", ""]),
        (b'"\\\x00\x1f\r\n\xff', ['"\\\x00\x1f\r', "\ufffd"]),
        ("\u2028é\n".encode(), ["\u2028é"]),
    ],
)
def test_every_byte_has_its_place_in_the_list(data, lines):
    assert lines_of(data, []) == lines_of(data, range(len(data))) == lines


def test_a_frame_says_what_it_is_where_it_stands_and_when_it_was_written():
    frame = framed(Chunk(7, Stream.STDERR, 1_700_000_000_123_456_789, b"data"))
    assert FRAME.unpack(frame[: FRAME.size]) == (2, 4, 7, 1_700_000_000_123_456_789)
    assert frame[FRAME.size :] == b"data"


def test_the_end_frame_tells_state_outcome_and_totals():
    totals = OutputTotals(stdout_bytes=3, stderr_bytes=4, dropped_bytes=5, dropped_reason="limit")
    frame = framed(OutputEnd(state=State.COMPLETED, outcome=Exited(0), output=totals, offset=7))
    kind, size, offset, _ = FRAME.unpack(frame[: FRAME.size])
    assert (kind, size, offset) == (3, len(frame) - FRAME.size, 7)
    assert json.loads(frame[FRAME.size :]) == {
        "status": "Completed",
        "outcome": {"kind": "exited", "code": 0},
        "output": {"stdoutBytes": 3, "stderrBytes": 4, "droppedBytes": 5, "droppedReason": "limit"},
        "offset": 7,
    }


def test_times_stand_before_each_line_of_each_stream():
    encode = raw(timestamps=True)
    moment = rfc3339(1.5).encode()
    pieces = [(Stream.STDOUT, b"a\nb"), (Stream.STDERR, b"e\n"), (Stream.STDOUT, b"c\n")]
    told = [encode(Chunk(0, stream, 1_500_000_000, data)) for stream, data in pieces]
    assert told == [moment + b" a\n" + moment + b" b", moment + b" e\n", b"c\n"]
    assert raw(timestamps=False)(Chunk(0, Stream.STDOUT, 1, b"a\nb")) == b"a\nb"


@given(st.binary(max_size=100), st.lists(st.integers(0, 100)))
def test_stamps_change_nothing_but_the_beginnings_of_lines(data, cuts):
    places, stamps = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))}), LineStamps()
    told = b"".join(stamps.stamp(data[begin:end], 0) for begin, end in itertools.pairwise(places))
    stamp = rfc3339(0).encode() + b" "
    assert told.replace(stamp, b"") == data
    assert told.count(stamp) == len(data.removesuffix(b"\n").split(b"\n")) if data else not told


def test_a_time_is_rfc_3339_unix_or_some_time_ago():
    assert parse_time("1970-01-01T00:00:10Z") == parse_time("10") == 10
    assert parse_time("10.5") == 10.5
    assert parse_time("1h") < parse_time("1m")
    for text in ("", "yesterday", "2026-13-01", "nan", "-5", "1e999", "9" * 400):
        with pytest.raises(JobError, match="since"):
            parse_time(text, "since")
