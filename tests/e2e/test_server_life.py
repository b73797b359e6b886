"""How the server starts, refuses to start, gives up its rights, and leaves."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub
from host import needs_root

from jobworker.api.grpc._generated import jobworker_pb2 as pb2
from jobworker.api.grpc._generated.jobworker_pb2_grpc import JobWorkerStub
from jobworker.core.errors import ErrorCode, JobError
from jobworker.core.spec import JobSpec

pytestmark = needs_root

SERVICE_UID = 199_999
#: What gRPC says of a call that comes while the server leaves; the last one has not reached it.
NOT_NOW = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
SLEEP = pb2.JobSpec(program=b"/bin/sleep", args=[b"1000"])


def status_of(pid):
    """The lines of /proc/<pid>/status by their names, of every thread: they must agree."""
    found: dict[str, list[str]] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in status_lines(task):
            name, _, value = line.partition(":")
            if name in {
                "Uid",
                "Gid",
                "Groups",
                "CapInh",
                "CapPrm",
                "CapEff",
                "CapBnd",
                "CapAmb",
                "NoNewPrivs",
                "Seccomp",
            }:
                assert found.setdefault(name, value.split()) == value.split(), f"{task.name} differs in {name}"
    return found


def status_lines(task):
    try:
        return (task / "status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):  # a thread that has just ended
        return []


def test_the_server_gives_root_up_for_good(daemon, installation):
    """E3, security.md §1: every uid, every capability set, every thread; only the launcher keeps them."""
    if not installation.is_open_to_all():
        pytest.skip("no Python with jobworker's dependencies that another user than root can read")
    status = status_of(daemon.pid)
    assert status["Uid"] == status["Gid"] == [str(SERVICE_UID)] * 4
    assert status["Groups"] == []
    assert (status["NoNewPrivs"], status["Seccomp"]) == (["1"], ["2"])
    for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[capabilities][0], 16) == 0, capabilities
    launcher = status_of(daemon.process_titled("jobworker-launcher"))  # positive control
    assert launcher["Uid"] == ["0"] * 4
    assert int(launcher["CapEff"][0], 16) != 0
    assert launcher["Seccomp"] == ["0"]


def test_where_it_keeps_root_it_says_so_and_can_gain_nothing(own_daemon):
    """security.md §5: no silent fallback."""
    config = own_daemon.directory / "jobworker.toml"
    config.write_text(re.sub(r"^user = .*$", 'user = "root"', config.read_text(), flags=re.MULTILINE))
    for path in (own_daemon.directory, *own_daemon.directory.rglob("*")):
        os.chown(path, 0, 0)
    own_daemon.start()
    assert status_of(own_daemon.pid)["Uid"] == ["0"] * 4
    assert status_of(own_daemon.pid)["NoNewPrivs"] == ["1"]
    assert "WARNING jobworkerd: keeping root" in own_daemon.log.read_text()
    assert own_daemon.jobctl("run", "--", "echo", "fine").stdout == "fine\n"


@pytest.mark.parametrize("transport", ["grpc", "https"])
def test_a_job_can_have_a_root_where_the_operator_keeps_some(own_daemon, transport):
    """A8, Q5. Asked for by an ordinary user; anywhere else is refused, and the audit says which root it was."""
    roots = own_daemon.directory.parent / "roots"
    for name in ("bin", "dev", "proc", "tmp"):
        (roots / "small" / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", roots / "small/bin/ls")
    config = own_daemon.directory / "jobworker.toml"
    config.write_text(config.read_text().replace("rootfs = []", f'rootfs = ["{roots}"]'))
    own_daemon.start()
    try:
        ran = own_daemon.jobctl("--transport", transport, "run", "--rootfs", roots / "small", "--", "ls", "/")
        assert (ran.returncode, ran.stdout) == (0, "bin\ndev\nproc\ntmp\n")
        [line] = own_daemon.jobctl("ps", "-a", "-o", "jsonl").stdout.splitlines()
        job = json.loads(line)
        assert (job["spec"]["rootfs"], job["sandbox"]["root"]) == (str(roots / "small"), "read-only, of its own")
        refused = own_daemon.jobctl("--transport", transport, "run", "--rootfs", "/usr", "--", "ls", "/")
        assert refused.returncode == 125
        assert "isolation.rootfs" in refused.stderr
        starts = [
            (record["decision"], record["detail"]) for record in own_daemon.audit() if record["action"] == "job.start"
        ]
        allowed = [("allowed", f"ls; rootfs: {place}") for place in (roots / "small", "/usr")]
        assert starts == [*allowed, ("denied", "ls; rootfs: /usr")]
    finally:
        shutil.rmtree(roots)


def test_no_socket_of_ours_is_abstract_or_open_to_others(daemon):
    """E13, O12: control sockets and output are the service's own, in directories of its own."""
    job_id = daemon.start_job("sh", "-c", "echo x; exec sleep 1000")
    directory = daemon.directory / "jobs" / job_id
    for path in (daemon.directory, daemon.directory / "jobs", directory, *directory.iterdir()):
        assert path.stat().st_mode & 0o077 == 0, path
        assert path.stat().st_uid == daemon.directory.stat().st_uid, path
    ours = {str(pid) for pid in (daemon.pid, *daemon.descendants())}
    links = [target for pid in ours for target in targets(pid)]
    inodes = {target.strip("socket:[]") for target in links if target.startswith("socket:")}
    assert inodes  # positive control: there are sockets
    unix = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    assert not [fields for fields in unix if fields[6] in inodes and len(fields) > 7 and fields[7].startswith("@")]
    assert daemon.jobctl("stop", job_id).returncode == 0


