"""A job's output on disk: what any reader gets is what the program wrote, whatever the pieces."""

import hashlib
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobworker.core.outcome import OutputTotals
from jobworker.runtime.output_log import BOTH, INDEX, OUTPUT, Blocked, Chunk, OutputReader, OutputWriter, Stream

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
UNLIMITED = 1 << 40
RECORD = struct.Struct("<QQQ")


@dataclass(frozen=True)
class Append:
    """One read of the monitor."""

    stream: Stream
    data: bytes
    time_ns: int


STREAMS = st.sampled_from(list(Stream))
WANTED = st.sampled_from([BOTH, frozenset({Stream.STDOUT}), frozenset({Stream.STDERR})])
TEXT = st.lists(st.sampled_from([b"a", b"\n", b"bc", b"\0", b"\xff", b"line\n"]), min_size=1, max_size=12).map(b"".join)
#: Steps back in time too: the clock of the host may be set while a job runs.
STEPS = st.integers(min_value=-SECOND, max_value=SECOND)


@st.composite
def appends(draw: st.DrawFn) -> list[Append]:
    pieces = draw(st.lists(st.tuples(STREAMS, TEXT, STEPS), max_size=20))
    time = START
    made = []
    for stream, data, step in pieces:
        time += step
        made.append(Append(stream, data, time))
    return made


class Log:
    """A log on disk with its writer."""

    def __init__(self, path: Path, limit: int = UNLIMITED) -> None:
        self.directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        output, index = (os.open(path / name, flags, 0o600) for name in (OUTPUT, INDEX))
        self._files = (output, index)
        self.path = path
        self.writer = OutputWriter(output, index, limit)

    def append(self, *pieces: Append) -> None:
        for piece in pieces:
            self.writer.append(piece.stream, memoryview(piece.data), piece.time_ns)

    def write(self, stream: Stream, data: bytes, time_ns: int = START) -> None:
        self.append(Append(stream, data, time_ns))

    @contextmanager
    def reader(self, offset: int = 0, streams: frozenset[Stream] = BOTH) -> Iterator[OutputReader]:
        reader = OutputReader(self.directory, offset, streams)
        try:
            yield reader
        finally:
            reader.close()

    def records(self) -> list[tuple[int, int, int]]:
        content = (self.path / INDEX).read_bytes()
        return [RECORD.unpack_from(content, place) for place in range(0, len(content), RECORD.size)]

    def close(self) -> None:
        for file in (*self._files, self.directory):
            os.close(file)


@contextmanager
def new_log(limit: int = UNLIMITED) -> Iterator[Log]:
    with tempfile.TemporaryDirectory() as path:
        log = Log(Path(path), limit)
        try:
            yield log
        finally:
            log.close()


@pytest.fixture
def log() -> Iterator[Log]:
    with new_log() as made:
        yield made


def read_all(reader: OutputReader, max_bytes: int = 1 << 20) -> list[Chunk]:
    chunks = []
    while (chunk := reader.read(max_bytes)) is not None:
        chunks.append(chunk)
    return chunks


def data_of(reader: OutputReader) -> bytes:
    return b"".join(chunk.data for chunk in read_all(reader))


def kept(pieces: list[Append], limit: int) -> list[tuple[Stream, int]]:
    """The model: every byte on record with its stream, in order."""
    return [(piece.stream, byte) for piece in pieces for byte in piece.data][:limit]


def selected(model: list[tuple[Stream, int]], offset: int, streams: frozenset[Stream]) -> bytes:
    return bytes(byte for stream, byte in model[offset:] if stream in streams)


