"""Who may call over HTTPS: one good bearer token in the header proves a user, and nothing else does."""

import base64
import json
import time

import pytest
from host import needs_root

from jobworker.access.tokens import Token
from jobworker.daemon import tokens, users
from jobworker.store import tokens as records
from jobworker.store.database import Database

pytestmark = needs_root

NOBODY = (401, "Bearer", {"error": "Error: bad authentication"})
SLEEP = ("/bin/sleep", 1000)


def told(answer):
    return answer.status, answer.headers["WWW-Authenticate"], answer.json


def expired_token(daemon):
    """A token of alice's that was good a moment ago."""
    made = tokens.new_token("alice", (), time.time() - 2, 1)
    with Database.open(daemon.directory / "jobworker.db") as database:
        database.write_now(lambda rows: records.add(rows, made.record))
    return made.token.reveal()


def revoked_token(daemon):
    made = tokens.create(daemon.directory, "alice", ttl=60)
    tokens.revoke(daemon.directory, made.token.id)
    return made.token.reveal()


def bad_credentials(daemon):
    good = daemon.https_as("alice").token
    unknown = Token.new().reveal()
    basic = base64.b64encode(f"alice:{good}".encode()).decode()
    return {
        "none": (),
        "empty": [("Authorization", "")],
        "only the scheme": [("Authorization", "Bearer")],
        "malformed": [("Authorization", "Bearer jw1_x_y_z")],
        "one character wrong": [("Authorization", f"Bearer {good[:-1]}{'0' if good[-1] != '0' else '1'}")],
        "of nobody": [("Authorization", f"Bearer {unknown}")],
        "somebody else's secret": [("Authorization", f"Bearer {Token(Token.parse(good).id, 'x' * 43).reveal()}")],
        "expired": [("Authorization", f"Bearer {expired_token(daemon)}")],
        "revoked": [("Authorization", f"Bearer {revoked_token(daemon)}")],
        "basic": [("Authorization", f"Basic {basic}")],
        "no scheme": [("Authorization", good)],
        "two headers": [("Authorization", f"Bearer {good}"), ("authorization", f"Bearer {good}")],
        "two tokens in one": [("Authorization", f"Bearer {good}, Bearer {good}")],
        "cookie": [("Cookie", f"token={good}")],
        "other headers": [("X-User", "admin"), ("X-Forwarded-User", "admin"), ("X-Forwarded-Client-Cert", "admin")],
        "not ascii": [("Authorization", "Bearer jw1_\xe4")],
        "1 kB": [("Authorization", "Bearer " + "a" * 1024)],
    }


class Headers(list):
    """Header lines that may repeat a name."""

    def items(self):
        return iter(self)


def test_every_bad_credential_gets_the_very_same_answer(daemon):
    """A5: by its status, its headers and its body nobody learns what was wrong."""
    nobody = daemon.https_as(None)
    for name, shown in bad_credentials(daemon).items():
        for method, path in (("GET", "/jobs"), ("POST", "/jobs/start"), ("GET", "/no/such/path")):
            with nobody.open(method, path, headers=Headers(shown)) as response:
                body = json.loads(response.read())
                assert (response.status, response.headers["WWW-Authenticate"], body) == NOBODY, name
                assert set(response.headers) == {
                    "content-type",
                    "content-length",
                    "www-authenticate",
                    "x-content-type-options",
                    "cache-control",
                    "date",
                }, name


def test_a_good_token_is_somebody(daemon):
    """A5, positive control: the scheme in any case, as RFC 9110 has it."""
    nobody, good = daemon.https_as(None), daemon.https_as("alice").token
    for scheme in ("Bearer", "bearer", "BEARER"):
        assert nobody.get("/jobs", headers={"Authorization": f"{scheme} {good}"}).status == 200


def test_a_token_in_the_query_or_in_a_form_is_none(daemon):
    """A5."""
    nobody, good = daemon.https_as(None), daemon.https_as("alice").token
    assert told(nobody.get(f"/jobs?access_token={good}")) == NOBODY
    assert told(nobody.get(f"/jobs?token={good}")) == NOBODY
    assert told(nobody.post("/jobs/start", form={"access_token": good})) == NOBODY
    assert daemon.https_as("alice").get("/jobs").status == 200  # positive control


