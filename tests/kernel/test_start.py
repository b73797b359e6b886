"""Starting: what a caller may rely on when start returns, and when it does not."""

import asyncio
import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from host import (
    JOB_PYTHON,
    a_process,
    children,
    descendants,
    eventually,
    job_groups,
    job_processes,
    launcher_of,
    monitor_of,
    needs_root,
    process_status,
    run_job,
    strace,
)

from jobworker import ErrorCode, JobError, JobSpec, Limits, State, Worker
from jobworker.core.outcome import Lost
from jobworker.core.spec import MiB, words
from jobworker.runtime.cgroup_host import CgroupHost
from jobworker.runtime.launcher_client import LauncherClient
from jobworker.worker import bootstrap

pytestmark = needs_root

_SLEEP = JobSpec(program="/bin/sleep", args=("1000",))
_PROGRAMS = Path(__file__).parent.parent / "programs"


async def _refusal(worker: Worker, spec: JobSpec) -> JobError:
    """Why the job does not start, with the promise that nothing of the try is left."""

    def left() -> object:
        return len(os.listdir("/proc/self/fd")), children(), os.listdir(worker._jobs_dir), worker.list()

    before = left()
    with pytest.raises(JobError) as caught:
        await worker.start(spec)
    assert left() == before
    return caught.value


@contextlib.asynccontextmanager
async def _worker_with(module: str, state: Path, **options: Any) -> AsyncIterator[Worker]:
    """A worker whose launcher is another program of tests/programs."""
    (state / "jobs").mkdir(mode=0o700, parents=True)  # the launcher hides what it finds
    launcher = await asyncio.to_thread(
        LauncherClient.start, bootstrap(state, **options), module=module, search_path=_PROGRAMS
    )
    async with await Worker.open(state, launcher=launcher) as worker:
        yield worker
        for job in worker.list():
            await worker.remove(job.id, force=True)


async def test_a_simple_job_completes(worker: Worker) -> None:
    """Smoke."""
    job = await worker.start(JobSpec(program="/bin/true"))
    assert (await worker.wait(job.id)).state is State.COMPLETED


# S1: control groups.


async def test_a_job_is_in_its_groups_from_its_first_instruction_on(worker: Worker, state: Path) -> None:
    """S1. 200 starts while both cores are busy, each looked at by the host the moment start returns."""
    load = [a_process(sys.executable, "-c", "while True: pass") for _ in range(2)]
    parent = bootstrap(state).cgroup_parent
    try:
        for _ in range(10):
            jobs = await asyncio.gather(*(worker.start(_SLEEP) for _ in range(20)))
            for job in jobs:
                [pid] = job_processes(state, job.id)
                lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
                theirs = [line for line in lines if line.endswith(f"/{parent}/{job.id}")]
                assert len(theirs) == len(CgroupHost.discover(parent).hierarchies)
            await asyncio.gather(*(worker.stop(job.id) for job in jobs))
    finally:
        for process in load:
            process.kill()
            process.wait()


@pytest.mark.layout
async def test_a_fork_storm_at_start_leaves_no_descendant_outside(worker: Worker, state: Path, programs: Path) -> None:
    """S1. Every process below the monitor is in every group of the job."""
    storm = JobSpec(program=str(programs / "fork_storm"), limits=Limits(pids=100))
    for _ in range(5):
        job = await worker.start(storm)
        monitor = monitor_of(job.id)
        await eventually(lambda monitor=monitor: len(descendants(monitor)) == 100)  # type: ignore[misc]
        below = descendants(monitor)
        for group in job_groups(state):
            assert {int(pid) for pid in (group / "cgroup.procs").read_text().split()} == below
        await worker.stop(job.id)


# S3: what cannot be limited is refused.