@given(appends(), st.integers(0, 120), st.integers(0, 130), WANTED, st.integers(1, 40))
def test_every_reader_gets_exactly_the_bytes_it_asked_for(
    pieces: list[Append], limit: int, offset: int, streams: frozenset[Stream], max_chunk: int
) -> None:
    """O1, O2."""
    with new_log(limit) as log:
        log.append(*pieces)
        model = kept(pieces, limit)
        with log.reader(offset, streams) as reader:
            chunks = read_all(reader, max_chunk)
        assert b"".join(chunk.data for chunk in chunks) == selected(model, offset, streams)
        for chunk in chunks:
            assert 0 < len(chunk.data) <= max_chunk
            assert [(chunk.stream, byte) for byte in chunk.data] == model[chunk.offset : chunk.end], "a chunk mixes"
        assert all(earlier.end <= later.offset for earlier, later in pairwise(chunks))


@given(appends(), st.integers(0, 120))
def test_what_was_written_is_kept_or_counted_as_dropped(pieces: list[Append], limit: int) -> None:
    """O8."""
    with new_log(limit) as log:
        log.append(*pieces)
        model = kept(pieces, limit)
        written = sum(len(piece.data) for piece in pieces)
        expected = OutputTotals(
            stdout_bytes=len(selected(model, 0, frozenset({Stream.STDOUT}))),
            stderr_bytes=len(selected(model, 0, frozenset({Stream.STDERR}))),
            dropped_bytes=max(0, written - limit),
            dropped_reason="limit" if written > limit else None,
        )
        assert log.writer.totals() == expected
        with log.reader() as reader:
            totals = reader.totals()
        assert (totals.stdout_bytes, totals.stderr_bytes) == (expected.stdout_bytes, expected.stderr_bytes)


@given(appends())
def test_times_in_the_index_never_run_backwards(pieces: list[Append]) -> None:
    with new_log() as log:
        log.append(*pieces)
        records = log.records()
        assert [time for _, time, _ in records] == sorted(time for _, time, _ in records)
        assert all(earlier[0] < later[0] for earlier, later in pairwise(records))


@given(appends(), appends(), st.integers(0, 60), WANTED)
def test_a_reader_that_comes_back_sees_what_was_appended_meanwhile(
    before: list[Append], after: list[Append], offset: int, streams: frozenset[Stream]
) -> None:
    """O1: at the seam of history and live nothing is missing, repeated or out of order."""
    with new_log() as log:
        log.append(*before)
        with log.reader(offset, streams) as reader:
            seen = data_of(reader)
            log.append(*after)
            seen += data_of(reader)
        assert seen == selected(kept(before + after, UNLIMITED), offset, streams)


@given(appends(), WANTED, st.integers(1, 7), st.integers(0, 60))
def test_a_reader_can_be_resumed_from_its_position(
    pieces: list[Append], streams: frozenset[Stream], max_chunk: int, chunks: int
) -> None:
    """O1."""
    with new_log() as log:
        log.append(*pieces)
        with log.reader(0, streams) as reader:
            first = b"".join(chunk.data for _ in range(chunks) if (chunk := reader.read(max_chunk)) is not None)
            position = reader.position
        with log.reader(position, streams) as reader:
            assert first + data_of(reader) == selected(kept(pieces, UNLIMITED), 0, streams)


@given(appends(), STEPS.map(lambda step: START + 4 * step), st.integers(0, 60))
def test_seeking_by_time_skips_what_was_appended_before(pieces: list[Append], since: int, offset: int) -> None:
    with new_log() as log:
        log.append(*pieces)
        first = next((n for n, (_, time, _) in enumerate(log.records()) if time >= since), len(pieces))
        skipped = sum(len(piece.data) for piece in pieces[:first])
        with log.reader(offset) as reader:
            reader.seek_time(since)
            assert data_of(reader) == selected(kept(pieces, UNLIMITED), max(skipped, offset), BOTH)


@given(appends(), st.integers(0, 12), st.integers(0, 60), WANTED)
def test_a_tail_is_the_last_lines_of_the_wanted_streams(
    pieces: list[Append], lines: int, offset: int, streams: frozenset[Stream]
) -> None:
    with new_log() as log:
        log.append(*pieces)
        wanted = selected(kept(pieces, UNLIMITED), offset, streams)
        with log.reader(offset, streams) as reader:
            reader.seek_tail(lines)
            assert data_of(reader) == tail(wanted, lines)


