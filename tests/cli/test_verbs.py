"""What each verb prints, where it prints it, and what it exits with."""

import json
import re
import subprocess
import sys
import uuid
from collections import Counter
from unittest.mock import ANY

import grpc
import pytest
from client.scripted_server import STDERR, STDOUT, Script

from jobworker.api.grpc._generated import jobworker_pb2 as pb2
from jobworker.client.context import Transport

RUNS_ON = Script([(STDOUT, b"one\n")], outcome=None)


def test_start_prints_the_bare_id_on_stdout_and_words_on_stderr(server, jobctl):  # Q1
    done = jobctl("start", "--name", "n", "-l", "a=b", "--", "echo", "-n", "")
    assert done.returncode == 0
    assert uuid.UUID(done.stdout.decode().removesuffix("\n"))
    assert f"jobctl logs {done.stdout.decode().strip()}\n".encode() in done.stderr
    spec = server.last(pb2.StartRequest).spec
    assert (spec.name, dict(spec.labels), list(spec.args)) == ("n", {"a": "b"}, [b"-n", b""])


def test_the_hint_of_start_repeats_how_the_server_was_reached(transport, jobctl, tmp_path):
    place = str(tmp_path / "clients/alice")
    done = jobctl("start", "--context", place, "--transport", transport.value, "--", "echo")
    hint = f"jobctl --context {place} --transport {transport.value} logs {done.stdout.decode().strip()}\n"
    assert hint.encode() in done.stderr


def test_start_as_json_prints_the_whole_job_as_status_does(server, jobctl):
    done = jobctl("start", "-o", "json", "--name", "n", "--", "echo")
    document = json.loads(done.stdout)
    assert document == json.loads(jobctl("status", "-o", "json", document["id"]).stdout)
    assert document["spec"]["name"] == "n"
    (line,) = jobctl("start", "-o", "jsonl", "--", "echo").stdout.splitlines()
    assert json.loads(line)["id"] in server.jobs.jobs


def test_the_output_of_run_is_the_jobs_and_has_no_other_format(jobctl):
    done = jobctl("run", "-o", "json", "--", "echo")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"No such option: -o" in done.stderr


@pytest.mark.parametrize(
    "line",
    [["--", "echo", "-x", "--", "--cpu", "9"], ["echo", "-x", "--", "--cpu", "9"]],
)
def test_behind_the_program_every_word_is_the_programs(server, jobctl, line):  # Q4
    jobctl("start", *line)
    request = server.last(pb2.StartRequest)
    assert list(request.spec.args) == [b"-x", b"--", b"--cpu", b"9"]
    assert not request.spec.limits.HasField("cpu")


def test_arguments_that_are_not_utf8_arrive_byte_for_byte(server, jobctl):
    jobctl("start", "--", "echo", b"\xff\x80")
    assert list(server.last(pb2.StartRequest).spec.args) == [b"\xff\x80"]


def test_run_keeps_the_streams_apart_and_every_byte(server, jobctl):  # O13
    every_byte = bytes(range(256))
    server.jobs.scripts[b"p"] = Script([(STDOUT, every_byte), (STDERR, b"\x1berr"), (STDOUT, b"\r")])
    done = jobctl("run", "--", "p")
    assert (done.stdout, done.stderr, done.returncode) == (every_byte + b"\r", b"\x1berr", 0)


