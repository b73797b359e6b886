"""jobctl login: a token is tried, then kept for its owner alone, and never shown."""

import os
import pty
import stat
from contextlib import suppress
from pathlib import Path

import pytest
from client.scripted_https import TOKEN

from jobworker.client.context import Context, Transport


@pytest.fixture
def transport():
    return Transport.HTTPS


@pytest.fixture
def ca(authority, tmp_path):
    file = tmp_path / "ca.crt"
    file.write_bytes(authority.pem)
    return str(file)


@pytest.fixture
def saved(jobctl):
    return Path(jobctl.environment["XDG_CONFIG_HOME"]) / "jobctl/contexts/work"


def test_a_token_from_stdin_becomes_the_current_context(address, jobctl, ca, saved):
    del jobctl.environment["JOBCTL_CONTEXT"]
    done = jobctl("login", "work", "--server", address, "--ca", ca, input=f"{TOKEN}\n".encode())
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-4:] == [b"work", b"alice", b"-", address.encode()]
    assert TOKEN.encode() not in done.stdout + done.stderr
    for file in (saved / "token", saved / "context.toml"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert Context.load(saved).read_token().reveal() == TOKEN
    assert jobctl("list").returncode == 0  # it is in use


def test_a_token_from_a_file_replaces_the_one_of_the_context_in_use(server, jobctl, tmp_path):
    renewed = tmp_path / "renewed"
    renewed.write_text("jw1_bbbbbbbbbbbb_another-secret_abcdef\n")
    before = (tmp_path / "clients/alice/context.toml").read_bytes()
    server.https.token = renewed.read_text().strip()
    assert jobctl("list").returncode == 125
    assert jobctl("login", "--token-file", str(renewed)).returncode == 0
    assert jobctl("list").returncode == 0
    assert (tmp_path / "clients/alice/context.toml").read_bytes() == before


def test_a_prompt_does_not_echo_the_token(address, jobctl, ca, saved):
    near, far = pty.openpty()
    # In a session without a terminal of its own, getpass asks on stdin and stderr.
    login = jobctl.begin(
        *("login", "work", "--server", address, "--ca", ca), stdin=far, stderr=far, start_new_session=True
    )
    shown = b""
    while b"Token: " not in shown:
        shown += os.read(near, 1024)
    os.write(near, f"{TOKEN}\n".encode())
    login.communicate(timeout=30)
    os.close(far)
    with suppress(OSError):  # EIO: all is read
        while piece := os.read(near, 1024):
            shown += piece
    os.close(near)
    assert login.returncode == 0, shown
    assert TOKEN.encode() not in shown
    assert Context.load(saved).read_token().reveal() == TOKEN


@pytest.mark.parametrize(
    ("token", "complaint"),
    [
        (b"jw1_cccccccccccc_wrong_abcdef\n", b"bad authentication"),
        (b"two words\n", b"that is no token"),
        (b"header\r\nX-Evil: 1", b"that is no token"),
        (b"", b"that is no token"),
        (b"x" * 5000, b"that is no token"),
    ],
)
def test_a_token_that_is_not_taken_is_not_kept(address, jobctl, ca, saved, token, complaint):  # noqa: PLR0917
    done = jobctl("login", "work", "--server", address, "--ca", ca, input=token)
    assert (done.returncode, done.stdout) == (125, b"")
    assert complaint in done.stderr
    assert done.stderr.count(b"\n") == 1
    assert not saved.exists()


def test_the_server_tells_whose_a_new_contexts_token_is(server, address, jobctl, ca, saved):
    server.jobs.user = "carol"
    done = jobctl("login", "work", "--server", address, "--ca", ca, input=TOKEN.encode())
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(b"jobctl: the token is carol's, good for ")
    assert Context.load(saved).user == "carol"


def test_a_token_of_another_user_is_not_kept(server, jobctl, tmp_path):
    server.https.token = "jw1_bbbbbbbbbbbb_secret-of-bob_abcdef"
    server.jobs.user = "bob"
    done = jobctl("login", input=server.https.token.encode())
    assert (done.returncode, done.stdout) == (125, b"")
    assert b"the token is bob's, and the context alice's" in done.stderr
    assert Context.load(tmp_path / "clients/alice").read_token().reveal() == TOKEN


def test_a_token_that_takes_anothers_place_says_so(server, jobctl):
    assert b"in place of the one before" in jobctl("login", input=TOKEN.encode()).stderr


def test_a_kept_token_that_is_none_is_named_by_its_file(jobctl, tmp_path):
    file = tmp_path / "clients/alice/token"
    file.write_text("two words")
    done = jobctl("list")
    assert done.returncode == 125
    assert f"{file} holds no token; store one with: jobctl login".encode() in done.stderr


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (["login"], b"jobctl login NAME --server HOST:PORT"),
        (["login", "work"], b"--server HOST:PORT"),
        (["login", "work", "--server", "nowhere"], b"HOST:PORT"),
        (["login", "a/b", "--server", "h:1"], b"context name"),
        (["login", "work", "--server", "h:1", "--token-file", "/nonexistent"], b"cannot read /nonexistent"),
    ],
)
def test_what_is_missing_is_said(jobctl, line, complaint):
    del jobctl.environment["JOBCTL_CONTEXT"]
    done = jobctl(*line, input=TOKEN.encode())
    assert done.returncode == 2
    assert complaint in done.stderr


def test_a_server_whose_ca_is_unknown_gets_no_token(server, address, jobctl, saved):
    done = jobctl("login", "work", "--server", address, input=TOKEN.encode())  # with the system's CAs
    assert done.returncode == 125
    assert b"its certificate is not from" in done.stderr
    assert server.https.seen == []
    assert not saved.exists()


def test_a_token_that_others_can_read_is_refused_with_the_remedy(jobctl, tmp_path):  # R6
    file = tmp_path / "clients/alice/token"
    file.chmod(0o640)
    done = jobctl("list")
    assert (done.returncode, done.stdout) == (125, b"")
    assert f"chmod 600 {file}".encode() in done.stderr
    file.chmod(0o600)
    assert jobctl("list").returncode == 0  # positive control


def test_there_is_no_option_to_write_a_token_on_the_command_line(jobctl):
    for line in (["login", "--help"], ["context", "add", "--help"], ["--help"]):
        assert b"--token " not in jobctl(*line).stdout
    assert jobctl("login", "work", "--token", TOKEN).returncode == 2
