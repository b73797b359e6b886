"""jobworkerd and jobctl as they are in use: real processes, a real directory, real TLS."""

import asyncio
import gc
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from e2e.https import Https
from host import JOB_PYTHON, is_first_of_its_namespace, job_groups

from jobworker.client.context import Context, Transport
from jobworker.client.job_client import JobClient
from jobworker.daemon.address import Address
from jobworker.daemon.init import init
from jobworker.daemon.users import add

SERVICE_UID = 199_999
USER_UID = 54_321  # an ordinary user's, that nothing else has
JOBCTL = "import sys; sys.argv[0] = 'jobctl'; from jobworker.cli.main import main; main()"
_MODULES = "import cryptography.x509, google.protobuf, grpc, jobworker.service, uvloop"


class Installation:
    """A Python with jobworker, and whether a user without any rights can read it."""

    def __init__(self, python: str, environment: dict[str, str]) -> None:
        self.python = python
        self.environment = {**os.environ, **environment, "PYTHONDONTWRITEBYTECODE": "1"}

    def is_open_to_all(self) -> bool:
        """Whether the service's user can run it."""
        nobody: dict[str, Any] = {"user": SERVICE_UID, "group": SERVICE_UID, "extra_groups": []}
        try:
            subprocess.run(
                [self.python, "-c", _MODULES], env=self.environment, cwd="/", capture_output=True, check=True, **nobody
            )
        except (PermissionError, subprocess.CalledProcessError):
            return False
        return True


