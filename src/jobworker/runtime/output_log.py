"""A job's output on disk: the bytes of both streams in arrival order, and an index of them.

`output` holds the bytes, appended and never rewritten. `output.idx` holds one fixed-size record
for each append: where it ends, when it was read from the program, and which stream it is of. A
byte counts as written when the record that covers it is in the index.
"""

import errno
import os
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from jobworker.core.outcome import OutputTotals

OUTPUT: Final = "output"
INDEX: Final = "output.idx"

_RECORD: Final = struct.Struct("<QQQ")  # end offset, nanoseconds since the epoch, stream
_WINDOW: Final = 4096  # records read from the index at once
_TAIL_BLOCK: Final = 64 * 1024
_JOIN_NS: Final = 100_000_000


class Stream(IntEnum):
    """One of a program's two output streams, numbered like its descriptors."""

    STDOUT = 1
    STDERR = 2


BOTH: Final = frozenset(Stream)


class OutputWriter:
    """The monitor's end: appends what it reads from the program, up to a limit.

    Past the limit, and after the first write that fails, bytes are counted and dropped: what is
    on disk is always a prefix of what the program wrote.
    """

    def __init__(self, output: int, index: int, limit: int) -> None:
        self._output = output
        self._index = index
        self._limit = limit
        self._last_time = 0
        self.end = 0
        self.kept = {Stream.STDOUT: 0, Stream.STDERR: 0}
        self.dropped = 0
        self.dropped_reason: str | None = None

    def append(self, stream: Stream, data: memoryview, time_ns: int) -> None:
        """Stores as much of `data` as limit and disk allow, and counts the rest as dropped."""
        room = 0 if self.dropped_reason else min(len(data), self._limit - self.end)
        stored = self._store(data[:room], stream, time_ns) if room else 0
        self.dropped += len(data) - stored
        if stored < len(data) and self.dropped_reason is None:
            self.dropped_reason = "limit"

    def _store(self, data: memoryview, stream: Stream, time_ns: int) -> int:
        """How many bytes of `data` are on record after the try."""
        written = 0
        try:
            while written < len(data):
                written += os.write(self._output, data[written:])
        except OSError as error:
            self._fail(error)
        if not written:
            return 0
        # Times never run backwards in the index, so that it can be searched by time.
        self._last_time = max(self._last_time, time_ns)
        record = _RECORD.pack(self.end + written, self._last_time, stream)
        try:
            if os.write(self._index, record) != len(record):
                raise OSError(errno.ENOSPC, "short write to the index")
        except OSError as error:
            self._fail(error)
            return 0
        self.end += written
        self.kept[stream] += written
        return written

    def _fail(self, error: OSError) -> None:
        self.dropped_reason = errno.errorcode.get(error.errno or 0, "EIO")

    def totals(self) -> OutputTotals:
        """How much was kept of each stream, and how much dropped."""
        return OutputTotals(
            stdout_bytes=self.kept[Stream.STDOUT],
            stderr_bytes=self.kept[Stream.STDERR],
            dropped_bytes=self.dropped,
            dropped_reason=self.dropped_reason,
        )

    def sync(self) -> None:
        """Everything appended is on stable storage on return, or the loss is on record."""
        if self.end:
            try:
                os.fdatasync(self._output)
                os.fdatasync(self._index)
            except OSError as error:
                self._fail(error)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes of one stream that stand together at `offset` of the output."""

    offset: int
    stream: Stream
    time_ns: int
    data: bytes

    @property
    def end(self) -> int:
        """The offset behind the last byte."""
        return self.offset + len(self.data)


class Blocked(Exception):  # noqa: N818 - a condition, not a failure
    """Reading now would block: the bytes are on disk and not in memory, or far behind others that this reader skips."""


class OutputReader:
    """A reader's end: hands out chunks from any offset; costs the writer nothing.

    `position` is the offset it has looked at so far, whichever streams it wants, and resumes it.
    """

    def __init__(self, directory: int, offset: int = 0, streams: frozenset[Stream] = BOTH) -> None:
        """Opens the log in `directory`; FileNotFoundError when it has been removed."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        self._output = os.open(OUTPUT, flags, dir_fd=directory)
        try:
            self._index = os.open(INDEX, flags, dir_fd=directory)
        except OSError:
            os.close(self._output)
            raise
        self._streams = streams
        self._window = b""
        self._window_at = 0  # the number of the window's first record
        self._next = 0  # the number of the next record to look at
        self.position = 0
        self.seek(offset)

    @property
    def index_fd(self) -> int:
        """The file to watch: it grows after the output has grown."""
        return self._index

    def close(self) -> None:
        """Gives the descriptors back."""
        os.close(self._output)
        os.close(self._index)

    def end(self) -> int:
        """The offset behind the last byte on record."""
        count = self._count()
        return self._record(count - 1)[0] if count else 0

    def totals(self) -> OutputTotals:
        """What is on record of each stream, counted from the index: for when no monitor can tell.

        Of an output that a power loss has left shorter than its index, what is missing counts as dropped.
        """
        kept = {Stream.STDOUT: 0, Stream.STDERR: 0}
        size = os.fstat(self._output).st_size
        start = 0
        for number in range(self._count()):
            end, _, stream = self._record(number)
            kept[Stream(stream)] += max(0, min(end, size) - start)
            start = end
        missing = max(0, start - size)
        return OutputTotals(
            stdout_bytes=kept[Stream.STDOUT],
            stderr_bytes=kept[Stream.STDERR],
            dropped_bytes=missing,
            dropped_reason="EIO" if missing else None,
        )

    def seek(self, offset: int) -> None:
        """The next chunk begins at `offset`, or later when its stream is not wanted."""
        self._next = bisect_right(range(self._count()), offset, key=lambda number: self._record(number)[0])
        self.position = offset

    def seek_time(self, time_ns: int) -> None:
        """The next chunk begins with the first append at or after `time_ns`."""
        number = bisect_left(range(self._count()), time_ns, key=lambda number: self._record(number)[1])
        self.seek(max(self.position, self._start(number)))

    def seek_tail(self, lines: int) -> None:
        """The next chunk begins `lines` lines before the end, counted in the wanted streams."""
        begin = self.position
        if lines == 0:
            self.seek(max(begin, self.end()))
            return
        missing = lines
        at_the_end = True
        for offset, block in self._blocks_backwards(begin):
            # A newline that ends the output ends its last line and begins no other.
            place = len(block) - 1 if at_the_end and block.endswith(b"\n") else len(block)
            at_the_end = False
            # Counted at once: a step for every line would keep everybody waiting.
            if (count := block.count(b"\n", 0, place)) < missing:
                missing -= count
                continue
            for _ in range(missing):
                place = block.rfind(b"\n", 0, place)
            self.seek(offset + place + 1)
            return
        self.seek(begin)

    def read(self, max_bytes: int, *, may_block: bool = True) -> Chunk | None:
        """The next chunk, or None when there is no more on record at the moment.

        Appends of one stream that are no more than a tenth of a second apart come as one chunk.
        Raises Blocked when `may_block` is false and it would take long.
        """
        count = self._count()
        most = count if may_block else self._next + _WINDOW
        while self._next < count:
            end, _, stream = self._record(self._next)
            if end > self.position and stream in self._streams:
                return self._read_joined(count, max_bytes, may_block=may_block)
            self.position = max(self.position, end)
            self._next += 1
            if self._next == most < count:
                raise Blocked
        return None

    def _read_joined(self, count: int, max_bytes: int, *, may_block: bool) -> Chunk | None:
        """The chunk that begins at `position`, within the record `_next` of `count`; None when a power loss took it."""
        number = self._next
        end, time_ns, stream = self._record(number)
        join_until = time_ns + _JOIN_NS
        while end < self.position + max_bytes and number + 1 < count:
            next_end, next_time, next_stream = self._record(number + 1)
            if next_stream != stream or next_time > join_until:
                break
            end, time_ns, number = next_end, next_time, number + 1
        size = min(end - self.position, max_bytes)
        if not may_block:
            self._check_cached(self.position + size - 1)
        data = os.pread(self._output, size, self.position)
        if not data:
            return None
        chunk = Chunk(self.position, Stream(stream), time_ns, data)
        self.position = chunk.end
        self._next = number if self.position < end else number + 1
        return chunk

    def _check_cached(self, offset: int) -> None:
        try:
            os.preadv(self._output, [bytearray(1)], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            raise Blocked from None
        except OSError as error:
            # A file system that cannot tell is read as if it were memory.
            if error.errno != errno.EOPNOTSUPP:
                raise

    def _blocks_backwards(self, begin: int) -> Iterator[tuple[int, bytes]]:
        """The wanted bytes behind `begin` in blocks, the last one first."""
        for number in range(self._count() - 1, -1, -1):
            end, _, stream = self._record(number)
            if end <= begin:
                return
            start = max(begin, self._start(number))
            while stream in self._streams and end > start:
                block_start = max(start, end - _TAIL_BLOCK)
                yield block_start, os.pread(self._output, end - block_start, block_start)
                end = block_start

    def _count(self) -> int:
        return os.fstat(self._index).st_size // _RECORD.size

    def _start(self, number: int) -> int:
        return self._record(number - 1)[0] if number else 0

    def _record(self, number: int) -> tuple[int, int, int]:
        place = (number - self._window_at) * _RECORD.size
        if not 0 <= place < len(self._window):
            self._window_at = number - number % _WINDOW
            size = _WINDOW * _RECORD.size
            window = os.pread(self._index, size, self._window_at * _RECORD.size)
            self._window = window[: len(window) - len(window) % _RECORD.size]
            place = (number - self._window_at) * _RECORD.size
        end, time_ns, stream = _RECORD.unpack_from(self._window, place)
        return end, time_ns, stream
