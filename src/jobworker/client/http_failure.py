"""Tells what a failed HTTPS call means: the one JobError behind a status or a broken connection."""

import json
import socket
import ssl
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final
from urllib.parse import unquote

from jobworker.client import unreachable as words
from jobworker.client.unreachable import took_too_long, unreachable
from jobworker.core.errors import ErrorCode, JobError

_CODE: Final = "jobworker-error"
_MESSAGE: Final = "jobworker-message"
_CODES: Final = {code.value: code for code in ErrorCode}
_BAD_TOKEN: Final = "bad authentication: the token is wrong, expired or revoked; store another one with: jobctl login"  # noqa: S105
_CLOSED: Final = "the server closed the connection; it may be stopping, or be no HTTPS port"

# For a server or a proxy on the way that does not send the exact code.
_BY_STATUS: Final[dict[int, ErrorCode]] = {
    HTTPStatus.BAD_REQUEST: ErrorCode.INVALID_ARGUMENT,
    HTTPStatus.FORBIDDEN: ErrorCode.PERMISSION_DENIED,
    HTTPStatus.NOT_FOUND: ErrorCode.JOB_NOT_FOUND,
    HTTPStatus.METHOD_NOT_ALLOWED: ErrorCode.UNSUPPORTED,
    HTTPStatus.CONFLICT: ErrorCode.JOB_NOT_RUNNING,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: ErrorCode.INVALID_ARGUMENT,
    HTTPStatus.UNPROCESSABLE_ENTITY: ErrorCode.INVALID_ARGUMENT,
    HTTPStatus.TOO_MANY_REQUESTS: ErrorCode.EXHAUSTED,
    HTTPStatus.NOT_IMPLEMENTED: ErrorCode.UNSUPPORTED,
    HTTPStatus.BAD_GATEWAY: ErrorCode.UNAVAILABLE,
    HTTPStatus.SERVICE_UNAVAILABLE: ErrorCode.UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT: ErrorCode.UNAVAILABLE,
}


class CannotConnectError(Exception):
    """There was no connection to ask anything on, for this `reason`."""

    def __init__(self, reason: OSError | UnicodeError) -> None:
        super().__init__(reason)
        self.reason = reason


def refusal(status: int, headers: Mapping[str, str], body: bytes, server: str) -> JobError:
    """What an answer other than 2xx means, with the server's exact code and message where it sent them."""
    code = _CODES.get(headers.get(_CODE, ""))
    if code is ErrorCode.UNAUTHENTICATED or status == HTTPStatus.UNAUTHORIZED:
        return JobError(ErrorCode.UNAUTHENTICATED, _BAD_TOKEN)
    told = unquote(headers.get(_MESSAGE, "")) or _told(body)
    if code is not None and told:
        return JobError(code, told)
    told = told or f"{server} answered with HTTP {status}; is this the HTTPS port of a jobworkerd?"
    return JobError(_BY_STATUS.get(status, ErrorCode.INTERNAL), told)


def broken(error: Exception, server: str) -> JobError:
    """What it means that `server` has not answered at all, or not to the end."""
    match error:
        case CannotConnectError():
            return unreachable(server, _connecting(error.reason))
        case TimeoutError():
            return took_too_long(server)
        case EOFError():
            return unreachable(server, words.ENDED_EARLY)
        case _:
            return unreachable(server, _CLOSED)


_OTHER_NAME: Final = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH


def _connecting(error: OSError | UnicodeError) -> str:
    """Why there was no connection."""
    match error:
        case TimeoutError():
            return words.SILENT
        case socket.gaierror() | UnicodeError():
            return words.NO_HOST
        case ssl.SSLCertVerificationError():
            return words.OTHER_HOST if error.verify_code in _OTHER_NAME else words.OTHER_CA
        case ssl.SSLError():
            is_plain = error.reason in {"WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"}
            return words.NO_TLS.format("HTTPS") if is_plain else words.NO_HANDSHAKE
        case ConnectionRefusedError():
            return words.REFUSED
        case _:
            return error.strerror or words.NO_HANDSHAKE


def _told(body: bytes) -> str:
    """The error that a body tells; empty when it tells none."""
    try:
        document = json.loads(body)
    except ValueError:
        return ""
    told = document.get("error") if isinstance(document, dict) else None
    return told.removeprefix("Error: ") if isinstance(told, str) else ""