@pytest.mark.parametrize(
    ("device", "code", "says"),
    [
        ("/dev/shm", ErrorCode.UNSUPPORTED, "tmpfs"),
        ("/proc", ErrorCode.UNSUPPORTED, "proc"),
        ("/dev/no-such-disk", ErrorCode.INVALID_ARGUMENT, "/dev/no-such-disk"),
        ("/dev/null", ErrorCode.INVALID_ARGUMENT, "character device"),
    ],
)
async def test_an_io_limit_without_a_disk_is_refused_by_name(
    worker: Worker, state: Path, device: str, code: ErrorCode, says: str
) -> None:
    """S3."""
    limited = JobSpec(program="/bin/true", limits=Limits(io_read_bps=MiB, io_device=device))
    error = await _refusal(worker, limited)
    assert error.code is code
    assert says in error.message
    assert job_groups(state) == []


@pytest.mark.layout
async def test_a_limit_without_its_controller_is_refused_by_name(state: Path) -> None:
    """S3. The control: without limits the same launcher runs the job."""
    async with _worker_with("launcher_without_controllers", state) as worker:
        none = {"memory": None, "pids": None}
        for limits, name in (
            ({"cpu": 0.5}, "cpu"),
            ({"memory": 64 * MiB}, "memory"),
            ({"pids": 10}, "pids"),
            ({"io_write_bps": MiB, "io_device": "/var/tmp"}, "io"),
        ):
            error = await _refusal(worker, JobSpec(program="/bin/true", limits=Limits(**none | limits)))
            assert error.code is ErrorCode.UNSUPPORTED
            assert f"{name} limit: this host has no {name} controller" in error.message
            assert job_groups(state) == []
        job, _ = await run_job(worker, JobSpec(program="/bin/true", limits=Limits(**none)))  # type: ignore[arg-type]
        assert (job.state, dict(job.effective_limits)) == (State.COMPLETED, {})


async def test_a_device_path_that_never_answers_fails_that_start_and_holds_up_no_other(state: Path) -> None:
    """S3, R4: as on a file server that is gone. The control: other paths are answered by the same launcher."""
    if "autofs" not in Path("/proc/filesystems").read_text():
        pytest.skip("needs autofs: a file system that does not answer")
    limits = {"memory": None, "pids": None, "io_read_bps": MiB}
    async with _worker_with("launcher_with_dead_mount", state) as worker:
        dead = JobSpec(program="/bin/true", limits=Limits(**limits, io_device="/opt/gone"))  # type: ignore[arg-type]
        error = await _refusal(worker, dead)
        assert (error.code, error.message.partition(":")[0]) == (ErrorCode.UNAVAILABLE, "io_device")
        assert "does not answer" in error.message
        assert job_groups(state) == []
        absent = JobSpec(program="/bin/true", limits=Limits(**limits, io_device="/gone"))  # type: ignore[arg-type]
        assert "the server has no path" in (await _refusal(worker, absent)).message
        assert (await run_job(worker, JobSpec(program="/bin/true")))[0].state is State.COMPLETED


# S7: what cannot be executed.


