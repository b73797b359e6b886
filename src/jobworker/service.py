"""The use cases: authorise, act, record, audit; the same for every transport.

Each method takes the principal that a transport has proven, and is the only way to a job. What it
knows about where jobs run is the worker it is given.
"""

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Self

from jobworker.access.ceiling import Ceiling
from jobworker.access.policy import Action, is_allowed, is_in_scope
from jobworker.access.principal import Principal, Role
from jobworker.chores import Chores
from jobworker.core.errors import ErrorCode, JobError, invalid
from jobworker.core.job_id import check_job_id, new_job_id
from jobworker.core.lifecycle import Ended, Finished, Pending, Phase, Running, State, Stopping, advance
from jobworker.core.outcome import Ending, Outcome, OutputTotals, Usage
from jobworker.core.requests import check_grace, check_idempotency_key, check_signal
from jobworker.core.spec import JobSpec, Network
from jobworker.events import JobEvent, JobEvents
from jobworker.job import JobStatus
from jobworker.live_jobs import LiveJobs
from jobworker.lost import DAMAGED, DELETED, NEVER_STARTED, why_lost
from jobworker.metrics import Figures, Metrics
from jobworker.pruner import Pruner
from jobworker.runtime.controls import describe_isolation
from jobworker.runtime.launcher_client import LauncherClient
from jobworker.runtime.output_log import BOTH, Chunk, Stream
from jobworker.store import audit, boot, jobs
from jobworker.store.audit import AuditEvent
from jobworker.store.database import Database
from jobworker.store.jobs import Desired, JobFilter, JobRecord, KeyTaken, Page, Retention
from jobworker.worker import MAX_CHUNK, Worker

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quotas:
    """How much the server takes on, in all and for each user."""

    max_jobs: int = 4000
    max_jobs_per_user: int = 1000
    max_streams_per_user: int = 256
    ceilings: Mapping[Role, Ceiling] = field(default_factory=dict)
    programs: Mapping[Role, tuple[str, ...]] = field(default_factory=dict)  # the only ones of a role that is in it
    retention: Retention = Retention()


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """A job as its owner may see it: the record, and what it has used and written so far."""

    record: JobRecord
    usage: Usage
    output: OutputTotals

    @classmethod
    def of(cls, record: JobRecord) -> Self:
        """The view of a job of which nothing but its record is known at the moment."""
        ending = record.phase.ending if isinstance(record.phase, Ended) else None
        return cls(
            record=record,
            usage=ending.usage if ending else Usage(),
            output=ending.output if ending else OutputTotals(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputRequest:
    """Which part of a job's output a reader wants; see `Worker.output`."""

    offset: int = 0
    streams: frozenset[Stream] = BOTH
    follow: bool = False
    since: float | None = None
    tail_lines: int | None = None
    max_chunk: int = MAX_CHUNK


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputEnd:
    """The last thing a reader gets; `offset` is where it may resume."""

    state: State
    outcome: Outcome | None
    output: OutputTotals
    offset: int


OutputEvents = AsyncGenerator[Chunk | OutputEnd, None]


@dataclass(frozen=True, slots=True)
class Reading:
    """An output that its reader may read; `is_live` while more of it may come."""

    events: OutputEvents
    is_live: bool


class Service:
    """Everything that can be asked of a server, for one database and one worker."""

    def __init__(self, database: Database, node: str, quotas: Quotas, clock: Callable[[], float] = time.time) -> None:
        """Use `Service.open`."""
        self.metrics = Metrics()
        self._database = database
        self._node = node
        self._quotas = quotas
        self._clock = clock
        # The unfinished jobs, ahead of the database by what is being written just now.
        self._live = LiveJobs()
        self._starts: dict[str, asyncio.Task[None]] = {}
        self._streams: Counter[str] = Counter()
        self._events = JobEvents()
        self._chores = Chores()
        self._is_closing = False

    _worker: Worker
    _degraded: tuple[str, ...] = ()  # the controls that jobs of this host run without

    @classmethod
    async def open(
        cls, state: Path, database: Database, launcher: LauncherClient, *, node: str, quotas: Quotas
    ) -> Self:
        """The service with every job that an earlier one left, adopted or put on record."""
        service = cls(database, node, quotas)
        service._degraded = launcher.degraded
        for record in database.read(jobs.unfinished):
            service._live[record.id] = record
        service._worker = await Worker.open(state, launcher=launcher, on_end=service._on_end)
        known = database.read(boot.known)
        for record in list(service._live.values()):
            await service._recover(record, is_same_boot=known in {"", service._worker.boot_id})
        if known != service._worker.boot_id:
            service._write_later(
                "the host's boot", lambda connection: boot.replace(connection, service._worker.boot_id)
            )
        if quotas.retention != Retention():
            pruner = Pruner(database, quotas.retention, service._delete, service._clock)
            service._chores.begin("retention", pruner.run)
        return service

    def refuse_new_jobs(self) -> None:
        """From now on no job is started; the others can still be stopped and looked at."""
        self._is_closing = True

    async def close(self) -> None:
        """Lets go of the worker; its jobs run on."""
        await asyncio.gather(*self._starts.values(), return_exceptions=True)
        await self._chores.close()
        await self._worker.close()

    # Starting.

    async def start(self, principal: Principal, spec: JobSpec, idempotency_key: str | None) -> tuple[JobView, bool]:
        """Starts a job of the principal's; returns it when its program runs.

        With a key that the principal has used before it is the job of that time, and True.
        """
        arrived = time.monotonic()
        if idempotency_key is not None:
            check_idempotency_key(idempotency_key)
        await self._authorise(principal, Action.JOB_START, "", principal.name)
        if spec.network is Network.HOST:
            await self._authorise(principal, Action.NETWORK_HOST, "", principal.name)
        self._quotas.ceilings.get(principal.role, Ceiling()).check(spec.limits)
        if principal.role in self._quotas.programs:
            _check_loader(spec)
            if spec.rootfs is not None:  # there the same names are other files
                raise invalid("rootfs", spec.rootfs, "no root but the host's, since your role has a list of programs")
        cut_short: JobRecord | None = None
        if idempotency_key is not None:
            known = self._database.read(lambda rows: jobs.by_idempotency_key(rows, principal.name, idempotency_key))
            if known is not None and not await self._was_never_started(known):
                return await self._started_before(principal, known.id), True
            cut_short = known
        self._check_quota(principal)
        record = JobRecord(
            id=new_job_id(),
            owner=principal.name,
            spec=spec,
            created_at=self._clock(),
            idempotency_key=idempotency_key,
            node=self._node,
        )
        self._live[record.id] = record
        # A caller that goes away does not take the start with it half done.
        task = asyncio.create_task(self._start(principal, record, cut_short))
        self._starts[record.id] = task
        task.add_done_callback(lambda _: self._starts.pop(record.id, None))
        try:
            await asyncio.shield(task)
        except KeyTaken as taken:
            return await self._started_before(principal, taken.existing_id), True
        self.metrics.started(time.monotonic() - arrived)
        return await self._view(self._get(record.id)), False

    async def _start(self, principal: Principal, record: JobRecord, cut_short: JobRecord | None) -> None:
        event = self._event(principal, Action.JOB_START, record.id, "allowed", self._describe_start(record))

        def intend(connection: sqlite3.Connection) -> None:
            if cut_short is not None:
                jobs.delete(connection, cut_short.id)
            jobs.insert(connection, record)
            audit.append(connection, event)

        try:
            await self._database.write(intend)
        except BaseException:
            del self._live[record.id]
            raise
        try:
            programs = self._quotas.programs.get(principal.role)
            status = await self._worker.start(record.spec, job_id=record.id, by=principal.name, programs=programs)
        except JobError as error:
            del self._live[record.id]
            await self._forget(principal, record, error)
            raise
        if record.id in self._live and not isinstance(status.phase, Ended):
            self._update(status)

    async def _forget(self, principal: Principal, record: JobRecord, error: JobError) -> None:
        """Takes a failed start's record back, and leaves that it failed to the audit; later if the disk is full."""
        if error.code is ErrorCode.PERMISSION_DENIED:  # only who opened the file could tell
            decision, detail = "denied", _describe_program(record.spec)
        else:
            decision, detail = "failed", error.code.value
        event = self._event(principal, Action.JOB_START, record.id, decision, detail)

        def undo(connection: sqlite3.Connection) -> None:
            jobs.delete(connection, record.id)
            audit.append(connection, event)

        await self._write_later(f"the failed start of job {record.id}", undo).wait()

    def _describe_start(self, record: JobRecord) -> str:
        """What the audit says of a start: what runs, and with less isolation than it should have, if so."""
        if not self._degraded:
            return _describe_program(record.spec)
        _log.warning("job %s starts with isolation: %s", record.id, describe_isolation(self._degraded))
        return f"{_describe_program(record.spec)}; isolation: {describe_isolation(self._degraded)}"

    async def _was_never_started(self, record: JobRecord) -> bool:
        """Whether an earlier server stopped before the job had so much as files: then its key is still good."""
        if not isinstance(record.phase, Ended) or record.phase.ending.outcome != NEVER_STARTED:
            return False
        try:
            await self._worker.status(record.id)
        except JobError as error:
            return error.code is ErrorCode.JOB_NOT_FOUND
        return False

    async def _started_before(self, principal: Principal, job_id: str) -> JobView:
        """The job that an earlier call with the same key has started, or is starting."""
        task = self._starts.get(job_id)
        if task is not None:
            with self.counted(principal):
                await asyncio.shield(task)
        return await self._view(self._get(job_id))

    def _check_quota(self, principal: Principal) -> None:
        if self._is_closing:
            raise JobError(ErrorCode.UNAVAILABLE, "the server is shutting down; try again later")
        if len(self._live) >= self._quotas.max_jobs:
            raise JobError(
                ErrorCode.EXHAUSTED, "the server runs as many jobs as it may; try again when some have ended"
            )
        own = self._live.count_of(principal.name)
        if own >= self._quotas.max_jobs_per_user:
            raise JobError(
                ErrorCode.EXHAUSTED, f"you have {own} unfinished jobs, as many as you may; wait for some to end"
            )

    # Acting.

    async def stop(self, principal: Principal, job_id: str, *, grace: float, signal: int) -> JobView:
        """Ends a job and everything in it; returns when nothing of it lives. JOB_NOT_RUNNING after its end."""
        record = await self._authorised(principal, Action.JOB_STOP, job_id)
        # Before the wish is on record: a server that finds it there carries it out.
        check_grace(grace)
        check_signal(signal)
        if isinstance(record.phase, Ended):
            raise JobError(ErrorCode.JOB_NOT_RUNNING, "job not running: it has already ended")
        # Ending a job at once is never refused for a quota.
        with self.counted(principal) if grace else contextlib.nullcontext():
            await self._stop(principal, record, grace, signal)
        return await self._view(self._get(job_id))

    async def _stop(self, principal: Principal, record: JobRecord, grace: float, signal: int) -> None:
        event = self._event(principal, Action.JOB_STOP, record.id, "allowed", f"grace {grace:g}s")
        wanted = replace(self._live.get(record.id, record), desired=Desired.STOP)
        if record.id in self._live:
            self._live[record.id] = wanted  # for what else is being written about it

        def intend(connection: sqlite3.Connection) -> None:
            jobs.compare_and_set(connection, wanted.state, wanted)
            audit.append(connection, event)

        try:
            await self._database.write(intend)
        except JobError as error:
            # The power to stop a job must survive a full disk; the trail of it goes to the log until there is room.
            _log.error("audit of a stop could not be written (%s): %s", error.message, event)
            self._write_later(
                f"the audit of a stop of job {record.id}", lambda connection: audit.append(connection, event)
            )
        async with self._failure_on_record(principal, Action.JOB_STOP, record.id):
            await self._worker.stop(record.id, by=principal.name, grace=grace, signal_number=signal)

    async def signal(self, principal: Principal, job_id: str, number: int) -> None:
        """Sends a signal to the job's main process; JOB_NOT_RUNNING after its end."""
        record = await self._authorised(principal, Action.JOB_SIGNAL, job_id)
        check_signal(number)
        if isinstance(record.phase, Ended):
            raise JobError(ErrorCode.JOB_NOT_RUNNING, "job not running: it has already ended")
        # A program that is still being loaded has to be waited for.
        with self.counted(principal) if isinstance(record.phase, Pending) else contextlib.nullcontext():
            await self._audit(principal, Action.JOB_SIGNAL, job_id, "allowed", f"signal {number}")
            async with self._failure_on_record(principal, Action.JOB_SIGNAL, job_id):
                await self._worker.signal(job_id, number)

    async def remove(self, principal: Principal, job_id: str, *, force: bool) -> None:
        """Deletes an ended job with its output and its record; JOB_RUNNING unless `force` ends it first."""
        record = await self._authorised(principal, Action.JOB_REMOVE, job_id)
        is_running = not isinstance(record.phase, Ended)
        if is_running and not force:
            raise JobError(ErrorCode.JOB_RUNNING, "job running: stop it first, or remove it with force")
        await self._audit(principal, Action.JOB_REMOVE, job_id, "allowed", "stopped first" if is_running else "")
        async with self._failure_on_record(principal, Action.JOB_REMOVE, job_id):
            await self._remove(principal, job_id, is_running=is_running)

    async def _remove(self, principal: Principal, job_id: str, *, is_running: bool) -> None:
        if is_running:
            try:
                await self._worker.stop(job_id, by=principal.name)
            except JobError as error:
                # An end of its own is as good.
                if error.code is not ErrorCode.JOB_NOT_RUNNING:
                    raise
        await self._delete(job_id)

    async def _delete(self, job_id: str) -> None:
        """An ended job's directory and record are gone on return."""
        # The directory first: a crash in between leaves a record, by which it can be removed again.
        try:
            await self._worker.remove(job_id)
        except JobError as error:
            if error.code is not ErrorCode.JOB_NOT_FOUND:
                raise
        await self._database.write(lambda connection: jobs.delete(connection, job_id))

    # Looking.

    async def status(self, principal: Principal, job_id: str) -> JobView:
        """The job as it is now."""
        return await self._view(await self._authorised(principal, Action.JOB_STATUS, job_id))

    async def wait(self, principal: Principal, job_id: str, timeout: float | None) -> JobView:  # noqa: ASYNC109
        """The job after its end, or as it is when `timeout` seconds have passed."""
        record = await self._authorised(principal, Action.JOB_WAIT, job_id)
        if not isinstance(record.phase, Ended):
            with self.counted(principal):
                await self._worker.wait(job_id, timeout=timeout)
        return await self._view(self._get(job_id))

    async def list(
        self, principal: Principal, wanted: JobFilter, after: int | None, limit: int
    ) -> tuple[list[JobView], int | None]:
        """A page of the jobs that the principal may see, newest first, and where the next one begins."""
        if wanted.owner is None and not is_allowed(principal, Action.JOB_LIST, None):
            wanted = replace(wanted, owner=principal.name)
        await self._authorise(principal, Action.JOB_LIST, "", wanted.owner)
        page: Page = await self._database.read_in_thread(
            lambda connection: jobs.select(connection, wanted, after, limit)
        )
        return [JobView.of(record) for record in page.jobs], page.next_after

    async def output(self, principal: Principal, job_id: str, request: OutputRequest) -> OutputEvents:
        """The job's output as asked for, then one OutputEnd; the final state is visible before that."""
        async with self.reading(principal, job_id, request) as reading:
            async for event in reading.events:
                yield event

    @contextlib.asynccontextmanager
    async def reading(self, principal: Principal, job_id: str, request: OutputRequest) -> AsyncIterator[Reading]:
        """As `output`, for those who have to know before the first event whether there will be any."""
        record = await self._authorised(principal, Action.JOB_OUTPUT, job_id)
        with self.counted(principal):
            async with contextlib.aclosing(self._output(job_id, request)) as events:
                yield Reading(events, is_live=not isinstance(record.phase, Ended))

    @contextlib.asynccontextmanager
    async def events(self, principal: Principal) -> AsyncIterator[AsyncIterator[JobEvent]]:
        """Each job that the principal may see as it begins to run and when it has ended, from now on."""
        await self._authorise(principal, Action.JOB_EVENTS, "", principal.name)
        with (
            self.counted(principal),
            self._events.listen(lambda record: is_allowed(principal, Action.JOB_EVENTS, record.owner)) as events,
        ):
            yield events

    @contextlib.contextmanager
    def counted(self, principal: Principal) -> Iterator[None]:
        """One more call of the principal's that lasts; EXHAUSTED when there are as many as there may be."""
        if self._streams[principal.name] >= self._quotas.max_streams_per_user:
            raise JobError(
                ErrorCode.EXHAUSTED,
                "you have as many open streams, waits and graceful stops as you may; end some first",
            )
        self._streams[principal.name] += 1
        try:
            yield
        finally:
            self._streams[principal.name] -= 1

    async def _output(self, job_id: str, request: OutputRequest) -> OutputEvents:
        offset = request.offset
        chunks = self._worker.output(
            job_id,
            offset=request.offset,
            streams=request.streams,
            follow=request.follow,
            since=request.since,
            tail_lines=request.tail_lines,
            max_chunk=request.max_chunk,
        )
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                offset = chunk.end
                self.metrics.sent(len(chunk.data))
                yield chunk
        view = await self._view(self._get(job_id))
        phase = view.record.phase
        outcome = phase.ending.outcome if isinstance(phase, Ended) else None
        yield OutputEnd(
            state=view.record.state,
            outcome=outcome,
            output=view.output,
            offset=max(offset, view.output.kept_bytes) if outcome is not None and request.follow else offset,
        )

    async def who_am_i(self, principal: Principal) -> Principal:
        """The principal itself, as this server knows it."""
        await self._authorise(principal, Action.WHO_AM_I, "", principal.name)
        return principal

    async def figures(self, principal: Principal) -> Figures:
        """What there is at this moment, of everybody's together."""
        await self._authorise(principal, Action.METRICS_READ, "", principal.name)
        return Figures(
            jobs=Counter(record.state for record in self._live.values()),
            held_calls=self._streams.total(),
            audit_records=self._database.read(audit.head).sequence,
        )

    # Deciding and recording.

    async def _authorised(self, principal: Principal, action: Action, job_id: str) -> JobRecord:
        """The job, if the principal may do that to it; JOB_NOT_FOUND before PERMISSION_DENIED."""
        record = self._get(check_job_id(job_id))
        await self._authorise(principal, action, job_id, record.owner)
        return record

    async def _authorise(self, principal: Principal, action: Action, target: str, owner: str | None) -> None:
        if is_allowed(principal, action, owner):
            return
        await self._audit(principal, action, target, "denied")
        if not is_in_scope(principal, action):
            why = f"your credential's scopes do not allow {action.value}"
        elif target:
            why = "the job belongs to another user"
        elif owner != principal.name:
            why = "only admins see the jobs of other users"
        else:
            why = f"your role does not allow {action.value}"
        raise JobError(ErrorCode.PERMISSION_DENIED, f"unauthorized action: {why}")

    def _event(self, principal: Principal, action: Action, target: str, decision: str, detail: str = "") -> AuditEvent:
        return AuditEvent(
            time=self._clock(),
            principal=principal.name,
            credential=principal.credential,
            source=principal.source,
            action=action.value,
            target=target,
            decision=decision,
            detail=detail,
        )

    async def _audit(self, principal: Principal, action: Action, target: str, decision: str, detail: str = "") -> None:
        event = self._event(principal, action, target, decision, detail)
        await self._database.write(lambda connection: audit.append(connection, event))

    @contextlib.asynccontextmanager
    async def _failure_on_record(self, principal: Principal, action: Action, target: str) -> AsyncIterator[None]:
        """What fails inside is on record behind its intent, later if the disk is full: the caller hears why."""
        try:
            yield
        except (JobError, OSError) as error:
            code = error.code if isinstance(error, JobError) else ErrorCode.INTERNAL
            event = self._event(principal, action, target, "failed", code.value)
            await self._write_later(
                f"the audit of a failed {action.value}", lambda connection: audit.append(connection, event)
            ).wait()
            raise

    def _get(self, job_id: str) -> JobRecord:
        """The job's record, as of now; JOB_NOT_FOUND."""
        record = self._live.get(job_id) or self._database.read(lambda connection: jobs.get(connection, job_id))
        if record is None:
            raise JobError(ErrorCode.JOB_NOT_FOUND, "job not found")
        return record

    async def _view(self, record: JobRecord) -> JobView:
        if isinstance(record.phase, Ended):
            return JobView.of(record)
        try:
            status = await self._worker.status(record.id)
        except JobError:
            return JobView.of(record)  # recorded, and not yet with the worker
        if isinstance(status.phase, Ended):
            return JobView.of(self._get(record.id))
        return JobView(record=record, usage=status.usage, output=status.output)

    def _update(self, status: JobStatus) -> None:
        """Notes that a job runs; the database follows, and needs no waiting for: the monitor knows it too."""
        before = self._live[status.id]
        after = _with_status(before, status)
        self._live[status.id] = after
        if after.state is not before.state:
            self._events.tell(after, self._clock())
        self._record_later(before.state, after)

    async def _on_end(self, status: JobStatus) -> None:
        """Puts a job's end on record before anyone sees it."""
        before = self._live.get(status.id)
        if before is None:
            return  # a start that failed, or a job that no record is about
        after = _with_status(before, status)
        try:
            await self._database.write(lambda connection: _set_ended(connection, after))
        except JobError:
            # The job directory has it for good; the database gets it when the disk has room again.
            self._live[status.id] = after
            self._record_later(before.state, after)
        else:
            del self._live[status.id]
        self._events.tell(after, self._clock())
        if isinstance(after.phase, Ended):
            self.metrics.ended(after.phase.ending.outcome)

    def _record_later(self, expected: State, record: JobRecord) -> None:
        def catch_up(connection: sqlite3.Connection) -> None:
            latest = self._live.get(record.id, record)  # a stop may have come since
            if not isinstance(latest.phase, Ended):
                jobs.compare_and_set(connection, expected, latest)

        async def record_end() -> None:
            await self._database.write(lambda connection: _set_ended(connection, record))
            self._live.pop(record.id, None)

        if isinstance(record.phase, Ended):
            self._chores.begin(f"the record of the end of job {record.id}", record_end)
        else:
            self._write_later(f"the record of job {record.id}", catch_up)

    def _write_later(self, name: str, change: Callable[[sqlite3.Connection], object]) -> asyncio.Event:
        """Makes the change durable, however long the disk is full; the event is set when it was tried once."""
        return self._chores.begin(name, lambda: self._database.write(change))

    # Recovering.

    async def _recover(self, record: JobRecord, *, is_same_boot: bool) -> None:
        """Brings the record of an unfinished job up to what the worker found."""
        if record.id not in self._live:
            return  # its end was told while the worker looked around
        try:
            status = await self._worker.status(record.id)
        except JobError as error:
            # A reset costs what nobody had synced, files and directories alike.
            if is_same_boot and error.code is not ErrorCode.JOB_NOT_FOUND:
                lost = DAMAGED
            elif is_same_boot and record.state is State.RUNNING:
                lost = DELETED
            else:
                lost = why_lost(has_directory=False, is_same_boot=is_same_boot)
            ended, _ = advance(record.phase, Finished(Ending(outcome=lost, ended_at=self._clock())))
            await self._on_end(_status_of(record, ended))
            return
        if isinstance(status.phase, Ended):
            await self._on_end(status)
            return
        if not isinstance(status.phase, Pending):  # else its monitor has not answered yet, and the record knows better
            self._update(status)
        if record.desired is Desired.STOP and not isinstance(status.phase, Stopping):
            # The stop was on record when the server died, and has not reached the monitor.
            self._chores.begin(f"the stop of job {record.id}", lambda: self._finish_stop(record.id))

    async def _finish_stop(self, job_id: str) -> None:
        stopper = self._database.read(lambda rows: audit.last_principal(rows, Action.JOB_STOP.value, job_id))
        try:
            await self._worker.stop(job_id, by=stopper or "")
        except JobError as error:
            if error.code not in {ErrorCode.JOB_NOT_RUNNING, ErrorCode.JOB_NOT_FOUND}:
                raise
            _log.info("job %s ended before an earlier stop could be repeated: %s", job_id, error.message)


def _check_loader(spec: JobSpec) -> None:
    """Refuses what makes an approved program load code that nobody has approved; ld.so(8)."""
    for name in spec.env:
        if name.startswith("LD_") or name == "GLIBC_TUNABLES":
            raise invalid("env", name, "no variables of the dynamic loader, since your role has a list of programs")


def _describe_program(spec: JobSpec) -> str:
    """The program for the audit, with the root that it is looked up in, where its name is another file's."""
    return spec.program if spec.rootfs is None else f"{spec.program}; rootfs: {spec.rootfs}"


def _set_ended(connection: sqlite3.Connection, record: JobRecord) -> None:
    for expected in (State.RUNNING, State.PENDING):
        if jobs.compare_and_set(connection, expected, record):
            return


def _with_status(record: JobRecord, status: JobStatus) -> JobRecord:
    phase: Phase = status.phase
    if isinstance(phase, Ended) and phase.ending.started_at is None and isinstance(record.phase, (Running, Stopping)):
        # A monitor that died while no server looked has not told when its program began.
        phase = Ended(replace(phase.ending, started_at=record.phase.started_at))
    return replace(record, phase=phase, effective_limits=status.effective_limits, sandbox=status.sandbox)


def _status_of(record: JobRecord, phase: Phase) -> JobStatus:
    return JobStatus(id=record.id, spec=record.spec, phase=phase, created_at=record.created_at)