def targets(pid):
    """What the descriptors of a process lead to."""
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return found


def refused(daemon, *needles, command=None):
    """The one line that a server which cannot start says."""
    done = subprocess.run(
        command or daemon.serve_command,
        env=daemon.installation.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd="/",
    )
    lines = [line for line in done.stderr.splitlines() if not line.startswith("WARNING ")]
    assert done.returncode not in {0, -9}, done.stdout
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("jobworkerd: ")
    for needle in needles:
        assert needle in lines[0]
    return lines[0]


@contextlib.contextmanager
def changed(path, content):
    """The file with other content for a while; None: without the file."""
    before, status = path.read_bytes(), path.stat()
    path.unlink()
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        os.chown(path, status.st_uid, status.st_gid)
        path.chmod(status.st_mode & 0o777)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        path.write_bytes(before)
        os.chown(path, status.st_uid, status.st_gid)
        path.chmod(status.st_mode & 0o777)


BAD_CONFIG = {
    "unknown key": ("[jobs]\n", "[jobs]\nmax_job = 1\n", "max_job"),
    "unknown section": ("[isolation]", "[isolatoin]", "isolatoin"),
    "wrong type": ("max_jobs = 4000", 'max_jobs = "many"', "max_jobs"),
    "a flag for a number": ("max_jobs = 4000", "max_jobs = true", "max_jobs"),
    "negative": ("max_jobs = 4000", "max_jobs = -1", "max_jobs"),
    "bad size": ('memory = "512M"', 'memory = "512 mice"', "memory"),
    "bad address": ('grpc = "127.0.0.1:', 'grpc = "127.0.0.1', "grpc"),
    "no TOML": ("[jobs]", "[jobs", "jobworker.toml"),
    "uid of the service among the jobs'": ('"200000-265535"', '"199000-265535"', "uid"),
    "uids of the system": ('"200000-265535"', '"100-200"', "uid_range"),
    "missing key": ('trust_domain = "jobworker.internal"\n', "", "tls.trust_domain"),
}


@pytest.mark.parametrize("wrong", BAD_CONFIG)
def test_a_bad_configuration_is_refused_in_one_line(empty_daemon, wrong):
    """R6."""
    before, after, named = BAD_CONFIG[wrong]
    config = empty_daemon.directory / "jobworker.toml"
    text = config.read_text()
    assert before in text
    with changed(config, text.replace(before, after, 1)):
        refused(empty_daemon, named)


