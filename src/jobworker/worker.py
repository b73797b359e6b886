"""The library: start, stop, follow and inspect jobs on this machine.

    async with await Worker.open(Path("/var/lib/jobs")) as worker:
        job = await worker.start(JobSpec(program="/bin/date"))
        async for chunk in worker.output(job.id):
            print(chunk.data.decode(), end="")

It knows nothing of networks, certificates or databases: the job directories are its record, the
launcher makes the jobs, and their monitors keep them when this process dies.
"""

import asyncio
import contextlib
import fcntl
import os
import signal
import time
from collections.abc import AsyncGenerator, Collection, Sequence
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from jobworker.chores import Chores
from jobworker.core.errors import ErrorCode, JobError, invalid
from jobworker.core.job_id import check_job_id, new_job_id
from jobworker.core.lifecycle import (
    Ended,
    Pending,
    Running,
    Stopping,
)
from jobworker.core.outcome import Ending
from jobworker.core.requests import check_grace, check_place, check_signal
from jobworker.core.spec import JobSpec
from jobworker.endings import DAMAGE, UNREADABLE, Endings, OnEnd
from jobworker.job import Job, JobStatus
from jobworker.recovery import Recovery
from jobworker.rotation import Rotation
from jobworker.runtime import job_dir, wire
from jobworker.runtime.inotify import Inotify
from jobworker.runtime.launcher_client import LauncherClient
from jobworker.runtime.output_log import BOTH, Blocked, Chunk, OutputReader, Stream
from jobworker.turnstile import Turnstile

MAX_CHUNK: Final = 96 * 1024  # larger ones cost more: from 128 KiB on malloc maps and faults each one anew
_STARTS_AT_ONCE: Final = 64  # what the launcher's queue holds with room to spare
_STARTS_OF_ONE: Final = 4  # enough to keep two cores busy
_CHUNKS_AT_ONCE: Final = 8  # a millisecond or so of encryption, then everybody else's turn comes
_TAILS_AT_ONCE: Final = 2  # the other threads are for those who read on
_MAX_NAME: Final = 255
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def bootstrap(  # noqa: PLR0913 - one parameter a fact
    state: Path,
    *,
    service_uid: int | None = None,
    service_gid: int | None = None,
    uids: tuple[int, int] = (200_000, 265_535),
    hidden: tuple[Path, ...] = (),
    roots: Collection[Path] = (),
    allow_degraded: Collection[str] = (),
) -> wire.Bootstrap:
    """What a launcher for the jobs below `state` needs to know."""
    state = state.resolve()
    return wire.Bootstrap(
        version=wire.PROTOCOL_VERSION,
        service_uid=os.geteuid() if service_uid is None else service_uid,
        service_gid=os.getegid() if service_gid is None else service_gid,
        first_uid=uids[0],
        last_uid=uids[1],
        # One parent group for each state directory, so that servers on one host do not meet.
        cgroup_parent="jobworker-" + sha256(os.fsencode(state)).hexdigest()[:12],
        lock_dir="/run/jobworker",
        hidden=[str(state), *map(str, hidden)],
        roots=sorted(map(str, roots)),
        allow_degraded=sorted(allow_degraded),
    )


