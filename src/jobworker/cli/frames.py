"""A job's output as JSON lines: one frame a line, then its end."""

import base64
import json
from typing import Any

from jobworker.cli.interruption import write_all
from jobworker.cli.output import STDOUT
from jobworker.client.model import Chunk, End
from jobworker.core.outcome import outcome_to_document
from jobworker.core.times import rfc3339


class FrameOutput:
    """Frames of one job on stdout; `offset` is the end of what has been written so far.

    A frame's bytes are under `text` when they are UTF-8, otherwise under `base64`.
    """

    def __init__(self, job_id: str, *, offset: int = 0) -> None:
        self.offset = offset
        self._job_id = job_id

    def write(self, chunk: Chunk, /) -> None:
        """Writes one line for `chunk`."""
        try:
            content = {"text": chunk.data.decode()}
        except UnicodeDecodeError:
            content = {"base64": base64.b64encode(chunk.data).decode()}
        self._write_line(
            {"id": self._job_id, "offset": chunk.offset, "stream": chunk.stream.value, "time": rfc3339(chunk.time)}
            | content,
        )
        self.offset = chunk.end

    def finish(self, end: End, /) -> None:
        """Writes the last line: how the job is now and how much it wrote."""
        self._write_line(
            {
                "id": self._job_id,
                "end": {
                    "state": end.state.value,
                    "outcome": outcome_to_document(end.outcome) if end.outcome else None,
                    "output": end.output.to_document(),
                    "offset": end.offset,
                },
            },
        )

    def _write_line(self, document: dict[str, Any]) -> None:
        write_all(STDOUT, json.dumps(document).encode() + b"\n")
