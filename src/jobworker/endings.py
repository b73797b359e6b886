"""How the end of a job becomes known: told by its monitor, read from its record, or that it is lost."""

import asyncio
import contextlib
import errno
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from jobworker.chores import Chores
from jobworker.core.errors import ErrorCode, JobError
from jobworker.core.lifecycle import Finished, Running, Stopping, advance
from jobworker.core.outcome import Ending, OutputTotals
from jobworker.job import Job, JobStatus
from jobworker.lost import DAMAGED, DELETED, why_lost
from jobworker.runtime import job_dir, wire
from jobworker.runtime.launcher_client import LauncherClient
from jobworker.runtime.output_log import OutputReader

#: What reading a job's files raises when a crash, or another release, has left them otherwise than we write them.
DAMAGE: Final = (ValueError, KeyError, TypeError, JobError)
#: What the kernel says of files that are there and lost: of the disk, the file system, or not what they should be.
UNREADABLE: Final = {errno.EIO, errno.EUCLEAN, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.EPERM, errno.EACCES}

#: Called when a job has ended, and awaited before anyone sees the end.
OnEnd = Callable[[JobStatus], Awaitable[None]]


class Endings:
    """Puts the ends of a worker's jobs on record, with their monitors or without.

    `jobs` are those that have no end yet; they leave it here.
    """

    def __init__(  # noqa: PLR0913 - one parameter a fact
        self,
        jobs_dir: Path,
        jobs: dict[str, Job],
        launcher: LauncherClient,
        chores: Chores,
        *,
        boot_id: str,
        on_end: OnEnd | None,
    ) -> None:
        self._jobs_dir = jobs_dir
        self._jobs = jobs
        self._launcher = launcher
        self._chores = chores
        self._boot_id = boot_id
        self._on_end = on_end

    def begin(self, job: Job, ending: Ending | None) -> asyncio.Event:
        """The monitor has spoken its last word, or has died without one; the event is set after the first try."""
        return self._chores.begin(f"the end of job {job.id}", lambda: self.conclude(job, ending))

    async def conclude(self, job: Job, ending: Ending | None) -> None:
        """Puts the job's end on record, and then lets everyone see it."""
        job.detach()
        final, _ = advance(job.phase, Finished(ending or await self._without_monitor(job)))
        if self._on_end is not None:
            await self._on_end(job.status(final))
        job.conclude(final)
        # From now on its directory tells everything about it.
        self._jobs.pop(job.id, None)

    async def clean_up(self, job_id: str) -> None:
        """Has the launcher end and remove what a dead monitor left."""
        cleaner = _Channel(self._launcher.clean_up(job_id))
        try:
            answer = await cleaner.next()
        finally:
            cleaner.close()
        if isinstance(answer, wire.StartFailed):
            raise answer.error()
        if not isinstance(answer, wire.Cleaned):
            raise JobError(ErrorCode.UNAVAILABLE, "the launcher died before it had cleaned up; try again")

    def is_of_this_boot(self, job: Job) -> bool:
        """Whether the host has not been booted since the job was started."""
        return job.boot_id in {"", self._boot_id}

    async def _without_monitor(self, job: Job) -> Ending:
        """How a job ended whose monitor does not tell: what it has recorded, or that nobody knows."""
        with contextlib.suppress(JobError):
            await self.clean_up(job.id)
        try:
            with job_dir.opened(self._jobs_dir, job.id) as directory:
                recorded = job_dir.read_outcome(directory)
                return Ending.from_document(recorded) if recorded else await self._record_lost(job, directory)
        except FileNotFoundError:
            return Ending(outcome=DELETED, ended_at=time.time())
        except DAMAGE:
            return Ending(outcome=DAMAGED, ended_at=time.time())

    async def _record_lost(self, job: Job, directory: int) -> Ending:
        ending = Ending(
            outcome=why_lost(has_directory=True, is_same_boot=self.is_of_this_boot(job)),
            started_at=job.phase.started_at if isinstance(job.phase, (Running, Stopping)) else None,
            ended_at=time.time(),
            output=await asyncio.to_thread(_totals, directory),
        )
        await asyncio.to_thread(_record, directory, job, ending)
        return ending


class _Channel:
    """A packet socket to the launcher on the event loop."""

    def __init__(self, channel: socket.socket) -> None:
        self._socket = channel
        self._loop = asyncio.get_running_loop()

    async def next(self) -> wire.Message | None:
        """The next message; None at the end."""
        readable = asyncio.Event()
        self._loop.add_reader(self._socket, readable.set)
        try:
            await readable.wait()
            return wire.receive(self._socket)[0]
        except OSError:
            return None
        finally:
            self._loop.remove_reader(self._socket)

    def close(self) -> None:
        self._socket.close()


def _totals(directory: int) -> OutputTotals:
    try:
        reader = OutputReader(directory)
    except FileNotFoundError:
        return OutputTotals()
    try:
        return reader.totals()
    finally:
        reader.close()


def _record(directory: int, job: Job, ending: Ending) -> None:
    with contextlib.suppress(FileExistsError):  # as a rule the dead monitor has reserved it
        job_dir.reserve_outcome(directory)
    document = {"effective_limits": dict(job.effective_limits), "sandbox": dict(job.sandbox)}
    job_dir.write_outcome(directory, ending.to_document() | document)