async def test_start_itself_says_why_a_program_cannot_run(worker: Worker, programs: Path) -> None:
    """S7. The control for each: the good program beside it runs."""
    place = programs / "bad"
    place.mkdir()
    place.chmod(0o755)
    for name, content, mode in (
        ("plain", b"\x7fELF", 0o644),
        ("no-shebang", b"echo hi\n", 0o755),
        ("bad-interpreter", b"#!/no/such/interpreter\n", 0o755),
        ("interpreter-below-a-file", b"#!/etc/passwd/interpreter\n", 0o755),
        ("data-as-interpreter", b"#!/etc/passwd\n", 0o755),
        ("own-interpreter", f"#!{place}/own-interpreter\n".encode(), 0o755),
        ("private", b"#!/bin/sh\n", 0o700),
        ("good", b"#!/bin/sh\necho hi\n", 0o755),
    ):
        (place / name).write_bytes(content)
        (place / name).chmod(mode)
    (place / "dangling").symlink_to("nowhere")
    (place / "loop").symlink_to("loop")
    os.mkfifo(place / "fifo", 0o777)
    try:
        assert (await run_job(worker, JobSpec(program=str(place / "good"))))[1] == b"hi\n"
        for program, code, says in (
            (f"{place}/missing", ErrorCode.PROGRAM_NOT_FOUND, "not found"),
            (f"{place}/good/below", ErrorCode.PROGRAM_NOT_FOUND, "not found"),
            (f"{place}/dangling", ErrorCode.PROGRAM_NOT_FOUND, "not found"),
            (f"{place}/loop", ErrorCode.PROGRAM_NOT_FOUND, "symbolic links"),
            ("no-such-command", ErrorCode.PROGRAM_NOT_FOUND, "not found"),
            ("/" + "x" * 300, ErrorCode.PROGRAM_NOT_FOUND, "too long"),
            ("/" + "x" * 300_000, ErrorCode.PROGRAM_NOT_FOUND, "too long"),
            (f"{place}/plain", ErrorCode.PROGRAM_NOT_EXECUTABLE, "not executable"),
            (f"{place}/private", ErrorCode.PROGRAM_NOT_EXECUTABLE, "not executable"),
            (f"{place}/fifo", ErrorCode.PROGRAM_NOT_EXECUTABLE, "not executable"),
            (str(place), ErrorCode.PROGRAM_NOT_EXECUTABLE, "directory"),
            (f"{place}/no-shebang", ErrorCode.PROGRAM_NOT_EXECUTABLE, "#!"),
            (f"{place}/bad-interpreter", ErrorCode.PROGRAM_NOT_EXECUTABLE, "interpreter"),
            (f"{place}/interpreter-below-a-file", ErrorCode.PROGRAM_NOT_EXECUTABLE, "interpreter"),
            (f"{place}/data-as-interpreter", ErrorCode.PROGRAM_NOT_EXECUTABLE, "interpreter"),
            (f"{place}/own-interpreter", ErrorCode.PROGRAM_NOT_EXECUTABLE, "interpreter"),
        ):
            error = await _refusal(worker, JobSpec(program=program))
            assert (error.code, says in error.message) == (code, True), error
    finally:
        shutil.rmtree(place)


