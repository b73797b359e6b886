"""One connection of the HTTPS door: HTTP/1.1 by uvicorn, with the limits in time and size that it has not.

A peer has so long to finish a header and a body, and may be idle so long; neither is larger than a bound;
and a request whose end two programs could see in two places is refused, whatever the parser would make of it.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """What a peer may take: seconds and bytes.

    `header_seconds` counts from the connection, or from the first byte of a later request;
    `body_seconds` from the end of the header; `idle_seconds` from the end of a response.
    """

    header_seconds: float = 10.0
    body_seconds: float = 30.0
    idle_seconds: float = 60.0
    header_bytes: int = 16 * 1024
    headers: int = 64
    body_bytes: int = 4 * 1024 * 1024


class _Refused(Exception):  # noqa: N818 - it says what happened
    """A request that is not looked at any further."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


_MALFORMED: Final = _Refused(400, "the request is not valid HTTP/1.1")
_LARGE_HEADER: Final = _Refused(431, "the header is too large")
_LARGE_BODY: Final = _Refused(413, "the body is too large")
_SLOW: Final = _Refused(408, "the request did not arrive in time")


class Connection(HttpToolsProtocol):
    """HTTP/1.1 with one peer; `on_lost` is called once, at its end.

    Its methods are what transport and parser call, as in the base.
    """

    def __init__(
        self, config: Config, state: ServerState, limits: ConnectionLimits, on_lost: Callable[[], None]
    ) -> None:
        super().__init__(config=config, server_state=state, app_state={}, _loop=asyncio.get_running_loop())
        self.timeout_keep_alive = limits.idle_seconds  # type: ignore[assignment]  # declared as int, used as any number
        self._limits = limits
        self._on_lost = on_lost
        self._deadline: asyncio.TimerHandle | None = None
        self._is_in_body = False
        self._header_bytes = 0
        self._body_bytes = 0
        self._refused: _Refused = _MALFORMED

    # What the transport tells.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in its base
        super().connection_made(transport)
        self._set_deadline(self._limits.header_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._set_deadline(None)
        self._unset_keepalive_if_required()
        super().connection_lost(exc)
        self._on_lost()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if not self._is_in_body:
            if self._deadline is None:
                self._set_deadline(self._limits.header_seconds)
            # Counted before they are parsed: the parser holds an unfinished line of any length.
            self._header_bytes += len(data)
        super().data_received(data)
        if not self._is_in_body and self._header_bytes > self._limits.header_bytes:
            self._refuse(_LARGE_HEADER)

    def eof_received(self) -> None:
        self._disown()  # over TLS nothing can be sent to a peer that sends no more

    def abort(self) -> None:
        """Ends the connection at once, whatever has not been sent yet."""
        self.transport.abort()

    # What the parser tells; an exception ends up in `send_400_response`.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._body_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if len(self.headers) > self._limits.headers:
            raise self._note(_LARGE_HEADER)

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self._limits.header_bytes:
            raise self._note(_LARGE_HEADER)
        self._check_framing()
        self._header_bytes = 0
        self._is_in_body = True
        self._set_deadline(self._limits.body_seconds)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes > self._limits.body_bytes:
            raise self._note(_LARGE_BODY)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_in_body = False
        self._set_deadline(None)
        super().on_message_complete()

    def _check_framing(self) -> None:
        """A request with one host and one unmistakable end; RFC 9112 §§3.2, 6.3."""
        values: dict[bytes, list[bytes]] = {b"host": [], b"content-length": [], b"transfer-encoding": []}
        for name, value in self.headers:
            if name in values:
                values[name].append(value)
            if b"\r" in value or b"\n" in value:  # a folded line
                raise self._note(_MALFORMED)
        lengths, codings = values[b"content-length"], values[b"transfer-encoding"]
        is_http_1_1 = self.parser.get_http_version() == "1.1"
        if len(values[b"host"]) > 1 or (is_http_1_1 and not values[b"host"]):
            raise self._note(_MALFORMED)
        if len(lengths) + len(codings) > 1 or any(coding.lower() != b"chunked" for coding in codings):
            raise self._note(_MALFORMED)
        if codings and not is_http_1_1:
            raise self._note(_MALFORMED)
        if lengths and int(lengths[0]) > self._limits.body_bytes:
            raise self._note(_LARGE_BODY)

    # Refusing.

    def _note(self, refused: _Refused) -> _Refused:
        self._refused = refused
        return refused

    def _refuse(self, refused: _Refused) -> None:
        self._refused = refused
        self.send_400_response("")

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - the base's words are not ours
        """Answers what cannot be understood, unless an answer is on its way already, and ends the connection."""
        self._set_deadline(None)
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self.transport.write(_answer(self._refused))
        self._disown()
        self.transport.close()

    def _disown(self) -> None:
        """Nothing more of an answer is sent: it would be lost, or be taken for a second one."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.flow.resume_writing()  # whoever waits to send need not

    def _set_deadline(self, seconds: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self._too_late)

    def _too_late(self) -> None:
        self._deadline = None
        if self._header_bytes == 0 and not self._is_in_body:
            self.transport.close()  # nothing was asked, so nothing is answered
        else:
            self._refuse(_SLOW)


def _answer(refused: _Refused) -> bytes:
    body = json.dumps({"error": f"Error: {refused.reason}"}).encode()
    lines = (
        b"content-type: application/json\r\n",
        b"x-content-type-options: nosniff\r\n",
        b"content-length: %d\r\n" % len(body),
        b"connection: close\r\n\r\n",
    )
    return b"".join((STATUS_LINE[refused.status], *lines, body))
