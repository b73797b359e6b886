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


class OAuthRefused(JobError):  # noqa: N818 - it says what happened, as every refusal here does
    """A request that the token endpoint refuses: `body` and `headers` as RFC 6749 §5.2 spells them."""

    def __init__(
        self,
        word: str,
        description: str,
        *,
        code: ErrorCode = ErrorCode.INVALID_ARGUMENT,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(code, description)
        self.body = json.dumps({"error": word, "error_description": description}).encode()
        self.headers = [(b"cache-control", b"no-store"), (b"pragma", b"no-cache")]
        if code is ErrorCode.UNAUTHENTICATED:
            self.headers.append((b"www-authenticate", b'Basic realm="jobworker"'))
        if retry_after is not None:
            self.headers.append((b"retry-after", b"%d" % retry_after))


async def grant(credentials: Credentials, request: Request) -> Response:
    """Answers POST /oauth/token."""
    form = await _form(request)
    if form.get("grant_type") != "client_credentials":
        word = "unsupported_grant_type" if "grant_type" in form else "invalid_request"
        raise OAuthRefused(word, "grant_type must be client_credentials")
    user, secret = _client(request, form)
    source, address = source_of(request.scope)
    try:
        granted = await credentials.exchange(user, secret, form.get("scope"), source, address)
    except JobError as error:
        raise _as_oauth(error) from None
    body = {
        "access_token": granted.token.reveal(),
        "token_type": "Bearer",
        "expires_in": granted.expires_in,
        "scope": format_scopes(granted.scopes),
    }
    return Response(json.dumps(body), 200, {"cache-control": "no-store", "pragma": "no-cache"}, "application/json")


async def revoke(credentials: Credentials, request: Request) -> Response:
    """Answers POST /oauth/revoke: whoever holds a token may end it, and learns nothing else about it."""
    form = await _form(request)
    if "token" not in form:
        raise OAuthRefused("invalid_request", "token is missing")
    source, address = source_of(request.scope)
    try:
        await credentials.revoke(form["token"], source, address)
    except TooManyAttempts as error:
        raise _as_oauth(error) from None
    return Response("{}", 200, media_type="application/json")


def _as_oauth(error: JobError) -> JobError:
    """The error in the words of RFC 6749, where that has any for it."""
    if isinstance(error, TooManyAttempts):
        return OAuthRefused("invalid_client", error.message, code=error.code, retry_after=error.retry_after)
    if isinstance(error, ScopeRefused) or error.code is ErrorCode.INVALID_ARGUMENT:
        return OAuthRefused("invalid_scope", error.message)
    if error.code is ErrorCode.UNAUTHENTICATED:
        words = "the user and the personal token do not belong together"
        return OAuthRefused("invalid_client", words, code=error.code)
    return error


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
        words = "authenticate by Basic, or in the form"
        raise OAuthRefused("invalid_client", words, code=ErrorCode.UNAUTHENTICATED)
    return unquote_plus(user), unquote_plus(secret)
