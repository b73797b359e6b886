"""The supervisor of one job: PID 1 of its PID namespace, one thread, one poll.

It is forked by the launcher and depends on nothing that may die before the job does: it moves the
program's output to disk, reaps, obeys stop orders, keeps the limits that the kernel does not keep,
and puts the job's end on record. When it dies itself, the kernel kills everything in its namespace.
"""

import contextlib
import errno
import fcntl
import json
import os
import select
import signal
import socket
import sys
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NoReturn, assert_never

from jobworker.core.errors import ErrorCode, quoted
from jobworker.core.lifecycle import (
    Action,
    Announce,
    Emptying,
    Ended,
    Event,
    Finished,
    GraceOver,
    KillAll,
    Launched,
    LimitReached,
    Pending,
    Phase,
    ProgramEnded,
    SignalAll,
    StartGrace,
    StopOrdered,
    Stopping,
    advance,
)
from jobworker.core.outcome import Ending, Exited, OomKilled, OutputLimit, Signaled, Stopped, TimedOut, Usage
from jobworker.core.spec import JobSpec, MiB, OnOutputLimit
from jobworker.runtime import job_dir, linux, sandbox, wire
from jobworker.runtime.cgroup import Cgroup
from jobworker.runtime.output_log import OutputWriter, Stream
from jobworker.runtime.sandbox_steps import BindRoot, EnterWorkdir, Exec, NotApprovedError, Step, UnfitRootError
from jobworker.runtime.uid_range import UidLease

_PIPE_SIZE: Final = 64 * 1024  # what a pipe holds by default; pipe(7)
_BIG_PIPE: Final = MiB
_HEAVY_OUTPUT: Final = MiB  # from so much on a program gets a bigger pipe, and the disk fewer, larger writes
_BATCH_BELOW: Final = 4096  # smaller reads are collected when there are very many of them
_SMALL_READS: Final = 128  # as many in a row before collecting, and as many a second and a millisecond later
_COLLECT_SECONDS: Final = 0.001
_LONGEST_POLL: Final = (1 << 31) - 1  # milliseconds, the most that poll(2) takes: 24 days
_DRAIN_LIMIT: Final = 64  # reads of one pipe in a turn, so that orders are never kept waiting

