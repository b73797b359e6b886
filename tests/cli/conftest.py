"""jobctl as a real process against a scripted server."""

import os
import pty
import subprocess
import sys
import tty
from contextlib import suppress
from pathlib import Path

import pytest
from client.scripted_server import ScriptedServer
from client.throwaway_ca import Authority

import jobworker
from jobworker.client.context import Transport

JOBCTL = "from jobworker.cli.main import main; main()"
IMPATIENT = "import jobworker.client.job_client as client; client._RESUME_SECONDS = {}; "


class Jobctl:
    """Runs jobctl with one user's context."""

    def __init__(self, context: Path, home: Path) -> None:
        self.begun: list[subprocess.Popen[bytes]] = []
        self.command = [sys.executable, "-c", JOBCTL]
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(Path(jobworker.__file__).parent.parent),
            "XDG_CONFIG_HOME": str(home),
            "JOBCTL_CONTEXT": str(context),
            "TERM": "xterm",
            "LC_ALL": "C.UTF-8",
        }

    def __call__(self, *arguments, **options):
        """The finished process, its output as bytes."""
        return subprocess.run(
            [*self.command, *arguments],
            env=self.environment,
            capture_output=True,
            timeout=60,
            check=False,
            **options,
        )

    def begin(self, *arguments, patience=None, **options):
        """The running process, with pipes where `options` says nothing else.

        With `patience` it gives up a broken stream after that many seconds.
        """
        program = JOBCTL if patience is None else IMPATIENT.format(patience) + JOBCTL
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        process = subprocess.Popen([sys.executable, "-c", program, *arguments], env=self.environment, **pipes)
        self.begun.append(process)
        return process


@pytest.fixture(scope="session")
def authority():
    return Authority()


@pytest.fixture
def server(authority):
    with ScriptedServer(authority) as running:
        yield running


@pytest.fixture(params=Transport, ids=lambda transport: transport.value)
def transport(request):
    """Over which transport a test runs: over each."""
    return request.param


@pytest.fixture
def address(server, transport):
    return server.address(transport)


@pytest.fixture
def jobctl(authority, address, transport, tmp_path):
    context = authority.context(tmp_path / "clients/alice", "alice", address, transport)
    runner = Jobctl(context, tmp_path / "config")
    yield runner
    for process in runner.begun:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def terminal():
    """Both ends of a terminal that passes bytes on unchanged."""
    near, far = pty.openpty()
    tty.setraw(far)
    yield near, far
    for end in (near, far):
        with suppress(OSError):  # the test may have closed it
            os.close(end)