@pytest.mark.parametrize(
    ("outcome", "code", "words"),
    [
        ({"exited": 7}, 7, b"exited with code 7"),
        ({"exited": 125}, 125, b"exited with code 125"),
        ({"signaled": 11}, 139, b"killed by signal 11, SIGSEGV"),
        ({"oom_killed": pb2.Outcome.OomKilled()}, 137, b"out of memory"),
        ({"timed_out": pb2.Outcome.TimedOut()}, 124, b"timeout"),
        ({"stopped": pb2.Outcome.Stopped(by="bob", signal=9)}, 137, b"stopped by bob"),
        ({"lost": pb2.Outcome.Lost(reason="host rebooted")}, 125, b"lost: host rebooted"),
    ],
)
def test_run_exits_as_the_job_did_and_says_how_it_ended(server, jobctl, outcome, code, words):  # Q5
    server.jobs.scripts[b"p"] = Script([], pb2.Outcome(**outcome))
    done = jobctl("run", "--", "p")
    assert done.returncode == code
    assert words in done.stderr


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        ((grpc.StatusCode.NOT_FOUND, "program_not_found", "program not found"), 127),
        ((grpc.StatusCode.FAILED_PRECONDITION, "program_not_executable", "program not executable"), 126),
        ((grpc.StatusCode.PERMISSION_DENIED, "permission_denied", "no\x1b[2J"), 125),
        ((grpc.StatusCode.INVALID_ARGUMENT, "invalid_argument", "workdir is wrong"), 2),
        ((grpc.StatusCode.INTERNAL, "internal", "fault 3f2a"), 125),
    ],
)
def test_a_refused_start_has_its_own_exit_code(server, jobctl, failure, code):  # Q5
    server.jobs.failures = [failure]
    done = jobctl("run", "--", "echo")
    assert (done.returncode, done.stdout) == (code, b"")
    message = failure[2].replace("\x1b", "^[")
    assert done.stderr == f"jobctl: {message}\n".encode()


def test_a_server_that_is_down_is_named(address, jobctl, tmp_path):  # Q2
    file = tmp_path / "clients/alice/context.toml"
    file.write_text(file.read_text().replace(address, "127.0.0.1:1"))
    done = jobctl("list")
    assert (done.returncode, done.stdout) == (125, b"")
    assert done.stderr.startswith(b"jobctl: cannot reach 127.0.0.1:1: ")
    assert done.stderr.count(b"\n") == 1


def test_a_missing_file_is_named_without_a_traceback(jobctl, tmp_path):  # Q4
    (tmp_path / "clients/alice/ca.crt").unlink()
    done = jobctl("list")
    assert done.returncode == 125
    assert done.stderr.startswith(b"jobctl: missing file: ")
    assert done.stderr.endswith(b"/ca.crt\n")


def test_logs_write_both_streams_in_order_to_stdout(server, jobctl):
    server.jobs.scripts[b"p"] = Script([(STDOUT, b"a\n"), (STDERR, b"b\n"), (STDOUT, b"c\n")], pb2.Outcome(exited=3))
    job_id = server.add(b"p")
    done = jobctl("logs", job_id)
    assert (done.stdout, done.stderr, done.returncode) == (b"a\nb\nc\n", b"", 0)
    assert jobctl("output", "--stderr", job_id).stdout == b"b\n"
    assert jobctl("stream", "--offset", "3", job_id).stdout == b"\nc\n"
    done = jobctl("logs", "--exit-code", "--tail", "1", "-t", job_id)
    assert (done.stdout, done.returncode) == (b"2023-11-14T22:13:20.000000Z c\n", 3)


def test_timestamps_begin_each_line_once_however_it_is_split(server, jobctl):
    server.jobs.scripts[b"p"] = Script([(STDOUT, b"a"), (STDOUT, b"b\nc\n\n"), (STDOUT, b"d")])
    stamp = b"2023-11-14T22:13:20.000000Z "
    done = jobctl("logs", "-t", server.add(b"p"))
    assert done.stdout == stamp + b"ab\n" + stamp + b"c\n" + stamp + b"\n" + stamp + b"d"


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_logs_for_programs_are_one_frame_a_line_and_an_end(server, jobctl, form):
    """A stream has no whole to print, so json means what jsonl means."""
    server.jobs.scripts[b"p"] = Script([(STDOUT, b"text\n"), (STDERR, b"\xff")])
    job_id = server.add(b"p")
    frames = [json.loads(line) for line in jobctl("logs", "-o", form, job_id).stdout.splitlines()]
    assert [frame.get("text") or frame.get("base64") for frame in frames] == ["text\n", "/w==", None]
    assert [(frame.get("offset"), frame.get("stream")) for frame in frames[:2]] == [(0, "stdout"), (5, "stderr")]
    assert frames[2]["end"]["state"] == "COMPLETED"
    assert {frame["id"] for frame in frames} == {job_id}


