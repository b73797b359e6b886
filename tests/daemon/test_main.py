"""jobworkerd's command line: data on stdout, one line for what went wrong, and a small start."""

import argparse
import os
import shlex
import sqlite3
import subprocess
import sys

import pytest

from jobworker import __version__
from jobworker.daemon import main


def test_it_tells_its_version(jobworkerd):
    for word in ("version", "--version"):
        told = jobworkerd(word)
        assert (told.returncode, told.stdout, told.stderr) == (0, f"jobworkerd {__version__}\n", "")


def test_loading_the_command_line_loads_nothing_that_the_launcher_must_not_have():
    heavy = "{'grpc', 'asyncio', 'ssl', 'sqlite3', 'pydantic', 'cryptography', 'typer'}"
    program = f"import sys, jobworker.daemon.main; print(sorted({heavy} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout == "[]\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["frobnicate"],
        ["init"],
        ["init", "--di", "x"],
        ["init", "--dir", "x", "--listen", "here"],
        ["user"],
        ["user", "add", "--dir", "x"],
        ["user", "add", "Alice", "--dir", "x"],
        ["user", "add", "../x", "--dir", "x"],
        ["user", "add", "alice", "--dir", "x", "--role", "king"],
        ["user", "add", "alice", "--dir", "x", "--ttl", "long"],
        ["audit", "verify", "--dir", "x", "--checkpoint", "1"],
        ["serve"],
    ],
)
def test_a_wrong_command_is_a_usage_error(jobworkerd, tmp_path, arguments):
    """R6, Q5."""
    refused = jobworkerd(*arguments, cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "usage: jobworkerd" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [["user", "list"], ["user", "add", "alice"], ["user", "remove", "alice"], ["audit", "verify"], ["audit", "export"]],
)
def test_a_directory_that_is_no_state_is_named_in_one_line_and_stays_as_it_is(jobworkerd, tmp_path, arguments):
    """R6."""
    refused = jobworkerd(*arguments, "--dir", tmp_path)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("jobworkerd: ")
    assert str(tmp_path) in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def parsers(parser):
    """The parser of every command and group of commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from parsers(each)


PARSERS = {parser.prog: parser for parser in parsers(main._parser())}


@pytest.mark.parametrize("command", PARSERS)
def test_help_explains_every_word_and_has_examples_that_work(command):
    """Q4."""
    for action in PARSERS[command]._actions:
        assert action.help or isinstance(action, argparse._SubParsersAction), action.option_strings
    title, *examples = (PARSERS[command].epilog or "").splitlines()
    assert title == "examples:"
    assert examples
    for line in examples:
        assert line.startswith(f"  {command} ") or line == f"  {command}"
        words = shlex.split(line.partition(" | ")[0].replace("$(cat checkpoint)", f"7:{'0' * 64}"))
        PARSERS["jobworkerd"].parse_args(words[1:])


def test_help_goes_to_stdout(jobworkerd):
    told = jobworkerd("user", "add", "--help")
    assert (told.returncode, told.stderr) == (0, "")
    assert "\n  jobworkerd user add alice --dir " in told.stdout


def test_users_are_listed_in_a_plain_table(jobworkerd, state):
    header, admin = jobworkerd("user", "list", "--dir", state).stdout.splitlines()
    assert header.split() == ["NAME", "ROLE", "CREATED"]
    assert admin.split()[:2] == ["admin", "admin"]


def test_the_audit_is_verified_up_to_a_checkpoint(jobworkerd, state):
    """U2."""
    whole = jobworkerd("audit", "verify", "--dir", state)
    assert whole.returncode == 0
    checkpoint = whole.stdout.strip()
    assert jobworkerd("user", "add", "alice", "--dir", state).returncode == 0
    assert jobworkerd("audit", "verify", "--checkpoint", checkpoint, "--dir", state).returncode == 0
    number, _, digest = checkpoint.partition(":")
    forged = f"{number}:{digest[::-1]}"
    assert jobworkerd("audit", "verify", "--checkpoint", forged, "--dir", state).returncode == 1


def test_a_forged_audit_is_told_with_the_first_forged_record(jobworkerd, place):
    """U2."""
    assert jobworkerd("init", "--dir", place / "state").returncode == 0
    assert jobworkerd("user", "add", "alice", "--dir", place / "state").returncode == 0
    assert jobworkerd("audit", "verify", "--dir", place / "state").returncode == 0  # positive control
    with sqlite3.connect(place / "state/jobworker.db") as connection:
        connection.execute("DROP TRIGGER audit_refuses_edits")
        connection.execute("UPDATE audit SET record = replace(record, 'alice', 'bob') WHERE sequence = 3")
    connection.close()
    found = jobworkerd("audit", "verify", "--dir", place / "state")
    assert (found.returncode, found.stdout) == (1, "")
    assert "record 3 " in found.stderr


def test_a_reader_that_leaves_early_hears_no_complaint(state):
    """Q3: `audit export | head` is quiet."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "jobworker.daemon.main", "audit", "export", "--dir", str(state)]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")