async def test_arguments_that_are_too_long_are_refused(worker: Worker) -> None:
    """S7. Up to the kernel's own limits they arrive."""
    _, output = await run_job(worker, JobSpec(program="/bin/echo", args=("-n", *["x" * 100_000] * 15)))
    assert len(output) == 15 * 100_001 - 1
    for args in (("x" * 200_000,), ("x" * 1000,) * 2090):
        error = await _refusal(worker, JobSpec(program="/bin/echo", args=args))
        assert error.code is ErrorCode.INVALID_ARGUMENT
        assert "too long" in error.message
    for size in (3 * MiB, 30 * MiB):
        with pytest.raises(JobError, match="args and env") as caught:
            JobSpec(program="/bin/echo", args=("x" * 100_000,) * (size // 100_000))
        assert caught.value.code is ErrorCode.INVALID_ARGUMENT


async def test_an_id_that_is_taken_is_refused_and_its_job_untouched(worker: Worker) -> None:
    """S6. Whether that job still runs or has ended long ago."""
    ended, _ = await run_job(worker, JobSpec(program="/bin/echo", args=("kept",)))
    running = await worker.start(_SLEEP)
    for job in (ended, running):
        with pytest.raises(JobError) as caught:
            await worker.start(JobSpec(program="/bin/true"), job_id=job.id)
        assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    assert await worker.status(ended.id) == ended
    assert [chunk.data async for chunk in worker.output(ended.id)] == [b"kept\n"]
    assert (await worker.status(running.id)).state is State.RUNNING


# S8, S9: what the program finds.


async def _facts(worker: Worker, programs: Path, *args: str | bytes, **spec: Any) -> dict[str, Any]:
    job = JobSpec(program=JOB_PYTHON, args=words((str(programs / "probe.py"), "facts", *args)), **spec)
    done, output = await run_job(worker, job)
    assert done.state is State.COMPLETED, output
    found: dict[str, Any] = json.loads(output)
    return found


def _plain_child(*command: str) -> bytes:
    """What an ordinary child of this process says, which inherits all that a child can."""
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, close_fds=False, restore_signals=False, check=True
    ).stdout


async def test_a_job_inherits_nothing(worker: Worker, programs: Path) -> None:
    """S8. The control: a plain child of this process inherits what is prepared here."""
    os.environ["JOBWORKER_CANARY"] = "inherited"
    leak = os.open("/etc/passwd", os.O_RDONLY)
    os.set_inheritable(leak, True)
    try:
        control = json.loads(_plain_child(JOB_PYTHON, str(programs / "probe.py"), "facts"))
        found = await _facts(worker, programs, env={"MINE": "1", "LANG": "C"})
    finally:
        os.close(leak)
        del os.environ["JOBWORKER_CANARY"]
    assert control["fds"][str(leak)] == "/etc/passwd"
    assert control["env"]["JOBWORKER_CANARY"] == "inherited"
    opened = {fd: target for fd, target in found["fds"].items() if target != "closed"}
    assert sorted(opened) == ["0", "1", "2"]
    assert opened["0"] == "/dev/null"
    assert opened["1"].startswith("pipe:")
    assert opened["2"].startswith("pipe:")
    assert opened["1"] != opened["2"]
    assert found["stdin"] == ""
    job_id = found["env"].pop("JOBWORKER_JOB_ID")
    assert found["env"] == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/tmp",
        "LANG": "C",
        "MINE": "1",
        # Python's own doing in the C locale, see PEP 538.
        **({"LC_CTYPE": "C.UTF-8"} if "LC_CTYPE" in found["env"] else {}),
    }
    assert found["hostname"] == f"job-{job_id[:8]}"
    assert (found["cwd"], found["umask"], found["oom_score_adj"]) == ("/tmp/work", 0o022, 500)
    assert (found["session"], found["group"], found["terminal"]) == (True, True, "ENOENT")


async def test_rlimits_are_as_declared(worker: Worker, programs: Path) -> None:
    """S8."""
    found = await _facts(worker, programs, limits=Limits(pids=77))
    assert {
        name: found["rlimits"][f"RLIMIT_{name}"] for name in ("CORE", "NOFILE", "NPROC", "MEMLOCK", "MSGQUEUE")
    } == {
        "CORE": [0, 0],
        "NOFILE": [1024, 4096],
        "NPROC": [78, 78],
        "MEMLOCK": [65536, 65536],
        "MSGQUEUE": [0, 0],
    }
    assert found["rlimits"]["RLIMIT_RTPRIO"] == found["rlimits"]["RLIMIT_NICE"] == [0, 0]
    assert found["rlimits"]["RLIMIT_STACK"] == [8 * MiB, 64 * MiB]


async def test_no_signal_is_ignored_or_blocked(worker: Worker) -> None:
    """S8. Python ignores SIGPIPE for itself; a job of ours must not, or `yes | head -1` never ends."""
    cat, output = await run_job(worker, JobSpec(program="/bin/cat", args=("/proc/self/status",)))
    status = dict(line.split(":\t", 1) for line in output.decode().splitlines())
    for name in ("SigIgn", "SigBlk", "SigCgt", "SigPnd", "ShdPnd"):
        assert int(status[name], 16) == 0
    control = _plain_child("cat", "/proc/self/status").decode()
    ignored = next(line for line in control.splitlines() if line.startswith("SigIgn"))
    assert int(ignored.split()[1], 16) & 1 << (signal.SIGPIPE - 1)
    job, output = await run_job(worker, JobSpec(program="/bin/sh", args=("-c", "yes | head -1")))
    assert (cat.state, job.state, output) == (State.COMPLETED, State.COMPLETED, b"y\n")