def test_dropped_output_is_never_silent(server, jobctl):  # O8
    server.jobs.scripts[b"p"] = Script([(STDOUT, b"kept")], dropped_bytes=7)
    done = jobctl("run", "--", "p")
    assert done.stdout == b"kept"
    assert b"lost 7 bytes of output to its output limit" in done.stderr


def test_logs_without_following_end_while_the_job_runs(server, jobctl):
    server.jobs.scripts[b"p"] = RUNS_ON
    done = jobctl("logs", "--no-follow", "--since", "10m", server.add(b"p"))
    assert (done.stdout, done.returncode) == (b"one\n", 0)


def test_an_id_may_be_shortened_while_it_is_unique(server, jobctl):
    ids = [server.add(b"echo") for _ in range(17)]  # one more than there are digits to begin with
    ((digit, count),) = Counter(job_id[0] for job_id in ids).most_common(1)
    done = jobctl("status", digit)
    assert done.returncode == 2
    assert f"{count} jobs begin so".encode() in done.stderr
    done = jobctl("status", ids[3][:30].upper(), "-o", "json")
    assert json.loads(done.stdout)["id"] == ids[3]


@pytest.mark.parametrize("text", ["ffffffff", "../../etc", ""])
def test_an_unknown_id_is_125(jobctl, text):
    done = jobctl("status", text)
    assert (done.returncode, done.stdout) == (125, b"")
    assert b"no job" in done.stderr


def test_stop_prints_the_ids_and_forgives_jobs_that_had_ended(server, jobctl):
    server.jobs.scripts[b"p"] = RUNS_ON
    running, ended = server.add(b"p"), server.add(b"echo")
    done = jobctl("stop", "--grace", "1s", "-s", "int", running, ended)
    assert done.returncode == 0
    assert sorted(done.stdout.decode().split()) == sorted([running, ended])
    assert f"{ended} had already ended".encode() in done.stderr
    assert {request.signal for request in server.jobs.requests if isinstance(request, pb2.StopRequest)} == {2}


BEYOND_64_BITS = str(2**63)
UNKNOWN = "ffffffff-0000-4000-8000-000000000000"


@pytest.mark.parametrize(
    ("verb", "script", "fact"),
    [
        (["stop"], RUNS_ON, ("state", "STOPPED")),
        (["stop"], Script([]), ("state", "COMPLETED")),
        (["wait"], Script([]), ("exit_code", 0)),
        (["rm"], Script([]), ("id", ANY)),
        (["signal", "-s", "HUP"], RUNS_ON, ("signal", 1)),
        (["kill"], RUNS_ON, ("signal", 9)),
    ],
    ids=["stop", "stop-ended", "wait", "rm", "signal", "kill"],
)
def test_what_became_of_jobs_as_json(server, jobctl, verb, script, fact):
    server.jobs.scripts[b"p"] = script

    def added(count):
        return [server.add(b"p") for _ in range(count)]

    (one,) = added(1)
    document = json.loads(jobctl(*verb, "-o", "json", one).stdout)
    assert document["id"] == one
    assert fact in document.items()

    several = added(2)
    documents = json.loads(jobctl(*verb, "-o", "json", *several).stdout)
    assert sorted(document["id"] for document in documents) == sorted(several)

    several = added(2)
    done = jobctl(*verb, "-o", "jsonl", several[0], UNKNOWN, several[1])
    assert sorted(json.loads(line)["id"] for line in done.stdout.splitlines()) == sorted(several)
    assert done.returncode == 125