class Daemon:
    """One jobworkerd with its directory: its operator's commands, its users' commands, its life and death."""

    def __init__(self, directory: Path, installation: Installation, **identity: Any) -> None:
        self.directory = directory
        self.identity = identity  # whose server it is, as subprocess takes it; ours when empty
        self.serve_options: list[str] = []
        self.installation = installation
        self.process: Any = None  # the one of `serve`, while it runs
        self.log = directory.parent / "log"
        self.address = ""
        self.https = ""
        self.transport: Transport | None = None  # over which its users come; None: as they do by themselves

    # What its operator does.

    def command(self, *arguments: object, **options) -> subprocess.CompletedProcess[str]:
        """One command of jobworkerd, to its end."""
        program = [self.installation.python, "-m", "jobworker.daemon.main", *map(str, arguments)]
        settings: dict[str, Any] = {
            "env": self.installation.environment,
            "cwd": "/",
            "timeout": 60,
            **self.identity,
        } | options
        return subprocess.run(program, capture_output=True, text=True, check=False, **settings)

    def init(self, *users: str) -> None:
        """Makes the state directory, for a free port, and contexts for `users`."""
        self.address, self.https = (f"127.0.0.1:{port}" for port in free_ports(2))
        # What the commands do, without a process each.
        init(
            self.directory,
            [],
            None,
            "jobworker.internal",
            Address.parse(self.address),
            listen_https=Address.parse(self.https),
        )
        for user in users:
            add(self.directory, user)

    def add(self, user: str, *options: object) -> None:
        """Adds a user, with a context in the state directory."""
        added = self.command("user", "add", user, "--dir", self.directory, *options)
        assert added.returncode == 0, added.stderr

    def remove(self, user: str) -> None:
        """Takes a user's access away."""
        removed = self.command("user", "remove", user, "--dir", self.directory)
        assert removed.returncode == 0, removed.stderr

    def audit(self) -> list[dict[str, Any]]:
        """Every record of the audit, which must be whole."""
        verified = self.command("audit", "verify", "--dir", self.directory)
        assert verified.returncode == 0, verified.stderr
        exported = self.command("audit", "export", "--dir", self.directory)
        return [json.loads(line) for line in exported.stdout.splitlines()]

    # Its life.

    @property
    def uid(self) -> int:
        """Whose server it is."""
        uid: int = self.identity.get("user", os.geteuid())
        return uid

    @property
    def serve_command(self) -> list[str]:
        config = str(self.directory / "jobworker.toml")
        return [
            self.installation.python,
            "-m",
            "jobworker.daemon.main",
            "serve",
            "--config",
            config,
            *self.serve_options,
        ]

    def start(self, **environment: str) -> str:
        """Serves; the address that it said it is ready at."""
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.serve_command,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self.installation.environment | environment,
                cwd="/",
                **self.identity,
            )
        line = self.process.stdout.readline()
        match = re.fullmatch(r"ready grpc=(\S+)(?: https=\S+)?\n", line)
        if match is None:
            self.kill()
            pytest.fail(f"{line!r} instead of the ready line; {self.log.read_text()}")
        return match[1]

    @property
    def pid(self) -> int:
        pid: int = self.process.pid
        return pid

    def kill(self) -> None:
        """SIGKILL for the API process alone."""
        self.process.kill()
        self.collect()

    def stop(self, seconds: float = 60) -> int:
        """SIGTERM; its exit status. What it promises are ten seconds, of which a busy machine makes more."""
        self.process.terminate()
        return self.collect(seconds)

    def collect(self, seconds: float = 60) -> int:
        status: int = self.process.wait(seconds)
        self.process.stdout.close()
        self.process = None
        return status

    @property
    def is_running(self) -> bool:
        return self.process is not None

    def descendants(self) -> dict[int, str]:
        """The processes below the API process with their titles."""
        return descendants(self.pid)

    def process_titled(self, title: str) -> int:
        """The one process below the API process with this title."""
        (pid,) = [pid for pid, shown in self.descendants().items() if shown == title]
        return pid

    def connections(self) -> int:
        """How many sockets the API process has open."""
        found = 0
        for link in Path(f"/proc/{self.pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                found += os.readlink(link).startswith("socket:")
        return found

    def job_groups(self) -> list[Path]:
        return job_groups(self.directory)

    def monitors(self) -> dict[str, int]:
        """The monitor of every job that has one, by the job's id."""
        ours = {entry.name for entry in (self.directory / "jobs").iterdir()}
        titled = [(pid, title.removeprefix("jobworker-monitor ")) for pid, title in all_titles()]
        return {job_id: pid for pid, job_id in titled if job_id in ours and is_first_of_its_namespace(pid)}

    # What its users do.

    def context(self, user: str = "alice") -> Context:
        return Context.load(self.directory / "clients" / user)

    def client(self, user: str = "alice"):
        """The Python client, connected."""
        return JobClient.connect(self.context(user), self.transport)

    @property
    def dialed(self) -> str:
        """The address that its users dial."""
        return self.https if self.transport is Transport.HTTPS else self.address

    def https_as(self, user: str | None = "alice", token: str | None = None) -> Https:
        """The HTTPS door with a user's token, with another one, or with none."""
        if user is not None and token is None:
            token = (self.directory / "clients" / user / "token").read_text().strip()
        return Https(self.https, self.directory / "pki/bundle.crt", token)

    def jobctl_command(self, *arguments: object, user: str = "alice") -> list[str]:
        place = str(self.directory / "clients" / user)
        transport = ["--transport", self.transport.value] if self.transport else []
        return [sys.executable, "-c", JOBCTL, *transport, "--context", place, *map(str, arguments)]

    def jobctl(self, *arguments: object, user: str = "alice", **options) -> subprocess.CompletedProcess[str]:
        """One command of jobctl, to its end."""
        settings: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 60, "check": False} | options
        return subprocess.run(self.jobctl_command(*arguments, user=user), **settings)  # noqa: PLW1510 - in the settings

    def spawn_jobctl(self, *arguments: object, user: str = "alice", **options) -> subprocess.Popen[bytes]:
        """A command of jobctl that goes on; its stdout and stderr are pipes."""
        settings: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "bufsize": 0} | options
        return subprocess.Popen(self.jobctl_command(*arguments, user=user), **settings)

    def start_job(self, *command: str, user: str = "alice") -> str:
        """The id of a new job."""
        done = self.jobctl("start", "--", *command, user=user)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def job(self, job_id: str, user: str = "admin") -> Any:
        """What `jobctl status` tells of a job."""
        done = self.jobctl("status", "-o", "json", job_id, user=user)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @asynccontextmanager
    async def channel(self, user: str = "alice"):
        """A bare gRPC channel with the user's certificate."""
        context = self.context(user)
        files = [path.read_bytes() for path in (context.ca, context.key, context.certificate)]
        async with grpc.aio.secure_channel(self.address, grpc.ssl_channel_credentials(*files)) as channel:
            yield channel

    # Its end.

    def clear(self) -> None:
        """Ends and removes every job."""
        if not self.is_running:
            self.start()
        asyncio.run(self._remove_all())

    async def _remove_all(self) -> None:
        async with self.client("admin") as client:
            ids = [job.id async for page in client.list(page_size=1000) for job in page]
            # In parts: a connection carries so many calls at once and no more.
            for start in range(0, len(ids), 100):
                await asyncio.gather(*(client.remove(job_id, force=True) for job_id in ids[start : start + 100]))

    def close(self) -> None:
        """Ends the server and every process of its jobs, and shows its log when a test fails."""
        if self.is_running:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.kill()
        for pid in self.monitors().values():
            with suppress(ProcessLookupError):
                os.kill(pid, 9)
        sys.stdout.write(self.log.read_text() if self.log.exists() else "")


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens on, outside of the range that clients' own ports are from."""
    found: list[int] = []
    for port in random.sample(range(10_000, 30_000), k=1000):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    pytest.fail("there are no free ports")


