"""What a job cannot see, reach or change; every probe is also run outside, where it must succeed."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from host import (
    JOB_PYTHON,
    a_process,
    descendants,
    eventually,
    job_groups,
    job_processes,
    monitor_of,
    needs_root,
    process_status,
    run_job,
    start_talking,
)

from jobworker import ErrorCode, JobError, JobSpec, Limits, State, Worker
from jobworker.runtime import linux
from jobworker.runtime.launcher_client import LauncherClient
from jobworker.worker import bootstrap

pytestmark = needs_root

_PROGRAMS = Path(__file__).parent.parent / "programs"
_SLEEP = JobSpec(program="/bin/sleep", args=("1000",))


def _probe(programs: Path, *question: object, **spec: Any) -> JobSpec:
    return JobSpec(program=JOB_PYTHON, args=(str(programs / "probe.py"), *map(str, question)), **spec)


async def _inside(worker: Worker, programs: Path, *question: object, **spec: Any) -> Any:
    """The answer to a question of tests/programs/probe.py, asked by a job."""
    job, output = await run_job(worker, _probe(programs, *question, **spec))
    assert job.state is State.COMPLETED, output
    return json.loads(output)


def _outside(programs: Path, *question: object, apart: tuple[str, ...] = ()) -> Any:
    """The same question, asked by a process without a sandbox: the positive control.

    `apart` are options of unshare(1), for what would change the host.
    """
    command = [*(("unshare", *apart) if apart else ()), JOB_PYTHON, str(programs / "probe.py"), *map(str, question)]
    return json.loads(subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=True).stdout)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory for what controls write; below /var/tmp, which jobs see."""
    path = Path("/var/tmp") / f"jobworker-control-{os.getpid()}"
    path.mkdir(mode=0o755)
    yield path
    shutil.rmtree(path)


# Processes.


async def test_a_job_sees_its_own_processes_only(worker: Worker, programs: Path) -> None:
    """E1."""
    other = await worker.start(_SLEEP)
    paths = [f"/proc/{os.getpid()}/status", f"/proc/{worker._launcher.pid}/cmdline", "/proc/1/cmdline"]
    assert len(await _inside(worker, programs, "processes")) == 1
    assert set((await _inside(worker, programs, "stats", *paths)).values()) == {"ENOENT"}
    assert os.getpid() in _outside(programs, "processes")
    assert set(_outside(programs, "stats", *paths).values()) == {"ok"}
    await worker.stop(other.id)


async def test_kill_minus_one_hits_the_job_itself_only(worker: Worker, state: Path, programs: Path) -> None:
    """E2. The control: the job's own child is hit."""
    other = await worker.start(_SLEEP)
    witness = a_process()
    try:
        assert await _inside(worker, programs, "kills_everyone") == -9
        assert witness.poll() is None
        assert (await worker.status(other.id)).state is State.RUNNING
        assert len(job_processes(state, other.id)) == 1
    finally:
        witness.kill()
        witness.wait()


async def test_all_processes_of_all_jobs_are_without_any_privilege(worker: Worker, state: Path, programs: Path) -> None:
    """E3. Read by the host from its own /proc. The control: the monitors have what the jobs lack."""
    jobs = [await start_talking(worker, JobSpec(program=str(programs / "tree"))) for _ in range(4)]
    uids = []
    for job in jobs:
        statuses = [process_status(pid) for pid in job_processes(state, job.id)]
        assert len(statuses) == 8
        for status in statuses:
            assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
            assert (status["NoNewPrivs"], status["Seccomp"], status["Groups"]) == ("1", "2", "")
            assert status["Gid"] == status["Uid"]
        [(uid, *others)] = {tuple(status["Uid"].split()) for status in statuses}
        assert {uid} == set(others) == {job.sandbox["uid"]}
        uids.append(int(uid))
        assert int(process_status(monitor_of(job.id))["CapEff"], 16) != 0
    assert len(set(uids)) == len(jobs)
    assert all(uid >= 200_000 for uid in uids)