def test_one_json_document_holds_the_jobs_that_could_be_acted_on(server, jobctl):
    ended = server.add(b"echo")
    done = jobctl("wait", "-o", "json", UNKNOWN, ended)
    assert [document["id"] for document in json.loads(done.stdout)] == [ended]
    assert done.returncode == 125
    assert jobctl("rm", "-o", "json", UNKNOWN).stdout == b""


def test_one_job_that_cannot_be_stopped_does_not_keep_the_others(server, jobctl):
    server.jobs.scripts[b"p"] = RUNS_ON
    running = server.add(b"p")
    done = jobctl("cancel", UNKNOWN, running)
    assert done.returncode == 125
    assert done.stdout.decode().split() == [running]
    assert done.stderr.startswith(f"jobctl: {UNKNOWN}: ".encode())


def test_kill_sends_sigkill_and_signal_what_it_is_told(server, jobctl):
    server.jobs.scripts[b"p"] = RUNS_ON
    assert jobctl("kill", server.add(b"p")).returncode == 0
    assert server.last(pb2.SignalRequest).signal == 9
    assert jobctl("signal", "-s", "SIGHUP", server.add(b"p")).returncode == 0
    assert server.last(pb2.SignalRequest).signal == 1
    assert jobctl("signal", server.add(b"p")).returncode == 2


def test_wait_exits_with_the_highest_code(server, jobctl):
    server.jobs.scripts[b"three"] = Script([], pb2.Outcome(exited=3))
    done = jobctl("wait", server.add(b"echo"), server.add(b"three"))
    assert done.returncode == 3
    assert done.stdout == b""


def test_wait_with_a_timeout_exits_124_while_the_job_runs(server, jobctl):
    server.jobs.scripts[b"p"] = RUNS_ON
    job_id = server.add(b"p")
    done = jobctl("wait", "--timeout", "50ms", job_id)
    assert done.returncode == 124
    assert done.stderr == f"jobctl: job {job_id} still runs\n".encode()


def test_wait_for_any_ends_with_the_first(server, jobctl):
    server.jobs.scripts[b"p"] = RUNS_ON
    ended = server.add(b"echo")
    done = jobctl("wait", "--any", "-o", "jsonl", server.add(b"p"), ended)
    assert done.returncode == 0
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == [ended]


def test_rm_refuses_a_running_job_unless_forced(server, jobctl):
    server.jobs.scripts[b"p"] = RUNS_ON
    job_id = server.add(b"p")
    refused = jobctl("rm", job_id)
    assert refused.returncode == 125
    assert refused.stderr.endswith(f"; to end it first: jobctl rm --force {job_id}\n".encode())
    assert jobctl("rm", "-f", job_id).stdout.decode().split() == [job_id]
    assert not server.jobs.jobs


def test_list_shows_what_runs_and_the_last_ten_that_ended(server, jobctl):
    server.jobs.scripts[b"p"] = RUNS_ON
    running = server.add(b"p", name="old")
    ended = [server.add(b"echo") for _ in range(12)]
    assert jobctl("ps", "-q").stdout.decode().split() == [running, *ended[:1:-1]]
    assert len(jobctl("ls", "-a", "-q").stdout.split()) == 13
    assert jobctl("list", "-q", "--filter", "name=old").stdout.decode().split() == [running]
    assert len(jobctl("list", "-q", "--state", "completed").stdout.split()) == 12
    assert len(json.loads(jobctl("list", "-n", "2", "-o", "json").stdout)) == 2


def test_a_table_in_a_pipe_is_plain_and_in_full(server, jobctl):
    job_id = server.add(b"echo", [b"a b", b"\x1b[2J\n"])
    head, row = jobctl("list").stdout.decode().splitlines()
    assert head.split() == ["ID", "NAME", "OWNER", "STATE", "EXIT", "CREATED", "DURATION", "COMMAND"]
    assert row.startswith(f"{job_id}   -      alice   COMPLETED   0 ")
    assert row.endswith("echo 'a b' '^[[2J^J'")