def tail(text: bytes, lines: int) -> bytes:
    """The last lines, told by the simplest means: a last line without a newline counts as well."""
    *ended, rest = text.split(b"\n")
    pieces = [line + b"\n" for line in ended] + ([rest] if rest else [])
    return b"".join(pieces[-lines:]) if lines else b""


@pytest.mark.parametrize(
    ("text", "lines", "expected"),
    [
        (b"a\nb\nc\n", 2, b"b\nc\n"),
        (b"a\nb\nc", 2, b"b\nc"),
        (b"a\nb\n\n", 1, b"\n"),
        (b"a\nb\n", 0, b""),
        (b"a\nb\n", 9, b"a\nb\n"),
        (b"", 3, b""),
    ],
)
def test_a_tail_is_what_the_tail_command_shows(log: Log, text: bytes, lines: int, expected: bytes) -> None:
    if text:
        log.write(Stream.STDOUT, text)
    with log.reader() as reader:
        reader.seek_tail(lines)
        assert data_of(reader) == expected


def test_a_tail_reaches_back_over_many_blocks(log: Log) -> None:
    lines = [b"%d " % number + b"x" * 5000 + b"\n" for number in range(100)]
    for line in lines:
        log.write(Stream.STDOUT, line)
        log.write(Stream.STDERR, b"noise\n")
    with log.reader(streams=frozenset({Stream.STDOUT})) as reader:
        reader.seek_tail(60)
        assert data_of(reader) == b"".join(lines[-60:])