#: What a monitor keeps of its rights once the program runs.
CAPABILITIES: Final = frozenset(
    {
        linux.CAP_KILL,  # to signal and end processes of the job's uid
        linux.CAP_SETUID,  # files made as the server's user
        linux.CAP_SETGID,
        linux.CAP_SYS_RESOURCE,  # a bigger pipe for a heavy writer
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """Everything a monitor needs to run one job; made by the launcher before it forks."""

    job_id: str
    spec: JobSpec
    directory: int
    channel: socket.socket
    cgroup: Cgroup
    effective_limits: dict[str, str]
    wholeness: str  # whether the host gives all the isolation that it should
    ids: UidLease
    steps: list[Step]
    service_uid: int
    service_gid: int


class StartError(Exception):
    """The program could not be started; carries the message for the one who asked."""

    def __init__(self, message: wire.StartFailed) -> None:
        super().__init__(message.message)
        self.message = message


class Monitor:
    """One job from its files to its record on disk.

    Made and prepared in the launcher, which then forks: what is touched only there is shared by
    all monitors, and every page that is written after the fork costs time and memory for each job.
    """

    def __init__(self, job: Assignment) -> None:
        self._job = job
        self._phase: Phase = Pending()
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._channels: dict[int, socket.socket] = {}
        self._grace_ends: float | None = None
        self._timeout_at: float | None = None
        self._pipes: dict[int, _Pipe] = {}
        self._program = 0
        self._program_fd = -1
        self._prepared: list[int] = []

    # In the launcher.

    def prepare(self) -> None:
        """The job's files and pipes, and the plan; after an OSError none of it is left."""
        try:
            directory = self._job.directory
            with self._as_service_user():
                self._lock = self._keep(job_dir.take_lock(directory))
                job_dir.note_launch(self._lock)
                job_dir.reserve_outcome(directory)
                self._listener = self._keep(job_dir.listen(directory))
                output, index = map(self._keep, job_dir.open_output(directory))
            self._log = OutputWriter(output, index, self._job.spec.limits.output_bytes)
            stdout, self._stdout_end = map(self._keep, os.pipe2(os.O_CLOEXEC))
            stderr, self._stderr_end = map(self._keep, os.pipe2(os.O_CLOEXEC))
            self._status, self._status_end = map(self._keep, os.pipe2(os.O_CLOEXEC))
            self._wakeup, self._wakeup_end = map(self._keep, os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK))
            for fd, stream in ((stdout, Stream.STDOUT), (stderr, Stream.STDERR)):
                os.set_blocking(fd, False)
                os.fchown(fd, self._job.ids.uid, -1)  # so that the program may open /dev/stdout again
                self._pipes[fd] = _Pipe(fd, stream)
            self._register_all()
        except OSError:
            self.release()
            with self._as_service_user():
                job_dir.remove_files(self._job.directory)
            raise

    def release(self) -> None:
        """The launcher's copies of the descriptors are closed; a forked monitor keeps its own."""
        for fd in self._prepared:
            os.close(fd)

    def _keep(self, fd: int) -> int:
        self._prepared.append(fd)
        return fd

    def _as_service_user(self) -> contextlib.AbstractContextManager[None]:
        """For as long as files are made with no more rights than the server has."""
        return linux.file_system_ids(self._job.service_uid, self._job.service_gid)

    def _register_all(self) -> None:
        for pipe in self._pipes.values():
            self._register(pipe.fd, partial(self._read_output, pipe))
        self._register(self._wakeup, self._on_child)
        self._register(self._listener, self._accept)
        self._oom = self._job.cgroup.watch_oom() if self._job.spec.limits.memory is not None else None
        if self._oom is not None:
            self._register(self._keep(self._oom), partial(self._on_oom, self._oom))
        self._add_channel(self._job.channel)

    def _register(self, fd: int, handler: Callable[[], None]) -> None:
        self._handlers[fd] = handler
        self._poll.register(fd, select.POLLIN)

    def _unregister(self, fd: int) -> None:
        del self._handlers[fd]
        self._poll.unregister(fd)

    # In the monitor: starting.

    def supervise(self) -> NoReturn:
        """Runs the job to its end and leaves the process."""
        status = 70
        try:
            try:
                self._start()
            except StartError as failure:
                self._abandon(failure.message)
            else:
                self._run()
            status = 0
        except BaseException:  # noqa: BLE001 - the monitor's door: whatever it is, the kernel ends the job with us
            import traceback  # noqa: PLC0415 - never needed, if all is well

            with self._as_service_user():
                job_dir.write_crash(self._job.directory, traceback.format_exc())
        finally:
            os._exit(status)

    def _start(self) -> None:
        """Returns when the program runs; StartError when it does not."""
        linux.set_process_title(f"jobworker-monitor {self._job.job_id}")
        signal.signal(signal.SIGCHLD, _do_nothing)  # ignored until now, and then its end would not be told
        self._program = self._job.cgroup.fork()
        if self._program == 0:
            self._become_program()
        self._settle()
        for end in (self._stdout_end, self._stderr_end, self._status_end):
            os.close(end)
        self._program_fd = os.pidfd_open(self._program)
        self._check_exec(self._status)
        self._register(self._program_fd, self._reap)
        timeout = self._job.spec.limits.timeout
        self._timeout_at = time.monotonic() + timeout if timeout is not None else None
        self._happens(Launched(time.time()))
        linux.keep_capabilities(CAPABILITIES)

    def _settle(self) -> None:
        """What can wait until the child is at work on its sandbox, and need not be waited for then."""
        signal.set_wakeup_fd(self._wakeup_end, warn_on_full_buffer=False)
        os.setsid()
        # The server's terminal and pipes must not stay open as long as the job runs; 1 is /dev/null.
        os.dup2(1, 2)
        self._buffer = bytearray(_PIPE_SIZE)

    def _become_program(self) -> NoReturn:
        """In the child: the sandbox, then the program; what fails goes up the status pipe."""
        step: Step | None = None
        try:
            os.dup2(self._stdout_end, 1)  # 0 is /dev/null already
            os.dup2(self._stderr_end, 2)
            # Copied out of the way first: its own number may be the other's place.
            lock = fcntl.fcntl(self._lock, fcntl.F_DUPFD_CLOEXEC, sandbox.LOCK_FD + 1)
            if self._status_end != sandbox.STATUS_FD:
                os.dup2(self._status_end, sandbox.STATUS_FD, inheritable=False)
            os.dup2(lock, sandbox.LOCK_FD, inheritable=False)
            for step in self._job.steps:
                if isinstance(step, Exec):
                    job_dir.note_exec(sandbox.LOCK_FD)
                step.apply()
        except BaseException as error:  # noqa: BLE001 - the door between our code and the program's
            with contextlib.suppress(OSError):
                failure = {"failure": _explain(step, error)}
                os.write(sandbox.STATUS_FD, json.dumps(failure).encode() + b"\n")
        finally:
            os._exit(71)

    def _check_exec(self, status: int) -> None:
        """Waits until exec has closed the child's end, or the child has said what went wrong."""
        report = self._hear_child(status)
        os.close(status)
        said: dict[str, Any] = {}
        for line in report.splitlines():
            said |= json.loads(line)
        if failure := said.get("failure"):
            raise StartError(wire.StartFailed(**failure))
        if not ("isolation" in said and job_dir.has_noted_exec(self._lock)):
            raise StartError(
                wire.StartFailed(
                    ErrorCode.UNSUPPORTED.value,
                    "the job was killed before its program was loaded; its memory limit may be too small",
                )
            )
        self._isolation: dict[str, str] = said["isolation"]

    def _hear_child(self, status: int) -> bytes:
        """All that the child reports; StartError when a stop comes first, since loading a program can take for ever."""
        poll = select.poll()
        for fd in (status, self._listener, *self._channels):
            poll.register(fd, select.POLLIN)
        parts: list[bytes] = []
        while True:
            for fd, _ in poll.poll():
                if fd == status:
                    part = os.read(status, 65536)
                    if not part:
                        return b"".join(parts)
                    parts.append(part)
                else:
                    self._handlers[fd]()
                    if fd != self._listener and fd not in self._channels:
                        poll.unregister(fd)
                for new in self._channels:
                    poll.register(new, select.POLLIN)

    def _abandon(self, failure: wire.StartFailed) -> None:
        """Leaves nothing behind of a start that failed, and then says so."""
        _kill_namespace()
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)
        with self._as_service_user():
            job_dir.remove_files(self._job.directory)
        self._let_go()
        with contextlib.suppress(OSError):
            wire.send(self._job.channel, failure)

    # Running.

    def _run(self) -> None:
        """Serves the job until nothing of it is left, then puts its end on record."""
        while not self._is_empty():
            for fd, _ in self._poll.poll(self._poll_timeout()):
                handler = self._handlers.get(fd)
                if handler is not None:
                    handler()
            self._check_clock()
        self._drain()
        self._finish()

    def _poll_timeout(self) -> float | None:
        """Milliseconds until the clock has something to say; None for never."""
        deadlines = [pipe.resume_at for pipe in self._pipes.values() if pipe.resume_at is not None]
        deadlines += [at for at in (self._timeout_at, self._grace_ends) if at is not None]
        if not deadlines:
            return None
        # Rounded up, or the last fraction of a millisecond would be spent spinning.
        return min(max(0.0, min(deadlines) - time.monotonic()) * 1000 + 0.999, _LONGEST_POLL)

    def _check_clock(self) -> None:
        now = time.monotonic()
        if self._timeout_at is not None and now >= self._timeout_at:
            self._timeout_at = None
            self._happens(LimitReached(TimedOut()))
        if self._grace_ends is not None and now >= self._grace_ends:
            self._grace_ends = None
            self._happens(GraceOver())
        for pipe in self._pipes.values():
            if pipe.resume_at is not None and now >= pipe.resume_at:
                pipe.resume_at = None
                self._register(pipe.fd, partial(self._read_output, pipe))

    def _happens(self, event: Event) -> None:
        self._phase, actions = advance(self._phase, event)
        for action in actions:
            self._act(action)

    def _act(self, action: Action) -> None:
        match action:
            case SignalAll(number):
                _signal_namespace(number)
                _signal_namespace(signal.SIGCONT)  # what is suspended must be able to obey
            case StartGrace(seconds):
                ends = time.monotonic() + seconds
                self._grace_ends = min(ends, self._grace_ends or ends)
            case KillAll():
                self._grace_ends = None
                self._timeout_at = None
                self._job.cgroup.kill()
                _kill_namespace()
            case Announce():
                if not isinstance(self._phase, Pending):
                    for channel in list(self._channels.values()):
                        self._say(channel, self._news())
            case _:
                assert_never(action)

    def _news(self) -> wire.Message:
        """What a connection is told of the job's life."""
        if isinstance(self._phase, Pending):
            raise TypeError("nothing to tell before the program runs")
        if isinstance(self._phase, Ended):
            return wire.NowEnded(self._phase.ending.to_document())
        stopped_by = None
        if isinstance(self._phase, Stopping) and isinstance(self._phase.cause, Stopped):
            stopped_by = self._phase.cause.by
        return wire.NowRunning(self._phase.started_at, self._job.effective_limits, self._sandbox(), stopped_by)

    def _sandbox(self) -> dict[str, str]:
        """The isolation in force, for the job's status."""
        return {"isolation": self._job.wholeness} | self._isolation

    # Output.

    def _read_output(self, pipe: "_Pipe") -> None:
        """Moves what the pipe holds to disk."""
        for _ in range(_DRAIN_LIMIT):
            size = self._read_once(pipe)
            if size == len(self._buffer) or (not pipe.is_big and self._log.end > _HEAVY_OUTPUT):
                self._grow(pipe)
            if size < _PIPE_SIZE:
                break
        if size < 0:
            return
        if size == 0:
            self._unregister(pipe.fd)
            os.close(pipe.fd)
            del self._pipes[pipe.fd]
        elif size < _BATCH_BELOW and pipe.is_busy(time.monotonic()):
            pipe.resume_at = time.monotonic() + _COLLECT_SECONDS
            self._unregister(pipe.fd)

    def _read_once(self, pipe: "_Pipe") -> int:
        """Bytes moved; 0 at the end of the stream, -1 when there is nothing now."""
        try:
            size = os.readv(pipe.fd, [self._buffer])
        except BlockingIOError:
            return -1
        if size:
            self._log.append(pipe.stream, memoryview(self._buffer)[:size], time.time_ns())
            if self._log.dropped and self._job.spec.limits.on_output_limit is OnOutputLimit.KILL:
                self._happens(LimitReached(OutputLimit()))
        return size

    def _grow(self, pipe: "_Pipe") -> None:
        """A program that fills its pipe gets a bigger one, and fewer, larger reads."""
        if len(self._buffer) < _BIG_PIPE:
            self._buffer = bytearray(_BIG_PIPE)
        if not pipe.is_big:
            pipe.is_big = True
            with contextlib.suppress(OSError):
                fcntl.fcntl(pipe.fd, fcntl.F_SETPIPE_SZ, _BIG_PIPE)

    def _drain(self) -> None:
        """Everything that dead processes have written is on disk on return.

        What is in the pipes now, not up to their end: a stranger to whom the job passed the other
        end of a pipe could keep it open, and write to it, for ever.
        """
        for pipe in self._pipes.values():
            waiting = _size_waiting(pipe.fd)
            while waiting > 0 and (size := self._read_once(pipe)) > 0:
                waiting -= size
        for pipe in self._pipes.values():
            os.close(pipe.fd)
        self._pipes = {}

    # Processes.

    def _on_child(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wakeup, 4096):
                pass
        self._reap()

    def _reap(self) -> None:
        """Collects every child that has ended: the program, and all orphans of the job."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._program:
                self._unregister(self._program_fd)
                self._on_program_end(status)

    def _on_program_end(self, status: int) -> None:
        if self._oom is not None:
            self._on_oom(self._oom)  # it came first: a program may end because its child was killed
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL and self._job.cgroup.oom_kills():
            self._happens(LimitReached(OomKilled()))
        if os.WIFSIGNALED(status):
            self._happens(ProgramEnded(Signaled(os.WTERMSIG(status))))
        else:
            self._happens(ProgramEnded(Exited(os.WEXITSTATUS(status))))

    def _on_oom(self, event: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(event)
            self._happens(LimitReached(OomKilled()))

    def _is_empty(self) -> bool:
        """Whether the program is gone and no other process is left in the namespace."""
        if not isinstance(self._phase, Emptying):
            return False
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return True
        return False

    # Orders.

    def _accept(self) -> None:
        try:
            channel = job_dir.accept(self._listener)
        except OSError:
            return  # nobody is there any more, or no descriptor is free, which may be otherwise in the next turn
        _, uid = linux.peer_credentials(channel)
        if uid not in {0, self._job.service_uid}:
            channel.close()
            return
        self._add_channel(channel)
        if not isinstance(self._phase, Pending):
            self._say(channel, self._news())

    def _add_channel(self, channel: socket.socket) -> None:
        channel.setblocking(False)
        self._channels[channel.fileno()] = channel
        self._register(channel.fileno(), partial(self._obey, channel))

    def _drop_channel(self, channel: socket.socket) -> None:
        if self._channels.pop(channel.fileno(), None):
            self._unregister(channel.fileno())
            channel.close()

    def _say(self, channel: socket.socket, message: wire.Message) -> None:
        """Sends, or drops a channel whose reader has stopped reading: nobody can block the job."""
        try:
            wire.send(channel, message)
        except OSError:
            self._drop_channel(channel)

    def _obey(self, channel: socket.socket) -> None:
        try:
            order, _ = wire.receive(channel)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            order = None
        match order:
            case wire.OrderStop() if isinstance(self._phase, Pending):
                raise StartError(wire.StartFailed(ErrorCode.JOB_NOT_RUNNING.value, STOPPED_EARLY))
            case wire.OrderStop(by, number, grace):
                self._happens(StopOrdered(by, number, grace))
            case wire.OrderSignal(number):
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._program_fd, number)
            case wire.AskUsage():
                usage = self._measure(self._job.cgroup.usage_now).to_document()
                self._say(channel, wire.UsageNow(usage, self._log.totals().to_document()))
            case _:
                self._drop_channel(channel)

    # Ending.

    def _finish(self) -> None:
        """The job's end is on disk, its groups are gone, and whoever listens knows, in this order."""
        if not isinstance(self._phase, Emptying):
            raise TypeError("only an emptied job can be finished")
        self._log.sync()
        ending = Ending(
            outcome=self._phase.outcome,
            started_at=self._phase.started_at,
            ended_at=time.time(),
            usage=self._measure(self._job.cgroup.usage),
            output=self._log.totals(),
        )
        document = ending.to_document() | {
            "effective_limits": self._job.effective_limits,
            "sandbox": self._sandbox(),
        }
        with self._as_service_user():
            job_dir.write_outcome(self._job.directory, document)
        self._let_go()
        self._happens(Finished(ending))

    def _let_go(self) -> None:
        """The job's groups are gone and its ids given back: before anyone hears, since the next job may have them."""
        self._job.cgroup.remove()
        self._job.ids.release()

    def _measure(self, measure: Callable[[], Usage]) -> Usage:
        """What the kernel has counted; nothing when it does not answer: no figure is worth the job or its exit code."""
        try:
            return measure()
        except OSError:
            return Usage()


