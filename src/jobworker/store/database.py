"""The one SQLite database: a change is on disk before its caller goes on.

Changes are queued to one writer thread, which commits everything that waits in one
transaction: a hundred changes at once cost one fsync, and none of them sees another fail.
"""

import asyncio
import concurrent.futures
import os
import sqlite3
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Generic, Literal, Self, TypeVar, cast

from jobworker.core.errors import ErrorCode, JobError
from jobworker.store import schema

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

_BUSY_SECONDS: Final = 10.0  # how long to wait for a transaction of another process
_READER_THREADS: Final = 4  # so that one long export does not hold up every list
_WAL_BYTES_KEPT: Final = 64 * 1024 * 1024  # a longer log is cut after its next checkpoint
_WHOLE_CHECK_BYTES: Final = 64 * 1024 * 1024  # up to here every page is checked at open: 1 ms a MiB

_STORAGE_FAULTS: Final = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_READONLY,
}

_REFUSALS: Final = {
    sqlite3.SQLITE_BUSY: "is locked by another program; end that program and try again",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened; run this as the user who owns it, in a directory that user may write",
    sqlite3.SQLITE_CORRUPT: "is damaged; restore a backup in place of it and its -wal and -shm files",
    sqlite3.SQLITE_FULL: "cannot be brought up to date because the disk is full; make room and try again",
    sqlite3.SQLITE_NOTADB: "is not a jobworker database, or is destroyed; restore a backup in place of it and its -wal",
    sqlite3.SQLITE_READONLY: "cannot be written; run this as the user who owns it, on a file system that is writable",
}


_FAULTS: Final = {
    sqlite3.SQLITE_CORRUPT: ("its database is damaged", "its operator must restore a backup"),
    sqlite3.SQLITE_FULL: ("its disk is full", "try again later"),
    sqlite3.SQLITE_NOTADB: ("its database is damaged", "its operator must restore a backup"),
    sqlite3.SQLITE_READONLY: ("its database cannot be written", "its operator must make the file system writable"),
}


class DatabaseRefused(Exception):  # noqa: N818 - it says what happened, as every name here does
    """The database cannot be used as it is; the message tells the operator why and what to do."""