def test_status_shows_people_how_a_job_ended(server, jobctl):
    server.jobs.scripts[b"p"] = Script([], pb2.Outcome(oom_killed=pb2.Outcome.OomKilled()))
    shown = dict(line.split(maxsplit=1) for line in jobctl("status", server.add(b"p")).stdout.decode().splitlines())
    assert (shown["STATE"], shown["OUTCOME"]) == ("FAILED", "killed: out of memory")
    assert "EXIT" not in shown


def test_why_says_what_to_change(server, jobctl):
    server.jobs.scripts[b"p"] = Script([], pb2.Outcome(oom_killed=pb2.Outcome.OomKilled()))
    job_id = server.add(b"p")
    job = server.jobs.jobs[job_id]
    job.spec.limits.memory_bytes = 512 << 20
    job.usage.memory_peak_bytes = 512 << 20
    assert jobctl("why", job_id[:13]).stdout == b"killed: out of memory, peak 512 of 512 MiB; try --memory 768M\n"
    document = json.loads(jobctl("why", "-o", "json", job_id).stdout)
    assert document == {
        "id": job_id,
        "state": "FAILED",
        "remarks": [{"what": "killed: out of memory, peak 512 of 512 MiB", "advice": "try --memory 768M"}],
    }


def test_status_shows_programs_one_document(server, jobctl):
    document = json.loads(jobctl("inspect", server.add(b"echo", [b"hi"])).stdout)
    assert (document["state"], document["exit_code"], document["outcome"]) == (
        "COMPLETED",
        0,
        {"kind": "exited", "code": 0},
    )
    assert document["spec"]["args"] == ["hi"]


def test_a_document_has_its_words_in_the_same_order_over_every_transport(server, jobctl):
    words = dict.fromkeys(("pid", "mount", "uid", "seccomp", "network", "landlock", "ipc"), "x")
    job_id = server.add(b"echo", labels=words, env=dict.fromkeys(words, b"x"))
    server.jobs.jobs[job_id].sandbox.update(words)
    server.jobs.jobs[job_id].effective_limits.update(words)
    document = json.loads(jobctl("inspect", job_id).stdout)
    for found in (
        document["sandbox"],
        document["effective_limits"],
        document["spec"]["env"],
        document["spec"]["labels"],
    ):
        assert list(found) == sorted(words)


def test_whoami_shows_whom_the_server_takes_its_caller_for(jobctl):
    lines = dict(line.split(maxsplit=1) for line in jobctl("whoami").stdout.decode().splitlines())
    assert lines.pop("EXPIRES").startswith("2096-10-02T07:06:40.000000Z (in ")
    assert lines == {"USER": "alice", "ROLE": "user", "SCOPES": "jobs:read", "CREDENTIAL": "certificate serial 1"}
    assert json.loads(jobctl("whoami", "-o", "json").stdout) == {
        "user": "alice",
        "role": "user",
        "scopes": ["jobs:read"],
        "credential": "certificate serial 1",
        "expires_at": "2096-10-02T07:06:40.000000Z",
    }


def test_the_context_option_works_before_and_behind_the_verb(authority, server, jobctl, tmp_path):
    authority.context(tmp_path / "clients/bob", "bob", "127.0.0.1:1")
    assert jobctl("list").returncode == 0
    shown = [
        jobctl("-u", "bob", "context", "show"),
        jobctl("context", "show", "--context", str(tmp_path / "clients/bob")),
    ]
    assert all(b"user          bob\n" in done.stdout for done in shown)
    assert b"cannot reach" in jobctl("-u", "bob", "list").stderr