def test_what_is_missing_or_too_open_is_named_in_one_line(empty_daemon):
    """R6, C5: files of every kind; and with all of them in place the same server starts."""
    state = empty_daemon.directory
    for name in ("jobworker.toml", "jobworker.db", "pki/server.key", "pki/server.crt", "pki/bundle.crt"):
        with changed(state / name, None):
            refused(empty_daemon, str(state / name))
            assert not (state / name).exists(), "it was made anew"
    for name in ("pki/server.key", "pki/server.crt", "pki/bundle.crt", "jobworker.db"):
        with changed(state / name, b"this is not what you are looking for\n" * 200):
            refused(empty_daemon, str(state / name))
    key = state / "pki/server.key"
    key.chmod(0o640)
    assert f"chmod 600 {key}" in refused(empty_daemon, str(key))
    key.chmod(0o600)
    empty_daemon.start()  # positive control
    assert empty_daemon.stop() == 0


def test_a_key_of_another_certificate_is_refused_in_one_line(empty_daemon, daemon):
    """R6."""
    key = empty_daemon.directory / "pki/server.key"
    with changed(key, (daemon.directory / "pki/server.key").read_bytes()):
        refused(empty_daemon, str(key))


def test_a_busy_port_is_an_error_and_not_a_second_server(empty_daemon):
    """R6."""
    host, _, port = empty_daemon.address.rpartition(":")
    with socket.socket() as busy:
        busy.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        busy.bind((host, int(port)))
        busy.listen()
        refused(empty_daemon, empty_daemon.address)
    empty_daemon.start()  # positive control
    assert empty_daemon.stop() == 0


def test_a_second_server_on_the_same_directory_is_refused_and_harms_nothing(own_daemon):
    """C5, R6: on another port, while the first one runs a job."""
    own_daemon.start()
    job_id = own_daemon.start_job("sh", "-c", "sleep 2; echo whole; exit 3")
    config = own_daemon.directory / "jobworker.toml"
    with changed(config, config.read_text().replace(own_daemon.address, "127.0.0.1:0")):
        refused(own_daemon, "another jobworker")
    done = own_daemon.jobctl("logs", "--exit-code", job_id)
    assert (done.returncode, done.stdout) == (3, "whole\n")
    assert own_daemon.jobctl("run", "--", "echo", "on").stdout == "on\n"


async def test_sigterm_ends_streams_clearly_and_leaves_in_time_whoever_does_not_read(own_daemon, eventually):
    """R5: a follower, a waiter, a slow stop, and a reader that never reads while its job writes at full speed."""
    config = own_daemon.directory / "jobworker.toml"
    config.write_text(config.read_text().replace('shutdown_grace = "10s"', 'shutdown_grace = "5s"'))
    await asyncio.to_thread(own_daemon.start)
    async with own_daemon.channel() as channel, own_daemon.client() as client:
        stub = JobWorkerStub(channel)
        yes = pb2.JobSpec(program=b"/usr/bin/yes", limits=pb2.Limits(output_bytes=64 << 20))
        flood = (await stub.Start(pb2.StartRequest(spec=yes))).job
        deaf = pb2.JobSpec(program=b"/bin/sh", args=[b"-c", b"trap '' TERM; echo x; while :; do sleep 1000; done"])
        quiet = (await stub.Start(pb2.StartRequest(spec=deaf))).job
        unread = stub.Stream(pb2.StreamRequest(id=flood.id, follow=True))
        await unread.read()
        followed = stub.Stream(pb2.StreamRequest(id=quiet.id, follow=True))
        await followed.read()
        stop = pb2.StopRequest(id=quiet.id)
        stop.grace.FromSeconds(3600)
        calls = [
            asyncio.ensure_future(followed.read()),
            asyncio.ensure_future(stub.Wait(pb2.WaitRequest(id=quiet.id))),
            asyncio.ensure_future(stub.Stop(stop)),
        ]
        _, pending = await asyncio.wait(calls, timeout=0.3)
        assert len(pending) == len(calls)
        monitors = own_daemon.monitors()
        begun = time.monotonic()
        os.kill(own_daemon.pid, signal.SIGTERM)
        leaving = asyncio.create_task(asyncio.to_thread(own_daemon.collect))
        for call in calls:
            async with asyncio.timeout(60):
                with pytest.raises(grpc.aio.AioRpcError) as ended:
                    await call
            assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "shutting down" in str(ended.value.details())
        with pytest.raises((grpc.aio.AioRpcError, JobError)):
            async with asyncio.timeout(60):
                await client.start(JobSpec(program="/bin/true"))
        assert await leaving == 0
        assert time.monotonic() - begun < 30  # the reader that never reads would keep it for ever
        unread.cancel()
    assert own_daemon.monitors() == monitors
    await asyncio.to_thread(own_daemon.start)
    assert (await asyncio.to_thread(own_daemon.job, flood.id))["state"] == "RUNNING"


