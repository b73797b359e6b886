"""The launcher as a service of its own: the server has never been root, and its jobs miss nothing."""

import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from host import needs_root

pytestmark = needs_root

SERVICE = {"user": 199_999, "group": 199_999, "extra_groups": []}


class LauncherService:
    """A running `jobworkerd launcher`, as its unit has it: with UMask=0077, in a directory that it makes itself."""

    def __init__(self, daemon, socket_path):
        self._command = [*daemon.serve_command[:3], "launcher", "--listen", str(socket_path)]
        self._command += ["--config", str(daemon.directory / "jobworker.toml")]
        self._environment = daemon.installation.environment
        self._socket = socket_path
        self._log = socket_path.parent.with_name("log")
        self.process = None

    def start(self, eventually):
        with self._log.open("a") as log:
            self.process = subprocess.Popen(self._command, env=self._environment, cwd="/", stderr=log, umask=0o077)
        eventually(lambda: self._socket.exists() or self.process.poll() is not None)

    def try_to_start(self):
        return subprocess.run(
            self._command, env=self._environment, cwd="/", capture_output=True, text=True, check=False, timeout=60
        )

    def log(self):
        return self._log.read_text()

    def stop(self):
        self.process.terminate()
        assert self.process.wait(60) == 0


@pytest.fixture
def service(state, installation, daemon, eventually):
    """A server of the service's user, and the launcher service that makes its jobs."""
    if not installation.is_open_to_all():
        pytest.skip("needs a Python with jobworker's dependencies that another user than root can read")
    served = type(daemon)(state, installation)
    served.init("alice")
    served.identity = SERVICE
    place = Path("/run") / f"jobworker-test-{os.getpid()}"
    place.mkdir(mode=0o755)
    socket_path = place / "made" / "launcher"
    launchers = LauncherService(served, socket_path)
    launchers.start(eventually)
    served.serve_options = ["--launcher", str(socket_path)]
    try:
        yield served, launchers
        served.clear()
        assert served.stop() == 0
        launchers.stop()
    finally:
        served.close()
        launchers.process.kill()
        launchers.process.wait()
        shutil.rmtree(place)


def uids(pid):
    return re.search(r"^Uid:\t(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)[1].split()


def launchers_below(children_of, pid):
    """The keepers that the launcher service has started, with their launchers."""
    found = list(children_of(pid))
    return [*found, *(child for keeper in found for child in children_of(keeper))]


def test_a_server_that_was_never_root_runs_whole_jobs(service, children_of):
    served, launchers = service
    served.start()
    assert uids(served.pid) == [str(SERVICE["user"])] * 4
    assert children_of(served.pid) == [], "nothing privileged is the server's own"
    done = served.jobctl("run", "-m", "64M", "--", "id", "-u")
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) >= 200_000
    [job] = [job for job in served.jobctl("list", "-a", "-o", "jsonl").stdout.splitlines() if '"full"' in job]
    assert '"memory": "67108864"' in job
    assert uids(launchers.process.pid) == ["0"] * 4


def test_nobody_else_gets_a_launcher(service):
    """security.md §1. The control: the server's user does."""
    served, _ = service
    path = served.serve_options[1]
    connect = f"import socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect({path!r}); s.recv(9)"
    command = [served.installation.python, "-c", connect]
    other = {"user": 65_534, "group": 65_534, "extra_groups": []}
    assert subprocess.run(command, check=False, cwd="/", capture_output=True, **other).returncode != 0
    assert subprocess.run(command, check=False, cwd="/", capture_output=True, **SERVICE).returncode == 0
    served.start()


def test_without_its_launcher_service_the_server_says_so(service, eventually):
    """R6."""
    served, launchers = service
    launchers.stop()
    refused = served.command("serve", "--config", served.directory / "jobworker.toml", *served.serve_options)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "the launcher service cannot be reached" in refused.stderr
    assert refused.stderr.count("\n") == 1
    launchers.start(eventually)
    served.start()


def test_a_configuration_that_the_server_could_change_is_refused(service):
    """The control: as init has made it, it is root's, and the launcher service runs on it."""
    served, launchers = service
    served.start()
    config = served.directory / "jobworker.toml"
    os.chown(config, SERVICE["user"], -1)
    refused = launchers.try_to_start()
    os.chown(config, 0, -1)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "can be changed by others than root" in refused.stderr


def test_a_restarted_launcher_service_disturbs_no_job_and_no_server(service, eventually):
    """What it has started belongs to the servers."""
    served, launchers = service
    served.start()
    job = served.start_job("sleep", "1000")
    launchers.stop()
    launchers.start(eventually)
    assert served.job(job)["state"] == "RUNNING"
    assert served.jobctl("run", "--", "true").returncode == 0


def test_when_launcher_and_keeper_are_gone_a_managed_server_ends_and_its_successor_has_new_ones(
    service, children_of, eventually
):
    """C2. A service manager starts it again; jobs do not notice."""
    served, launchers = service
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0jobworker-test-manager-" + str(os.getpid()))
        served.start(NOTIFY_SOCKET="@" + manager.getsockname()[1:].decode())
        job = served.start_job("sh", "-c", "sleep 1; echo whole")
        for pid in launchers_below(children_of, launchers.process.pid):
            os.kill(pid, signal.SIGKILL)
        assert served.collect() == 1
    assert "ending with an error, to be started again" in served.log.read_text()
    served.start()
    assert served.jobctl("logs", job).stdout == "whole\n"
    assert served.jobctl("run", "--", "true").returncode == 0


def test_when_launcher_and_keeper_are_gone_an_unmanaged_server_goes_on_for_its_jobs(service, children_of, eventually):
    """C2."""
    served, launchers = service
    served.start()
    job = served.start_job("sleep", "1000")
    for pid in launchers_below(children_of, launchers.process.pid):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: "no new jobs until jobworkerd is restarted" in served.log.read_text())
    refused = served.jobctl("start", "--", "true")
    assert (refused.returncode, refused.stdout) == (125, "")
    assert "restart jobworkerd" in refused.stderr
    assert served.job(job)["state"] == "RUNNING"
    assert served.jobctl("stop", job).returncode == 0
    assert served.stop() == 0
    served.start()
