"""The HTTPS API: each route is one call of the service between two conversions, and one row of a table."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Final

from fastapi import FastAPI, Header, Query, Request
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import ASGIApp

from jobworker.access.policy import Action
from jobworker.access.principal import Principal
from jobworker.api.http import oauth, output
from jobworker.api.http.door import Door, caller
from jobworker.api.http.events import EVENTS_TYPE, server_sent
from jobworker.api.http.identity import Identity
from jobworker.api.http.presence import while_present
from jobworker.api.http.schemas import (
    Failure,
    Health,
    Job,
    JobLines,
    JobPage,
    JobRef,
    ListJobs,
    ReadOutput,
    RemoveJob,
    SignalJob,
    StartJob,
    StopJob,
    StreamOutput,
    WaitForJob,
    token_of,
)
from jobworker.api.http.stream_answer import Hold, StreamAnswer, at_once
from jobworker.core.errors import invalid
from jobworker.core.signals import parse_signal
from jobworker.core.spec import Limits
from jobworker.core.units import parse_duration
from jobworker.credentials import Credentials
from jobworker.service import Service

Endpoint = Callable[..., Awaitable[Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One method of one path; `action` is what the policy is asked about, None: it is for everybody."""

    method: str
    path: str
    endpoint: str
    action: Action | None
    answer: type[BaseModel] | None
    status: int = 200
    failures: tuple[int, ...] = ()


_ON_A_JOB: Final = (400, 401, 403, 404, 429)

#: Everything that can be asked for.
ROUTES: Final = (
    Route(
        method="POST",
        path="/jobs/start",
        endpoint="start",
        action=Action.JOB_START,
        answer=JobRef,
        status=201,
        failures=(400, 401, 403, 404, 413, 422, 429, 503),
    ),
    Route(
        method="GET",
        path="/jobs",
        endpoint="list_jobs",
        action=Action.JOB_LIST,
        answer=JobPage,
        failures=(400, 401, 403, 429),
    ),
    Route(
        method="GET",
        path="/jobs/{id}",
        endpoint="status",
        action=Action.JOB_STATUS,
        answer=Job,
        failures=_ON_A_JOB,
    ),
    Route(
        method="DELETE",
        path="/jobs/{id}",
        endpoint="remove",
        action=Action.JOB_REMOVE,
        answer=JobRef,
        failures=(*_ON_A_JOB, 409, 503),
    ),
    Route(
        method="POST",
        path="/jobs/{id}/stop",
        endpoint="stop",
        action=Action.JOB_STOP,
        answer=JobRef,
        failures=(*_ON_A_JOB, 409, 413, 503),
    ),
    Route(
        method="POST",
        path="/jobs/{id}/signal",
        endpoint="signal",
        action=Action.JOB_SIGNAL,
        answer=JobRef,
        failures=(*_ON_A_JOB, 409, 413, 503),
    ),
    Route(
        method="GET",
        path="/jobs/{id}/wait",
        endpoint="wait",
        action=Action.JOB_WAIT,
        answer=Job,
        failures=(*_ON_A_JOB, 503),
    ),
    Route(
        method="GET",
        path="/jobs/{id}/output",
        endpoint="lines",
        action=Action.JOB_OUTPUT,
        answer=JobLines,
        failures=(*_ON_A_JOB, 503),
    ),
    Route(
        method="GET",
        path="/jobs/{id}/output/stream",
        endpoint="stream",
        action=Action.JOB_OUTPUT,
        answer=None,
        failures=(*_ON_A_JOB, 503),
    ),
    Route(
        method="GET",
        path="/events",
        endpoint="events",
        action=Action.JOB_EVENTS,
        answer=None,
        failures=(401, 403, 429, 503),
    ),
    Route(method="POST", path="/oauth/token", endpoint="grant", action=None, answer=None),
    Route(method="POST", path="/oauth/revoke", endpoint="revoke", action=None, answer=None),
    Route(method="GET", path="/healthz", endpoint="health", action=None, answer=Health),
)
_OPEN: Final = frozenset(route.path for route in ROUTES if route.action is None) | {"/openapi.json"}


def make_app(service: Service, credentials: Credentials, identity: Identity, defaults: Limits) -> Door:
    """The whole door as one ASGI application."""
    return Door(make_api(_Endpoints(service, credentials, identity, defaults)), identity, _OPEN.__contains__)


class _Api(FastAPI):
    def build_middleware_stack(self) -> ASGIApp:
        # Not what the framework wraps around its routes to answer errors: the door does that.
        return AsyncExitStackMiddleware(self.router)