async def test_nothing_gives_a_job_more_rights(worker: Worker, programs: Path, place: Path) -> None:
    """E4. Set-uid copies, su, mount, file capabilities, raw sockets, chroot."""
    inside = await _inside(worker, programs, "privileges", "/tmp/work")
    control = _outside(programs, "privileges", place, apart=("--mount", "--uts"))
    assert int(inside["setuid copy"]) >= 200_000
    assert control["setuid copy"] == "0"
    assert inside["su"] == ""
    assert control["su"] == "0"
    assert inside["mount"] != 0
    assert control["mount"] == 0
    refused = ("setcap", "raw socket", "setuid", "chown", "chroot", "hostname")
    assert {inside[name] for name in refused} == {"EPERM"}
    assert {control[name] for name in refused} == {"ok"}
    assert inside["nice"] in {"EACCES", "EPERM"}


async def test_every_mount_is_nosuid_and_nodev_but_the_one_of_the_devices(worker: Worker, programs: Path) -> None:
    """E4, E9. And of those that can be written there are three."""
    options = {line.split()[4]: line.split()[5].split(",") for line in await _mounts(worker, programs)}
    assert [path for path, words in options.items() if "nosuid" not in words] == []
    assert [path for path, words in options.items() if "nodev" not in words] == ["/dev"]
    assert {path for path, words in options.items() if "rw" in words} == {"/proc", "/tmp", "/dev/shm"}
    assert "noexec" in options["/dev/shm"]
    host = Path("/proc/self/mountinfo").read_text().splitlines()
    assert any("nosuid" not in line.split()[5] and " / / rw" in line for line in host)  # the control


async def _mounts(worker: Worker, programs: Path) -> list[str]:
    found: dict[str, str] = await _inside(worker, programs, "facts")
    return found["mountinfo"].splitlines()


# Files.


