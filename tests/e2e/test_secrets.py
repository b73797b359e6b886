"""Secrets that are in use all the while are found nowhere but where they belong."""

import os
import sqlite3
import uuid
from pathlib import Path

from host import needs_root

from jobworker.access.tokens import Token

pytestmark = needs_root


def places(daemon):
    """Everything that the server leaves behind or shows, but for the contexts, the keys and what jobs were given."""
    own = {daemon.directory / "clients", daemon.directory / "pki", daemon.directory / "jobs"}
    for root, folders, files in os.walk(daemon.directory):
        folders[:] = [name for name in folders if Path(root, name) not in own]
        for name in files:
            yield str(Path(root, name)), Path(root, name).read_bytes()
    yield "log", daemon.log.read_bytes()
    yield "audit", "\n".join(map(str, daemon.audit())).encode()
    # A job's own processes have its environment, of course.
    ours = [pid for pid, title in daemon.descendants().items() if title.startswith("jobworker-")]
    assert len(ours) > 1
    for pid in [daemon.pid, *ours]:
        for name in ("cmdline", "environ"):
            try:
                yield f"{name} of {pid}", Path(f"/proc/{pid}/{name}").read_bytes()
            except OSError:
                continue


def found_in(daemon, secret):
    return [place for place, data in places(daemon) if secret in data]


def test_tokens_keys_and_environments_stay_where_they_belong(own_daemon):
    """A5: the canary. Each secret is used in every way there is, and then looked for everywhere."""
    own_daemon.start()
    alice, bob, nobody = (own_daemon.https_as(user) for user in ("alice", "bob", None))
    personal = alice.token
    wrong = Token(Token.parse(personal).id, "W" * 43).reveal()
    granted = nobody.post(
        "/oauth/token",
        form={"grant_type": "client_credentials", "client_id": "alice", "client_secret": personal},
    ).json["access_token"]
    value, key = f"canary-{uuid.uuid4()}", f"idempotency-{uuid.uuid4()}"
    body = {"program": "/bin/sh", "args": ["-c", "sleep 1000"], "env": {"CANARY": value}}
    answers = [alice.post("/jobs/start", body, headers={"Idempotency-Key": key})]
    job_id = answers[0].json["id"]
    own_daemon.jobctl("status", job_id)
    for token in (personal, granted, wrong, personal[:-1]):
        door = own_daemon.https_as(token=token)
        answers += [door.get("/jobs"), door.get("/no/such"), door.get(f"/jobs?access_token={token}")]
        answers.append(nobody.get("/jobs", headers={"Authorization": f"Basic {token}"}))
        answers.append(nobody.get(f"/jobs/{token}", headers={"X-Token": token}))
        answers.append(nobody.post("/oauth/token", form={"grant_type": "client_credentials", "client_secret": token}))
    answers += [alice.post("/jobs/start", {**body, "env": {"A=B": value}}), bob.get(f"/jobs/{job_id}")]
    answers += [alice.post("/jobs/start", {**body, "env": [value]}), alice.post("/jobs/start", {**body, "cpu": "x"})]
    answers += [nobody.post("/oauth/revoke", form={"token": granted})]
    secrets = {name: token.split("_")[2] for name, token in (("personal", personal), ("granted", granted))}
    secrets["private key"] = (own_daemon.directory / "clients/alice/client.key").read_text().splitlines()[1]
    for answer in answers:
        told = (answer.body.decode() + str(answer.headers)).replace(granted, "")
        for secret in (*secrets.values(), value, wrong):
            assert secret not in told
    for name, secret in secrets.items():
        assert found_in(own_daemon, secret.encode()) == [], name
    # The job's record has its environment, in the database and nowhere else of these.
    in_database = [str(own_daemon.directory / f"jobworker.db{suffix}") for suffix in ("", "-wal")]
    assert set(found_in(own_daemon, value.encode())) <= set(in_database)
    assert value not in str(own_daemon.audit())
    assert alice.get("/jobs").json["jobs"][0]["env"] == {"CANARY": ""}
    # Positive controls: what may be told is found by the same search, and so is the hash of a secret.
    assert "audit" in found_in(own_daemon, job_id.encode())
    assert found_in(own_daemon, Token.parse(personal).id.encode())
    with sqlite3.connect(own_daemon.directory / "jobworker.db") as database:
        hashes = {bytes(row[0]) for row in database.execute("SELECT hash FROM tokens")}
    database.close()
    assert Token.parse(personal).secret_hash() in hashes
    assert not list(own_daemon.directory.rglob("core*"))
