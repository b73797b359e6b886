"""A job's directory: everything on disk about one job, in files that the job can never reach.

`spec.json` what was asked for · `output`, `output.idx` what it wrote · `control` the monitor's
socket · `lock` held by the monitor for life, and emptied when the program is about to be loaded ·
`outcome.json` how it ended, written once.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jobworker.core.spec import JobSpec
from jobworker.runtime.output_log import INDEX, OUTPUT

SPEC: Final = "spec.json"
OUTCOME: Final = "outcome.json"
CONTROL: Final = "control"
LOCK: Final = "lock"
_NEW_OUTCOME: Final = "outcome.json.new"
_CRASH: Final = "crash"
_FILES: Final = (SPEC, OUTPUT, INDEX, CONTROL, LOCK, OUTCOME, _NEW_OUTCOME, _CRASH)
_OUTCOME_SPACE: Final = 4096
_MAX_SPEC: Final = 16 * 1024 * 1024
_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_WRITE: Final = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for, when (seconds since the epoch), in which life of the host, and what the policy approves."""

    spec: JobSpec
    created_at: float
    boot_id: str
    programs: tuple[str, ...] | None = None  # the only files that the job may be started with; None: any


def create(jobs: Path, job_id: str, request: Request) -> int:
    """A new directory for the job with its request in it; returns its descriptor."""
    path = jobs / job_id
    path.mkdir(mode=0o700)
    try:
        directory = open_directory(jobs, job_id)
    except OSError:
        path.rmdir()
        raise
    try:
        document = {
            "spec": request.spec.to_document(),
            "created_at": request.created_at,
            "boot_id": request.boot_id,
            "programs": request.programs,
        }
        _write_new(directory, SPEC, json.dumps(document).encode())
    except OSError:
        os.close(directory)
        remove(jobs, job_id)
        raise
    return directory


def open_directory(jobs: Path, job_id: str) -> int:
    """A descriptor of the job's directory; FileNotFoundError when there is none."""
    return os.open(jobs / job_id, _READ | os.O_DIRECTORY)


@contextlib.contextmanager
def opened(jobs: Path, job_id: str) -> Iterator[int]:
    """As `open_directory`, closed in the end."""
    directory = open_directory(jobs, job_id)
    try:
        yield directory
    finally:
        os.close(directory)


def check_directory(directory: int, service_uid: int) -> None:
    """Refuses a descriptor that is not of a private directory of the service user.

    The server may hold descriptors of any directory it can read; the launcher, which is root,
    must write to none but job directories.
    """
    status = os.fstat(directory)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != service_uid or status.st_mode & 0o077:
        raise PermissionError("not a private directory of the service user")


def read_request(directory: int) -> Request:
    """The request as it was recorded, its spec checked again; ValueError when it is not a request."""
    try:
        document = json.loads(_read(directory, SPEC))
        programs = document.get("programs")
        return Request(
            JobSpec.from_document(document["spec"]),
            document["created_at"],
            document["boot_id"],
            programs if programs is None else tuple(programs),
        )
    except (AttributeError, LookupError, TypeError, RecursionError) as error:
        raise ValueError("not a job's request") from error


def open_output(directory: int) -> tuple[int, int]:
    """Descriptors for appending to the new output and index files."""
    return tuple(os.open(name, _CREATE | os.O_APPEND, 0o600, dir_fd=directory) for name in (OUTPUT, INDEX))  # type: ignore[return-value]


def take_lock(directory: int) -> int:
    """Marks the job as supervised, as long as the descriptor is open in any process; BlockingIOError when it is."""
    lock = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=directory)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock


def note_launch(lock: int) -> None:
    """From now on it is certain that the program has not run, until `note_exec`."""
    os.ftruncate(lock, 1)  # a length takes no room: a full disk has it as well


def note_exec(lock: int) -> None:
    """From now on the program may have run, whoever dies: the next call is the one that loads it."""
    os.ftruncate(lock, 0)


def has_noted_exec(lock: int) -> bool:
    """Whether the child has come to the call that loads the program."""
    return os.fstat(lock).st_size == 0