async def test_arguments_arrive_byte_for_byte(worker: Worker, programs: Path) -> None:
    """S9."""
    nasty = (
        b"; rm -rf /",
        b"$(id)",
        b"`id`",
        b"a b",
        b"line\nline",
        b"",
        b"'\"\\",
        b"*",
        b"--",
        b"-c",
        b"\xff\xfe\x80",
        "ü\u20ac".encode(),
        bytes(range(1, 256)),
    )
    found = await _facts(worker, programs, *nasty)
    assert found["argv"] == [word.hex() for word in nasty]


async def test_environment_values_arrive_byte_for_byte(worker: Worker) -> None:
    """S9."""
    value = words([bytes(range(1, 256))])[0]
    _, output = await run_job(worker, JobSpec(program="/usr/bin/env", args=("-0",), env={"RAW": value}))
    assert b"RAW=" + bytes(range(1, 256)) in output.split(b"\0")


async def test_there_is_exactly_one_exec_and_no_shell(worker: Worker, tmp_path: Path) -> None:
    """S9."""
    launcher = await launcher_of(worker)
    log = tmp_path / "trace"
    tracer = strace(launcher, log, "-e", "trace=execve,execveat")
    try:
        await eventually(lambda: process_status(launcher)["TracerPid"] == str(tracer.pid))
        job, output = await run_job(worker, JobSpec(program="/bin/echo", args=("; id", "$HOME")))
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.wait(timeout=20)
    assert (job.state, output) == (State.COMPLETED, b"; id $HOME\n")
    execs = [line for line in log.read_text().splitlines() if "exec" in line and "resumed" not in line]
    assert len(execs) == 1
    assert '"/bin/echo", ["/bin/echo", "; id", "$HOME"]' in execs[0]


# S10: after kill -9 of everything.


class _WorkerProcess:
    """A worker that can be killed."""

    def __init__(self, state: Path, **options: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, _PROGRAMS / "worker_process.py", state],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            **options,
        )
        self.keeper: int = self._read()["launcher"]

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def end(self) -> None:
        """Collects the process, which ends with its standard input unless it has been killed."""
        self.process.communicate(timeout=30)


def _wait_gone(pids: set[int]) -> Any:
    return lambda: not any(process_status(pid).get("State", "Z").strip()[0] != "Z" for pid in pids)


async def test_a_start_works_after_kill_9_of_everything(state: Path, programs: Path) -> None:
    """S10. Worker, keeper, launcher and all monitors at once; their jobs die with the monitors."""
    jobs = []
    for _ in range(3):
        first = _WorkerProcess(state)
        tree = JobSpec(program=str(programs / "tree")).to_document()
        jobs += [first.ask(tree)["id"], first.ask(_SLEEP.to_document())["id"]]
        monitors = {monitor_of(job_id) for job_id in jobs[-2:]}
        ours = {first.process.pid, first.keeper, *descendants(first.keeper)}
        processes = job_processes(state, jobs[-1]) | job_processes(state, jobs[-2])
        for pid in (*monitors, *ours):
            with contextlib.suppress(ProcessLookupError):  # a launcher ends by itself when its server is gone
                os.kill(pid, signal.SIGKILL)
        first.end()
        await eventually(_wait_gone(ours | monitors | processes))
    async with await Worker.open(state) as second:
        for job_id in jobs:
            lost = await second.status(job_id)
            assert lost.ending is not None
            assert (lost.state, type(lost.ending.outcome)) == (State.FAILED, Lost)
        assert job_groups(state) == []
        job, _ = await run_job(second, JobSpec(program="/bin/true"))
        assert job.state is State.COMPLETED


async def test_a_start_works_after_the_launcher_is_killed_again_and_again(worker: Worker) -> None:
    """S10. Jobs go on; the keeper makes a new launcher."""
    jobs = []
    for _ in range(5):
        jobs.append(await worker.start(_SLEEP))
        launcher = await launcher_of(worker)
        os.kill(launcher, signal.SIGKILL)
        await eventually(_wait_gone({launcher}))
    jobs.append(await worker.start(_SLEEP))
    assert {(await worker.status(job.id)).state for job in jobs} == {State.RUNNING}
    assert {(await worker.stop(job.id)).state for job in jobs} == {State.STOPPED}