async def test_no_job_is_started_after_sigterm(own_daemon):
    """R5: a start either is on record and runs, or was refused; many at once, around the signal."""
    await asyncio.to_thread(own_daemon.start)
    async with own_daemon.channel() as channel:
        stub = JobWorkerStub(channel)
        starts = [asyncio.ensure_future(stub.Start(pb2.StartRequest(spec=SLEEP))) for _ in range(20)]
        await asyncio.sleep(0.02)
        os.kill(own_daemon.pid, signal.SIGTERM)
        starts += [asyncio.ensure_future(stub.Start(pb2.StartRequest(spec=SLEEP))) for _ in range(20)]
        answers = await asyncio.gather(*starts, return_exceptions=True)
        assert await asyncio.to_thread(own_daemon.collect) == 0
    answered = {answer.job.id for answer in answers if isinstance(answer, pb2.StartResponse)}
    for answer in answers:
        assert isinstance(answer, pb2.StartResponse) or getattr(answer, "code", str)() in NOT_NOW, answer
    await asyncio.to_thread(own_daemon.start)
    listed = (await asyncio.to_thread(own_daemon.jobctl, "list", "-q", "--state", "running")).stdout.split()
    assert answered <= set(listed)
    assert set(own_daemon.monitors()) == set(listed)


def test_an_idle_server_leaves_at_once(own_daemon):
    """R5. And waits for no grace, of which it has a minute here."""
    config = own_daemon.directory / "jobworker.toml"
    config.write_text(config.read_text().replace('shutdown_grace = "10s"', 'shutdown_grace = "1m"'))
    own_daemon.start()
    begun = time.monotonic()
    assert own_daemon.stop() == 0
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("kind", ["file", "abstract"])
def test_a_service_manager_is_told_of_readiness_and_of_leaving(own_daemon, kind, eventually):
    """sd_notify(3): the real datagrams, in their order."""
    path = own_daemon.directory.parent / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path) if kind == "file" else f"\0{path}")
        if kind == "file":
            path.chmod(0o666)
        manager.settimeout(60)
        own_daemon.start(NOTIFY_SOCKET=str(path) if kind == "file" else f"@{path}")
        assert manager.recv(4096) == b"READY=1"
        assert own_daemon.jobctl("list").returncode == 0
        assert own_daemon.stop() == 0
        assert manager.recv(4096) == b"STOPPING=1"


def watches(pid):
    """How many files a process watches for changes."""
    found = 0
    for name in os.listdir(f"/proc/{pid}/fdinfo"):
        with contextlib.suppress(FileNotFoundError):
            found += Path(f"/proc/{pid}/fdinfo/{name}").read_text().count("inotify wd:")
    return found


def output_files(pid):
    """How many output files of jobs a process has open."""
    return len([target for target in targets(pid) if "/output" in target])


def test_a_client_that_vanishes_leaves_nothing_on_the_server(own_daemon, eventually):
    """O9: killed while the job is silent; gone from the server while the job still is, and so is a waiter."""
    own_daemon.start()
    job_id = own_daemon.start_job("sleep", "1000")
    base = (watches(own_daemon.pid), output_files(own_daemon.pid))
    followers = [own_daemon.spawn_jobctl("logs", job_id) for _ in range(3)]
    followers.append(own_daemon.spawn_jobctl("wait", job_id))
    eventually(lambda: output_files(own_daemon.pid) == base[1] + 6)  # positive control
    assert watches(own_daemon.pid) > base[0]
    for follower in followers:
        follower.kill()
    eventually(lambda: (watches(own_daemon.pid), output_files(own_daemon.pid)) == base)
    for follower in followers:
        follower.communicate()
    assert own_daemon.job(job_id)["state"] == "RUNNING"


