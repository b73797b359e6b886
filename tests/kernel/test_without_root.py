"""An ordinary user's jobs: isolated in user namespaces, and open about what that does not give.

As root these tests run as a bare uid that nothing else has, otherwise as whoever runs them.
"""

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from host import JOB_PYTHON, descendants, eventually, title

from jobworker import JobSpec, Limits
from jobworker.core.spec import MiB

_SOURCES = Path(__file__).parents[2] / "src"
_PROGRAMS = Path(__file__).parent.parent / "programs"
_USER = 54_321 if os.geteuid() == 0 else os.geteuid()
_IDENTITY: dict[str, Any] = {"user": _USER, "group": _USER, "extra_groups": []} if os.geteuid() == 0 else {}
_UNLIMITED = Limits(memory=None, pids=None)
_NEW_NAMESPACE = "import sys; from jobworker.runtime.unprivileged import enter_user_namespace as enter; enter()"


class User:
    """A worker of an ordinary user, in a process of the user's own."""

    def __init__(self, home: Path, programs: Path, *through: str) -> None:
        self.home = home
        self._through = through  # what starts the worker, in place of the identity
        self.state = home / "state"
        self._programs = programs
        self._environment = {
            "PYTHONPATH": str(home / "src"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PATH": os.environ["PATH"],
        }
        self.open()

    def open(self) -> None:
        """Starts the worker, on what an earlier one has left."""
        command = [*self._through, JOB_PYTHON, str(self._programs / "worker_process.py"), str(self.state)]
        command.append(str(self.home / "roots"))
        self._worker = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self._environment,
            cwd="/",
            **({} if self._through else _IDENTITY),
        )
        self.keeper = self._read()["launcher"]

    def kill(self) -> None:
        """The worker's process is killed; its jobs run on."""
        self._worker.kill()
        self._worker.communicate()

    def close(self) -> None:
        """The worker ends, and before it all of its jobs: a monitor that is still at work makes files."""
        for job in os.listdir(self.state / "jobs"):
            self.ask({"stop": job})
        self._worker.communicate()
        assert self._worker.returncode == 0

    def ask(self, request: dict[str, Any]) -> Any:
        """What the worker answers."""
        assert self._worker.stdin is not None
        self._worker.stdin.write(json.dumps(request) + "\n")
        self._worker.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self._worker.stdout is not None
        return json.loads(self._worker.stdout.readline())

    def start(self, *command: str, limits: Limits = _UNLIMITED) -> dict[str, str]:
        """The answer to a start: the job's id, or the error."""
        return self.ask(JobSpec(program=command[0], args=command[1:], limits=limits).to_document())

    def run(self, *command: str) -> str:
        """The output of a job."""
        job = self.start(*command)
        assert "id" in job, job
        return self.ask({"output": job["id"]})["output"]

    def inside(self, *question: object) -> Any:
        """The answer to a question of probe.py that a job asks."""
        return json.loads(self.run(*self._question(question)))

    def outside(self, *question: object) -> Any:
        """The answer to the same question outside of the sandbox, as the same user: the positive control."""
        done = subprocess.run(self._question(question), capture_output=True, check=True, cwd="/", **_IDENTITY)
        return json.loads(done.stdout)

    def _question(self, words: tuple[object, ...]) -> list[str]:
        return [JOB_PYTHON, str(self._programs / "probe.py"), *map(str, words)]


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A directory of the user's, with the sources where the user can read them."""
    place = Path(tempfile.mkdtemp(prefix="jobworker-user-", dir="/var/tmp"))
    try:
        shutil.copytree(_SOURCES / "jobworker", place / "src/jobworker", ignore=shutil.ignore_patterns("__pycache__"))
        subprocess.run(["chmod", "-R", "u=rwX,go=rX", place], check=True)
        os.chown(place, _USER, -1)
        tried = subprocess.run(
            [JOB_PYTHON, "-c", _NEW_NAMESPACE],
            env={"PYTHONPATH": str(place / "src")},
            capture_output=True,
            check=False,
            cwd="/",
            **_IDENTITY,
        )
        if tried.returncode != 0:
            pytest.skip("needs user namespaces for ordinary users: they isolate jobs without root")
        yield place
    finally:
        shutil.rmtree(place)


@pytest.fixture
def user(home: Path, programs: Path) -> Iterator[User]:
    user = User(home, programs)
    yield user
    user.close()
    shutil.rmtree(user.state)


def test_a_job_is_the_user_and_nobody_more(user: User) -> None:
    """E3. Not uid 0 inside either: the user's uid stands for itself."""
    facts = user.inside("facts")
    status = facts["status"]
    assert facts["ids"][0] == [_USER] * 3
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert sorted(facts["fds"]) == ["0", "1", "2", "3"], "3 is the listing itself"
    assert user.outside("facts")["status"]["CapBnd"] != "0" * 16


