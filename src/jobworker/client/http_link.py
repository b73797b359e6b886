"""One HTTP/1.1 connection over TLS: one request at a time, and its answer as it comes."""

import asyncio
import socket
import ssl
from collections.abc import Mapping
from typing import Final, Self

import h11

from jobworker.client.connection import CONNECT_SECONDS, KEEPALIVE_SECONDS, KEEPALIVE_TIMEOUT_SECONDS
from jobworker.client.http_failure import CannotConnectError

_BUFFER: Final = 1 << 20  # a reader that keeps up is not made to pause
_KEEPALIVE: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_TIMEOUT_SECONDS),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 1),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, KEEPALIVE_SECONDS * 1000),
)


class Link(asyncio.Protocol):
    """A connection that is open. A cut one raises OSError or h11.RemoteProtocolError where it is used."""

    def __init__(self) -> None:
        self._http = h11.Connection(h11.CLIENT)
        self._reader = asyncio.StreamReader(_BUFFER)
        self._body = bytearray()
        self._lost = asyncio.Event()
        self._transport: asyncio.Transport

    @classmethod
    async def open(cls, host: str, port: int, tls: ssl.SSLContext) -> Self:
        """A connection to `host` whose certificate has been checked; CannotConnectError holds why there is none."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                link = cls()
                plain = await _connect(host, port)
                try:
                    for level, option, value in _KEEPALIVE:
                        plain.get_extra_info("socket").setsockopt(level, option, value)
                    secure = await loop.start_tls(plain, link, tls, server_hostname=host)
                    if secure is None:
                        raise ConnectionResetError
                except BaseException:
                    plain.abort()
                    raise
        except (OSError, UnicodeError) as error:  # what TLS raises is an OSError, and a UnicodeError is about the name
            raise CannotConnectError(error) from error
        link._transport = secure
        link._reader.set_transport(secure)
        return link

    def data_received(self, data: bytes) -> None:
        """Called with what the server sends."""
        self._reader.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        """Called once, when there is no connection any more."""
        self._lost.set()
        if error is None:
            self._reader.feed_eof()
        else:
            self._reader.set_exception(error)

    @property
    def is_free(self) -> bool:
        """Whether another request may be sent."""
        return self._http.states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE} and not self._lost.is_set()

    async def ask(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> h11.Response:
        """The head of the answer to this request."""
        if self._http.our_state is h11.DONE:
            self._http.start_next_cycle()
        fields = [(name.encode(), value.encode()) for name, value in headers.items()]
        request = h11.Request(method=method, target=target, headers=fields)
        parts = (request, h11.Data(data=body), h11.EndOfMessage()) if body else (request, h11.EndOfMessage())
        self._transport.write(b"".join(self._http.send(part) or b"" for part in parts))
        while not isinstance(event := await self._next_event(), h11.Response):
            pass
        return event

    async def read(self) -> bytes:
        """The rest of the answer's body."""
        while await self._grow():
            pass
        return self._take(len(self._body))

    async def read_exactly(self, size: int) -> bytes:
        """The next `size` bytes of the answer's body; EOFError when it ends before."""
        while len(self._body) < size:
            if not await self._grow():
                raise EOFError
        return self._take(size)

    async def close(self) -> None:
        """Ends the connection without a farewell, and returns when nothing is left of it."""
        self._transport.abort()
        await self._lost.wait()

    async def _grow(self) -> bool:
        """Whether another piece of the body came."""
        event = await self._next_event()
        if isinstance(event, h11.Data):
            self._body += event.data
        return isinstance(event, h11.Data)

    def _take(self, size: int) -> bytes:
        with memoryview(self._body) as view:
            taken = bytes(view[:size])
        del self._body[:size]
        return taken

    async def _next_event(self) -> h11.Event:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._reader.read(_BUFFER))
        if not isinstance(event, h11.Event):
            raise ConnectionResetError
        return event


async def _connect(host: str, port: int) -> asyncio.Transport:
    """A connection without TLS to the first address of the host that answers; a silent one leaves time for the next."""
    # asyncio can try them side by side, but then loses a socket when it is cancelled (seen in CPython 3.11).
    loop = asyncio.get_running_loop()
    addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    failure = OSError()
    for *_, address in addresses:
        try:
            async with asyncio.timeout(CONNECT_SECONDS / len(addresses)):
                transport, _ = await loop.create_connection(asyncio.Protocol, str(address[0]), port)
        except OSError as error:
            failure = error
        else:
            return transport
    raise failure
