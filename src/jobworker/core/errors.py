"""The closed set of ways a request can fail, each with a message for the caller."""

from enum import Enum


class ErrorCode(Enum):
    """Why a request failed; every transport maps each code to exactly one status."""

    INVALID_ARGUMENT = "invalid_argument"
    UNAUTHENTICATED = "unauthenticated"
    PERMISSION_DENIED = "permission_denied"
    JOB_NOT_FOUND = "job_not_found"
    PROGRAM_NOT_FOUND = "program_not_found"
    PROGRAM_NOT_EXECUTABLE = "program_not_executable"
    JOB_NOT_RUNNING = "job_not_running"
    JOB_RUNNING = "job_running"
    UNSUPPORTED = "unsupported"
    EXHAUSTED = "exhausted"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"


class JobError(Exception):
    """A request failed for a reason its caller may read: what happened and what to do.

    The message never holds a server path, a stack, a process id or another user's name.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __repr__(self) -> str:
        return f"JobError({self.code.value}, {self.message!r})"


def invalid(field: str, value: object, allowed: str) -> JobError:
    """An INVALID_ARGUMENT error that names the field, the value and what is allowed."""
    return JobError(ErrorCode.INVALID_ARGUMENT, f"{field}: {quoted(value)} is not valid; allowed: {allowed}")


def quoted(value: object) -> str:
    """`value` as a message shows it: cut short, since it may be of any length."""
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."