async def test_an_unreachable_launcher_is_an_error_and_not_the_end(own_daemon, eventually):
    """C2: with keeper and launcher gone, starts are refused clearly, and everything else goes on."""
    await asyncio.to_thread(own_daemon.start)
    job_id = await asyncio.to_thread(own_daemon.start_job, "sleep", "1000")
    for pid in [own_daemon.process_titled(f"jobworker-{title}") for title in ("keeper", "launcher")]:
        os.kill(pid, signal.SIGKILL)
    async with own_daemon.client() as client:
        with pytest.raises(JobError) as failed:
            await client.start(JobSpec(program="/bin/true"))
        assert failed.value.code is ErrorCode.UNAVAILABLE
        assert "restart jobworkerd" in failed.value.message
        assert (await client.stop(job_id)).state.value == "STOPPED"
    assert len(list((own_daemon.directory / "jobs").iterdir())) == 1
    assert await asyncio.to_thread(own_daemon.stop) == 0
    await asyncio.to_thread(own_daemon.start)
    assert (await asyncio.to_thread(own_daemon.jobctl, "run", "--", "true")).returncode == 0


async def test_watches_and_waits_are_held_to_the_quota_of_streams(own_daemon, eventually):
    """R4, at both doors; health and reflection are no way around it."""
    config = own_daemon.directory / "jobworker.toml"
    config.write_text(config.read_text().replace("max_streams_per_user = 256", "max_streams_per_user = 2"))
    own_daemon.start()
    https = own_daemon.https_as()
    async with own_daemon.client() as alice, own_daemon.channel() as channel, own_daemon.channel("bob") as other:
        job = (await alice.start(JobSpec(program="/bin/sleep", args=("1000",)))).job

        def watch(over):
            return HealthStub(over).Watch(HealthCheckRequest())

        def reflect(over):
            return ServerReflectionStub(over).ServerReflectionInfo(iter([ServerReflectionRequest(list_services="")]))

        held = [watch(channel) for _ in range(2)]
        for call in held:
            await call.read()
        for one_more in (watch(channel), reflect(channel)):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await one_more.read()
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(JobError) as exhausted:
            await alice.wait(job.id)
        assert exhausted.value.code is ErrorCode.EXHAUSTED
        assert (await asyncio.to_thread(https.get, f"/jobs/{job.id}/wait")).status == 429
        assert await watch(other).read(), "others have theirs"
        held[0].cancel()
        await asyncio.to_thread(eventually, lambda: https.get(f"/jobs/{job.id}/wait?timeout=0").status == 200)
        assert await reflect(channel).read()
        await alice.stop(job.id)


async def test_calls_that_the_server_holds_are_held_to_the_quota(own_daemon):
    """R4, at both doors: stops with a grace, and starts with the key of one that is under way; never a stop at once."""
    config = own_daemon.directory / "jobworker.toml"
    config.write_text(config.read_text().replace("max_streams_per_user = 256", "max_streams_per_user = 2"))
    own_daemon.start()
    https = own_daemon.https_as()
    deaf = JobSpec(program="/bin/sh", args=("-c", "trap '' TERM; echo deaf; while :; do sleep 1; done"))
    launcher = own_daemon.process_titled("jobworker-launcher")
    async with own_daemon.client() as alice:

        async def refused_first(calls):
            """The code of the one call too many, which is answered while the others are held."""
            (first,), _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            calls.remove(first)
            return first.exception().code

        os.kill(launcher, signal.SIGSTOP)
        try:
            starts = {asyncio.create_task(alice.start(deaf, idempotency_key="key")) for _ in range(4)}
            assert await refused_first(starts) is ErrorCode.EXHAUSTED
            body = {"program": "/bin/true"}
            over_https = await asyncio.to_thread(https.post, "/jobs/start", body, headers={"Idempotency-Key": "key"})
            assert over_https.status == 429
        finally:
            os.kill(launcher, signal.SIGCONT)
        (job_id,) = {(await start).job.id for start in starts}

        async with contextlib.aclosing(alice.stream(job_id)) as output:
            await anext(output)  # deaf by now
        stops = {asyncio.create_task(alice.stop(job_id, grace=1000)) for _ in range(3)}
        assert await refused_first(stops) is ErrorCode.EXHAUSTED
        over_https = await asyncio.to_thread(https.post, f"/jobs/{job_id}/stop", {"grace": 1000})
        assert over_https.status == 429
        assert (await asyncio.to_thread(https.post, f"/jobs/{job_id}/stop")).status == 200
        assert {(await stop).state.value for stop in stops} == {"STOPPED"}