def _worker_with_open_files(state: Path) -> subprocess.Popen[bytes]:
    opens = 'exec "$@" 7< /etc/passwd 9< /'
    command = ["sh", "-c", opens, "sh", sys.executable, str(_PROGRAMS / "worker_process.py"), str(state)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


async def test_descriptors_of_the_server_never_reach_a_job(state: Path, programs: Path) -> None:
    """E5. The worker is started with descriptor 7 open, for all children to inherit."""
    process = _worker_with_open_files(state)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert b"launcher" in process.stdout.readline()
        assert os.readlink(f"/proc/{process.pid}/fd/7") == "/etc/passwd"  # the control

        def ask(request: dict[str, Any]) -> dict[str, Any]:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            answer: dict[str, Any] = json.loads(process.stdout.readline())
            return answer

        job = ask(_probe(programs, "facts").to_document())
        facts = json.loads(ask({"output": job["id"]})["output"])
        opened = {fd for fd, target in facts["fds"].items() if target != "closed"}
        assert opened == {"0", "1", "2"}
        for workdir in ("/proc/self/fd/7", "/proc/self/fd/9", "/proc/self/fd/9/etc", "/proc/1/cwd", "/proc/1/root"):
            refused = ask(JobSpec(program="/bin/pwd", workdir=workdir).to_document())
            assert refused["code"] == "invalid_argument"
            assert "workdir" in refused["error"]
    finally:
        process.communicate(timeout=30)


async def test_a_working_directory_cannot_lead_out(worker: Worker, programs: Path) -> None:
    """E5. The control: an ordinary one works, and each of these is one that the host has."""
    for workdir in ("/usr", "/tmp", "/proc/self/cwd"):
        job, output = await run_job(worker, JobSpec(program="/bin/pwd", args=("-P",), workdir=workdir))
        assert job.state is State.COMPLETED, output
    with pytest.raises(JobError) as caught:
        JobSpec(program="/bin/pwd", workdir="/proc/self/cwd/../..")
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    for workdir in ("/root", "/var/log", str(worker._jobs_dir), "/lost+found"):
        if workdir == "/lost+found" and not os.path.isdir(workdir):
            continue
        assert os.path.isdir(workdir)
        try:
            _, output = await run_job(worker, JobSpec(program="/bin/ls", args=("-A",), workdir=workdir))
        except JobError as error:
            assert error.code is ErrorCode.INVALID_ARGUMENT  # noqa: PT017 - an empty mask is as good
        else:
            assert output == b""


async def test_a_job_can_write_to_its_own_places_only(worker: Worker, programs: Path) -> None:
    """E9. And the host's mounts are the same before, during and after."""
    before = Path("/proc/self/mountinfo").read_text()
    own = ["/tmp", "/dev/shm", "/tmp/work", "."]
    shared = [
        "/",
        "/etc",
        "/usr",
        "/usr/bin",
        "/var",
        "/var/tmp",
        "/var/lib",
        "/root",
        "/home",
        "/run",
        "/dev",
        "/proc",
    ]
    shared += ["/sys", "/proc/sys/kernel", str(programs), str(worker._jobs_dir), "/mnt"]
    writer = await worker.start(_probe(programs, "sleeps"))
    answers = await _inside(worker, programs, "creates_files", *own, *shared)
    assert Path("/proc/self/mountinfo").read_text() == before
    assert {answers[path] for path in own} == {"ok"}
    assert {answers[path] for path in shared} <= {"EROFS", "EACCES", "ENOENT", "EPERM"}
    ordinary = ["/etc", "/usr", "/var/tmp", "/root", "/run", str(worker._jobs_dir)]
    assert set(_outside(programs, "creates_files", *ordinary).values()) == {"ok"}
    await worker.stop(writer.id)
    assert Path("/proc/self/mountinfo").read_text() == before


async def test_what_one_job_writes_no_other_sees(worker: Worker, programs: Path) -> None:
    """E9, E14. Neither at the same time nor afterwards; the host does not see it either."""
    write = "echo secret > /tmp/mine; echo secret > /dev/shm/mine; echo ready; sleep 1000"
    job = await start_talking(worker, JobSpec(program="/bin/sh", args=("-c", write)))
    paths = ("/tmp/mine", "/dev/shm/mine")
    assert set((await _inside(worker, programs, "stats", *paths)).values()) == {"ENOENT"}
    assert set(_outside(programs, "stats", *paths).values()) == {"ENOENT"}
    await worker.stop(job.id)
    assert set((await _inside(worker, programs, "stats", *paths)).values()) == {"ENOENT"}


async def test_knobs_of_the_kernel_do_not_open_for_writing(worker: Worker, state: Path, programs: Path) -> None:
    """E7. The control opens some of them, and writes to none."""
    knobs = [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/hostname",
        "/proc/sys/vm/overcommit_memory",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sysrq-trigger",
        "/proc/mtrr",
        "/proc/pressure/memory",
        "/proc/1/mem",
        "/sys/kernel/uevent_helper",
        "/sys/fs/cgroup/memory/release_agent",
    ]
    inside = await _inside(worker, programs, "opens_for_writing", *knobs)
    assert set(inside.values()) <= {"EROFS", "EACCES", "ENOENT", "EPERM"}
    control = _outside(programs, "opens_for_writing", *knobs[:3])
    assert set(control.values()) == {"ok"}
    job = await worker.start(_SLEEP)
    files = [
        str(file) for group in job_groups(state) for file in (group / "cgroup.procs", group / "tasks") if file.exists()
    ]
    assert set((await _inside(worker, programs, "opens_for_writing", *files)).values()) == {"ENOENT"}
    await worker.stop(job.id)


async def test_what_the_kernel_tells_about_the_host_is_masked(worker: Worker, programs: Path) -> None:
    """E10. Empty or absent. The control: outside there is something to read."""
    masked = [
        "keys",
        "key-users",
        "locks",
        "kallsyms",
        "timer_list",
        "interrupts",
        "kcore",
        "acpi",
        "scsi",
        "asound",
        "sched_debug",
        "latency_stats",
    ]
    paths = [f"/proc/{name}" for name in masked] + ["/sys/firmware", "/sys/kernel", "/sys/fs/cgroup"]
    paths += ["/etc/shadow", "/etc/gshadow", "/root", "/home", "/run", "/var/log", str(worker._jobs_dir.parent)]
    inside = await _inside(worker, programs, "contents", *paths)
    assert {path: size for path, size in inside.items() if size > 0} == {}
    control = _outside(programs, "contents", *paths)
    told = {path for path, size in control.items() if size > 0}
    assert {"/proc/locks", "/proc/kallsyms", "/proc/timer_list", "/proc/interrupts"} <= told
    assert {"/etc/shadow", "/run", "/root", paths[-1]} <= told


async def test_only_harmless_devices_are_there(worker: Worker, programs: Path, place: Path) -> None:
    """E11."""
    inside = await _inside(worker, programs, "devices", "/tmp")
    assert set(inside["names"]) == {
        *("null", "zero", "full", "random", "urandom"),
        *("fd", "stdin", "stdout", "stderr", "shm"),
    }
    assert (inside["works"], inside["full"], inside["mknod"]) == (True, "ENOSPC", "EPERM")
    control = _outside(programs, "devices", place)
    assert control["mknod"] == "ok"
    assert "kmsg" in control["names"] or "console" in control["names"] or "tty" in control["names"]


# Network and other ways to talk.


async def test_the_only_network_is_a_loopback_of_its_own(worker: Worker, programs: Path) -> None:
    """E12. Host ports, other jobs' ports, abstract sockets; the control reaches the host's."""
    assert await _inside(worker, programs, "interfaces") == ["lo"]
    name = f"jobworker-test-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind("\0" + name)
        abstract.listen()
        port = tcp.getsockname()[1]
        for question in (("tcp", "127.0.0.1", port), ("abstract", name)):
            assert await _inside(worker, programs, "connects", *question) == "ECONNREFUSED"
            assert _outside(programs, "connects", *question) == "ok"
        assert await _inside(worker, programs, "connects", "tcp", "192.0.2.1", 80) == "ENETUNREACH"
    listener = await start_talking(worker, _probe(programs, "listens", port, name))
    for question in (("tcp", "127.0.0.1", port), ("abstract", name)):
        assert await _inside(worker, programs, "connects", *question) == "ECONNREFUSED"
        assert _outside(programs, "connects", *question) == "ECONNREFUSED"
    await worker.stop(listener.id)


async def test_a_job_reaches_itself_over_its_loopback(worker: Worker, programs: Path) -> None:
    """E12. The control for the refusals above: the interface is up."""
    script = f"'{JOB_PYTHON}' '{programs}/probe.py' listens 4711 own & for i in $(seq 200); do "
    script += f"answer=$('{JOB_PYTHON}' '{programs}/probe.py' connects tcp 127.0.0.1 4711); "
    script += '[ "$answer" = \'"ok"\' ] && echo reached && exit; done'
    _, output = await run_job(worker, JobSpec(program="/bin/sh", args=("-c", script)))
    assert b"reached\n" in output


async def test_our_own_sockets_are_private_files(worker: Worker, state: Path) -> None:
    """E13. Nothing of ours is in the abstract name space, and control sockets are 0600 in 0700."""
    job = await worker.start(_SLEEP)
    directory = state / "jobs" / job.id
    control = directory / "control"
    for path, mode in ((state / "jobs", 0o700), (directory, 0o700), (control, 0o600)):
        assert stat.S_IMODE(path.stat().st_mode) == mode
        assert path.stat().st_uid == os.getuid()
    assert stat.S_ISSOCK(control.stat().st_mode)
    ours = set()
    helpers = [worker._launcher.pid, *descendants(worker._launcher.pid), monitor_of(job.id)]
    for pid in set(helpers) - job_processes(state, job.id):
        for fd in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):  # the launcher has just closed its channel of the start
                target = os.readlink(fd.path)
                if target.startswith("socket:"):
                    ours.add(target.removeprefix("socket:[").removesuffix("]"))
    assert ours
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    names = [row[7] for row in rows if len(row) > 7 and row[6] in ours]
    assert [name for name in names if name.startswith("@")] == []
    await worker.stop(job.id)


