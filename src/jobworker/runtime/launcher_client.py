"""The server's end of the launcher: starts it, and hands it one job at a time."""

import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from jobworker.core.errors import ErrorCode, JobError
from jobworker.runtime import wire

_PACKAGE_ROOT: Final = Path(__file__).parent.parent.parent
#: Isolated and without site-packages: what the launcher cannot import cannot make it bigger.
_PROGRAM: Final = "import sys; sys.path.insert(0, sys.argv.pop(1)); from {module} import main; main()"


class LauncherClient:
    """A running launcher; it ends when this is closed or this process is gone.

    `degraded` and `refused` name the controls that this host lacks: those that jobs run without,
    and those for want of which none does.
    """

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket, host: wire.Ready) -> None:
        self._process = process
        self._control = control
        self.degraded = tuple(host.degraded)
        self.refused = tuple(host.refused)

    @classmethod
    def start(
        cls,
        bootstrap: wire.Bootstrap,
        *,
        module: str = "jobworker.runtime.launcher",
        search_path: Path = _PACKAGE_ROOT,
    ) -> Self:
        """Starts a launcher and waits until it is ready; UNAVAILABLE with its reason when it is not.

        To be called before grpc is imported and before root is given up.
        """
        control, launchers_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        program = _PROGRAM.format(module=module)
        arguments: Sequence[str] = (str(search_path), str(launchers_end.fileno()))
        with launchers_end:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(launchers_end.fileno(),),
                cwd="/",
                env={"PYTHONDONTWRITEBYTECODE": "1"},
            )
        try:
            wire.send(control, bootstrap)
            message, _ = wire.receive(control)
        except OSError:
            message = None
        if not isinstance(message, wire.Ready):
            control.close()
            process.wait()
            raise JobError(ErrorCode.UNAVAILABLE, "the launcher did not start; its reason is above")
        control.setblocking(False)
        return cls(process, control, message)

    @property
    def pid(self) -> int:
        """The process that keeps the launcher alive."""
        return self._process.pid

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
        self._process.wait()