class _Pipe:
    """One of the program's output pipes and how busy it is."""

    def __init__(self, fd: int, stream: Stream) -> None:
        self.fd = fd
        self.stream = stream
        self.is_big = False
        self.resume_at: float | None = None  # when to look again, while small writes are being collected
        self._tokens = float(_SMALL_READS)
        self._counted_at = 0.0

    def is_busy(self, now: float) -> bool:
        """Whether so many small reads came lately that the next ones had better be collected.

        A token bucket: ordinary programs never empty it; a million one-byte writes cost the disk
        about a thousand records a second instead of a million.
        """
        refill = (now - self._counted_at) / _COLLECT_SECONDS
        self._tokens = min(float(_SMALL_READS), self._tokens + refill)
        self._counted_at = now
        if self._tokens < 1:
            return True
        self._tokens -= 1
        return False


def _size_waiting(pipe: int) -> int:
    """How many bytes can be read from a pipe at once."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


#: What starter and stopper are told of a stop that came before the program ran.
STOPPED_EARLY: Final = "job not running: it was stopped before its program ran, and nothing is left of it"


def _do_nothing(*_: object) -> None:
    """A handler, so that SIGCHLD interrupts the poll; what is to be done is done there."""


def _explain(step: Step | None, error: BaseException) -> dict[str, str | None]:
    """What the one who asked for the start needs to know."""
    name = type(step).__name__ if step is not None else "preparation"
    number = error.errno if isinstance(error, OSError) else None
    match step:
        case Exec(argv=[program, *_]) if isinstance(error, NotApprovedError):
            message = f"program not allowed for your role: {quoted(program)}"
            return {"code": ErrorCode.PERMISSION_DENIED.value, "message": message, "step": name}
        case Exec(argv=[program, *_]):
            code, reason = _EXEC_FAILURES.get(number or 0, (ErrorCode.PROGRAM_NOT_EXECUTABLE, os.strerror(number or 0)))
            return {"code": code.value, "message": f"{reason}: {quoted(program)}", "step": name}
        case BindRoot(path) if isinstance(error, UnfitRootError):
            message = f"rootfs: {quoted(path)} {error.strerror}"
            return {"code": ErrorCode.INVALID_ARGUMENT.value, "message": message, "step": name}
        case EnterWorkdir(path):
            message = f"workdir: the job cannot enter {quoted(path)}: {os.strerror(number or errno.EACCES)}"
            return {"code": ErrorCode.INVALID_ARGUMENT.value, "message": message, "step": name}
    detail = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
    message = f"this host cannot isolate the job: step {name} failed: {detail}; run jobworkerd check"
    return {"code": ErrorCode.UNSUPPORTED.value, "message": message, "step": name}


_EXEC_FAILURES: Final = {
    errno.ENOENT: (ErrorCode.PROGRAM_NOT_FOUND, "program not found"),
    errno.ENOTDIR: (ErrorCode.PROGRAM_NOT_FOUND, "program not found"),
    errno.ELOOP: (ErrorCode.PROGRAM_NOT_FOUND, "program not found, too many symbolic links"),
    errno.ENAMETOOLONG: (ErrorCode.PROGRAM_NOT_FOUND, "program not found, its name is too long"),
    errno.EACCES: (ErrorCode.PROGRAM_NOT_EXECUTABLE, "program not executable"),
    errno.EISDIR: (ErrorCode.PROGRAM_NOT_EXECUTABLE, "program not executable, it is a directory"),
    errno.ENOEXEC: (ErrorCode.PROGRAM_NOT_EXECUTABLE, "program not executable, unknown format (a script needs #!)"),
    errno.ELIBBAD: (
        ErrorCode.PROGRAM_NOT_EXECUTABLE,
        "program not executable, its interpreter is missing or cannot be executed",
    ),
    errno.ETXTBSY: (ErrorCode.PROGRAM_NOT_EXECUTABLE, "program not executable, it is being written to"),
    errno.E2BIG: (ErrorCode.INVALID_ARGUMENT, "the arguments and environment are too long for"),
    errno.ENOMEM: (ErrorCode.EXHAUSTED, "not enough memory to load"),
}


def _signal_namespace(number: int) -> None:
    """Signals every process of the namespace but the caller, which is its PID 1; kill(2)."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, number)


def _kill_namespace() -> None:
    _signal_namespace(signal.SIGKILL)
