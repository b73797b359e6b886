"""Job ids: random UUIDs in their one canonical spelling."""

import re
import uuid
from typing import Final

from jobworker.core.errors import ErrorCode, JobError

_CANONICAL: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def new_job_id() -> str:
    """A fresh UUIDv4, as 36 lower-case characters."""
    return str(uuid.uuid4())


def is_job_id(text: str) -> bool:
    """Whether `text` is a job id to the letter: no prefix, no other case, nothing around it."""
    return _CANONICAL.fullmatch(text) is not None


def check_job_id(text: str) -> str:
    """`text` when it is a job id; otherwise JOB_NOT_FOUND, since no job can have it.

    Every id passes here before it becomes part of a path or a query.
    """
    if not is_job_id(text):
        raise JobError(ErrorCode.JOB_NOT_FOUND, "job not found: ids have 36 characters, as printed by start")
    return text