@pytest.mark.parametrize("where", ["before", "behind", "around"])
def test_the_transport_is_chosen_before_and_behind_the_verb_and_around_it(server, transport, jobctl, where):
    (other,) = set(Transport) - {transport}
    if where == "around":
        jobctl.environment["JOBCTL_TRANSPORT"] = other.value
    line = {"before": ["--transport", other.value, "list"], "behind": ["list", "--transport", other.value]}
    refused = jobctl(*line.get(where, ["list"]))
    assert (refused.returncode, refused.stdout) == (125, b"")
    assert f"no way over {other.value}".encode() in refused.stderr
    assert jobctl("--transport", transport.value, "list").returncode == 0  # positive control, and the option goes first


def test_contexts_are_added_listed_used_and_shown(address, transport, jobctl, tmp_path):
    directory = tmp_path / "clients/alice"
    assert jobctl("context", "add", "work", str(directory)).returncode == 0
    assert jobctl("context", "use", "work").returncode == 0
    del jobctl.environment["JOBCTL_CONTEXT"]
    assert jobctl("list").returncode == 0
    (listed,) = json.loads(jobctl("context", "list", "-o", "json").stdout)
    assert (listed["name"], listed["current"], listed["transports"]) == ("work", True, [transport.value])
    shown = json.loads(jobctl("context", "show", "-o", "json").stdout)
    key, file = ("key", "client.key") if transport is Transport.GRPC else ("token", "token")
    assert shown[key] == str(directory / file)
    assert f"transports    {transport.value}\n" in re.sub(" +", "    ", jobctl("context", "show").stdout.decode())
    assert address.encode() in jobctl("context", "ls").stdout
    assert b"missing: user, ca, certificate, key" in jobctl("context", "add", "x", "--server", "h:1").stderr
    assert b"missing: user, token" in jobctl("context", "add", "x", "--https", "h:1").stderr


def test_contexts_are_removed_and_what_they_point_to_stays(jobctl, tmp_path):
    place = tmp_path / "clients/alice"
    del jobctl.environment["JOBCTL_CONTEXT"]
    before = sorted(place.iterdir())
    for name in ("work", "lab"):
        jobctl("context", "add", name, str(place))
    jobctl("context", "use", "work")
    done = jobctl("context", "rm", "work", "bogus")
    assert (done.returncode, done.stdout) == (125, b"work\n")
    assert b"no context 'bogus'; known: lab; " in done.stderr
    assert b"no context chosen" in jobctl("list").stderr
    assert not (tmp_path / "config/jobctl/contexts/work").exists()
    assert sorted(place.iterdir()) == before
    assert jobctl("--context", "lab", "list").returncode == 0  # positive control


def test_an_empty_context_is_none_and_not_another_one(jobctl):
    for line in (["-u", "", "list"], ["list", "-u", ""]):
        done = jobctl(*line)
        assert (done.returncode, done.stdout) == (125, b"")
        assert b"no context ''; known: none; " in done.stderr


def test_a_mistyped_verb_is_answered_with_the_right_one(jobctl):
    done = jobctl("strat", "--", "echo")
    assert done.returncode == 2
    assert b"did you mean 'stats' or 'start'" in done.stderr
    assert b"did you mean 'list'" in jobctl("context", "lsit").stderr
    assert b"no such command 'bogus'; see: jobctl --help" in jobctl("bogus").stderr


def test_a_commands_option_before_it_is_answered_with_its_place(jobctl):
    done = jobctl("-o", "json", "ps")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"no such option -o before a command; a command's options go behind it, as in: jobctl list -o json" in (
        done.stderr
    )


@pytest.mark.parametrize(
    ("line", "option"),
    [
        (["-l", "x"], "--label"),
        (["-l", "=x"], "--label"),
        (["--state", "x"], "--state"),
        (["-n", "x"], "--last"),
        (["--filter", "label=x"], "--filter label"),
        (["--filter", "status=x"], "--filter status"),
        (["--filter", "x=y"], "--filter"),
    ],
)
def test_a_condition_that_is_none_is_named_as_it_was_given(jobctl, line, option):
    assert jobctl("list", *line).stderr.decode().startswith(f"jobctl: {option}: '")