def test_a_job_sees_its_own_processes_only(user: User) -> None:
    """E1. Not its monitor either, though that has the same uid, and none of another job."""
    other = user.start("sleep", "1000")["id"]
    assert len(user.inside("processes")) == 1
    assert len(user.outside("processes")) > 1
    user.ask({"stop": other})


def test_a_job_can_end_nobody_but_itself(user: User) -> None:
    """E2, E16. All of them have the same uid: what keeps them apart is the PID namespace."""
    other = user.start("sleep", "1000")["id"]
    assert user.inside("kills_everyone") == -9
    assert user.run("sh", "-c", "kill -9 1; echo its monitor lives") == "its monitor lives\n"
    assert user.ask({"status": other})["state"] == "RUNNING"
    assert user.ask({"stop": other})["state"] == "STOPPED"


def test_a_job_writes_to_its_own_places_only(user: User) -> None:
    """E9. Also where its user may write outside."""
    places = ["/tmp", "/dev/shm", "/var/tmp", str(user.home)]
    assert user.inside("creates_files", *places) == dict(zip(places, ["ok", "ok", "EROFS", "EROFS"], strict=True))
    assert set(user.outside("creates_files", *places).values()) == {"ok"}


def test_a_job_does_not_see_where_it_is_recorded(user: User) -> None:
    """O12."""
    assert user.inside("contents", user.state) == {str(user.state): 0}
    assert user.outside("contents", user.state)[str(user.state)] > 0


def test_a_job_sees_nothing_of_the_kernel_s_own_file_systems(user: User) -> None:
    """E7, E10. They came along with the copy of the host's mounts and lie below."""
    hidden = ["/sys", "/run", "/proc/acpi", "/proc/scsi"]
    assert max(user.inside("contents", *hidden).values()) <= 0
    assert max(user.outside("contents", *hidden).values()) > 0
    knobs = ["/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger"]
    assert set(user.inside("opens_for_writing", *knobs).values()) <= {"EROFS", "EACCES", "ENOENT"}


def test_a_job_can_have_a_root_of_its_own(user: User) -> None:
    """E9, E25. A directory of the user's; the control is one that is not listed."""
    if not os.path.exists("/bin/busybox"):
        pytest.skip("needs busybox: a program without libraries (busybox-static)")
    root = user.home / "roots/small"
    try:
        for name in ("bin", "dev", "proc", "tmp"):
            (root / name).mkdir(parents=True)
        for name in ("sh", "ls", "touch"):
            shutil.copy("/bin/busybox", root / "bin" / name)
        subprocess.run(["chown", "-R", str(_USER), root], check=True)
        script = "exec 2>&1; ls /; touch /x; touch /tmp/x /dev/shm/x && ls /proc/self/exe"
        spec = JobSpec(program="sh", args=("-c", script), rootfs=str(root), limits=_UNLIMITED)
        job = user.ask(spec.to_document())
        assert "id" in job, job
        output = user.ask({"output": job["id"]})["output"].splitlines()
        assert output[:4] == ["bin", "dev", "proc", "tmp"]
        assert "Read-only file system" in output[4]
        assert output[5:] == ["/proc/self/exe"]
        assert user.ask({"status": job["id"]})["sandbox"]["root"] == "read-only, of its own"
        elsewhere = user.ask(JobSpec(program="sh", rootfs=str(user.home / "src"), limits=_UNLIMITED).to_document())
        assert elsewhere["code"] == "permission_denied"
    finally:
        shutil.rmtree(user.home / "roots", ignore_errors=True)


def test_a_job_has_the_harmless_devices(user: User) -> None:
    """E11."""
    found = user.inside("devices", "/tmp")
    assert found["names"] == ["fd", "full", "null", "random", "shm", "stderr", "stdin", "stdout", "urandom", "zero"]
    assert (found["works"], found["full"], found["mknod"]) == (True, "ENOSPC", "EPERM")


def test_a_job_reaches_no_network(user: User) -> None:
    """E12."""
    assert user.inside("interfaces") == ["lo"]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert user.inside("connects", "tcp", "127.0.0.1", port) == "ECONNREFUSED"
        assert user.outside("connects", "tcp", "127.0.0.1", port) == "ok"


def test_a_job_says_what_its_isolation_lacks(user: User) -> None:
    job = user.start("true")["id"]
    user.ask({"output": job})
    sandbox = user.ask({"status": job})["sandbox"]
    assert sandbox["isolation"].startswith("degraded(separate-uid")
    assert sandbox["uid"] == str(_USER)