@pytest.mark.layout
async def test_a_group_that_an_earlier_job_left_is_removed_with_what_is_in_it(worker: Worker, state: Path) -> None:
    """S10. Never EEXIST."""
    job_id = "00000000-0000-4000-8000-000000000001"
    left = CgroupHost.discover(bootstrap(state).cgroup_parent).group(job_id)
    left.create()
    stray = a_process()
    for group in job_groups(state):
        (group / "cgroup.procs").write_text(str(stray.pid))
    job = await worker.start(_SLEEP, job_id=job_id)
    assert stray.wait(timeout=60) == -signal.SIGKILL
    assert len(job_processes(state, job_id)) == 1
    await worker.stop(job.id)


# What makes starts.


async def test_the_launcher_loads_no_network_and_no_database(state: Path) -> None:
    """Design §3: what the launcher does not import cannot make it bigger or be attacked in it."""
    async with _worker_with("telling_launcher", state) as worker:
        job, output = await run_job(worker, JobSpec(program="/bin/echo", args=("modules:",)))
        loaded = set(output.decode().split())
    assert job.state is State.COMPLETED
    assert {"modules:", "jobworker.runtime.launcher", "jobworker.runtime.sandbox"} <= loaded
    banned = (
        "grpc",
        "asyncio",
        "ssl",
        "sqlite3",
        "pydantic",
        "google",
        "cryptography",
        "uvloop",
        "typer",
        "rich",
        "http",
    )
    assert [name for name in loaded if name.partition(".")[0] in banned] == []
    assert not any("site-packages" in name for name in loaded)


async def test_file_systems_that_go_or_have_odd_names_keep_no_job_from_starting(state: Path) -> None:
    """S6. What is mounted when the launcher starts is looked at once; hosts change while it runs."""
    async with _worker_with("launcher_with_mounts", state) as worker:
        _, output = await run_job(worker, JobSpec(program="/bin/sh", args=("-c", "ls /opt /opt/odd*")))
    assert output.decode().split("\n")[0] == "/opt:"
    assert "odd \u00fc \\ name" in output.decode()
    assert "file" in output.decode().split()


async def test_a_server_without_free_descriptors_refuses_and_recovers(state: Path) -> None:
    """S6. Nothing is left of the starts that failed, and the next one works."""
    async with await Worker.open(state) as worker:
        await run_job(worker, JobSpec(program="/bin/true"))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        known = os.listdir(state / "jobs")
        for spare in range(6):
            # The lowest free number decides, so the limit leaves `spare` of them.
            free = _lowest_free(spare)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
            started, failed = None, None
            try:
                started = await worker.start(JobSpec(program="/bin/true"))
            except JobError as error:
                failed = error.code
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert failed in {None, ErrorCode.EXHAUSTED, ErrorCode.UNAVAILABLE}
            if started is not None:
                await worker.wait(started.id)
                known.append(started.id)
            assert sorted(os.listdir(state / "jobs")) == sorted(known)
        job, _ = await run_job(worker, JobSpec(program="/bin/true"))
        assert job.state is State.COMPLETED


def _lowest_free(spare: int) -> int:
    """A descriptor limit that leaves room for `spare` more."""
    extra = [os.open("/dev/null", os.O_RDONLY) for _ in range(spare + 1)]
    for fd in extra:
        os.close(fd)
    return max(extra)


async def test_starting_waits_for_no_sleep(worker: Worker) -> None:
    """Smoke. 100 starts, 16 at a time, all end well."""
    limit = asyncio.Semaphore(16)

    async def one() -> State:
        async with limit:
            return (await run_job(worker, JobSpec(program="/bin/true")))[0].state

    began = time.monotonic()
    assert set(await asyncio.gather(*(one() for _ in range(100)))) == {State.COMPLETED}
    assert time.monotonic() - began < 60
