"""The token endpoint: short-lived tokens for a personal one, and revocation; RFC 6749 §4.4, RFC 7009."""

import binascii
import json
from base64 import b64decode
from typing import Final
from urllib.parse import parse_qsl, unquote_plus

from starlette.requests import Request
from starlette.responses import Response

from jobworker.access.tokens import format_scopes
from jobworker.api.http.identity import source_of
from jobworker.core.errors import ErrorCode, JobError
from jobworker.credentials import Credentials, ScopeRefused, TooManyAttempts

_FORM: Final = "application/x-www-form-urlencoded"
_FIELDS: Final = frozenset({"grant_type", "client_id", "client_secret", "scope", "token"})
_MOST_FIELDS: Final = 1000


class OAuthRefused(Exception):  # noqa: N818 - it says what happened, as every refusal here does
    """A request that the token endpoint refuses, as RFC 6749 §5.2 spells it."""

    def __init__(self, code: str, description: str, *, status: int = 400, retry_after: int | None = None) -> None:
        super().__init__(description)
        self.status = status
        self.body = {"error": code, "error_description": description}
        self.headers = {"cache-control": "no-store", "pragma": "no-cache"}
        if status == 401:
            self.headers["www-authenticate"] = 'Basic realm="jobworker"'
        if retry_after is not None:
            self.headers["retry-after"] = str(retry_after)

    def response(self) -> Response:
        """What the caller gets."""
        return Response(json.dumps(self.body), self.status, self.headers, "application/json")


async def grant(credentials: Credentials, request: Request) -> Response:
    """Answers POST /oauth/token."""
    try:
        form = await _form(request)
        if form.get("grant_type") != "client_credentials":
            code = "unsupported_grant_type" if "grant_type" in form else "invalid_request"
            raise OAuthRefused(code, "grant_type must be client_credentials")
        user, secret = _client(request, form)
        source, address = source_of(request.scope)
        granted = await credentials.exchange(user, secret, form.get("scope"), source, address)
    except OAuthRefused as refused:
        return refused.response()
    except JobError as error:
        return _as_oauth(error).response()
    body = {
        "access_token": granted.token.reveal(),
        "token_type": "Bearer",
        "expires_in": granted.expires_in,
        "scope": format_scopes(granted.scopes),
    }
    return Response(json.dumps(body), 200, {"cache-control": "no-store", "pragma": "no-cache"}, "application/json")


async def revoke(credentials: Credentials, request: Request) -> Response:
    """Answers POST /oauth/revoke: whoever holds a token may end it, and learns nothing else about it."""
    try:
        form = await _form(request)
        if "token" not in form:
            raise OAuthRefused("invalid_request", "token is missing")
        source, address = source_of(request.scope)
        await credentials.revoke(form["token"], source, address)
    except OAuthRefused as refused:
        return refused.response()
    except TooManyAttempts as error:
        return _as_oauth(error).response()
    return Response("{}", 200, media_type="application/json")


def _as_oauth(error: JobError) -> OAuthRefused:
    if isinstance(error, TooManyAttempts):
        return OAuthRefused("invalid_client", error.message, status=429, retry_after=error.retry_after)
    if isinstance(error, ScopeRefused) or error.code is ErrorCode.INVALID_ARGUMENT:
        return OAuthRefused("invalid_scope", error.message)
    if error.code is ErrorCode.UNAUTHENTICATED:
        return OAuthRefused("invalid_client", "the user and the personal token do not belong together", status=401)
    raise error


async def _form(request: Request) -> dict[str, str]:
    """The fields of the body, each given once."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
        raise OAuthRefused("invalid_request", f"send a form, with the header Content-Type: {_FORM}")
    try:
        pairs = parse_qsl(
            (await request.body()).decode(), keep_blank_values=True, max_num_fields=_MOST_FIELDS, errors="strict"
        )
    except ValueError:
        raise OAuthRefused("invalid_request", "the form cannot be read") from None
    # What is not known is ignored, as RFC 6749 has it, however often it is there.
    known = [(name, value) for name, value in pairs if name in _FIELDS]
    form = dict(known)
    if len(form) != len(known):
        raise OAuthRefused("invalid_request", "a field is given twice")
    return form


def _client(request: Request, form: dict[str, str]) -> tuple[str, str]:
    """User name and personal token, by Basic or in the form, and not both."""
    headers = request.headers.getlist("authorization")
    if not headers:
        return form.get("client_id", ""), form.get("client_secret", "")
    scheme, _, encoded = headers[0].partition(" ")
    if len(headers) > 1 or "client_secret" in form:
        raise OAuthRefused("invalid_request", "authenticate in one way only")
    try:
        user, colon, secret = b64decode(encoded.strip(), validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        user, colon, secret = "", "", ""
    if scheme.lower() != "basic" or not colon:
        raise OAuthRefused("invalid_client", "authenticate by Basic, or in the form", status=401)
    return unquote_plus(user), unquote_plus(secret)
