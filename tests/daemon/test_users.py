"""`jobworkerd user`: who is on record may call, with a context that is ready to use."""

import json
import os
import stat
import time
import tomllib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from jobworker.access.certificates import BACKDATED, read_user
from jobworker.daemon import users as commands
from jobworker.store import users
from jobworker.store.database import Database

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who alone can give files to another user")


def on_record(state, name):
    with Database.open(state / "jobworker.db") as database:
        return database.read(lambda connection: users.get(connection, name))


def proven(context):
    """Who the context's certificate proves at this moment, its key belonging to it."""
    leaf, _issuing = x509.load_pem_x509_certificates((context / "client.crt").read_bytes())
    key = load_pem_private_key((context / "client.key").read_bytes(), None)
    assert key.public_key() == leaf.public_key()
    user = read_user(leaf.public_bytes(Encoding.PEM), "jobs.example.org")
    user.check_time(time.time())
    return user


def test_a_new_user_gets_a_private_context_to_the_letter(jobworkerd, state):
    added = jobworkerd("user", "add", "alice", "--dir", state)
    context = state / "clients/alice"
    assert (added.returncode, added.stdout) == (0, f"{context}\n"), added.stderr
    assert (context / "context.toml").read_text() == (
        "# a jobctl context: how to reach one jobworkerd as one user\n"
        'server = "127.0.0.1:50051"\n'
        'user = "alice"\n'
        'ca = "ca.crt"\n'
        'certificate = "client.crt"\n'
        'key = "client.key"\n'
        'https = "127.0.0.1:8443"\n'
        'token = "token"\n'
    )
    assert tomllib.loads((context / "context.toml").read_text())["user"] == "alice"
    assert (context / "ca.crt").read_bytes() == (state / "pki/bundle.crt").read_bytes()
    for path in (context, *context.iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
        assert path.stat().st_uid == os.geteuid()
    user = proven(context)
    assert (user.name, user.not_after - user.not_before) == ("alice", 86400 + BACKDATED)
    assert on_record(state, "alice").role == "user"
    assert [path.name for path in (state / "clients").iterdir() if path.name.startswith(".")] == []


def test_role_lifetime_and_place_are_the_operators_choice(jobworkerd, state, tmp_path):
    options = ["--role", "admin", "--ttl", "90m", "--out", tmp_path / "carol's"]
    added = jobworkerd("user", "add", "carol", *options, "--dir", state)
    assert added.stdout == f"{tmp_path}/carol's\n", added.stderr
    user = proven(tmp_path / "carol's")
    assert (user.name, user.not_after - user.issued_at) == ("carol", 5400)
    assert on_record(state, "carol").role == "admin"
    assert not (state / "clients/carol").exists()


def test_a_name_is_given_once(jobworkerd, state):
    before = (state / "clients/admin/client.crt").read_bytes()
    again = jobworkerd("user", "add", "admin", "--dir", state)
    assert (again.returncode, again.stdout) == (1, "")
    assert "user admin exists already" in again.stderr
    assert (state / "clients/admin/client.crt").read_bytes() == before


def test_a_context_overwrites_nothing(jobworkerd, state, tmp_path):
    (tmp_path / "letter").write_text("dear")
    for verb, name in (("add", "dora"), ("renew", "admin")):
        refused = jobworkerd("user", verb, name, "--out", tmp_path, "--dir", state)
        assert refused.returncode == 1
        assert "exists" in refused.stderr
    assert on_record(state, "dora") is None
    assert [path.name for path in tmp_path.iterdir()] == ["letter"]


def test_a_removed_user_is_off_the_record_and_off_the_list(jobworkerd, state):
    assert jobworkerd("user", "add", "erin", "--dir", state).returncode == 0
    assert "\nerin " in jobworkerd("user", "list", "--dir", state).stdout  # positive control
    removed = jobworkerd("user", "remove", "erin", "--dir", state)
    assert (removed.returncode, removed.stdout) == (0, "")
    assert on_record(state, "erin").removed_at is not None
    assert "\nerin " not in jobworkerd("user", "list", "--dir", state).stdout
    assert not (state / "clients/erin").exists()
    for verb in ("remove", "renew"):
        again = jobworkerd("user", verb, "erin", "--dir", state)
        assert (again.returncode, "there is no user erin" in again.stderr) == (1, True)


def test_a_name_that_comes_back_leaves_its_old_certificates_behind(state, tmp_path):
    """A3: everything within one second, where only the order tells the certificates apart."""
    commands.add(state, "frank", out=tmp_path / "first")
    commands.remove(state, "frank")
    commands.add(state, "frank", out=tmp_path / "second")
    commands.renew(state, "frank", out=tmp_path / "third")
    valid_from = on_record(state, "frank").valid_from
    assert proven(tmp_path / "first").issued_at < valid_from
    assert proven(tmp_path / "second").issued_at >= valid_from
    assert proven(tmp_path / "third").issued_at >= valid_from


def test_a_renewed_context_has_a_new_key_and_keeps_what_else_lies_there(jobworkerd, state):
    jobworkerd("user", "add", "grace", "--dir", state)
    context = state / "clients/grace"
    before = proven(context)
    (context / "notes").write_text("mine")
    renewed = jobworkerd("user", "renew", "grace", "--ttl", "2h", "--dir", state)
    assert (renewed.returncode, renewed.stdout) == (0, f"{context}\n"), renewed.stderr
    after = proven(context)
    assert after.name == before.name
    assert (after.serial, after.key_hash) != (before.serial, before.key_hash)
    assert (context / "notes").read_text() == "mine"
    assert stat.S_IMODE((context / "client.key").stat().st_mode) == 0o600


def test_every_change_of_users_is_one_audit_record(jobworkerd, state):
    """U1."""
    jobworkerd("user", "add", "heidi", "--dir", state)
    jobworkerd("user", "add", "heidi", "--dir", state)  # refused, so it changes nothing
    jobworkerd("user", "renew", "heidi", "--dir", state)
    jobworkerd("user", "remove", "heidi", "--dir", state)
    lines = jobworkerd("audit", "export", "--dir", state).stdout.splitlines()
    records = [record for record in map(json.loads, lines) if record["target"] == "heidi"]
    assert [record["action"] for record in records] == ["user.add", "user.renew", "user.remove"]
    assert {(record["decision"], record["source"]) for record in records} == {("allowed", "local")}
    assert {record["credential"] for record in records} == {f"uid {os.geteuid()}"}


@pytest.mark.parametrize("ttl", ["0", "2y", "9999d", "soon"])
def test_an_impossible_lifetime_adds_nobody(jobworkerd, state, ttl):
    refused = jobworkerd("user", "add", "ivan", "--ttl", ttl, "--dir", state)
    assert refused.returncode in {1, 2}
    assert "ttl" in refused.stderr
    assert on_record(state, "ivan") is None
    assert not (state / "clients/ivan").exists()


def test_a_ca_key_that_others_can_read_issues_nothing(jobworkerd, state):
    """R6."""
    key = state / "pki/ca/issuing.key"
    key.chmod(0o644)
    try:
        refused = jobworkerd("user", "add", "judy", "--dir", state)
    finally:
        key.chmod(0o600)
    assert refused.returncode == 1
    assert f"chmod 600 {key}" in refused.stderr
    assert on_record(state, "judy") is None
    assert jobworkerd("user", "add", "judy", "--dir", state).returncode == 0  # positive control


def test_a_state_without_its_database_is_refused_and_gets_no_new_one(jobworkerd, state):
    """C5."""
    (state / "jobworker.db").rename(state / "jobworker.db.away")
    try:
        refused = jobworkerd("user", "add", "kim", "--dir", state)
        assert not (state / "jobworker.db").exists()
    finally:
        (state / "jobworker.db.away").rename(state / "jobworker.db")
    assert (refused.returncode, "jobworker.db" in refused.stderr) == (1, True)


@needs_root
def test_root_follows_no_link_that_the_service_could_have_put_in_place(jobworkerd, place):
    state = place / "state"
    assert jobworkerd("init", "--dir", state, "--user", "199998").returncode == 0
    (place / "elsewhere" / "admin").mkdir(parents=True)
    (place / "elsewhere" / "admin" / "precious").write_text("kept")
    (state / "clients").rename(state / "clients.away")
    (state / "clients").symlink_to(place / "elsewhere")
    for verb, name in (("add", "mallory"), ("renew", "admin"), ("remove", "admin")):
        refused = jobworkerd("user", verb, name, "--dir", state)
        assert (refused.returncode, "not a directory of yours" in refused.stderr) == (1, True)
    assert (place / "elsewhere" / "admin" / "precious").read_text() == "kept"
    assert [path.name for path in (place / "elsewhere").iterdir()] == ["admin"]
    (state / "clients").unlink()
    (state / "clients.away").rename(state / "clients")
    assert jobworkerd("user", "add", "mallory", "--dir", state).returncode == 0  # positive control


@needs_root
def test_root_believes_no_ca_that_the_service_could_have_made(jobworkerd, place):
    state = place / "state"
    assert jobworkerd("init", "--dir", state, "--user", "199998").returncode == 0
    assert jobworkerd("user", "add", "alice", "--dir", state).returncode == 0  # positive control
    os.chown(state / "pki/ca", 199_998, 199_998)
    refused = jobworkerd("user", "add", "mallory", "--dir", state)
    assert (refused.returncode, "pki/ca is not a directory of yours" in refused.stderr) == (1, True)