@pytest.mark.parametrize(
    "line",
    [
        ["start"],
        ["start", "--cpu", "x", "--", "p"],
        ["start", "--idempotency-key", "", "--", "p"],
        ["logs", "--bogus"],
        ["logs", "--offset", BEYOND_64_BITS, "a"],
        ["logs", "--tail", BEYOND_64_BITS, "a"],
        ["list", "--filter", "name="],
        ["list", "--filter", "owner="],
        ["list", "--filter", "id="],
        ["signal", "-s", "X", "a"],
    ],
)
def test_a_wrong_command_line_is_2(server, jobctl, line):  # Q5
    done = jobctl(*line)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"Traceback" not in done.stderr
    assert not server.jobs.requests


VERBS = ["start", "run", "status", "inspect", "logs", "follow", "list", "wait", "stop", "signal", "kill", "rm"]
VERBS += ["why", "stats", "context", "login", "whoami", "version", "completion"]
CONTEXT_VERBS = ["context list", "context use", "context show", "context add", "context rm"]
LAST_OPTIONS = ["-o,", "-u,", "--transport", "-h,"]  # of every verb that has them


@pytest.mark.parametrize("verb", VERBS + CONTEXT_VERBS)
def test_help_has_three_examples_and_ends_with_the_options_that_all_have(jobctl, verb):  # Q4
    text, _, examples = jobctl(*verb.split(), "--help").stdout.decode().partition("Examples:\n")
    assert len([line for line in examples.splitlines() if "jobctl" in line]) == 3
    options = re.findall(r"^  (-\S+)", text, re.MULTILINE)
    shared = [option for option in LAST_OPTIONS if option in options]
    assert options[-len(shared) :] == shared


@pytest.mark.parametrize(
    ("verb", "words"),
    [("start", "PROGRAM [ARGS]..."), ("status", "ID"), ("stop", "ID..."), ("context add", "NAME [DIR]")],
)
def test_the_usage_is_written_as_manuals_write_it(jobctl, verb, words):
    assert jobctl(*verb.split(), "--help").stdout.decode().startswith(f"Usage: jobctl {verb} [OPTIONS] {words}\n")


def test_the_overview_names_every_verb_and_no_alias(jobctl):
    text = jobctl("--help").stdout.decode()
    listed = [line.split()[0] for line in text.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()]
    assert sorted(listed) == sorted(set(VERBS) - {"inspect", "follow", "kill"})


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_ask_jobctl(jobctl, shell):
    assert b"_JOBCTL_COMPLETE" in jobctl("completion", shell).stdout


def test_a_shell_gets_the_verbs_that_begin_so(jobctl):
    jobctl.environment |= {"_JOBCTL_COMPLETE": "complete_bash", "COMP_WORDS": "jobctl st", "COMP_CWORD": "1"}
    assert jobctl().stdout.decode().split() == ["start", "status", "stats", "stop"]


def test_a_verb_loads_neither_rich_nor_the_other_transport_nor_the_help_of_others(server, transport, jobctl):
    job_id = server.add(b"echo")
    loaded = jobctl_modules(jobctl, "status", job_id)
    assert "jobworker.cli.render" in loaded
    assert not {"rich", "rich.console", "jobworker.cli.follow"} & loaded
    libraries = {Transport.GRPC: {"grpc", "google.protobuf"}, Transport.HTTPS: {"h11"}}
    assert libraries.pop(transport) <= loaded  # positive control
    assert not set.union(*libraries.values()) & loaded
    assert not {"grpc", "h11"} & jobctl_modules(jobctl, "version")


def jobctl_modules(jobctl, *arguments):
    """The modules that a run of jobctl imports."""
    command = [sys.executable, "-X", "importtime", "-c", "from jobworker.cli.main import main; main()", *arguments]
    done = subprocess.run(command, env=jobctl.environment, capture_output=True, text=True, check=True)
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
