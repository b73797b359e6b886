"""Tells what a failed call means: the one JobError behind a gRPC status."""

import re
from collections.abc import Iterable
from typing import Final, cast

import grpc

from jobworker.client import unreachable as words
from jobworker.client.unreachable import took_too_long, unreachable
from jobworker.core.errors import ErrorCode, JobError

_EXACT_CODE: Final = "jobworker-error"  # trailing metadata of every error that the service raised
_CODES: Final[dict[object, ErrorCode]] = {code.value: code for code in ErrorCode}

# For a server or a proxy on the way that does not send the exact code.
_BY_STATUS: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: ErrorCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNAUTHENTICATED: ErrorCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED: ErrorCode.PERMISSION_DENIED,
    grpc.StatusCode.NOT_FOUND: ErrorCode.JOB_NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION: ErrorCode.JOB_NOT_RUNNING,
    grpc.StatusCode.UNIMPLEMENTED: ErrorCode.UNSUPPORTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ErrorCode.EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE: ErrorCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: ErrorCode.UNAVAILABLE,
}

# What gRPC's transport reports, and what to tell the user instead.
_REASONS: Final = (
    (r"Connection refused", words.REFUSED),
    (r"WRONG_VERSION_NUMBER", words.NO_TLS.format("gRPC")),
    (r"ALPN", "it does not speak gRPC; is this its gRPC port?"),
    (r"Hostname Verification|not in peer certificate", words.OTHER_HOST),
    (r"CERTIFICATE_VERIFY_FAILED|certificate", words.OTHER_CA),
    (
        r"Endpoint closing|[Tt]imeout|[Tt]imed out|FD [Ss]hutdown",
        words.SILENT,
    ),
    (r"[Hh]andshake", words.NO_HANDSHAKE),
    (r"DNS|[Dd]omain name|lookup failed", words.NO_HOST),
    (
        r"Connection reset|Socket closed|Broken pipe|End of TCP stream|GOAWAY|CANCELLED",
        "the server closed the connection; it may be stopping, or refuse the context's certificate: has it expired?",
    ),
)


def failure(error: grpc.aio.AioRpcError, server: str) -> JobError:
    """What `error` of a call to `server` means, with the server's exact code where it sent one."""
    details = error.details() or error.code().name
    exact = dict(_metadata(error)).get(_EXACT_CODE)
    if exact in _CODES:
        return JobError(_CODES[exact], details)
    match error.code():
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:  # cancelled by a server that stops
            return unreachable(server, _reason(details))
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return took_too_long(server)
        case code:
            return JobError(_BY_STATUS.get(code, ErrorCode.INTERNAL), details)


def _metadata(error: grpc.aio.AioRpcError) -> Iterable[tuple[str, str | bytes]]:
    return cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ())


def _reason(details: str) -> str:
    return next((reason for pattern, reason in _REASONS if re.search(pattern, details)), details)
