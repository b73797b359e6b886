"""Writes a job's output to where the user looks: byte for byte, or escaped for a terminal."""

import os
from typing import Final

from jobworker.cli.escape import TerminalEscaper
from jobworker.cli.interruption import write_all
from jobworker.client.model import Chunk, End, OutputStream
from jobworker.core.times import LineStamps

STDOUT: Final = 1
STDERR: Final = 2


class Output:
    """Both streams of one job; `offset` is the end of what has been written so far.

    A stream that goes to a terminal is escaped unless `raw`; otherwise its bytes stay as they are.
    """

    def __init__(
        self,
        *,
        stderr: int = STDERR,
        raw: bool = False,
        timestamps: bool = False,
        offset: int = 0,
    ) -> None:
        self.offset = offset
        self._files = {OutputStream.STDOUT: STDOUT, OutputStream.STDERR: stderr}
        self._escapers = {
            stream: TerminalEscaper() for stream, file in self._files.items() if not raw and os.isatty(file)
        }
        self._stamps = {stream: LineStamps() for stream in self._files} if timestamps else {}

    def write(self, chunk: Chunk, /) -> None:
        """Writes all of `chunk`; BrokenPipeError when its reader has gone."""
        data = chunk.data
        if escaper := self._escapers.get(chunk.stream):
            data = escaper.escape(data)
        if stamps := self._stamps.get(chunk.stream):
            data = stamps.stamp(data, chunk.time)
        write_all(self._files[chunk.stream], data)
        self.offset = chunk.end

    def finish(self, _end: End, /) -> None:
        """Writes what was held back to see whether it goes on."""
        for stream, escaper in self._escapers.items():
            write_all(self._files[stream], escaper.escape(b"", final=True))
