"""jobctl against the real server: data on stdout, words on stderr, and exit codes that can be trusted."""

import asyncio
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from host import needs_root

from jobworker.client.context import Transport
from jobworker.core.spec import JobSpec

pytestmark = needs_root

ID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"


@pytest.fixture(scope="module", params=Transport, ids=lambda transport: transport.value)
def transport(request):
    """Over which transport a test runs: over each."""
    return request.param


@pytest.fixture(scope="module", name="daemon")
def _daemon(daemon, transport):
    daemon.transport = transport
    yield daemon
    daemon.transport = None


@pytest.fixture(name="own_daemon")
def _own_daemon(own_daemon, transport):
    own_daemon.transport = transport
    return own_daemon


@pytest.fixture(name="empty_daemon")
def _empty_daemon(empty_daemon, transport):
    empty_daemon.transport = transport
    return empty_daemon


@pytest.fixture(scope="module")
def sleeper(daemon):
    """A job that says one line and then nothing any more."""
    job_id = daemon.start_job("sh", "-c", "echo ready; exec sleep 1000")
    yield job_id
    assert daemon.jobctl("stop", job_id).returncode == 0


def test_stdout_is_data_only(daemon):
    """Q1: ids, ids, JSON, the job's own bytes; everything said to people goes to stderr."""
    started = daemon.jobctl("start", "--", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert re.fullmatch(f"{ID}\n", started.stdout)
    job_id = started.stdout.strip()
    assert re.search(f"jobctl .*logs {job_id}", started.stderr)
    waited = daemon.jobctl("wait", job_id)
    assert (waited.returncode, waited.stdout) == (3, "")
    assert "exited with code 3" in waited.stderr
    assert daemon.jobctl("logs", "--stdout", job_id).stdout == "out\n"
    assert daemon.jobctl("logs", "--stderr", job_id).stdout == "err\n"
    assert json.loads(daemon.jobctl("status", "-o", "json", job_id).stdout)["exit_code"] == 3
    assert daemon.jobctl("list", "-a", "-q").stdout.splitlines()[0] == job_id
    for line in daemon.jobctl("list", "-a", "-o", "jsonl").stdout.splitlines():
        assert re.fullmatch(ID, json.loads(line)["id"])
    removed = daemon.jobctl("rm", job_id)
    assert (removed.returncode, removed.stdout) in {(0, f"{job_id}\n"), (0, "")}


def test_both_streams_arrive_as_they_are_and_apart(daemon):
    """Q1, O2, O13: every byte there is, piped, unescaped."""
    script = (
        r"""i=0; while [ $i -lt 256 ]; do printf "\\$(printf %03o $i)"; i=$((i+1)); done; printf 'e\033[2Jrr\377' >&2"""
    )
    done = daemon.jobctl("run", "--", "sh", "-c", script, text=False)
    assert done.stdout == bytes(range(256))
    assert b"e\x1b[2Jrr\xff" in done.stderr


def test_a_terminal_is_shown_no_control_sequences_unless_it_wants_them(daemon):
    """O13."""
    script = r"printf 'a\033]0;owned\007b\n'"

    def shown(*options):
        controller, terminal = pty.openpty()
        command = daemon.jobctl_command("run", *options, "--", "sh", "-c", script)
        done = subprocess.run(command, stdout=terminal, stderr=subprocess.DEVNULL, check=False, timeout=30)
        os.close(terminal)
        data = os.read(controller, 4096)
        os.close(controller)
        assert done.returncode == 0
        return data

    assert b"\x1b" not in shown()
    assert b"\x1b]0;owned\x07" in shown("--raw")  # positive control


EXITS = {
    "success": (("true",), 0),
    "the job's own": (("sh", "-c", "exit 37"), 37),
    "a signal": (("sh", "-c", "kill -9 $$"), 137),
    "SIGTERM": (("sh", "-c", "kill -15 $$"), 143),
    "not found": (("/nonexistent/program",), 127),
    "name not found": (("no-such-program-anywhere",), 127),
    "not executable": (("/etc/passwd",), 126),
    "a directory": (("/etc",), 126),
}


@pytest.mark.parametrize("how", EXITS)
def test_run_exits_as_the_job_does(daemon, how):
    """Q5, S7, P8."""
    command, code = EXITS[how]
    done = daemon.jobctl("run", "--", *command)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr


def test_run_exits_with_124_after_a_timeout(daemon):
    """Q5, P11."""
    done = daemon.jobctl("run", "--timeout", "0.3s", "--", "sleep", "1000")
    assert done.returncode == 124
    assert "timeout" in done.stderr


def test_waiting_for_a_limited_time_is_124_and_ends_no_job(daemon, sleeper):
    """Q5."""
    done = daemon.jobctl("wait", "--timeout", "0.2s", sleeper)
    assert (done.returncode, done.stdout) == (124, "")
    assert daemon.job(sleeper)["state"] == "RUNNING"


@pytest.mark.parametrize(
    "arguments",
    [
        ("run",),
        ("run", "--no-such-option", "--", "true"),
        ("run", "--memory", "lots", "--", "true"),
        ("run", "--cpu", "-1", "--", "true"),
        ("no-such-verb",),
        ("stop",),
        ("logs", "--tail", "many", "00000000-0000-4000-8000-000000000000"),
        ("run", "--", "relative/path"),
    ],
)
def test_a_wrong_command_line_is_2(daemon, arguments):
    """Q5."""
    done = daemon.jobctl(*arguments)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr
    assert "Traceback" not in done.stderr


def test_what_the_server_refuses_is_125(daemon, sleeper):
    """Q5: permission, unknown job, a job that has ended."""
    ended = daemon.jobctl("run", "--", "true")
    assert ended.returncode == 0
    for user, *arguments in (
        ("bob", "status", sleeper),
        ("bob", "run", "--network", "host", "--", "true"),
        ("alice", "status", "00000000-0000-4000-8000-000000000000"),
        ("alice", "signal", "-s", "HUP", daemon.jobctl("list", "-a", "-q", "--state", "completed").stdout.split()[0]),
    ):
        done = daemon.jobctl(*arguments, user=user)
        assert (done.returncode, done.stdout) == (125, ""), done.stderr
        assert done.stderr.startswith("jobctl: ")


def test_arguments_arrive_byte_for_byte(daemon):
    """S9, Q4: no shell anywhere, and behind the program everything is the program's."""
    hard = ["--memory", "-h", "--", ";rm -rf", "$(id)", "two words", "", "new\nline", "*", "\udcff\udc80", "ü", "'\""]
    done = daemon.jobctl("run", "--", "printf", r"%s\0", *hard, text=False)
    assert done.stdout == b"".join(os.fsencode(word) + b"\0" for word in hard), done.stderr
    plain = daemon.jobctl(
        "run", "printf", "%s.", "--memory", "-x", "--help"
    )  # Q4 without --: the program's all the same
    assert plain.stdout == "--memory.-x.--help."


def test_help_has_examples_and_a_missing_file_is_named(daemon, tmp_path):
    """Q4."""
    for verb in ("start", "run", "logs", "stop", "list", "status", "wait"):
        told = daemon.jobctl(verb, "--help")
        assert told.returncode == 0
        assert f"jobctl {verb}" in told.stdout.partition("Examples")[2]
    missing = tmp_path / "nobody-made-this"
    done = daemon.jobctl("run", "--env-file", missing, "--", "true")
    assert done.returncode == 2
    assert str(missing) in done.stderr
    done = daemon.jobctl("--context", missing, "list")
    assert done.returncode == 125
    assert str(missing) in done.stderr


def test_an_id_may_be_as_short_as_it_is_unique(daemon, sleeper):
    """design.md §12; and what begins no id, or everybody's, is an error."""
    assert json.loads(daemon.jobctl("status", "-o", "json", sleeper[:12]).stdout)["id"] == sleeper
    for wrong, code in (("zzz", 125), ("ffffffff-ffff-4", 125), ("", 125)):
        assert daemon.jobctl("status", wrong).returncode == code

    async def start_some():
        async with daemon.client() as client:
            await asyncio.gather(*(client.start(JobSpec(program="/bin/true")) for _ in range(17)))

    asyncio.run(start_some())  # two of 17 begin with the same digit
    ids = daemon.jobctl("list", "-a", "-q").stdout.split()
    shared = next(digit for digit in "0123456789abcdef" if sum(job_id.startswith(digit) for job_id in ids) > 1)
    ambiguous = daemon.jobctl("status", shared)
    assert ambiguous.returncode == 2
    assert "ambiguous" in ambiguous.stderr


@pytest.mark.parametrize("arguments", [("list",), ("run", "--", "true"), ("logs", "0" * 8), ("wait", "0" * 8)])
def test_a_server_that_is_down_is_named_within_a_deadline(empty_daemon, arguments):
    """Q2: nobody listens there."""
    begun = time.monotonic()
    done = empty_daemon.jobctl(*arguments, user="admin")
    assert time.monotonic() - begun < 30
    assert (done.returncode, done.stdout) == (125, "")
    assert f"cannot reach {empty_daemon.dialed}" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_stream_is_left_and_the_job_is_not(daemon, sleeper, how):
    """Q3: with the way back on stderr, and with the exit code of the signal."""
    follower = daemon.spawn_jobctl("logs", "-f", sleeper)
    assert follower.stdout.read(6) == b"ready\n"
    follower.send_signal(how)
    rest, words = follower.communicate(timeout=60)
    assert (follower.returncode, rest) == (128 + how, b"")
    assert f"logs --offset 6 {sleeper}".encode() in words
    assert b"Traceback" not in words
    assert daemon.job(sleeper)["state"] == "RUNNING"


def test_an_interrupted_run_leaves_its_job_running(daemon):
    """Q3."""
    running = daemon.spawn_jobctl("run", "--", "sh", "-c", "echo ready; exec sleep 1000")
    assert running.stdout.read(6) == b"ready\n"
    running.send_signal(signal.SIGINT)
    _, words = running.communicate(timeout=60)
    assert running.returncode == 130
    (job_id,) = re.findall(f"jobctl .*stop ({ID})", words.decode())
    assert daemon.job(job_id)["state"] == "RUNNING"
    assert daemon.jobctl("stop", job_id).returncode == 0


def test_a_reader_that_has_seen_enough_hears_no_complaint(daemon):
    """Q3: `| head` ends it, quietly, while the job still writes, and when it has ended."""
    reading, writing = os.pipe()
    follower = daemon.spawn_jobctl("run", "--output-limit", "8M", "--timeout", "100s", "--", "yes", stdout=writing)
    os.close(writing)
    assert os.read(reading, 4) == b"y\ny\n"
    os.close(reading)
    _, words = follower.communicate(timeout=60)
    assert (follower.returncode, words) == (141, b"")
    job_id = daemon.jobctl("list", "-q", "--state", "running", "--last", "1").stdout.strip()
    assert daemon.jobctl("stop", job_id).returncode == 0
    piped = subprocess.run(
        ["sh", "-c", '"$@" | head -c 4', "sh", *daemon.jobctl_command("logs", job_id)],
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert (piped.stdout, piped.stderr) == (b"y\ny\n", b"")


def cut_off(daemon, eventually, while_it_is_away):
    """Followers, a run and a waiter lose their server, each of which must be told as our failure."""
    daemon.start()
    job_id = daemon.start_job("sh", "-c", "echo ready; exec sleep 1000")
    cut = [
        daemon.spawn_jobctl("logs", "-f", job_id),
        daemon.spawn_jobctl("logs", "-f", "--exit-code", job_id),
        daemon.spawn_jobctl("run", "--", "sh", "-c", "echo ready; exec sleep 1000"),
    ]
    for follower in cut:
        assert follower.stdout.read(6) == b"ready\n"
    before = daemon.connections()
    cut.append(daemon.spawn_jobctl("wait", job_id))
    eventually(lambda: daemon.connections() > before)
    daemon.kill()
    while_it_is_away()
    told = [follower.communicate(timeout=60)[1].decode() for follower in cut]
    assert [follower.returncode for follower in cut] == [125] * len(cut), told
    return told


def test_a_lost_connection_is_never_a_success(own_daemon, eventually):
    """Q5: killed under them; the server that comes back no longer knows the user."""

    def return_without_alice():
        own_daemon.remove("alice")
        own_daemon.start()

    for words in cut_off(own_daemon, eventually, return_without_alice):
        assert any(told in words for told in ("certificate refused", "bad authentication", "cannot reach"))


@pytest.mark.soak
def test_a_server_that_stays_away_is_told_in_the_end(own_daemon, eventually):
    """Q5, Q2: after half a minute of patience."""
    for words in cut_off(own_daemon, eventually, lambda: None):
        assert f"cannot reach {own_daemon.dialed}" in words


def test_a_context_is_found_by_name_directory_and_environment(daemon, tmp_path):
    """design.md §12."""
    clients = daemon.directory / "clients"
    environment = os.environ | {"XDG_CONFIG_HOME": str(tmp_path)}
    program = daemon.jobctl_command()[:-2]

    def whose(*arguments, **variables):
        command = [*program, *arguments, "start", "--", "true"]
        done = subprocess.run(
            command, env=environment | variables, capture_output=True, text=True, check=False, timeout=30
        )
        return daemon.job(done.stdout.strip())["owner"] if done.returncode == 0 else done.stderr

    assert whose("--context", str(clients / "bob")) == "bob"
    assert whose(JOBCTL_CONTEXT=str(clients / "alice")) == "alice"
    assert whose("-u", "bob", JOBCTL_CONTEXT=str(clients / "alice")) == "bob"
    assert "no context chosen" in whose()
    used = subprocess.run(
        [*program, "context", "use", str(clients / "bob")], env=environment, capture_output=True, check=False
    )
    assert used.returncode == 0, used.stderr
    assert whose() == "bob"


def test_a_key_that_others_can_read_is_not_used(daemon, transport, tmp_path):
    """R6 on the client's side."""
    context = tmp_path / "loose"
    context.mkdir()
    for file in (daemon.directory / "clients/alice").iterdir():
        (context / file.name).write_bytes(file.read_bytes())
        (context / file.name).chmod(0o600)
    assert daemon.jobctl("--context", context, "list").returncode == 0  # positive control
    secret = context / ("client.key" if transport is Transport.GRPC else "token")
    secret.chmod(0o640)
    done = daemon.jobctl("--context", context, "list")
    assert (done.returncode, done.stdout) == (125, "")
    assert f"chmod 600 {secret}" in done.stderr


def test_the_console_scripts_are_what_is_tested_here():
    """design.md §12: jobctl and jobworkerd start as installed."""
    with (Path(__file__).parents[2] / "pyproject.toml").open("rb") as file:
        scripts = tomllib.load(file)["project"]["scripts"]
    for name in scripts:
        script = Path(sys.executable).parent / name
        if not script.exists():
            pytest.skip(f"{name} is not installed beside {sys.executable}")
        told = subprocess.run([script, "version"], capture_output=True, text=True, check=False, timeout=30)
        assert (told.returncode, told.stdout.split()[0]) == (0, name)


def test_a_stdout_that_is_full_or_closed_is_no_fault_of_jobctl(daemon, sleeper):
    with open("/dev/full", "w") as full:
        refused = daemon.jobctl("list", stdout=full, stderr=subprocess.PIPE, capture_output=False)
    assert (refused.returncode, refused.stderr) == (125, "jobctl: cannot write the output: No space left on device\n")
    command = ["sh", "-c", 'exec "$@" >&-', "sh", *daemon.jobctl_command("list")]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