def test_a_limit_that_cannot_be_had_refuses_the_start_by_name(user: User) -> None:
    """S3. The control: without the limit the job runs."""
    asked = {"memory": Limits(pids=None), "pids": Limits(memory=None), "cpu": Limits(memory=None, pids=None, cpu=0.5)}
    lacking = user.ask({"status": user.start("true")["id"]})["sandbox"]["isolation"]
    for name, limits in asked.items():
        if f"{name}-limit" in lacking or name == "cpu":
            refused = user.start("true", limits=limits)
            if "memory-limit" in lacking:
                assert refused["code"] == "unsupported"
                assert refused["error"].startswith(
                    f"{name} limit: this host has no {name} controller for a server without root"
                )
    assert [entry.name for entry in (user.state / "jobs").iterdir()] != []


async def test_stop_ends_all_that_a_job_has_started(user: User) -> None:
    """P1."""

    def sleepers() -> int:
        return [title(pid) for pid in descendants(user.keeper)].count("sleep")

    job = user.start("sh", "-c", "trap '' TERM HUP; setsid sleep 1000 & (sleep 1001 &) ; sleep 1002")["id"]
    await eventually(lambda: sleepers() == 3)
    assert user.ask({"stop": job})["state"] == "STOPPED"
    assert sleepers() == 0


def test_jobs_outlive_the_worker_and_are_adopted(user: User) -> None:
    """C1."""
    job = user.start("sh", "-c", "sleep 0.5; echo whole")["id"]
    user.kill()
    user.open()
    assert user.ask({"output": job})["output"] == "whole\n"
    assert user.ask({"status": job})["state"] == "COMPLETED"


@pytest.fixture
def delegated() -> Iterator[Path]:
    """A v2 group that belongs to the user, with what controllers there are, as a service manager gives it away."""
    trees = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines() if " - cgroup2 " in line]
    if os.geteuid() != 0 or not trees:
        pytest.skip("needs root and a cgroup v2 tree: to give a group to the user")
    tree = Path(trees[0][4])
    for controller in {"cpu", "memory", "pids"} & {*(tree / "cgroup.controllers").read_text().split()}:
        (tree / "cgroup.subtree_control").write_text(f"+{controller}")
    group = tree / f"jobworker-test-{os.getpid()}"
    group.mkdir()
    for path in (group, *(group / f"cgroup.{name}" for name in ("procs", "threads", "subtree_control"))):
        os.chown(path, _USER, _USER)
    os.setxattr(group, "user.delegate", b"1")
    yield group
    until = time.monotonic() + 30
    while "populated 1" in (group / "cgroup.events").read_text():
        assert time.monotonic() < until, "processes left behind"
        time.sleep(0.01)
    for below in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
        below.rmdir()
    group.rmdir()


@pytest.fixture
def service(home: Path, programs: Path, delegated: Path) -> Iterator[User]:
    """The user's worker in a delegated group."""
    enter = f'echo $$ >{delegated}/cgroup.procs; exec setpriv --reuid={_USER} --regid={_USER} --clear-groups "$@"'
    user = User(home, programs, "sh", "-c", enter, "sh")
    yield user
    user.close()
    shutil.rmtree(user.state)


@pytest.mark.layout
async def test_in_a_delegated_group_a_job_has_one_of_its_own_and_is_killed_with_it(
    service: User, delegated: Path
) -> None:
    """S1, P1. The control: the worker itself is not in it."""
    job = service.start("sh", "-c", "setsid sleep 1000 & sleep 1001")["id"]
    [group] = [path for path in delegated.rglob(job) if path.is_dir()]
    await eventually(lambda: len((group / "cgroup.procs").read_text().split()) == 3)
    assert str(service.keeper) not in (group / "cgroup.procs").read_text().split()
    assert service.ask({"stop": job})["state"] == "STOPPED"
    assert not group.exists()


@pytest.mark.layout
def test_in_a_delegated_group_limits_are_in_force(service: User, delegated: Path) -> None:
    """S2, S5. The control: without the group, test_a_limit_that_cannot_be_had_refuses_the_start_by_name."""
    if not {"cpu", "memory", "pids"} <= {*(delegated / "cgroup.controllers").read_text().split()}:
        pytest.skip("needs the controllers on cgroup v2: to delegate them")
    job = service.start("sleep", "1000", limits=Limits(cpu=0.5, memory=64 * MiB, pids=9))["id"]
    [group] = [path for path in delegated.rglob(job) if path.is_dir()]
    assert (group / "memory.max").read_text() == f"{64 * MiB}\n"
    assert (group / "pids.max").read_text() == "9\n"
    assert (group / "cpu.max").read_text() == "50000 100000\n"
    shown = service.ask({"status": job})
    assert (shown["sandbox"]["isolation"], shown["limits"]["pids"]) == ("degraded(separate-uid)", "9")
    assert service.ask({"stop": job})["state"] == "STOPPED"
