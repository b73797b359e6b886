"""Why a server cannot be reached: one error, in the same words over every transport."""

from typing import Final

from jobworker.core.errors import ErrorCode, JobError

REFUSED: Final = "connection refused; is jobworkerd running there?"
NO_TLS: Final = "it does not speak TLS; is this its {} port?"
OTHER_HOST: Final = "its certificate is for another host name"
OTHER_CA: Final = "its certificate is not from the context's CA"
SILENT: Final = "no answer in time; check the address and the network"
NO_HANDSHAKE: Final = "the TLS handshake failed"
NO_HOST: Final = "host not found"
ENDED_EARLY: Final = "the stream ended too early"


class TookTooLongError(JobError):
    """A call's own deadline has ended it: the server is there, and does not answer."""


def unreachable(server: str, why: str) -> JobError:
    """The error that says so of `server`."""
    return JobError(ErrorCode.UNAVAILABLE, f"cannot reach {server}: {why}")


def took_too_long(server: str) -> TookTooLongError:
    """The error of a call that `server` has not answered within its deadline."""
    return TookTooLongError(ErrorCode.UNAVAILABLE, f"cannot reach {server}: no answer in time; try again")