class Database:
    """A database that several processes may have open at once.

    It has threads: fork whatever is to be forked before it is opened.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        """Not for callers: `open` checks the file first."""
        self._path = path
        self._connection = connection
        self._queue: list[_Request[Any]] = []
        self._closed = False
        self._changed = threading.Condition()  # guards _queue and _closed
        self._local = threading.local()
        self._readers: list[sqlite3.Connection] = []
        self._reader_threads = concurrent.futures.ThreadPoolExecutor(_READER_THREADS, "database-reader")
        self._writer_thread = threading.Thread(target=self._serve, name="database-writer", daemon=True)
        self._writer_thread.start()

    @classmethod
    def open(cls, path: Path) -> Self:
        """The database at `path`, made new when there is no such file, migrated when it is older.

        Raises DatabaseRefused for a file that is damaged, foreign, or of a newer release, and
        leaves that file as it is.
        """
        steps = schema.migrations()
        try:
            if not path.exists():
                _create(path, steps)
            _check(path, steps)
            return cls(path, _connect_for_writing(path, steps))
        except sqlite3.DatabaseError as error:
            why = _REFUSALS.get(_primary_code(error), f"cannot be used ({error}); restore a backup")
            raise DatabaseRefused(f"{path} {why}") from error
        except OSError as error:
            raise DatabaseRefused(
                f"{path} cannot be opened ({error.strerror}); check the path, and run this as the user who owns it"
            ) from error

    async def write(self, change: Work[T]) -> T:
        """What `change` returns, once everything that it did is durable.

        An exception of `change` undoes this change alone and is raised here. When the disk is
        full or fails, JobError UNAVAILABLE: nothing has changed and the next write tries again.
        Cancelling stops the waiting, not the change.
        """
        return (await self._ask(change, writes=True)).get()

    def write_now(self, change: Work[T]) -> T:
        """As `write`, for commands without an event loop: blocks until the change is durable."""
        future: concurrent.futures.Future[_Answer[T]] = concurrent.futures.Future()
        self._enqueue(_Request(change, writes=True, future=future))
        return future.result().get()

    def read(self, query: Work[T]) -> T:
        """What `query` finds in one consistent snapshot; for short reads, it blocks the caller.

        Sees every change that was acknowledged before.
        """
        self._refuse_when_closed()
        return self._read(query)

    async def read_in_thread(self, query: Work[T]) -> T:
        """As `read` for long queries: does not block the event loop, sees everything queued before."""
        return (await self._ask(query, writes=False)).get()

    async def close(self) -> None:
        """Commit what is queued, then let go of the file; what is asked for later is refused."""
        await asyncio.to_thread(self.close_now)

    def close_now(self) -> None:
        """As `close`, for commands without an event loop."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._writer_thread.join()
        self._reader_threads.shutdown()
        # The writer goes last: only a connection that may write can fold the log into the file.
        for connection in (*self._readers, self._connection):
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close_now()

    def _ask(self, work: Work[T], *, writes: bool) -> "asyncio.Future[_Answer[T]]":
        future: asyncio.Future[_Answer[T]] = asyncio.get_running_loop().create_future()
        self._enqueue(_Request(work, writes=writes, future=future))
        return future

    def _enqueue(self, request: "_Request[Any]") -> None:
        with self._changed:
            self._refuse_when_closed()
            self._queue.append(request)
            self._changed.notify()

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise JobError(ErrorCode.UNAVAILABLE, "the server is shutting down; try again when it is back")

    def _take(self) -> "list[_Request[Any]]":
        """Everything that waits, as soon as something does; nothing once closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            batch, self._queue = self._queue, []
            return batch

    def _serve(self) -> None:
        """The writer thread."""
        while batch := self._take():
            changes = [request for request in batch if request.writes]
            if changes:
                _deliver(zip(changes, self._commit(changes), strict=True))
            # Queries start behind the commit, so they see what was queued before them.
            for request in batch:
                if not request.writes:
                    self._reader_threads.submit(self._answer, request)

    def _commit(self, changes: "list[_Request[Any]]") -> "list[_Answer[Any]]":
        try:
            with self._connection as transaction:
                transaction.execute("BEGIN IMMEDIATE")
                return [_apply(transaction, request.work) for request in changes]
        except sqlite3.Error as error:
            return [_Answer(error=_unavailable("record anything", error)) for _ in changes]

    def _read(self, query: Work[T]) -> T:
        try:
            with self._reader() as snapshot:
                snapshot.execute("BEGIN")
                return query(snapshot)
        except sqlite3.DatabaseError as error:
            if _is_storage_fault(error):
                raise _unavailable("read", error) from error
            raise

    def _answer(self, request: "_Request[Any]") -> None:
        """A reader thread's part of `read_in_thread`."""
        _deliver([(request, _attempt(partial(self._read, request.work)))])

    def _reader(self) -> sqlite3.Connection:
        """This thread's own read-only connection."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = _connect(self._path, "ro")
            self._readers.append(connection)
        return connection


# A request travels from its caller to the writer thread, its answer back to the caller's loop.


@dataclass(frozen=True, slots=True)
class _Answer(Generic[T]):
    """What a piece of work returned or raised."""

    value: T | None = None
    error: BaseException | None = None

    def get(self) -> T:
        """The value, or the error raised in the caller's own context."""
        if self.error is not None:
            raise self.error
        return cast("T", self.value)


