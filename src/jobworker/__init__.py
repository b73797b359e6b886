"""jobworker runs any Linux program as an isolated, resource-limited job.

    async with await Worker.open("/var/lib/jobs") as worker:
        job = await worker.start(JobSpec(program="date", limits=Limits(memory=64 * 1024**2)))
        async for chunk in worker.output(job.id):
            print(chunk.stream.name, chunk.data.decode(), end="")
        print((await worker.wait(job.id)).ending)

A `Worker` starts, stops, lists and reads jobs, and answers with a `JobStatus`. The `ending` of a job
that has ended holds its `outcome`: one of `Exited`, `Signaled`, `OomKilled`, `TimedOut`, `Stopped`,
`OutputLimit` and `Lost`. Whatever fails raises a `JobError` with an `ErrorCode` and a message for people.

Names are loaded on first use, since the launcher imports this package too and must stay small.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobworker.core.errors import ErrorCode, JobError
    from jobworker.core.lifecycle import State
    from jobworker.core.outcome import (
        Ending,
        Exited,
        Lost,
        OomKilled,
        OutputLimit,
        OutputTotals,
        Signaled,
        Stopped,
        TimedOut,
        Usage,
    )
    from jobworker.core.spec import JobSpec, Limits, Network, OnOutputLimit
    from jobworker.job import JobStatus
    from jobworker.runtime.output_log import Chunk, Stream
    from jobworker.worker import Worker

_HOMES = {
    "jobworker.core.errors": ("ErrorCode", "JobError"),
    "jobworker.core.lifecycle": ("State",),
    "jobworker.core.outcome": (
        "Ending",
        "Exited",
        "Lost",
        "OomKilled",
        "OutputLimit",
        "OutputTotals",
        "Signaled",
        "Stopped",
        "TimedOut",
        "Usage",
    ),
    "jobworker.core.spec": ("JobSpec", "Limits", "Network", "OnOutputLimit"),
    "jobworker.job": ("JobStatus",),
    "jobworker.runtime.output_log": ("Chunk", "Stream"),
    "jobworker.worker": ("Worker",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Chunk",
    "Ending",
    "ErrorCode",
    "Exited",
    "JobError",
    "JobSpec",
    "JobStatus",
    "Limits",
    "Lost",
    "Network",
    "OnOutputLimit",
    "OomKilled",
    "OutputLimit",
    "OutputTotals",
    "Signaled",
    "State",
    "Stopped",
    "Stream",
    "TimedOut",
    "Usage",
    "Worker",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(import_module(_HOME_OF[name]), name)
    raise AttributeError(f"module 'jobworker' has no attribute {name!r}")