async def test_shared_memory_semaphores_and_queues_are_not_shared(worker: Worker, programs: Path) -> None:
    """E14. What the host and another job have made under the same key and name is not there."""
    key, name = 0x6A6F6277, f"jobworker-test-{os.getpid()}"
    missing = dict.fromkeys(("shm", "sem", "msg", "posix", "mqueue", "tmp"), "ENOENT")
    try:
        made = _outside(programs, "shares", "make", key, name)
        assert set(made.values()) == {"ok"}
        assert set(_outside(programs, "shares", "find", key, name).values()) == {"ok"}  # the control
        assert await _inside(worker, programs, "shares", "find", key, name) == missing
    finally:
        _outside(programs, "unshares", key, name)
    keeper = f"'{JOB_PYTHON}' '{programs}/probe.py' shares make {key} {name}; sleep 1000"
    job = await start_talking(worker, JobSpec(program="/bin/sh", args=("-c", keeper)))
    assert await _inside(worker, programs, "shares", "find", key, name) == missing
    assert set(_outside(programs, "shares", "find", key, name).values()) == {"ENOENT"}
    await worker.stop(job.id)


# What stays.


@pytest.fixture
async def one_uid(state: Path) -> AsyncIterator[Worker]:
    """A worker with a single uid for all its jobs."""
    (state / "jobs").mkdir(mode=0o700, parents=True)
    uid = 300_000 + os.getpid() % 10_000
    launcher = await asyncio.to_thread(LauncherClient.start, bootstrap(state, uids=(uid, uid)))
    async with await Worker.open(state, launcher=launcher) as worker:
        yield worker
        for job in worker.list():
            await worker.remove(job.id, force=True)