class Worker:
    """The jobs below one state directory; at most one worker has it open at a time."""

    def __init__(
        self, state: Path, guard: int, launcher: LauncherClient, inotify: Inotify, on_end: OnEnd | None
    ) -> None:
        """Use `Worker.open`."""
        self._jobs_dir = state / "jobs"
        self._guard = guard
        self._launcher = launcher
        self._inotify = inotify
        self._jobs: dict[str, Job] = {}
        self._starts = Rotation(_STARTS_AT_ONCE, alone=_STARTS_OF_ONE)
        self._tails = asyncio.Semaphore(_TAILS_AT_ONCE)
        self._chunks = Turnstile(_CHUNKS_AT_ONCE)
        self._launching: set[asyncio.Task[None]] = set()
        self._chores = Chores()
        self.boot_id = _BOOT_ID.read_text(encoding="ascii").strip()
        self._endings = Endings(self._jobs_dir, self._jobs, launcher, self._chores, boot_id=self.boot_id, on_end=on_end)

    @classmethod
    async def open(
        cls, state: Path | str, *, launcher: LauncherClient | None = None, on_end: OnEnd | None = None
    ) -> Self:
        """A worker with every job that an earlier one left: running ones are adopted.

        Starts a launcher unless one is given; without root it makes jobs in user namespaces, with the
        rights of the caller. UNAVAILABLE when another worker has the directory.
        """
        state = Path(state)
        (state / "jobs").mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.ExitStack() as on_failure:
            guard = _claim(state)
            on_failure.callback(os.close, guard)
            if launcher is None:
                launcher = await asyncio.to_thread(LauncherClient.start, bootstrap(state))
                on_failure.callback(launcher.close)
            inotify = Inotify.open()
            on_failure.callback(inotify.close)
            worker = cls(state, guard, launcher, inotify, on_end)
            await Recovery(worker._jobs_dir, worker._jobs, worker._endings, worker._chores).run(launcher.empty_groups)
            on_failure.pop_all()
        return worker

    async def close(self) -> None:
        """Lets go of everything; jobs run on."""
        for task in self._launching:
            task.cancel()
        await asyncio.gather(*self._launching, return_exceptions=True)
        await self._chores.close()
        for job in self._jobs.values():
            job.detach()
        self._inotify.close()
        self._launcher.close()
        os.close(self._guard)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # Acting on jobs.

    async def start(
        self, spec: JobSpec, *, job_id: str | None = None, by: str = "", programs: Sequence[str] | None = None
    ) -> JobStatus:
        """Starts the program and returns when it runs.

        However many starts are `by` one user, those of others wait for a few of them only.
        With `programs`, absolute paths, it is started only when it is one of these files, whatever
        its own name; PERMISSION_DENIED otherwise.

        When it cannot run, the error says why and nothing of the try is left. When its monitor is
        killed just as the program is loaded, nobody can tell whether it has run: then the job
        returned has ended, as lost. A caller that is cancelled does not cancel the start.
        """
        job = Job(check_job_id(job_id) if job_id else new_job_id(), spec, time.time())
        if job.id in self._jobs or os.path.lexists(self._jobs_dir / job.id):
            raise JobError(ErrorCode.INVALID_ARGUMENT, "a job of this id exists")
        self._jobs[job.id] = job
        task = asyncio.create_task(self._start(job, by, None if programs is None else tuple(programs)))
        self._launching.add(task)
        task.add_done_callback(self._launching.discard)
        await asyncio.shield(task)
        return job.status()

    async def stop(
        self, job_id: str, *, by: str = "", grace: float = 0.0, signal_number: int = signal.SIGTERM
    ) -> JobStatus:
        """Ends the job and everything in it; returns when nothing of it lives.

        Without `grace` SIGKILL comes at once; with it, SIGKILL follows `signal_number` after that
        many seconds. JOB_NOT_RUNNING when the job ended by itself before the stop could end it, and
        when it was stopped before its program ran: then its start fails, and nothing is left of it.
        """
        check_signal(signal_number)
        check_grace(grace)
        if len(by) > _MAX_NAME:
            raise invalid("by", by, f"at most {_MAX_NAME} characters")
        job = self._find(job_id)
        order = wire.OrderStop(by, signal_number, grace)
        if isinstance(job.phase, Pending):
            # Loading the program can take for ever, as from a file server that is gone; a job that
            # is not even launched hears it below.
            job.send(order)
            await job.wait_started()
        if not job.is_ended:
            job.send(order)
            await job.wait_ended()
            if job.was_stopped:
                return job.status()
        raise JobError(ErrorCode.JOB_NOT_RUNNING, "job not running: it has already ended")

    async def signal(self, job_id: str, number: int) -> None:
        """Sends a signal to the job's main process; JOB_NOT_RUNNING when it has ended."""
        check_signal(number)
        job = self._find(job_id)
        await job.wait_started()
        if job.is_ended:
            raise JobError(ErrorCode.JOB_NOT_RUNNING, "job not running: it has already ended")
        job.send(wire.OrderSignal(number))

    async def remove(self, job_id: str, *, force: bool = False) -> None:
        """Deletes an ended job and its output; JOB_RUNNING unless `force` ends it first."""
        job = self._jobs.get(check_job_id(job_id))
        if job is None and not os.path.lexists(self._jobs_dir / job_id):
            raise _not_found()
        if job is not None and not job.is_ended:
            if not force:
                raise JobError(ErrorCode.JOB_RUNNING, "job running: stop it first, or remove it with force")
            try:
                await self.stop(job_id)
            except JobError:
                # An end of its own and a start that failed are as good; anything else left it running.
                if job_id in self._jobs and not job.is_ended:
                    raise
        self._jobs.pop(job_id, None)
        await asyncio.to_thread(job_dir.remove, self._jobs_dir, job_id)

    # Looking at jobs.

    async def status(self, job_id: str) -> JobStatus:
        """The job as it is now, with what it has used so far; JOB_NOT_FOUND."""
        job = self._find(job_id)
        if isinstance(job.phase, (Running, Stopping)):
            return await job.fresh_status()
        return job.status()

    def list(self) -> list[JobStatus]:
        """Every job below the state directory, newest first; running ones without usage."""
        found = []
        for entry in os.scandir(self._jobs_dir):
            with contextlib.suppress(JobError):
                found.append(self._find(entry.name).status())
        return sorted(found, key=lambda status: status.created_at, reverse=True)

    async def wait(self, job_id: str, *, timeout: float | None = None) -> JobStatus:  # noqa: ASYNC109
        """The job after its end, or as it is when `timeout` seconds have passed."""
        job = self._find(job_id)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await job.wait_ended()
        return job.status()

    async def output(  # noqa: PLR0913
        self,
        job_id: str,
        *,
        offset: int = 0,
        streams: frozenset[Stream] = BOTH,
        follow: bool = True,
        since: float | None = None,
        tail_lines: int | None = None,
        max_chunk: int = MAX_CHUNK,
    ) -> AsyncGenerator[Chunk, None]:
        """What the job wrote from `offset` on, then what it writes, until it has ended.

        Works before, during and after the run. `since` (seconds since the epoch) and `tail_lines`
        skip forward. Without `follow` it ends at what is on record now. When it ends by itself
        after following, the job's final state is visible. A slow reader slows nobody.
        """
        check_place(offset=offset, tail_lines=tail_lines, since=since)
        if max_chunk < 1:
            raise invalid("max_chunk", max_chunk, "1 or more")
        job = self._find(job_id)
        await job.wait_started()
        reader = self._open_output(job, offset, streams)
        try:
            if since is not None:
                reader.seek_time(int(since * 1e9))
            if tail_lines is not None:
                async with self._tails:
                    await asyncio.to_thread(reader.seek_tail, tail_lines)
            async with contextlib.aclosing(self._follow(job, reader, follow=follow, max_chunk=max_chunk)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            reader.close()

    async def _follow(
        self, job: Job, reader: OutputReader, *, follow: bool, max_chunk: int
    ) -> AsyncGenerator[Chunk, None]:
        news = asyncio.Event()
        job.listeners.add(news.set)
        watch = self._inotify.watch(reader.index_fd, news.set) if follow and not job.is_ended else None
        try:
            while True:
                # Looked at before reading: what was on record when the job ended is read after.
                news.clear()
                was_ended = job.is_ended
                while (chunk := await _read(reader, max_chunk)) is not None:
                    yield chunk
                    await self._chunks.wait_turn()
                if was_ended or not follow:
                    return
                await news.wait()
        finally:
            job.listeners.discard(news.set)
            if watch is not None:
                watch.close()

    def _open_output(self, job: Job, offset: int, streams: frozenset[Stream]) -> OutputReader:
        try:
            directory = job_dir.open_directory(self._jobs_dir, job.id)
        except FileNotFoundError:
            raise _not_found() from None
        try:
            return OutputReader(directory, offset, streams)
        except FileNotFoundError:
            raise JobError(ErrorCode.UNAVAILABLE, "the job has no output: it was lost before it ran") from None
        finally:
            os.close(directory)

    # Inside.

    def _find(self, job_id: str) -> Job:
        """The job in memory, or, when it has ended, from its directory; JOB_NOT_FOUND."""
        job = self._jobs.get(check_job_id(job_id))
        if job is not None:
            return job
        try:
            with job_dir.opened(self._jobs_dir, job_id) as directory:
                return _load_ended(job_id, directory)
        except FileNotFoundError:
            raise _not_found() from None
        except (*DAMAGE, OSError) as error:
            if isinstance(error, OSError) and error.errno not in UNREADABLE:
                raise
            raise JobError(ErrorCode.INTERNAL, "the job's files are damaged; it can only be removed") from error

    async def _start(self, job: Job, by: str, programs: tuple[str, ...] | None) -> None:
        try:
            async with self._starts.turn(by):
                request = job_dir.Request(job.spec, job.created_at, self.boot_id, programs)
                try:
                    directory = job_dir.create(self._jobs_dir, job.id, request)
                except OSError as error:
                    reason = os.strerror(error.errno or 0)
                    raise JobError(
                        ErrorCode.UNAVAILABLE, f"the server cannot make the job's files: {reason}"
                    ) from error
                try:
                    job.attach(self._launcher.launch(job.id, directory), self._endings.begin)
                finally:
                    os.close(directory)
                await job.wait_answer()
        except JobError as error:
            job.detach()
            if error.code is ErrorCode.UNAVAILABLE:  # launcher or monitor may have died over it
                with contextlib.suppress(JobError):
                    await self._endings.clean_up(job.id)
                if job_dir.may_have_run(self._jobs_dir, job.id):
                    self._endings.begin(job, None)
                    await job.wait_ended()
                    return
            self._undo_start(job, error)
            raise

    def _undo_start(self, job: Job, error: JobError) -> None:
        """Leaves nothing of a start that failed."""
        # What the disk does not let go of now goes when a worker next opens the directory.
        with contextlib.suppress(OSError):
            job_dir.remove(self._jobs_dir, job.id)
        self._jobs.pop(job.id, None)
        job.fail(error)


def _claim(state: Path) -> int:
    """Marks the state directory as in use until the descriptor is closed."""
    guard = os.open(state / "worker.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(guard)
        raise JobError(ErrorCode.UNAVAILABLE, "another jobworker uses this state directory; stop it first") from None
    return guard


def _load_ended(job_id: str, directory: int) -> Job:
    """An ended job from its directory; FileNotFoundError when that is no complete one."""
    request = job_dir.read_request(directory)
    recorded = job_dir.read_outcome(directory)
    if recorded is None:
        raise FileNotFoundError
    job = Job(job_id, request.spec, request.created_at, request.boot_id)
    job.phase = Ended(Ending.from_document(recorded))
    job.effective_limits, job.sandbox = recorded["effective_limits"], recorded["sandbox"]
    return job


async def _read(reader: OutputReader, max_chunk: int) -> Chunk | None:
    """The next chunk; from memory at once, from the disk without holding up anybody else."""
    try:
        return reader.read(max_chunk, may_block=False)
    except Blocked:
        return await asyncio.to_thread(reader.read, max_chunk)


def _not_found() -> JobError:
    return JobError(ErrorCode.JOB_NOT_FOUND, "job not found")