@dataclass(frozen=True, slots=True, eq=False)
class _Request(Generic[T]):
    """A piece of work and where its answer is waited for."""

    work: Work[T]
    writes: bool
    future: "asyncio.Future[_Answer[T]] | concurrent.futures.Future[_Answer[T]]"

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop of a caller that has one."""
        return self.future.get_loop() if isinstance(self.future, asyncio.Future) else None


_Delivery = tuple[_Request[Any], _Answer[Any]]


def _deliver(deliveries: Iterable[_Delivery]) -> None:
    """Hand over each answer, waking each event loop once."""
    by_loop: defaultdict[asyncio.AbstractEventLoop | None, list[_Delivery]] = defaultdict(list)
    for request, answer in deliveries:
        by_loop[request.loop].append((request, answer))
    for loop, group in by_loop.items():
        if loop is None:
            _resolve(group)
        else:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_resolve, group)


def _resolve(deliveries: list[_Delivery]) -> None:
    for request, answer in deliveries:
        if not request.future.done():  # a caller that was cancelled waits for nothing
            request.future.set_result(answer)


def _attempt(work: Callable[[], T]) -> _Answer[T]:
    try:
        return _Answer(work())
    except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to the caller, who raises it
        return _Answer(error=error)


def _apply(transaction: sqlite3.Connection, change: Work[T]) -> _Answer[T]:
    """Run one change so that its failure takes back nothing but itself.

    A fault of the storage is raised: SQLite may have given up the whole transaction.
    """
    transaction.execute("SAVEPOINT change")
    answer = _attempt(partial(change, transaction))
    if isinstance(answer.error, sqlite3.DatabaseError) and _is_storage_fault(answer.error):
        raise answer.error
    if answer.error is not None:
        transaction.execute("ROLLBACK TO change")
    transaction.execute("RELEASE change")
    return answer


# Opening.


def _create(path: Path, steps: tuple[schema.Migration, ...]) -> None:
    """Put a complete new database at `path`, unless another process does so first.

    The name appears when the tables are there, so an empty file at `path` is always damage.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    draft = Path(name)
    try:
        if os.geteuid() == 0:
            # What root makes in the service user's directory is the service user's.
            owner = path.parent.stat()
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
        os.close(descriptor)
        _connect_for_writing(draft, steps).close()
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(directory)
    os.close(directory)


def _check(path: Path, steps: tuple[schema.Migration, ...]) -> None:
    """Refuse a file that is not a whole database of this release or an older one.

    Looks through a read-only connection, so a damaged file and its log stay as evidence. The
    file is never opened in any other way: closing it would drop SQLite's locks in this process.
    """
    status = path.stat()
    if status.st_size == 0:
        raise DatabaseRefused(
            f"{path} has been cut to nothing; restore a backup in place of it and its -wal and -shm files"
        )
    if status.st_mode & 0o077:
        path.chmod(0o600)
    with closing(_connect(path, "ro")) as connection:
        # Reading the schema makes SQLite check the header and the length of the file.
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if connection.execute("PRAGMA application_id").fetchone()[0] != schema.APPLICATION_ID:
            raise DatabaseRefused(f"{path} is a database of another program; correct the path, or restore a backup")
        found, newest = schema.version(connection), steps[-1].number
        if found > newest:
            raise DatabaseRefused(
                f"{path} was written by a newer release (version {found}, this one knows up to {newest}); "
                "install that release, or restore a backup from before the upgrade"
            )
        if missing := schema.missing_tables(connection, steps):
            raise DatabaseRefused(f"{path} {_REFUSALS[sqlite3.SQLITE_CORRUPT]} (found: no table {', '.join(missing)})")
        if status.st_size <= _WHOLE_CHECK_BYTES:
            (finding,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if finding != "ok":
                raise DatabaseRefused(
                    f"{path} {_REFUSALS[sqlite3.SQLITE_CORRUPT]} (found: {' '.join(finding.split())})"
                )


def _connect(path: Path, mode: Literal["rw", "ro"]) -> sqlite3.Connection:
    """A connection that never makes a file, with transactions only where the code says so."""
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,  # the closing thread closes every connection
    )


def _connect_for_writing(path: Path, steps: tuple[schema.Migration, ...]) -> sqlite3.Connection:
    with ExitStack() as on_failure:
        connection = _connect(path, "rw")
        on_failure.callback(connection.close)
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise DatabaseRefused(f"{path} is on a file system without shared memory; use a local disk")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA temp_store = MEMORY")  # a full /tmp does not matter
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES_KEPT}")
        # Before foreign keys count: a migration may replace a table that others refer to.
        schema.bring_up_to_date(connection, steps)
        connection.execute("PRAGMA foreign_keys = ON")
        on_failure.pop_all()
        return connection


# Faults.


def _primary_code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _is_storage_fault(error: sqlite3.Error) -> bool:
    """Whether the file or its disk is the reason, and not what was asked of it."""
    return _primary_code(error) in _STORAGE_FAULTS


def _unavailable(what: str, cause: sqlite3.Error) -> JobError:
    reason, remedy = _FAULTS.get(_primary_code(cause), ("its disk does not answer", "try again later"))
    error = JobError(
        ErrorCode.UNAVAILABLE, f"the server cannot {what} now because {reason}; nothing was changed, {remedy}"
    )
    error.__cause__ = cause
    return error
