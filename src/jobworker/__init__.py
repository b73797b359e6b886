"""jobworker runs any Linux program as an isolated, resource-limited job.

    from jobworker import JobSpec, Worker

Names are loaded on first use, since the launcher imports this package too and must stay small.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobworker.core.errors import ErrorCode, JobError
    from jobworker.core.lifecycle import State
    from jobworker.core.spec import JobSpec, Limits, Network, OnOutputLimit
    from jobworker.worker import Worker

_HOMES = {
    "ErrorCode": "jobworker.core.errors",
    "JobError": "jobworker.core.errors",
    "JobSpec": "jobworker.core.spec",
    "Limits": "jobworker.core.spec",
    "Network": "jobworker.core.spec",
    "OnOutputLimit": "jobworker.core.spec",
    "State": "jobworker.core.lifecycle",
    "Worker": "jobworker.worker",
}

__all__ = ["ErrorCode", "JobError", "JobSpec", "Limits", "Network", "OnOutputLimit", "State", "Worker"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'jobworker' has no attribute {name!r}")