def test_the_anonymous_are_answered_before_their_words_are_looked_at(daemon):
    """A5: neither a malformed body nor a path that does not exist gets them another answer."""
    nobody = daemon.https_as(None)
    for sent in ({"body": b"{"}, {"body": {"no": "such"}}, {"form": {"a": "b"}}):
        assert told(nobody.ask("POST", "/jobs/start", **sent)) == NOBODY
    assert daemon.https_as("alice").post("/jobs/start", b"{").status == 400  # positive control


def test_a_certificate_is_no_credential_here(daemon):
    """A2: credentials never cross the doors."""
    nobody, context = daemon.https_as(None), daemon.context("admin")
    nobody.tls.load_cert_chain(context.certificate, context.key)
    assert told(nobody.get("/jobs")) == NOBODY


def test_who_somebody_is_comes_from_the_token_alone(daemon):
    """A2, A7: forged words change nothing, and a field for the owner is refused."""
    alice = daemon.https_as("alice")
    forged = {"X-User": "admin", "Owner": "admin", "X-Forwarded-For": "10.0.0.1", "X-Original-User": "bob"}
    body = {"program": "/bin/true"}
    job_id = alice.post("/jobs/start", body, headers=forged).json["id"]
    assert alice.get(f"/jobs/{job_id}").json["owner"] == "alice"
    for name in ("owner", "role", "uid", "isolation", "id", "user", "sandbox", "scopes"):
        refused = alice.post("/jobs/start", {**body, name: "admin"})
        assert (refused.status, refused.json) == (400, {"error": f"Error: there is no field {name}"})
    record = next(record for record in daemon.audit() if record["target"] == job_id)
    assert (record["principal"], record["source"].split(":")[0]) == ("alice", "127.0.0.1")
    assert record["credential"] == f"token {Token.parse(alice.token).id}"


# Access tokens.


def grant(door, user, secret, **more):
    return door.post("/oauth/token", form={"grant_type": "client_credentials", "client_id": user} | more, **secret)


def test_a_personal_token_buys_a_short_one(daemon):
    """RFC 6749 §4.4: in the form or by Basic, with all its scopes or fewer."""
    nobody, personal = daemon.https_as(None), daemon.https_as("alice").token
    basic = base64.b64encode(f"alice:{personal}".encode()).decode()
    form = {"grant_type": "client_credentials"}
    for sent in (
        {"form": {**form, "client_id": "alice", "client_secret": personal}},
        {"form": form, "headers": {"Authorization": f"Basic {basic}"}},
    ):
        granted = nobody.ask("POST", "/oauth/token", **sent)
        assert granted.status == 200
        assert granted.headers["Cache-Control"] == "no-store"
        assert granted.json["token_type"] == "Bearer"
        assert 0 < granted.json["expires_in"] <= 900
        assert granted.json["scope"] == "jobs:output jobs:read jobs:start jobs:stop"
        assert daemon.https_as(token=granted.json["access_token"]).get("/jobs").status == 200
    few = nobody.post(
        "/oauth/token", form={**form, "client_id": "alice", "client_secret": personal, "scope": "jobs:read"}
    )
    reader = daemon.https_as(token=few.json["access_token"])
    assert reader.get("/jobs").status == 200
    refused = reader.post("/jobs/start", {"program": "/bin/true"})
    assert (refused.status, refused.json) == (403, {"error": "Error: unauthorized action"})
    assert "scopes" in refused.headers["Jobworker-Message"]


def test_what_the_token_endpoint_refuses_it_refuses_as_rfc_6749_says(daemon):
    nobody, personal = daemon.https_as(None), daemon.https_as("alice").token
    good = {"grant_type": "client_credentials", "client_id": "alice", "client_secret": personal}
    access = nobody.post("/oauth/token", form=good).json["access_token"]
    for change, status, code in (
        ({"grant_type": "password"}, 400, "unsupported_grant_type"),
        ({"client_id": "bob"}, 401, "invalid_client"),
        ({"client_id": ""}, 401, "invalid_client"),
        ({"client_secret": "x"}, 401, "invalid_client"),
        ({"client_secret": access}, 401, "invalid_client"),
        ({"scope": "admin"}, 400, "invalid_scope"),
        ({"scope": "everything"}, 400, "invalid_scope"),
        ({"scope": ""}, 400, "invalid_scope"),
    ):
        refused = nobody.post("/oauth/token", form=good | change)
        assert (refused.status, refused.json["error"]) == (status, code), change
        assert personal not in refused.body.decode()
    for body in (b"", b"grant_type=client_credentials&grant_type=client_credentials", b"\xff"):
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        assert nobody.post("/oauth/token", body, headers=headers).json["error"] == "invalid_request"
    assert nobody.post("/oauth/token", {"grant_type": "client_credentials"}).json["error"] == "invalid_request"
    assert nobody.post("/oauth/token", form=good).status == 200  # positive control


