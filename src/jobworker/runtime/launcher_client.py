"""The server's end of the launcher: starts it, and hands it one job at a time."""

import contextlib
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final, Self

from jobworker.core.errors import ErrorCode, JobError
from jobworker.runtime import wire

_MODULE: Final = "jobworker.runtime.launcher"
_PACKAGE_ROOT: Final = Path(__file__).parent.parent.parent
#: Isolated and without site-packages: what the launcher cannot import cannot make it bigger.
_PROGRAM: Final = "import sys; sys.path.insert(0, sys.argv.pop(1)); from {module} import main; main()"


class LauncherClient:
    """A running launcher; it ends when this is closed or this process is gone.

    `degraded` and `refused` name the controls that this host lacks: those that jobs run without,
    and those for want of which none does; `empty_groups` the jobs that had control groups and no
    process when it began.
    """

    def __init__(self, process: subprocess.Popen[bytes] | None, control: socket.socket, host: wire.Ready) -> None:
        self._process = process
        self._control = control
        self.degraded = tuple(host.degraded)
        self.refused = tuple(host.refused)
        self.empty_groups = tuple(host.empty_groups)

    @classmethod
    def start(
        cls,
        bootstrap: wire.Bootstrap,
        *,
        module: str = _MODULE,
        search_path: Path = _PACKAGE_ROOT,
    ) -> Self:
        """Starts a launcher and waits until it is ready; UNAVAILABLE with its reason when it is not.

        To be called before grpc is imported and before root is given up.
        """
        process, control = _spawn(bootstrap, (), module, search_path)
        host = _receive_ready(control)
        if host is None:
            process.wait()
            raise JobError(ErrorCode.UNAVAILABLE, "the launcher did not start; its reason is above")
        return cls(process, control, host)

    @classmethod
    def connect(cls, path: Path) -> Self:
        """A launcher of the launcher service that listens at `path`; UNAVAILABLE when it gives none."""
        control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            control.connect(str(path))
        except OSError as error:
            control.close()
            raise JobError(
                ErrorCode.UNAVAILABLE, f"the launcher service cannot be reached ({error.strerror}); start it first"
            ) from None
        host = _receive_ready(control)
        if host is None:
            raise JobError(ErrorCode.UNAVAILABLE, "the launcher service started no launcher; its log says why")
        return cls(None, control, host)

    @property
    def pid(self) -> int:
        """The process that keeps the launcher alive, if it is our child."""
        if self._process is None:
            raise TypeError("the launcher is not a child of this process")
        return self._process.pid

    def fileno(self) -> int:
        """Becomes readable when launcher and keeper are gone, and for nothing else."""
        return self._control.fileno()

    def launch(self, job_id: str, directory: int) -> socket.socket:
        """Asks for the job in `directory`; the channel returned tells what becomes of it.

        It begins with NowRunning or StartFailed, and ends when launcher and monitor have let go of it.
        """
        return self._order(wire.Launch(job_id), directory)

    def clean_up(self, job_id: str) -> socket.socket:
        """Asks for the removal of what a dead monitor left; the channel says Cleaned."""
        return self._order(wire.CleanUp(job_id))

    def _order(self, order: wire.Message, *fds: int) -> socket.socket:
        try:
            channel, launchers_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise JobError(ErrorCode.EXHAUSTED, "the server has too many files open; try again") from error
        channel.setblocking(False)
        with launchers_end:
            try:
                wire.send(self._control, order, (*fds, launchers_end.fileno()))
            except BlockingIOError:
                channel.close()
                raise JobError(ErrorCode.EXHAUSTED, "too many starts at once; try again") from None
            except OSError as error:
                channel.close()
                raise JobError(ErrorCode.UNAVAILABLE, "the launcher is gone; restart jobworkerd") from error
        return channel

    def close(self) -> None:
        """Ends the launcher; jobs run on under their monitors."""
        self._control.close()
        if self._process is not None:
            self._process.wait()


def launch_for(server: socket.socket, bootstrap: wire.Bootstrap) -> "subprocess.Popen[bytes]":
    """Starts a launcher that serves whoever is at the other end of `server`."""
    process, parents_end = _spawn(bootstrap, (server.fileno(),), _MODULE, _PACKAGE_ROOT)
    parents_end.close()
    return process


def _spawn(
    bootstrap: wire.Bootstrap, more_fds: tuple[int, ...], module: str, search_path: Path
) -> "tuple[subprocess.Popen[bytes], socket.socket]":
    """A launcher's process that has been told `bootstrap`, and our end of its first socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fds = (theirs.fileno(), *more_fds)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROGRAM.format(module=module), str(search_path), *map(str, fds)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=fds,
            cwd="/",
            env={"PYTHONDONTWRITEBYTECODE": "1"},
        )
    with contextlib.suppress(OSError):  # one that has ended already is found out where its answer is awaited
        wire.send(ours, bootstrap)
    return process, ours


def _receive_ready(control: socket.socket) -> wire.Ready | None:
    """What the launcher says when it can take orders; None, and the socket closed, when it does not."""
    try:
        message, _ = wire.receive(control)
    except OSError:
        message = None
    if isinstance(message, wire.Ready):
        control.setblocking(False)
        return message
    control.close()
    return None
