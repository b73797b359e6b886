"""The operator's commands about tokens: shown once, kept as hashes, refused from the moment they are revoked."""

import re
import sqlite3
import stat

import pytest

from jobworker.access.tokens import Token
from jobworker.credentials import Credentials
from jobworker.store.database import Database

HERE = "192.0.2.1"


@pytest.fixture(scope="module")
def alice(jobworkerd, state):
    added = jobworkerd("user", "add", "alice", "--dir", state)
    assert added.returncode == 0, added.stderr
    return state


def create(jobworkerd, state, *options):
    made = jobworkerd("token", "create", "alice", *options, "--dir", state)
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


def proven(state, text):
    with Database.open(state / "jobworker.db") as database:
        return Credentials(database).prove(text, HERE)


def test_a_token_is_printed_alone_and_proves_its_user(jobworkerd, alice):
    """Q1: words go to stderr."""
    text = create(jobworkerd, alice)
    found = proven(alice, text)
    assert (found.user, found.role.value) == ("alice", "user")
    assert {scope.value for scope in found.scopes} == {"jobs:read", "jobs:start", "jobs:stop", "jobs:output"}


def test_the_secret_is_nowhere_in_the_state(jobworkerd, alice):
    """A5: only its hash is stored."""
    text = create(jobworkerd, alice)
    secret = text.split("_")[2].encode()
    for path in alice.rglob("*"):
        assert path.is_dir() or secret not in path.read_bytes(), path
    with sqlite3.connect(alice / "jobworker.db") as connection:
        rows = connection.execute("SELECT hash FROM tokens WHERE id = ?", (Token.parse(text).id,)).fetchall()
    connection.close()
    assert rows == [(Token.parse(text).secret_hash(),)]  # positive control


def test_scopes_and_lifetime_are_the_operators_choice(jobworkerd, alice):
    text = create(jobworkerd, alice, "--scope", "jobs:read", "--ttl", "90d")
    found = proven(alice, text)
    assert [scope.value for scope in found.scopes] == ["jobs:read"]
    for options in (["--ttl", "91d"], ["--ttl", "0s"], ["--scope", "everything"]):
        refused = jobworkerd("token", "create", "alice", *options, "--dir", alice)
        assert refused.returncode in {1, 2}
        assert "Traceback" not in refused.stderr


def test_a_list_shows_the_good_ones_without_secrets(jobworkerd, alice):
    texts = [create(jobworkerd, alice) for _ in range(2)]
    ids = [Token.parse(text).id for text in texts]
    assert jobworkerd("token", "revoke", ids[0], "--dir", alice).returncode == 0
    listed = jobworkerd("token", "list", "--user", "alice", "--dir", alice).stdout
    assert ids[1] in listed
    assert ids[0] not in listed
    assert not any(text.split("_")[2] in listed for text in texts)
    assert re.search(rf"^{ids[1]}  alice +\S+Z  jobs:output jobs:read", listed, re.MULTILINE)


def test_a_revoked_token_proves_nothing_any_more_and_is_on_record(jobworkerd, alice):
    text = create(jobworkerd, alice)
    proven(alice, text)  # positive control
    token_id = Token.parse(text).id
    assert jobworkerd("token", "revoke", token_id, "--dir", alice).returncode == 0
    with pytest.raises(Exception, match="bad authentication"):
        proven(alice, text)
    exported = jobworkerd("audit", "export", "--dir", alice).stdout
    assert '"action":"token.create"' in exported
    assert re.search(rf'"action":"token.revoke".*"target":"{token_id}"', exported)
    again = jobworkerd("token", "revoke", token_id, "--dir", alice)
    assert (again.returncode, len(again.stderr.splitlines())) == (1, 1)


def test_a_token_in_place_of_its_id_is_not_repeated(jobworkerd, alice):
    text = create(jobworkerd, alice)
    refused = jobworkerd("token", "revoke", text, "--dir", alice)
    assert refused.returncode == 1
    assert text.split("_")[2] not in refused.stderr


def test_a_removed_users_tokens_do_not_come_back_with_the_name(jobworkerd, alice):
    """A3: nor do those of the context."""
    texts = [create(jobworkerd, alice), (alice / "clients/alice/token").read_text().strip()]
    for text in texts:
        assert proven(alice, text).user == "alice"  # positive control
    assert stat.S_IMODE((alice / "clients/alice/token").stat().st_mode) == 0o600
    assert jobworkerd("user", "remove", "alice", "--dir", alice).returncode == 0
    assert jobworkerd("user", "add", "alice", "--dir", alice).returncode == 0
    for text in texts:
        with pytest.raises(Exception, match="bad authentication"):
            proven(alice, text)
    assert proven(alice, (alice / "clients/alice/token").read_text().strip()).user == "alice"


def test_there_is_no_token_for_nobody(jobworkerd, state):
    refused = jobworkerd("token", "create", "nobody", "--dir", state)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "there is no user nobody" in refused.stderr
