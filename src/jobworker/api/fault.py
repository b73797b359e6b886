"""A fault of ours, as its caller hears of it: an id, under which the log has what happened."""

import logging
import uuid
from typing import Final

from jobworker.core.errors import ErrorCode, JobError

_log: Final = logging.getLogger(__name__)


def log_fault() -> JobError:
    """Logs the exception that is being handled; INTERNAL, with the id of that record and nothing else of it."""
    fault = uuid.uuid4().hex[:12]
    _log.exception("internal error %s", fault)
    return JobError(ErrorCode.INTERNAL, f"internal error; the server's log has it as {fault}")
