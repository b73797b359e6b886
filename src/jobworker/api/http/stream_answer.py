"""A streamed answer: output as it is written, events as they happen."""

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from jobworker.api.http.presence import while_present

Hold = Callable[[], AbstractAsyncContextManager[None]]
#: Bytes in pieces, and whether the first of them may be long in coming.
Pieces = AbstractAsyncContextManager[tuple[bool, AsyncIterator[bytes]]]


class StreamAnswer(Response):
    """A streamed answer: sent piece by piece, ended when its reader leaves or may not go on.

    What fails before the first byte is an error with a status; what fails later cuts the connection.
    """

    def __init__(self, pieces: Pieces, hold: Hold, media_type: str, headers: Mapping[str, str] | None = None) -> None:
        self.status_code = 200
        self.media_type = media_type
        self.background = None
        self.init_headers(headers)
        self._pieces = pieces
        self._hold = hold

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - as ASGI has it
        """Sends the whole answer."""
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        async with self._hold(), while_present(receive), self._pieces as (is_slow, pieces):
            if is_slow:
                await send(start)
            piece = await anext(pieces, None)
            if not is_slow:
                await send(start)
            while piece is not None:
                if piece:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                piece = await anext(pieces, None)
        await send({"type": "http.response.body", "body": b""})


@contextlib.asynccontextmanager
async def at_once(pieces: AsyncIterator[bytes]) -> AsyncIterator[tuple[bool, AsyncIterator[bytes]]]:
    """Pieces of which the first is not long in coming."""
    yield False, pieces