def may_have_run(jobs: Path, job_id: str) -> bool:
    """Whether the job's program may have been loaded, if in doubt it may; final once nothing of the job lives.

    It takes no descriptor: there may be none.
    """
    try:
        os.lstat(jobs / job_id / OUTPUT)  # it is made when the launch has been noted
        return os.lstat(jobs / job_id / LOCK).st_size == 0
    except OSError as error:
        return not isinstance(error, FileNotFoundError)


def is_supervised(directory: int) -> bool:
    """Whether a living monitor holds the job's lock."""
    try:
        lock = os.open(LOCK, _READ, dir_fd=directory)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def listen(directory: int) -> int:
    """The monitor's control socket; changes the working directory, since socket paths are short."""
    os.fchdir(directory)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as listener:
        before = os.umask(0o177)
        try:
            listener.bind(CONTROL)
            listener.listen(16)
        finally:
            os.umask(before)
            os.chdir("/")
        return listener.detach()


def accept(listener: int) -> socket.socket:
    """The next channel that somebody has opened to the control socket; BlockingIOError when there is none."""
    with socket.socket(fileno=os.dup(listener)) as copy:
        return copy.accept()[0]


def connect(directory: int) -> socket.socket:
    """A channel to the job's monitor, not blocking.

    ConnectionRefusedError or FileNotFoundError when the monitor is gone, BlockingIOError when it
    lives and does not accept.
    """
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        channel.connect(f"/proc/self/fd/{directory}/{CONTROL}")
    except OSError:
        channel.close()
        raise
    return channel


def reserve_outcome(directory: int) -> None:
    """Takes the disk space for the outcome now, so that a full disk cannot keep it from being told."""
    with open(os.open(_NEW_OUTCOME, _CREATE, 0o600, dir_fd=directory), "wb") as file:
        os.posix_fallocate(file.fileno(), 0, _OUTCOME_SPACE)


def write_outcome(directory: int, document: dict[str, Any]) -> None:
    """The outcome is there on return, whole or not at all, and its content on stable storage.

    Its name is there with the disk's next commit. Until then a power cut may cost it, as it may cost a
    young job its directory: who promises more than that keeps a record, as the server does in its database
    before anybody sees the end.
    """
    content = json.dumps(document).encode()
    with open(os.open(_NEW_OUTCOME, _WRITE, dir_fd=directory), "wb", buffering=0) as file:
        file.write(content)
        file.truncate(len(content))
        os.fsync(file.fileno())
    os.rename(_NEW_OUTCOME, OUTCOME, src_dir_fd=directory, dst_dir_fd=directory)


def write_crash(directory: int, report: str) -> None:
    """Leaves a note for the operator about a fault of ours."""
    with contextlib.suppress(OSError):
        _write_new(directory, _CRASH, report.encode())


def read_outcome(directory: int) -> dict[str, Any] | None:
    """The outcome as the monitor wrote it; None when there is none yet."""
    try:
        document: dict[str, Any] = json.loads(_read(directory, OUTCOME))
    except FileNotFoundError:
        return None
    return document


def remove(jobs: Path, job_id: str) -> None:
    """Removes the directory and the files in it; it is not an error if it is gone.

    It takes no descriptor: a start that failed for want of one is undone as well.
    """
    for name in _FILES:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(jobs / job_id / name)
    with contextlib.suppress(FileNotFoundError):
        (jobs / job_id).rmdir()


def remove_files(directory: int) -> None:
    """Takes back what a monitor has made in the directory before its program ran."""
    for name in (OUTPUT, INDEX, CONTROL, LOCK, _NEW_OUTCOME):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)


def _read(directory: int, name: str) -> bytes:
    # Whoever reads may have more rights than the owner of the directory: nothing in it can make them wait.
    fd = os.open(name, _READ | os.O_NONBLOCK, dir_fd=directory)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise PermissionError(errno.EPERM, "not a regular file")
        with open(fd, "rb", closefd=False) as file:
            return file.read(_MAX_SPEC)
    finally:
        os.close(fd)


def _write_new(directory: int, name: str, content: bytes) -> None:
    with open(os.open(name, _CREATE, 0o600, dir_fd=directory), "wb") as file:
        file.write(content)
