"""What each error code is called on each transport: one table, total by test."""

from dataclasses import dataclass
from typing import Final

from grpc import StatusCode

from jobworker.core.errors import ErrorCode


@dataclass(frozen=True, slots=True)
class WireStatus:
    """One code as gRPC and HTTP say it."""

    grpc: StatusCode
    http: int


ERROR_MAP: Final = {
    ErrorCode.INVALID_ARGUMENT: WireStatus(StatusCode.INVALID_ARGUMENT, 400),
    ErrorCode.UNAUTHENTICATED: WireStatus(StatusCode.UNAUTHENTICATED, 401),
    ErrorCode.PERMISSION_DENIED: WireStatus(StatusCode.PERMISSION_DENIED, 403),
    ErrorCode.JOB_NOT_FOUND: WireStatus(StatusCode.NOT_FOUND, 404),
    ErrorCode.PROGRAM_NOT_FOUND: WireStatus(StatusCode.NOT_FOUND, 404),
    ErrorCode.PROGRAM_NOT_EXECUTABLE: WireStatus(StatusCode.FAILED_PRECONDITION, 422),
    ErrorCode.JOB_NOT_RUNNING: WireStatus(StatusCode.FAILED_PRECONDITION, 409),
    ErrorCode.JOB_RUNNING: WireStatus(StatusCode.FAILED_PRECONDITION, 409),
    ErrorCode.UNSUPPORTED: WireStatus(StatusCode.FAILED_PRECONDITION, 422),
    ErrorCode.EXHAUSTED: WireStatus(StatusCode.RESOURCE_EXHAUSTED, 429),
    ErrorCode.UNAVAILABLE: WireStatus(StatusCode.UNAVAILABLE, 503),
    ErrorCode.INTERNAL: WireStatus(StatusCode.INTERNAL, 500),
}