def make_api(endpoints: object) -> FastAPI:
    """The routes, without the door before them."""
    api = _Api(title="jobworker", version="1", docs_url=None, redoc_url=None, redirect_slashes=False)
    for route in ROUTES:
        api.add_api_route(
            route.path,
            getattr(endpoints, route.endpoint),
            methods=[route.method],
            status_code=route.status,
            response_model=None,
            responses={status: {"model": Failure} for status in route.failures},
        )
    return api


def _principal() -> Principal:
    return caller.get().principal


class _Endpoints:
    """What the routes do."""

    def __init__(self, service: Service, credentials: Credentials, identity: Identity, defaults: Limits) -> None:
        self._service = service
        self._credentials = credentials
        self._identity = identity
        self._defaults = defaults

    async def start(
        self, body: StartJob, idempotency_key: Annotated[str | None, Header(max_length=255)] = None
    ) -> Response:
        spec = body.to_spec(self._defaults)
        view, existed = await self._service.start(_principal(), spec, idempotency_key)
        headers = {"idempotent-replayed": "true"} if existed else {}
        return _json(JobRef(id=view.record.id), 201, headers)

    async def list_jobs(self, query: Annotated[ListJobs, Query()]) -> Response:
        views, after = await self._service.list(_principal(), query.to_filter(), query.cursor(), query.page_size)
        shown = [Job.listed(view) for view in views]
        return _json(JobPage.model_construct(jobs=shown, next_page_token=token_of(after)))

    async def status(self, id: str) -> Response:  # noqa: A002 - as the path calls it
        return _json(Job.of(await self._service.status(_principal(), id)))

    async def remove(self, id: str, query: Annotated[RemoveJob, Query()]) -> Response:  # noqa: A002
        await self._service.remove(_principal(), id, force=query.force)
        return _json(JobRef(id=id))

    async def stop(self, id: str, request: Request, body: StopJob | None = None) -> Response:  # noqa: A002
        wanted = body or StopJob()
        grace, number = _seconds("grace", wanted.grace), _signal(wanted.signal)
        async with self._lasting(request):
            await self._service.stop(_principal(), id, grace=grace, signal=number)
        return _json(JobRef(id=id))

    async def signal(self, id: str, body: SignalJob) -> Response:  # noqa: A002
        await self._service.signal(_principal(), id, _signal(body.signal))
        return _json(JobRef(id=id))

    async def wait(self, id: str, query: Annotated[WaitForJob, Query()], request: Request) -> Response:  # noqa: A002
        async with self._lasting(request):
            view = await self._service.wait(_principal(), id, query.seconds())
        return _json(Job.of(view))

    async def lines(self, id: str, query: Annotated[ReadOutput, Query()]) -> Response:  # noqa: A002
        wanted = query.to_request(max_chunk=output.MAX_CHUNK)
        document = output.as_json(
            id, partial(self._service.reading, _principal(), id), wanted, timestamps=query.timestamps
        )
        return StreamAnswer(at_once(document), self._hold(), "application/json")

    async def stream(self, id: str, query: Annotated[StreamOutput, Query()], request: Request) -> Response:  # noqa: A002
        wanted = query.to_request(offset=query.offset, follow=query.follow, max_chunk=output.MAX_CHUNK)
        reading = self._service.reading(_principal(), id, wanted)
        if output.FRAMES_TYPE in request.headers.get("accept", ""):
            pieces = output.encoded(reading, output.framed, follow=query.follow)
            return StreamAnswer(pieces, self._hold(), output.FRAMES_TYPE)
        pieces = output.encoded(reading, output.raw(timestamps=query.timestamps), follow=query.follow)
        return StreamAnswer(pieces, self._hold(), output.RAW_TYPE, output.attachment(id))

    async def events(self) -> Response:
        told = server_sent(self._service.events(_principal()))
        return StreamAnswer(told, self._hold(), EVENTS_TYPE)

    async def grant(self, request: Request) -> Response:
        return await oauth.grant(self._credentials, request)

    async def revoke(self, request: Request) -> Response:
        return await oauth.revoke(self._credentials, request)

    async def health(self) -> Response:
        return _json(Health())

    def _hold(self) -> Hold:
        return partial(self._identity.hold, caller.get())

    @contextlib.asynccontextmanager
    async def _lasting(self, request: Request) -> AsyncIterator[None]:
        """For calls that last: ended when their caller goes or may not go on."""
        async with self._identity.hold(caller.get()), while_present(request.receive):
            yield


def _json(answer: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(answer.model_dump_json(by_alias=True), status, headers, "application/json")


def _signal(value: int | str) -> int:
    """A signal's number; whether there is one of a number is for the worker to say, as for every caller."""
    return value if isinstance(value, int) else parse_signal(value)


def _seconds(field: str, value: float | str) -> float:
    seconds = parse_duration(value, field) if isinstance(value, str) else float(value)
    if seconds < 0:
        raise invalid(field, value, "0 or more seconds")
    return seconds
