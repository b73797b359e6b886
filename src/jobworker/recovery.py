"""Taking back the jobs that an earlier worker left: adopted with their monitors, or seen to their ends without."""

import asyncio
import contextlib
import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from jobworker.chores import Chores
from jobworker.core.errors import JobError
from jobworker.core.job_id import is_job_id
from jobworker.endings import DAMAGE, UNREADABLE, Endings
from jobworker.job import Job
from jobworker.runtime import job_dir

_ADOPTION_TIMEOUT: Final = 1.0
_MONITOR_GONE: Final = (ConnectionRefusedError, FileNotFoundError)


class Recovery:
    """What a new worker does with the job directories that it finds; it puts the unfinished jobs into `jobs`."""

    def __init__(self, jobs_dir: Path, jobs: dict[str, Job], endings: Endings, chores: Chores) -> None:
        self._jobs_dir = jobs_dir
        self._jobs = jobs
        self._endings = endings
        self._chores = chores

    async def run(self, empty_groups: Iterable[str]) -> None:
        """Every job is adopted, ended or being tried again; of the `empty_groups` none without a job is left."""
        with os.scandir(self._jobs_dir) as entries:
            found = [entry.name for entry in entries if _is_unfinished(entry)]
        for job_id in found:
            await self._take_back(job_id)
        # Monitors that do not answer, as when their disk hangs, keep no other job waiting.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ADOPTION_TIMEOUT):
                await asyncio.gather(*(job.wait_answer() for job in self._jobs.values()), return_exceptions=True)
        for job_id in empty_groups:
            await self._clean_up_after_end(job_id)

    async def _clean_up_after_end(self, job_id: str) -> None:
        """Removes the groups that a monitor left which was killed when its job's end was on record already."""
        if job_id not in self._jobs and not self._is_supervised(job_id):
            with contextlib.suppress(JobError):
                await self._endings.clean_up(job_id)

    async def _take_back(self, job_id: str) -> None:
        try:
            with job_dir.opened(self._jobs_dir, job_id) as directory:
                request = job_dir.read_request(directory)
        except (*DAMAGE, OSError) as error:
            # A want of descriptors is no damage: better no server than one that knows nothing of a job that runs.
            if isinstance(error, OSError) and error.errno not in {errno.ENOENT, *UNREADABLE}:
                raise
            await self._give_up(job_id, has_request=not isinstance(error, FileNotFoundError))
            return
        job = Job(job_id, request.spec, request.created_at, request.boot_id)
        self._jobs[job_id] = job
        try:
            self._adopt(job)
        except _MONITOR_GONE:
            await self._settle_unsupervised(job)
        except OSError:
            self._adopt_later(job)

    async def _give_up(self, job_id: str, *, has_request: bool) -> None:
        """Ends a job whose request nobody can read, since nobody could stop it.

        Its files stay for its owner to look at and to remove, but for what a server has left that died
        while it made them, or while it removed them.
        """
        with contextlib.suppress(JobError, OSError):
            if (self._jobs_dir / job_id / job_dir.LOCK).exists():
                await self._endings.clean_up(job_id)
                if has_request:
                    return
            job_dir.remove(self._jobs_dir, job_id)

    def _adopt(self, job: Job) -> None:
        """Connects to the job's monitor; OSError of _MONITOR_GONE when there is none, any other when it is too busy."""
        with job_dir.opened(self._jobs_dir, job.id) as directory:
            channel = job_dir.connect(directory)
        job.attach(channel, self._endings.begin)

    def _adopt_later(self, job: Job) -> None:
        """Goes on trying to reach a monitor that lives and does not accept, or is only coming up."""

        async def adopt() -> None:
            try:
                self._adopt(job)
            except _MONITOR_GONE:
                if self._is_supervised(job.id):
                    raise
                await self._endings.conclude(job, None)

        self._chores.begin(f"the adoption of job {job.id}", adopt)

    async def _settle_unsupervised(self, job: Job) -> None:
        """Says what became of a job without a monitor, and sees to it that it gets none meanwhile.

        The launcher of the earlier server may be at work still on what it was told.
        """
        try:
            with job_dir.opened(self._jobs_dir, job.id) as directory:
                lock = job_dir.take_lock(directory)
        except OSError:
            self._adopt_later(job)
            return
        try:
            if not await self._forget_unlaunched(job):
                await self._endings.begin(job, None).wait()
        finally:
            os.close(lock)

    def _is_supervised(self, job_id: str) -> bool:
        """Whether somebody is seen to hold the lock of the job's monitor."""
        try:
            with job_dir.opened(self._jobs_dir, job_id) as directory:
                return job_dir.is_supervised(directory)
        except OSError:
            return False

    async def _forget_unlaunched(self, job: Job) -> bool:
        """Leaves nothing of a start that the server's end cut short before its program was loaded."""
        with contextlib.suppress(JobError):
            await self._endings.clean_up(job.id)
        # After a reset its files are as old as the disk's last commit.
        if not self._endings.is_of_this_boot(job) or job_dir.may_have_run(self._jobs_dir, job.id):
            return False
        try:
            job_dir.remove(self._jobs_dir, job.id)
        except OSError:
            return False  # it is being launched just now, by the launcher of the earlier server
        del self._jobs[job.id]
        return True


def _is_unfinished(entry: os.DirEntry[str]) -> bool:
    """Whether it is a job's directory without an end, or one that a removal has left which was cut short."""
    if not is_job_id(entry.name) or not entry.is_dir(follow_symlinks=False):
        return False
    return not all(Path(entry.path, name).exists() for name in (job_dir.SPEC, job_dir.OUTCOME))
