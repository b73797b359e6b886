"""The HTTPS door as a server: it listens, bounds the connections, and leaves in time."""

import asyncio
import contextlib
import errno
import logging
import socket
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final, Self

from uvicorn.config import Config
from uvicorn.server import ServerState

from jobworker.api.http.connection import Connection, ConnectionLimits
from jobworker.api.tls import ServerCertificate

_log: Final = logging.getLogger(__name__)
_ACCEPTED_AT_ONCE: Final = 64  # then the others' turn comes
_PAUSE_SECONDS: Final = 0.5  # without descriptors
_NO_DESCRIPTORS: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorLimits:
    """How many connections there may be, in all and of one address, and what each may take."""

    connections: int = 4096
    connections_per_address: int = 1024
    handshake_seconds: float = 10.0
    farewell_seconds: float = 3.0  # for a peer to take what is left when its connection is closed
    connection: ConnectionLimits = ConnectionLimits()


_DOOR_LIMITS: Final = DoorLimits()


class HttpServer:
    """A running HTTPS server."""

    def __init__(self, app: Any, listener: socket.socket, certificate: ServerCertificate, limits: DoorLimits) -> None:
        """Use `HttpServer.start`."""
        self._config = Config(
            app,
            http=Connection,
            ws="none",
            lifespan="off",
            loop="none",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,  # who asks is told by the connection alone
            server_header=False,
            date_header=False,
        )
        self._config.load()
        # Its words are about programs; ours have been said where it happened.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL + 1)
        self._state = ServerState()
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._limits = limits
        self._certificate = certificate
        self._open = 0
        self._addresses: Counter[str] = Counter()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._is_stopping = False
        self.port: int = listener.getsockname()[1]
        self._loop.add_reader(listener, self._accept)

    @classmethod
    async def start(
        cls, app: Any, host: str, port: int, certificate: ServerCertificate, limits: DoorLimits = _DOOR_LIMITS
    ) -> Self:
        """Serves the ASGI application on `host` and `port`; OSError when the port is taken."""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
            family, _, _, _, address = found[0]
            listener = socket.create_server(address[:2], family=family, backlog=1024)
        except OSError as error:
            raise OSError(f"cannot listen on {host}:{port}: the address is taken or not this host's") from error
        listener.setblocking(False)
        return cls(app, listener, certificate, limits)

    async def stop(self, grace: float) -> None:
        """No new calls; what runs may finish within `grace` seconds, then every connection is cut."""
        self._is_stopping = True
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for task in self._handshakes:
            task.cancel()
        for connection in self._connections():
            connection.shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                while self._state.tasks:
                    await asyncio.wait(self._state.tasks)
                await asyncio.sleep(0)
        for connection in self._connections():
            connection.abort()

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                peer, address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _NO_DESCRIPTORS:
                    raise
                _log.warning("no connection can be accepted: %s", error.strerror)
                self._loop.remove_reader(self._listener)
                self._loop.call_later(_PAUSE_SECONDS, self._accept_again)
                return
            host = str(address[0])
            if self._open >= self._limits.connections or self._addresses[host] >= self._limits.connections_per_address:
                peer.close()
                continue
            self._open += 1
            self._addresses[host] += 1
            task = self._loop.create_task(self._shake_hands(peer, host))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    def _accept_again(self) -> None:
        if not self._is_stopping:
            self._loop.add_reader(self._listener, self._accept)

    async def _shake_hands(self, peer: socket.socket, host: str) -> None:
        """From an accepted socket to a connection, or to nothing."""
        peer.setblocking(False)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _watch_for_silence(peer)
        is_made = False

        def made() -> Connection:
            return Connection(self._config, self._state, self._limits.connection, on_lost=lambda: self._leave(host))

        try:
            await self._loop.connect_accepted_socket(
                made,
                peer,
                ssl=self._certificate.https,
                ssl_handshake_timeout=self._limits.handshake_seconds,
                ssl_shutdown_timeout=self._limits.farewell_seconds,
            )
            is_made = True
        except (OSError, asyncio.CancelledError):
            pass  # no TLS 1.3, no patience, or gone; ssl's errors are of these
        finally:
            if not is_made:
                peer.close()
                self._leave(host)

    def _connections(self) -> list[Connection]:
        return [connection for connection in self._state.connections if isinstance(connection, Connection)]

    def _leave(self, host: str) -> None:
        self._open -= 1
        self._addresses[host] -= 1
        if not self._addresses[host]:
            del self._addresses[host]


def _watch_for_silence(peer: socket.socket) -> None:
    """A peer that was cut off is noticed, as over gRPC: asked after 20 seconds of silence, then given 10."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2)