async def test_a_uid_that_is_used_again_owns_nothing(one_uid: Worker, programs: Path) -> None:
    """E17. While it is in use no other job gets it."""
    key, name = 0x6A6F6278, "left-behind"
    leave = f"'{JOB_PYTHON}' '{programs}/probe.py' shares make {key} {name}; setsid sleep 1000 & echo ready; sleep 1000"
    first = await start_talking(one_uid, JobSpec(program="/bin/sh", args=("-c", leave)))
    with pytest.raises(JobError) as caught:
        await one_uid.start(JobSpec(program="/bin/true"))
    assert caught.value.code is ErrorCode.EXHAUSTED
    await one_uid.stop(first.id)
    uid = first.sandbox["uid"]
    alive = [
        pid for pid in os.listdir("/proc") if pid.isdigit() and process_status(int(pid)).get("Uid", "").startswith(uid)
    ]
    assert alive == []
    # A monitor gives the uid back with its own end, right after its last word.
    await eventually(lambda: len(descendants(one_uid._launcher.pid)) == 1)
    assert await _inside(one_uid, programs, "owns") == {"files": ["/tmp/work"], "processes": [2]}
    await eventually(lambda: len(descendants(one_uid._launcher.pid)) == 1)
    found = await _inside(one_uid, programs, "shares", "find", key, name)
    assert set(found.values()) == {"ENOENT"}


async def test_a_crash_leaves_no_core_file(worker: Worker, programs: Path, place: Path) -> None:
    """E21. The control leaves one where the host writes cores into the working directory."""
    inside = await _inside(worker, programs, "crashes", "/tmp/work")
    assert inside == {"signal": 11, "core": False, "files": []}
    if Path("/proc/sys/kernel/core_pattern").read_text()[0] not in "|/":
        control = _outside(programs, "crashes", place)
        assert (control["core"], len(control["files"])) == (True, 1)


async def test_a_job_sees_the_root_of_every_hierarchy_as_its_own_place(
    worker: Worker, state: Path, programs: Path
) -> None:
    """E22. The control: the host sees where it really is."""
    facts = await _inside(worker, programs, "facts")
    assert {line.split(":")[2] for line in facts["cgroup"].splitlines()} == {"/"}
    job = await worker.start(_SLEEP)
    [pid] = job_processes(state, job.id)
    assert job.id in Path(f"/proc/{pid}/cgroup").read_text()
    await worker.stop(job.id)


async def test_nothing_tells_of_other_jobs_or_of_the_host(worker: Worker, programs: Path) -> None:
    """E23. Environment, mounts, host name, processes; of its own id a job may know."""
    other = await worker.start(
        JobSpec(program="/bin/sleep", args=("1000",), name="hidden-name", labels={"team": "hidden-label"})
    )
    _, output = await run_job(worker, _probe(programs, "facts"))
    said = output.decode()
    for secret in (other.id, other.id[:8], "hidden-name", "hidden-label", socket.gethostname(), "jobworker-monitor"):
        assert secret not in said
    dump = "cat /proc/1/cmdline /proc/*/cmdline /proc/*/environ /proc/self/mounts; hostname; ls -la /tmp /dev/shm /run"
    _, output = await run_job(worker, JobSpec(program="/bin/sh", args=("-c", dump)))
    assert other.id.encode() not in output
    assert b"jobworker-monitor" not in output
    assert b"jobworker-monitor" in Path(f"/proc/{monitor_of(other.id)}/cmdline").read_bytes()  # the control
    await worker.stop(other.id)


