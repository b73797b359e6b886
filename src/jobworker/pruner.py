"""Removes ended jobs that are beyond retention: not asked by anybody, and on record like everything else."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from jobworker.access.policy import Action
from jobworker.core.errors import JobError
from jobworker.store import audit, jobs
from jobworker.store.audit import AuditEvent
from jobworker.store.database import Database
from jobworker.store.jobs import Retention

_log: Final = logging.getLogger(__name__)
_PAUSE_SECONDS: Final = 60.0
_AT_ONCE: Final = 1000  # removals between two looks at what is to be removed
_NAME: Final = "server:retention"  # in the audit; no name of a user has a colon


class Pruner:
    """Holds a server's ended jobs to `kept`; `delete` removes a job's directory and its record."""

    def __init__(
        self,
        database: Database,
        kept: Retention,
        delete: Callable[[str], Awaitable[None]],
        clock: Callable[[], float],
    ) -> None:
        self._database = database
        self._kept = kept
        self._delete = delete
        self._clock = clock

    async def run(self) -> None:
        """Removes what is beyond a bound, again and again; the audit keeps all that it says of the jobs."""
        while True:
            outlived = await self._database.read_in_thread(
                lambda rows: jobs.outlived(rows, self._kept, self._clock(), _AT_ONCE)
            )
            removed = [await self._remove(job_id) for job_id in outlived]
            # More may be waiting behind as many as were asked for; what cannot be removed is not tried again at once.
            if len(removed) < _AT_ONCE or not all(removed):
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _remove(self, job_id: str) -> bool:
        """Whether the job is gone."""
        event = AuditEvent(
            time=self._clock(),
            principal=_NAME,
            credential="",
            source="local",
            action=Action.JOB_REMOVE.value,
            target=job_id,
            decision="allowed",
            detail="beyond retention",
        )
        await self._record(event)
        try:
            await self._delete(job_id)
        except (JobError, OSError) as error:
            _log.warning("job %s is kept beyond retention: %s", job_id, error)
            await self._record(replace(event, time=self._clock(), decision="failed"))
            return False
        return True

    async def _record(self, event: AuditEvent) -> None:
        await self._database.write(lambda connection: audit.append(connection, event))
