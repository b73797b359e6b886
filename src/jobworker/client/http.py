"""The connection to a jobworkerd over HTTPS, proven by a bearer token."""

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Final, Self

import aiohttp

from jobworker import __version__
from jobworker.client import documents
from jobworker.client.connection import (
    ACT_SECONDS,
    ANSWER_SECONDS,
    CONNECT_SECONDS,
    KEEPALIVE_SECONDS,
    KEEPALIVE_TIMEOUT_SECONDS,
    ListQuery,
    OutputQuery,
    Page,
)
from jobworker.client.context import Context, Transport
from jobworker.client.http_failure import broken, refusal
from jobworker.client.model import Chunk, End, Job, Started
from jobworker.client.unreachable import ENDED_EARLY, unreachable
from jobworker.core.errors import ErrorCode, JobError
from jobworker.core.job_id import check_job_id
from jobworker.core.spec import JobSpec
from jobworker.core.times import rfc3339

_BROKEN: Final = (aiohttp.ClientError, OSError)  # a TimeoutError is an OSError
_BUFFER: Final = 1 << 20  # a reader that keeps up is not made to pause
_KEEPALIVE: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_TIMEOUT_SECONDS),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 1),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, KEEPALIVE_SECONDS * 1000),
)


class HttpsConnection:
    """A Connection of as many HTTP/1.1 connections as there are calls at a time.

    The token goes to the context's server and nowhere else: no proxy is asked, and a redirect is an error.
    """

    def __init__(self, server: str, session: aiohttp.ClientSession) -> None:
        self._server = server
        self._session = session

    @classmethod
    @asynccontextmanager
    async def open(cls, context: Context) -> AsyncIterator[Self]:
        """A connection to the context's server, made on first use."""
        server = context.address(Transport.HTTPS)
        headers = {
            "Authorization": f"Bearer {context.read_token().reveal()}",
            "Accept-Encoding": "identity",
            "User-Agent": f"jobworker/{__version__}",
        }
        async with aiohttp.ClientSession(
            f"https://{server}/",
            connector=aiohttp.TCPConnector(ssl=_tls(context), limit=0, socket_factory=_kept_alive),
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=_BUFFER,
        ) as session:
            yield cls(server, session)

    async def reach(self) -> None:
        """Returns once the server has answered; UNAVAILABLE says why it does not."""
        await self._call("GET", "healthz", 2 * CONNECT_SECONDS)

    async def start(self, spec: JobSpec, asked_limits: Collection[str], idempotency_key: str) -> Started:
        """Starts a job, or finds the one that the key has started before."""
        answer, headers = await self._call(
            "POST",
            "jobs/start",
            ACT_SECONDS,
            json=documents.spec_to_document(spec, asked_limits),
            headers={"Idempotency-Key": idempotency_key},
        )
        existed = headers.get("Idempotent-Replayed") == "true"
        return Started(job=await self.status(answer["id"]), existed=existed)

    async def stop(self, job_id: str, grace: float, signal: int) -> Job:
        """Ends a job; `signal` comes first when there is a `grace`."""
        body = {"grace": grace, "signal": signal} if grace > 0 else None
        await self._call("POST", f"jobs/{check_job_id(job_id)}/stop", grace + ACT_SECONDS, json=body)
        return await self.status(job_id)

    async def status(self, job_id: str) -> Job:
        """The job as it is now."""
        answer, _ = await self._call("GET", f"jobs/{check_job_id(job_id)}", ANSWER_SECONDS)
        return documents.job_from_document(answer)

    async def wait(self, job_id: str, seconds: float) -> Job:
        """The job after its end, or as it is after `seconds`."""
        path = f"jobs/{check_job_id(job_id)}/wait"
        answer, _ = await self._call("GET", path, seconds + ANSWER_SECONDS, params=[("timeout", f"{seconds:.6f}")])
        return documents.job_from_document(answer)

    async def remove(self, job_id: str, *, force: bool) -> None:
        """Deletes a job with its output."""
        params = [("force", "true")] if force else []
        await self._call("DELETE", f"jobs/{check_job_id(job_id)}", ACT_SECONDS, params=params)

    async def signal(self, job_id: str, signal: int) -> None:
        """Sends `signal` to the job's main process."""
        await self._call("POST", f"jobs/{check_job_id(job_id)}/signal", ANSWER_SECONDS, json={"signal": signal})

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

    async def stream(self, query: OutputQuery) -> AsyncGenerator[Chunk | End, None]:
        """The output that was asked for, then its End; UNAVAILABLE when the line is cut before that."""
        params = [("offset", str(query.offset)), ("follow", "true" if query.follow else "false")]
        if len(query.streams) == 1:
            params.append(("stream", query.streams[0].value))
        if query.since is not None:
            params.append(("since", rfc3339(query.since)))
        if query.tail_lines is not None:
            params.append(("tail", str(query.tail_lines)))
        timeout = aiohttp.ClientTimeout(connect=CONNECT_SECONDS)
        path = f"jobs/{check_job_id(query.job_id)}/output/stream"
        try:
            async with self._session.get(
                path, params=params, headers={"Accept": documents.FRAMES}, timeout=timeout, allow_redirects=False
            ) as response:
                if not _is_success(response):
                    raise refusal(response, await response.read(), self._server)
                event: Chunk | End | None = None
                while not isinstance(event, End):
                    header = await response.content.readexactly(documents.FRAME_HEADER.size)
                    kind, length, offset, time = documents.FRAME_HEADER.unpack(header)
                    payload = await response.content.readexactly(length)
                    event = documents.event_from_frame(kind, offset, time, payload)
                    yield event
        except asyncio.IncompleteReadError as error:
            raise unreachable(self._server, ENDED_EARLY) from error
        except _BROKEN as error:
            raise broken(error, self._server) from error

    async def _call(self, method: str, path: str, seconds: float, **request: Any) -> tuple[Any, Mapping[str, str]]:
        """The document that a call answers with, and the headers of the answer."""
        timeout = aiohttp.ClientTimeout(total=seconds, connect=CONNECT_SECONDS)
        try:
            async with self._session.request(
                method, path, timeout=timeout, allow_redirects=False, **request
            ) as response:
                content = await response.read()
        except _BROKEN as error:
            raise broken(error, self._server) from error
        if not _is_success(response):
            raise refusal(response, content, self._server)
        return _document(content, self._server), response.headers


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


def _kept_alive(address: aiohttp.AddrInfoType) -> socket.socket:
    """A socket that notices a cut line, however long nothing is sent."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    for level, option, value in _KEEPALIVE:
        made.setsockopt(level, option, value)
    return made


def _is_success(response: aiohttp.ClientResponse) -> bool:
    """Whether it answers what was asked; a redirect does not."""
    return HTTPStatus.OK <= response.status < HTTPStatus.MULTIPLE_CHOICES


def _document(body: bytes, server: str) -> Any:
    try:
        return json.loads(body)
    except ValueError as error:
        raise JobError(
            ErrorCode.INTERNAL, f"{server} does not answer as a jobworkerd does; is this its HTTPS port?"
        ) from error