async def test_the_sandbox_that_is_shown_is_the_one_there_is(worker: Worker, state: Path) -> None:
    """E25. Compared with what the host reads from its own /proc, in its own way."""
    job = await worker.start(_SLEEP)
    [pid] = job_processes(state, job.id)
    status = process_status(pid)
    names = {"pid": "pid", "mnt": "mount", "ipc": "ipc", "uts": "uts", "cgroup": "cgroup", "net": "net"}
    own = {
        shown
        for name, shown in names.items()
        if os.readlink(f"/proc/{pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}")
    }
    shown = dict(job.sandbox)
    assert set(shown.pop("namespaces").split(",")) == own == set(names.values())
    assert shown.pop("uid") == status["Uid"].split()[0]
    assert shown.pop("gid") == status["Gid"].split()[0]
    assert (shown.pop("groups") == "none") is (status["Groups"] == "")
    assert (shown.pop("capabilities") == "none") is (int(status["CapBnd"], 16) == 0)
    assert (shown.pop("no_new_privs") == "yes") is (status["NoNewPrivs"] == "1")
    assert (shown.pop("seccomp") == "filter") is (status["Seccomp"] == "2")
    assert (shown.pop("landlock") == "yes") is (linux.landlock_version() >= 2)
    assert shown.pop("umask") == status["Umask"] == "0022"
    assert shown.pop("oom_score_adj") == Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "500"
    assert shown.pop("descriptors").split(",") == sorted(os.listdir(f"/proc/{pid}/fd"))
    assert (shown.pop("session") == "own") is (os.getsid(pid) == pid)
    assert _rlimits_of(pid) == dict(word.split("=") for word in shown.pop("rlimits").split(","))
    mounts = [line.split() for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    options = {fields[4]: fields[5].split(",") for fields in mounts}
    assert {path.removesuffix(":noexec") for path in shown.pop("writable").split(",")} == {
        path for path, words in options.items() if "rw" in words
    }
    assert shown.pop("mounts") == "nosuid,nodev"
    assert [path for path, words in options.items() if not {"nosuid", "nodev"} <= set(words)] == ["/dev"]
    assert (shown.pop("root") == "read-only") is ("ro" in options["/"])
    assert shown.pop("knobs") == "read-only"
    assert all("ro" in options[path] for path in ("/proc/sys", "/proc/fs", "/dev"))
    assert shown.pop("masks") == "complete"
    assert {"/root", "/run", "/proc/kallsyms"} <= {path for path, words in options.items() if "ro" in words}
    assert shown == {"isolation": "full", "network": "loopback only", "hostname": f"job-{job.id[:8]}"}
    interfaces = Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]
    await worker.stop(job.id)
    await eventually(lambda: job_groups(state) == [])


def _rlimits_of(pid: int) -> dict[str, str]:
    """The resource limits of a process by the names of a status, as /proc/PID/limits has them."""
    titles = {
        "Max core file size": "core",
        "Max open files": "nofile",
        "Max processes": "nproc",
        "Max locked memory": "memlock",
        "Max msgqueue size": "msgqueue",
        "Max realtime priority": "rtprio",
        "Max nice priority": "nice",
        "Max stack size": "stack",
    }
    rows = [re.split(r"\s{2,}", line) for line in Path(f"/proc/{pid}/limits").read_text().splitlines()]
    return {titles[row[0]]: f"{row[1]}:{row[2]}" for row in rows if row[0] in titles}


async def test_limits_of_the_sandbox_hold_for_scratch_space(worker: Worker) -> None:
    """E9. The private /tmp has a bounded number of files, so that it cannot eat the host's memory."""
    fill = "i=0; while : > /tmp/$i; do i=$((i+1)); done; echo $i"
    limits = Limits(memory=16 * 1024 * 1024)
    job, output = await run_job(worker, JobSpec(program="/bin/sh", args=("-c", fill), limits=limits))
    made = output.split()[-1:]
    assert job.state in {State.COMPLETED, State.FAILED}
    assert not made or not made[0].isdigit() or int(made[0]) <= 5000