def follow(door, job_id):
    """A stream that has begun."""
    stream = door.open("GET", f"/jobs/{job_id}/output/stream")
    response = stream.__enter__()
    assert response.status == 200
    assert response.read(3) == b"on\n"
    return stream, response


def ends_unfinished(response):
    """Whether the stream is cut, and not completed as if the job had ended."""
    begin = time.monotonic()
    try:
        response.read()
    except Exception as error:  # noqa: BLE001 - what exactly http.client makes of it is its own affair
        return time.monotonic() - begin, type(error).__name__
    return time.monotonic() - begin, ""


@pytest.mark.parametrize("how", ["command", "endpoint", "parent", "expiry", "removal", "denial"])
def test_access_that_is_taken_away_ends_an_open_stream(daemon, how):
    """A3: within 5 seconds, and the job goes on."""
    admin = daemon.https_as("admin")
    if how in {"removal", "denial"}:
        name = f"dave-{how}"
        daemon.add(name)
        user = daemon.https_as(name)
        made = Token.parse(user.token)
    else:
        made = tokens.create(daemon.directory, "alice", ttl=600).token
        user = daemon.https_as(token=made.reveal())
    job_id = user.start("/bin/sh", "-c", "echo on; exec sleep 1000")
    if how == "parent":
        form = {"grant_type": "client_credentials", "client_id": "alice", "client_secret": made.reveal()}
        granted = daemon.https_as(None).post("/oauth/token", form=form)
        user = daemon.https_as(token=granted.json["access_token"])
    if how == "expiry":
        user = daemon.https_as(token=tokens.create(daemon.directory, "alice", ttl=3).token.reveal())
    stream, response = follow(user, job_id)
    match how:
        case "command" | "parent":
            tokens.revoke(daemon.directory, made.id)
        case "endpoint":
            assert daemon.https_as(None).post("/oauth/revoke", form={"token": user.token}).status == 200
        case "removal":
            daemon.remove(name)
        case "denial":
            users.deny(daemon.directory, "identity", name, "left the company")
    seconds, error = ends_unfinished(response)
    assert error == "IncompleteRead"
    assert seconds < 30  # promised are 5; a loaded machine takes longer
    stream.__exit__(None, None, None)
    assert told(user.get(f"/jobs/{job_id}")) == NOBODY
    assert admin.get(f"/jobs/{job_id}").json["status"] == "Running"
    assert admin.ask("DELETE", f"/jobs/{job_id}?force=true").status == 200


def test_a_stream_of_a_good_token_goes_on(daemon):
    """A3, positive control: nobody else's revocation ends it."""
    alice = daemon.https_as("alice")
    job_id = alice.start("/bin/sh", "-c", "echo on; sleep 3; echo off")
    stream, response = follow(alice, job_id)
    revoked_token(daemon)
    assert response.read() == b"off\n"
    stream.__exit__(None, None, None)


def test_revoking_says_nothing_about_tokens_it_is_not_shown(daemon):
    """RFC 7009: 200 for every token, good or not."""
    nobody = daemon.https_as(None)
    for text in ("x", Token.new().reveal(), revoked_token(daemon)):
        answer = nobody.post("/oauth/revoke", form={"token": text})
        assert (answer.status, answer.body) == (200, b"{}")
    assert nobody.post("/oauth/revoke", form={}).status == 400


def test_wrong_secrets_have_to_wait_and_nobody_else_does(daemon):
    """security.md §7: ten wrong secrets for one id, then 429, for the right one too; other tokens go on."""
    made = tokens.create(daemon.directory, "alice", ttl=60).token
    right = daemon.https_as(token=made.reveal())
    assert right.get("/jobs").status == 200  # positive control
    wrong = daemon.https_as(token=Token(made.id, "x" * 43).reveal())
    seen = [wrong.get("/jobs").status for _ in range(11)]
    assert seen == [401] * 10 + [429]
    refused = right.get("/jobs")
    assert refused.status == 429
    assert 0 < int(refused.headers["Retry-After"]) <= 60
    assert daemon.https_as("alice").get("/jobs").status == 200
