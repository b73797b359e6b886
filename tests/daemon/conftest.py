"""jobworkerd as its operator runs it: a real process on a real directory."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def jobworkerd():
    """Run one command to its end; its exit status, stdout and stderr."""

    def run(*arguments, through=(), **options):
        command = [*through, sys.executable, "-m", "jobworker.daemon.main", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, **options)

    return run


@pytest.fixture
def place():
    """A directory that every user can get into, as /var/lib is."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.fixture(scope="module")
def state(jobworkerd):
    """A state directory as `jobworkerd init` makes it, shared by the tests of a module."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        Path(directory).chmod(0o755)
        made = jobworkerd("init", "--dir", f"{directory}/state", "--trust-domain", "jobs.example.org")
        assert made.returncode == 0, made.stderr
        yield Path(directory) / "state"