def test_appends_that_are_close_in_time_come_as_one_chunk(log: Log) -> None:
    for number in range(10):
        log.write(Stream.STDOUT, b"x", START + number * SECOND // 1000)
    log.write(Stream.STDOUT, b"y", START + SECOND)
    with log.reader() as reader:
        assert [chunk.data for chunk in read_all(reader)] == [b"x" * 10, b"y"]


def test_an_offset_beyond_the_end_gives_what_is_written_from_there_on(log: Log) -> None:
    log.write(Stream.STDOUT, b"0123")
    with log.reader(6) as reader:
        assert reader.read(100) is None
        log.write(Stream.STDOUT, b"456789")
        assert data_of(reader) == b"6789"


def test_an_offset_in_the_middle_of_an_append_gives_its_rest(log: Log) -> None:
    log.write(Stream.STDOUT, b"0123")
    log.write(Stream.STDERR, b"4567")
    with log.reader(2) as reader:
        assert [(chunk.offset, chunk.data) for chunk in read_all(reader)] == [(2, b"23"), (4, b"4567")]


def test_an_index_of_many_windows_is_searched_and_read_right(log: Log) -> None:
    digest = hashlib.sha256()
    for number in range(10_000):
        data = b"%d\n" % number
        digest.update(data)
        log.write(Stream(1 + number % 2), data, START + number * SECOND)
    with log.reader() as reader:
        assert hashlib.sha256(data_of(reader)).digest() == digest.digest()
    with log.reader() as reader:
        reader.seek_time(START + 9_000 * SECOND)
        assert data_of(reader).splitlines()[0] == b"9000"
        assert reader.end() == log.writer.end


def test_bytes_without_a_record_are_not_yet_written(log: Log) -> None:
    """A monitor may die between the two writes: what it had not recorded, no reader has seen."""
    log.write(Stream.STDOUT, b"whole")
    with (log.path / OUTPUT).open("ab") as output, (log.path / INDEX).open("ab") as index:
        output.write(b"not recorded")
        index.write(b"\x07" * 10)  # the torn beginning of a record
    with log.reader() as reader:
        assert data_of(reader) == b"whole"
        assert reader.totals() == OutputTotals(stdout_bytes=5)


@pytest.mark.parametrize("size", [0, 50, 100, 140])
def test_of_an_output_shorter_than_its_index_all_there_is_is_read_and_the_rest_is_told_as_dropped(
    log: Log, size: int
) -> None:
    """O10: a power loss has cost the end of the output and not that of the index."""
    log.write(Stream.STDOUT, b"x" * 100)
    log.write(Stream.STDERR, b"y" * 50)
    os.truncate(log.path / OUTPUT, size)
    with log.reader() as reader:
        assert data_of(reader) == (b"x" * 100 + b"y" * 50)[:size]
        assert reader.totals() == OutputTotals(
            stdout_bytes=min(size, 100),
            stderr_bytes=max(0, size - 100),
            dropped_bytes=150 - size,
            dropped_reason="EIO",
        )
    for tail in (0, 1, 10):
        with log.reader() as reader:
            reader.seek_tail(tail)
            assert data_of(reader) in {b"", (b"x" * 100 + b"y" * 50)[:size]}


@pytest.mark.parametrize("name", [OUTPUT, INDEX])
def test_a_link_in_place_of_a_file_is_not_followed(log: Log, name: str) -> None:
    """O12."""
    (log.path / name).rename(log.path / "elsewhere")
    (log.path / name).symlink_to("elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        OutputReader(log.directory)


def test_a_reader_of_a_log_that_is_gone_leaves_no_descriptor(log: Log) -> None:
    before = os.listdir("/proc/self/fd")
    (log.path / INDEX).unlink()
    with pytest.raises(FileNotFoundError):
        OutputReader(log.directory)
    assert os.listdir("/proc/self/fd") == before


def test_bytes_in_memory_are_read_without_waiting_for_the_disk(log: Log) -> None:
    log.write(Stream.STDOUT, b"fresh")
    with log.reader() as reader:
        try:
            chunk = reader.read(100, may_block=False)
        except Blocked:
            pytest.fail("bytes written an instant ago are in the page cache")
        assert chunk is not None
        assert chunk.data == b"fresh"


def test_a_long_search_for_a_wanted_stream_is_no_step_of_an_event_loop(log: Log) -> None:
    """R4."""
    for _ in range(5000):
        log.write(Stream.STDOUT, b"x")
    log.write(Stream.STDERR, b"found")
    with log.reader(streams=frozenset({Stream.STDERR})) as reader:
        with pytest.raises(Blocked):
            reader.read(100, may_block=False)
        chunk = reader.read(100)
        assert chunk is not None
        assert (chunk.offset, chunk.data) == (5000, b"found")
        assert reader.read(100, may_block=False) is None
    with log.reader() as reader:
        assert reader.read(100, may_block=False) is not None, "what is near is read at once"


DEVICES: dict[str, Callable[[Log], tuple[int, int]]] = {
    "output": lambda log: (os.open("/dev/full", os.O_WRONLY), os.open(log.path / INDEX, os.O_WRONLY | os.O_APPEND)),
    "index": lambda log: (os.open(log.path / OUTPUT, os.O_WRONLY | os.O_APPEND), os.open("/dev/full", os.O_WRONLY)),
}


@pytest.mark.parametrize("which", DEVICES)
def test_a_full_disk_is_told_and_what_is_kept_is_a_prefix(log: Log, which: str) -> None:
    """O10: /dev/full stands for the disk; a real one is in tests/kernel."""
    log.write(Stream.STDOUT, b"before")
    files = DEVICES[which](log)
    try:
        writer = OutputWriter(files[0], files[1], UNLIMITED)
        writer.append(Stream.STDOUT, memoryview(b"lost"), START)
        writer.append(Stream.STDERR, memoryview(b"later"), START)
        assert writer.totals() == OutputTotals(dropped_bytes=9, dropped_reason="ENOSPC")
    finally:
        for file in files:
            os.close(file)
    with log.reader() as reader:
        assert data_of(reader) == b"before"
