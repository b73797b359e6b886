"""The connection to a jobworkerd over HTTPS, proven by a bearer token."""

import asyncio
import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Final, Self
from urllib.parse import urlencode

import h11

from jobworker import __version__
from jobworker.client import documents
from jobworker.client.connection import (
    ACT_SECONDS,
    ANSWER_SECONDS,
    CONNECT_SECONDS,
    ListQuery,
    OutputQuery,
    Page,
)
from jobworker.client.context import Context, Token, Transport
from jobworker.client.http_failure import CannotConnectError, broken, refusal
from jobworker.client.http_link import Link
from jobworker.client.model import Chunk, End, Identity, Job, Started
from jobworker.core.errors import ErrorCode, JobError
from jobworker.core.spec import JobSpec
from jobworker.core.times import rfc3339

_BROKEN: Final = (CannotConnectError, h11.RemoteProtocolError, EOFError, OSError)  # a TimeoutError is an OSError


class HttpsConnection:
    """A Connection of as many HTTP/1.1 connections as there are calls at a time.

    The token goes to the context's server and nowhere else: no proxy is asked, and a redirect is an error.
    """

    def __init__(self, server: str, token: Token, tls: ssl.SSLContext) -> None:
        self._server = server
        self._token = token
        self._tls = tls
        self._links: set[Link] = set()

    @classmethod
    @asynccontextmanager
    async def open(cls, context: Context) -> AsyncIterator[Self]:
        """A connection to the context's server, made on first use."""
        connection = cls(context.address(Transport.HTTPS), context.read_token(), _tls(context))
        try:
            yield connection
        finally:
            await asyncio.gather(*(link.close() for link in connection._links))

    async def reach(self) -> None:
        """Returns once the server has answered; UNAVAILABLE says why it does not."""
        await self._call("GET", "healthz", 2 * CONNECT_SECONDS)

    async def start(self, spec: JobSpec, asked_limits: Collection[str], idempotency_key: str) -> Started:
        """Starts a job, or finds the one that the key has started before."""
        answer, headers = await self._call(
            "POST",
            "jobs/start",
            ACT_SECONDS,
            document=documents.spec_to_document(spec, asked_limits),
            headers={"Idempotency-Key": idempotency_key},
        )
        existed = headers.get("idempotent-replayed") == "true"
        return Started(job=await self.status(answer["id"]), existed=existed)

    async def stop(self, job_id: str, grace: float, signal: int) -> Job:
        """Ends a job; `signal` comes first when there is a `grace`."""
        body = {"grace": grace, "signal": signal} if grace > 0 else None
        await self._call("POST", f"jobs/{job_id}/stop", grace + ACT_SECONDS, document=body)
        return await self.status(job_id)

    async def status(self, job_id: str) -> Job:
        """The job as it is now."""
        answer, _ = await self._call("GET", f"jobs/{job_id}", ANSWER_SECONDS)
        return documents.job_from_document(answer)

    async def wait(self, job_id: str, seconds: float) -> Job:
        """The job after its end, or as it is after `seconds`."""
        path = f"jobs/{job_id}/wait"
        answer, _ = await self._call("GET", path, seconds + ANSWER_SECONDS, params=[("timeout", f"{seconds:.6f}")])
        return documents.job_from_document(answer)

    async def remove(self, job_id: str, *, force: bool) -> None:
        """Deletes a job with its output."""
        params = [("force", "true")] if force else []
        await self._call("DELETE", f"jobs/{job_id}", ACT_SECONDS, params=params)

    async def signal(self, job_id: str, signal: int) -> None:
        """Sends `signal` to the job's main process."""
        await self._call("POST", f"jobs/{job_id}/signal", ANSWER_SECONDS, document={"signal": signal})

    async def list(self, query: ListQuery) -> Page:
        """One page of jobs, newest first."""
        params = [("state", state.value) for state in query.states]
        params += [("label", f"{key}={value}") for key, value in query.labels.items()]
        words = {"owner": query.owner, "name": query.name, "idPrefix": query.id_prefix, "pageToken": query.page_token}
        params += [(key, word) for key, word in words.items() if word]
        if query.page_size:
            params.append(("pageSize", str(query.page_size)))
        answer, _ = await self._call("GET", "jobs", ANSWER_SECONDS, params=params)
        return documents.page_from_document(answer)

    async def who_am_i(self) -> Identity:
        """Whom the server takes this client for."""
        answer, _ = await self._call("GET", "whoami", ANSWER_SECONDS)
        return documents.identity_from_document(answer)

    async def stream(self, query: OutputQuery) -> AsyncGenerator[Chunk | End, None]:
        """The output that was asked for, then its End; UNAVAILABLE when the line is cut before that."""
        params = [("offset", str(query.offset)), ("follow", "true" if query.follow else "false")]
        if len(query.streams) == 1:
            params.append(("stream", query.streams[0].value))
        if query.since is not None:
            params.append(("since", rfc3339(query.since)))
        if query.tail_lines is not None:
            params.append(("tail", str(query.tail_lines)))
        path = f"jobs/{query.job_id}/output/stream"
        try:
            async with self._ask("GET", path, params=params, headers={"Accept": documents.FRAMES}) as (response, link):
                if not _is_success(response):
                    raise refusal(response.status_code, _headers(response), await link.read(), self._server)
                event: Chunk | End | None = None
                while not isinstance(event, End):
                    header = await link.read_exactly(documents.FRAME_HEADER.size)
                    kind, length, offset, time = documents.FRAME_HEADER.unpack(header)
                    event = documents.event_from_frame(kind, offset, time, await link.read_exactly(length))
                    yield event
        except _BROKEN as error:
            raise broken(error, self._server) from error

    async def _call(self, method: str, path: str, seconds: float, **request: Any) -> tuple[Any, Mapping[str, str]]:
        """The document that a call answers with, and the headers of the answer."""
        try:
            async with asyncio.timeout(seconds), self._ask(method, path, **request) as (response, link):
                content = await link.read()
        except _BROKEN as error:
            raise broken(error, self._server) from error
        headers = _headers(response)
        if not _is_success(response):
            raise refusal(response.status_code, headers, content, self._server)
        return _document(content, self._server), headers

    @asynccontextmanager
    async def _ask(
        self,
        method: str,
        path: str,
        *,
        params: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        document: Any = None,
    ) -> AsyncIterator[tuple[h11.Response, Link]]:
        """The head of an answer, and the link that its body comes on, which is closed unless all of it is read."""
        body = b"" if document is None else json.dumps(document).encode()
        target = f"/{path}?{urlencode(params)}" if params else f"/{path}"
        sent = {
            "Host": self._server,
            "Authorization": f"Bearer {self._token.reveal()}",
            "User-Agent": f"jobworker/{__version__}",
            "Accept-Encoding": "identity",
            "Content-Length": str(len(body)),
            **({"Content-Type": "application/json"} if body else {}),
            **(headers or {}),
        }
        link = next((link for link in self._links if link.is_free), None)
        if link is None:
            host, _, port = self._server.rpartition(":")
            link = await Link.open(host.strip("[]"), int(port), self._tls)
            self._links.add(link)
        try:
            yield await link.ask(method, target, sent, body), link
        finally:
            if not link.is_free:
                self._links.discard(link)
                await link.close()


def _tls(context: Context) -> ssl.SSLContext:
    """TLS 1.3 with a server that the context's CA vouches for, or the system's CAs when it names none."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # which checks the certificate and the host's name
    tls.minimum_version = ssl.TLSVersion.TLSv1_3
    if context.ca is None:
        tls.load_default_certs()
        return tls
    try:
        tls.load_verify_locations(cadata=context.read("ca").decode("ascii", "replace"))
    except ssl.SSLError as error:
        raise JobError(ErrorCode.UNAUTHENTICATED, f"{context.ca} holds no CA's certificate") from error
    return tls


def _is_success(response: h11.Response) -> bool:
    """Whether it answers what was asked; a redirect does not."""
    return HTTPStatus.OK <= response.status_code < HTTPStatus.MULTIPLE_CHOICES


def _headers(response: h11.Response) -> dict[str, str]:
    """The headers by their names in lower case."""
    return {name.decode("ascii"): value.decode("latin-1") for name, value in response.headers}


def _document(body: bytes, server: str) -> Any:
    try:
        return json.loads(body)
    except ValueError as error:
        raise JobError(
            ErrorCode.INTERNAL, f"{server} does not answer as a jobworkerd does; is this its HTTPS port?"
        ) from error