def all_titles() -> Iterator[tuple[int, str]]:
    """Every process of the host with its command line in words."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                yield (
                    int(entry.name),
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip(),
                )
            except OSError:
                continue


def descendants(pid: int) -> dict[int, str]:
    """The processes below `pid`, with their titles."""
    titles = dict(all_titles())
    found: dict[int, str] = {}
    new = [pid]
    while new:
        parent = new.pop()
        for child in children_of(parent):
            found[child] = titles.get(child, "")
            new.append(child)
    return found


def children_of(pid: int) -> list[int]:
    """The child processes of `pid`; none when it is gone."""
    try:
        return [
            int(word)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for word in (task / "children").read_text().split()
        ]
    except OSError:
        return []


def start_time(pid: int) -> int | None:
    """When a process started, which tells it from a later one of the same pid; None when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[19]) if fields[0] not in {"Z", "X"} else None


@pytest.fixture(scope="session")
def installation() -> Installation:
    """The Python to serve with: where there is one, one that the server's user can read, so that it gives root up."""
    own = Installation(sys.executable, {})
    places = (str(Path(__file__).parents[2] / "src"), sysconfig.get_path("purelib"))
    system = Installation(JOB_PYTHON, {"PYTHONPATH": os.pathsep.join(places)})
    return next((each for each in (own, system) if os.geteuid() == 0 and each.is_open_to_all()), own)


@pytest.fixture(scope="session")
def daemon(installation: Installation) -> Iterator[Daemon]:
    """A server for all tests that leave it as it is, with alice, bob and admin."""
    with _place() as place:
        daemon = Daemon(place / "state", installation)
        daemon.init("alice", "bob")
        daemon.start()
        try:
            yield daemon
            daemon.clear()
            assert daemon.stop() == 0
            assert daemon.job_groups() == []
        finally:
            daemon.close()


@pytest.fixture
def own_daemon(state: Path, installation: Installation) -> Iterator[Daemon]:
    """A server to be started, stopped and killed; in the end it must still be able to end its jobs."""
    daemon = Daemon(state, installation)
    daemon.init("alice", "bob")
    try:
        yield daemon
        gc.collect()  # grpc gives the descriptors of a channel back with the last reference to it
        daemon.clear()
        assert daemon.stop() == 0
        assert daemon.monitors() == {}
    finally:
        daemon.close()


@pytest.fixture
def empty_daemon(state: Path, installation: Installation) -> Iterator[Daemon]:
    """A state directory as init leaves it, for servers that are not to start."""
    daemon = Daemon(state, installation)
    daemon.init()
    try:
        yield daemon
    finally:
        daemon.close()


@pytest.fixture(scope="module")
def user_daemon(installation: Installation) -> Iterator[Daemon]:
    """The server of an ordinary user, who has made it without root: as root of a bare uid, else our own."""
    is_root = os.geteuid() == 0
    if is_root and not installation.is_open_to_all():
        pytest.skip("needs a Python with jobworker's dependencies that another user than root can read")
    with _place() as place:
        os.chown(place, USER_UID if is_root else -1, -1)
        identity = {"user": USER_UID, "group": USER_UID, "extra_groups": []} if is_root else {}
        daemon = Daemon(place / "state", installation, **identity)
        controls = {line["control"]: line["works"] for line in json.loads(daemon.command("check", "-o", "json").stdout)}
        if not controls["user-namespace"]:
            pytest.skip("needs user namespaces for ordinary users: they isolate jobs without root")
        daemon.address, daemon.https = (f"127.0.0.1:{port}" for port in free_ports(2))
        for command in (
            ("init", "--listen", daemon.address, "--listen-https", daemon.https),
            ("user", "add", "alice"),
            ("user", "add", "bob"),
        ):
            made = daemon.command(*command, "--dir", daemon.directory)
            assert made.returncode == 0, made.stderr
        daemon.start()
        try:
            yield daemon
            daemon.clear()
            assert daemon.stop() == 0
        finally:
            daemon.close()


class _place:  # noqa: N801 - used like a function
    """A directory that every user can get into, removed in the end."""

    def __enter__(self) -> Path:
        self.path = Path(tempfile.mkdtemp(prefix="jobworker-e2e-", dir="/var/tmp"))
        self.path.chmod(0o755)
        return self.path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path)


@pytest.fixture(scope="session")
def eventually():
    """Waits until a condition holds, and returns what it was; the deadline fails the test."""

    def wait(condition, seconds: float = 60.0, what: str = ""):
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, what or f"still not so after {seconds} seconds: {condition}"
            time.sleep(0.01)
        return found

    return wait


@pytest.fixture(scope="session", name="children_of")
def _children_of():
    return children_of


@pytest.fixture(scope="session", name="start_time")
def _start_time():
    return start_time
