"""The door itself: every request passes it, its caller is proven before its route, errors are mapped behind it."""

from collections.abc import Callable
from contextvars import ContextVar
from email.utils import formatdate
from typing import Final

from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobworker.api.fault import log_fault
from jobworker.api.http.errors import Failure, failure_of, failure_of_routing, refusal_of
from jobworker.api.http.identity import BearerIdentity, Caller
from jobworker.core.errors import JobError
from jobworker.metrics import DoorName, Metrics

_VERSION: Final = "/v1"
_EVERY_ANSWER: Final = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]

#: Who asks; set for every request but those to what is open to all.
caller: ContextVar[Caller] = ContextVar("caller")


class Door:
    """An ASGI application around another one that is for proven callers; `is_open` tells which paths are for all."""

    def __init__(
        self, app: ASGIApp, identity: BearerIdentity, is_open: Callable[[str], bool], metrics: Metrics
    ) -> None:
        self._app = app
        self._identity = identity
        self._is_open = is_open
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, whatever happens."""
        # /v1 is the only version there is, and the one that paths without a version mean.
        path: str = scope["path"]
        if path.startswith(_VERSION + "/"):
            path = scope["path"] = path.removeprefix(_VERSION)
            scope["raw_path"] = scope["raw_path"].removeprefix(_VERSION.encode())
        answer = _Answer(send)
        try:
            if not self._is_open(path):
                caller.set(self._identity.identify(scope))
            await self._app(scope, receive, answer.send)
        except JobError as error:
            await answer.fail(self._refuse(error))
        except RequestValidationError as error:
            await answer.fail(self._refuse(refusal_of(error, Headers(scope=scope).get("content-type", ""))))
        except HTTPException as error:
            await answer.fail(failure_of_routing(error, scope))
        except ClientDisconnect:
            pass
        except Exception:  # noqa: BLE001 - the HTTP boundary: nothing unexpected is echoed to a caller
            await answer.fail(self._refuse(log_fault()))

    def _refuse(self, error: JobError) -> Failure:
        self._metrics.refused(DoorName.HTTPS, error.code)
        return failure_of(error)


class _Answer:
    """What has been sent of an answer."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._is_started = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._is_started = True
            given = list(message.get("headers", ()))
            names = {name.lower() for name, _ in given}
            extra = [header for header in _EVERY_ANSWER if header[0] not in names]
            message["headers"] = [*given, *extra, (b"date", formatdate(usegmt=True).encode())]
        await self._send(message)

    async def fail(self, failure: Failure) -> None:
        """Says what went wrong; an answer that has begun is cut instead, so that nobody takes it for whole."""
        if self._is_started:
            return
        status, headers, body = failure
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})
