"""What an HTTP caller is told when something went wrong."""

import json
from typing import Any, Final
from urllib.parse import quote

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import Scope

from jobworker.api.error_map import ERROR_MAP
from jobworker.api.http.oauth import OAuthRefused
from jobworker.api.http.routes import ROUTES
from jobworker.core.errors import ErrorCode, JobError
from jobworker.credentials import TooManyAttempts

_WORDS: Final = {
    ErrorCode.UNAUTHENTICATED: "bad authentication",
    ErrorCode.PERMISSION_DENIED: "unauthorized action",
    ErrorCode.JOB_NOT_FOUND: "job not found",
    ErrorCode.PROGRAM_NOT_FOUND: "program not found",
    ErrorCode.JOB_NOT_RUNNING: "job not running",
}
_RETRY_SECONDS: Final = 5

#: Status, headers and body.
Failure = tuple[int, list[tuple[bytes, bytes]], bytes]


def failure_of(error: JobError) -> Failure:
    """Status, headers and body for an error: its fixed words for people, code and message for programs."""
    status = ERROR_MAP[error.code].http
    if isinstance(error, OAuthRefused):
        return status, [*_describe(error.body), *error.headers], error.body
    body = failure_body(_WORDS.get(error.code, error.message))
    headers = _describe(body)
    if error.code is ErrorCode.UNAUTHENTICATED:
        # Nothing else: why a credential is not good is told to nobody.
        return status, [*headers, (b"www-authenticate", b"Bearer")], body
    headers.append((b"jobworker-error", error.code.value.encode()))
    headers.append((b"jobworker-message", quote(error.message, safe=" ").encode()))
    if status in {429, 503}:
        seconds = error.retry_after if isinstance(error, TooManyAttempts) else _RETRY_SECONDS
        headers.append((b"retry-after", b"%d" % seconds))
    return status, headers, body


def _describe(body: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]


def failure_of_routing(error: HTTPException, scope: Scope) -> Failure:
    """The same when no route takes the request."""
    words = {404: "no such path; see /openapi.json", 405: "this path has no such method; see /openapi.json"}
    body = failure_body(words.get(error.status_code, str(error.detail)))
    headers = _describe(body)
    if error.status_code == 405:
        path = scope["route"].path
        methods = ", ".join(sorted(route.method for route in ROUTES if route.path == path)) or "GET"
        headers.append((b"allow", methods.encode()))
    return error.status_code, headers, body


def refusal_of(error: RequestValidationError, content_type: str) -> JobError:
    """INVALID_ARGUMENT that names what does not fit; values are not repeated, since they may be secrets."""
    first: dict[str, Any] = dict(error.errors()[0])
    place = [str(part) for part in first["loc"]]
    where = (".".join(place[1:]) or place[0])[:80]
    if place[0] == "body" and content_type.partition(";")[0].strip().lower() != "application/json":
        message = "send JSON, with the header Content-Type: application/json"
    elif first["type"] == "extra_forbidden":
        message = f"there is no {'field' if place[0] == 'body' else 'parameter'} {where}"
    elif first["type"] == "json_invalid":
        message = "the body is not valid JSON"
    else:
        message = f"{where}: {str(first['msg']).removeprefix('Value error, ')}"
    return JobError(ErrorCode.INVALID_ARGUMENT, message)


def failure_body(message: str) -> bytes:
    """The body of every error."""
    return json.dumps({"error": f"Error: {message}"}).encode()
