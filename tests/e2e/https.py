"""What tests say to the HTTPS door: requests by the standard library, or byte by byte."""

import http.client
import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Https:
    """One server's HTTPS door, as one user's token opens it."""

    def __init__(self, address: str, ca: Path, token: str | None = None) -> None:
        host, _, port = address.rpartition(":")
        self.host, self.port = host, int(port)
        self.token = token
        self.tls = ssl.create_default_context(cafile=ca)

    @contextmanager
    def socket(self, source: str = "127.0.0.1", *, secure: bool = True) -> Iterator[socket.socket]:
        """A connection from the loopback address `source`, without a word said."""
        with socket.create_connection((self.host, self.port), timeout=30, source_address=(source, 0)) as bare:
            if not secure:
                yield bare
                return
            with self.tls.wrap_socket(bare, server_hostname=self.host) as connection:
                yield connection

    @contextmanager
    def open(self, method: str, path: str, *, body: Any = None, form: Any = None, headers: Any = ()) -> Iterator[Any]:
        """An answer that is read bit by bit; `body` is sent as JSON unless it is bytes."""
        sent = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        if form is not None:
            body = urlencode(form).encode()
            sent["Content-Type"] = "application/x-www-form-urlencoded"
        elif body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        connection = http.client.HTTPSConnection(self.host, self.port, context=self.tls, timeout=60)
        try:
            connection.putrequest(method, path)
            for name, value in (*sent.items(), *dict(headers).items()):
                connection.putheader(name, value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            with connection.getresponse() as response:
                yield response
        finally:
            connection.close()

    def ask(self, method: str, path: str, **sent: Any) -> Answer:
        """A whole answer."""
        with self.open(method, path, **sent) as response:
            return Answer(response.status, response.headers, response.read())

    def get(self, path: str, **sent: Any) -> Answer:
        return self.ask("GET", path, **sent)

    def post(self, path: str, body: Any = None, **sent: Any) -> Answer:
        return self.ask("POST", path, body=body, **sent)

    def start(self, program: str, *args: Any, **more: Any) -> str:
        """The id of a new job."""
        answer = self.post("/jobs/start", {"program": program, "args": args, **more})
        assert answer.status == 201, answer.body
        job_id: str = answer.json["id"]
        return job_id

    def raw(self, data: bytes, *, source: str = "127.0.0.1", end: bool = False) -> bytes:
        """Everything that comes back for these bytes until the server closes the connection."""
        with self.socket(source) as connection:
            with suppress(ConnectionError, ssl.SSLEOFError):  # it may have been refused before all of it was sent
                connection.sendall(data)
                if end:
                    connection.shutdown(socket.SHUT_WR)
            received = b""
            with suppress(ConnectionResetError, ssl.SSLEOFError):
                while block := connection.recv(65536):
                    received += block
            return received
