"""The HTTPS API: each endpoint is one call of the service between two conversions."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Annotated, Any, Final

from fastapi import FastAPI, Header, Path, Query, Request
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from pydantic import BaseModel, WithJsonSchema
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from jobworker.access.principal import Principal
from jobworker.api.http import docs, oauth, openapi, output
from jobworker.api.http.answers import EXAMPLE_ID, Health, Job, JobPage, JobRef, WhoAmI
from jobworker.api.http.door import Door, caller
from jobworker.api.http.events import EVENTS_TYPE, server_sent
from jobworker.api.http.identity import BearerIdentity
from jobworker.api.http.measures import plain
from jobworker.api.http.presence import while_present
from jobworker.api.http.requests import (
    ListJobs,
    ReadOutput,
    RemoveJob,
    SignalJob,
    StartJob,
    StopJob,
    StreamOutput,
    WaitForJob,
)
from jobworker.api.http.routes import ROUTES
from jobworker.api.http.stream_answer import Hold, StreamAnswer, at_once
from jobworker.api.page import token_of
from jobworker.core.signals import parse_signal
from jobworker.core.spec import Limits
from jobworker.core.units import parse_duration
from jobworker.credentials import Credentials
from jobworker.service import Service

#: An id is any text to the framework: what is none is a job that does not exist.
JobId = Annotated[
    str,
    Path(
        description="The id that start has answered with.", json_schema_extra={"format": "uuid"}, examples=[EXAMPLE_ID]
    ),
]
IdempotencyKey = Annotated[
    Annotated[str, WithJsonSchema({"type": "string", "pattern": "^[!-~]{1,255}$"})] | None,
    Header(description="The same key starts no second job."),
]

_DOCUMENT: Final = "/openapi.json"
_OPEN: Final = frozenset({route.path for route in ROUTES if route.action is None} | {_DOCUMENT, docs.PATH})


def make_app(service: Service, credentials: Credentials, identity: BearerIdentity, defaults: Limits) -> Door:
    """The whole door as one ASGI application."""
    return Door(make_api(Endpoints(service, credentials, identity, defaults)), identity, _is_open, service.metrics)


def make_api(endpoints: object) -> FastAPI:
    """The routes, without the door before them; each row's endpoint is a method of `endpoints`."""
    api = _Api(title="jobworker", version="1", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    for route in ROUTES:
        api.add_api_route(
            route.path,
            getattr(endpoints, route.endpoint),
            methods=[route.method],
            status_code=route.status,
            operation_id=route.endpoint,
            summary=route.about,
            responses=route.responses(),
            response_model=None,
            response_class=Response,
            openapi_extra=route.request,
        )
    document = openapi.document_of(api, _OPEN)
    api.add_api_route(_DOCUMENT, _fixed(JSONResponse(document)), include_in_schema=False)
    api.add_api_route(docs.PATH, _fixed(docs.page()), include_in_schema=False)
    for name in docs.ASSETS:
        api.add_api_route(f"{docs.PATH}/{name}", _fixed(docs.asset(name)), include_in_schema=False)
    return api


def document() -> dict[str, Any]:
    """The OpenAPI document, without a server."""
    return openapi.document_of(make_api(object.__new__(Endpoints)), _OPEN)


class _Api(FastAPI):
    def build_middleware_stack(self) -> ASGIApp:
        # Not what the framework wraps around its routes to answer errors: the door does that.
        return AsyncExitStackMiddleware(self.router)


def _fixed(response: Response) -> Callable[[], Awaitable[Response]]:
    async def answer() -> Response:
        return response

    return answer


def _is_open(path: str) -> bool:
    return path in _OPEN or path.removeprefix(f"{docs.PATH}/") in docs.ASSETS


def _principal() -> Principal:
    return caller.get().principal


class Endpoints:
    """What the routes do."""

    def __init__(self, service: Service, credentials: Credentials, identity: BearerIdentity, defaults: Limits) -> None:
        self._service = service
        self._credentials = credentials
        self._identity = identity
        self._defaults = defaults

    async def start(self, body: StartJob, idempotency_key: IdempotencyKey = None) -> Response:
        spec = body.to_spec(self._defaults)
        view, existed = await self._service.start(_principal(), spec, idempotency_key)
        headers = {"idempotent-replayed": "true"} if existed else {}
        return _json(JobRef(id=view.record.id), 201, headers)

    async def list_jobs(self, query: Annotated[ListJobs, Query()]) -> Response:
        views, after = await self._service.list(_principal(), query.to_filter(), query.cursor(), query.page_size)
        shown = [Job.listed(view) for view in views]
        return _json(JobPage.model_construct(jobs=shown, next_page_token=None if after is None else token_of(after)))

    async def status(self, id: JobId) -> Response:  # noqa: A002 - as the path calls it
        return _json(Job.of(await self._service.status(_principal(), id)))

    async def remove(self, id: JobId, query: Annotated[RemoveJob, Query()]) -> Response:  # noqa: A002
        await self._service.remove(_principal(), id, force=query.force)
        return _json(JobRef(id=id))

    async def stop(self, id: JobId, request: Request, body: StopJob | None = None) -> Response:  # noqa: A002
        wanted = body or StopJob()
        grace, number = _seconds(wanted.grace), _signal(wanted.signal)
        async with self._lasting(request):
            await self._service.stop(_principal(), id, grace=grace, signal=number)
        return _json(JobRef(id=id))

    async def signal(self, id: JobId, body: SignalJob) -> Response:  # noqa: A002
        await self._service.signal(_principal(), id, _signal(body.signal))
        return _json(JobRef(id=id))

    async def wait(self, id: JobId, query: Annotated[WaitForJob, Query()], request: Request) -> Response:  # noqa: A002
        async with self._lasting(request):
            view = await self._service.wait(_principal(), id, query.seconds())
        return _json(Job.of(view))

    async def lines(self, id: JobId, query: Annotated[ReadOutput, Query()]) -> Response:  # noqa: A002
        wanted = query.to_request(max_chunk=output.MAX_CHUNK)
        document = output.as_json(
            id, partial(self._service.reading, _principal(), id), wanted, timestamps=query.timestamps
        )
        return StreamAnswer(at_once(document), self._hold(), "application/json")

    async def stream(self, id: JobId, query: Annotated[StreamOutput, Query()], request: Request) -> Response:  # noqa: A002
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

    async def who_am_i(self) -> Response:
        return _json(WhoAmI.of(await self._service.who_am_i(_principal())))

    async def metrics(self, request: Request) -> Response:
        figures = await self._service.figures(_principal())
        body, media_type = self._service.metrics.exposition(figures, request.headers.get("accept", ""))
        return Response(body, media_type=media_type)

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


def _signal(value: float | str) -> int:
    """A signal's number; whether there is one of a number is for the worker to say, as for every caller."""
    number = plain(value)
    return number if isinstance(number, int) else parse_signal(str(number))


def _seconds(grace: float | str) -> float:
    return parse_duration(grace, "grace") if isinstance(grace, str) else float(grace)
