"""Who may do what to whose jobs over HTTPS: every route, every kind of caller, against one table."""

import re
import time
from uuid import uuid4

import pytest
from host import needs_root

from jobworker.access.policy import SCOPES, Action
from jobworker.access.principal import EVERY_SCOPE
from jobworker.api.http.routes import ROUTES
from jobworker.daemon import tokens
from jobworker.store import tokens as records
from jobworker.store.database import Database

pytestmark = needs_root

CALLERS = ("anonymous", "expired", "revoked", "removed", "owner", "other", "admin", "unscoped")
#: What each caller gets who asks for: a job of the owner's, a job that does not exist.
ON_A_JOB = {
    "anonymous": (401, 401),
    "expired": (401, 401),
    "revoked": (401, 401),
    "removed": (401, 401),
    "owner": (200, 404),
    "other": (403, 404),
    "admin": (200, 404),
    "unscoped": (403, 404),  # an admin's token without the scope that the route needs
}
#: The same for calls about no job in particular: for themselves, in the name of another.
ON_NO_JOB = {**ON_A_JOB, "owner": (200, 200), "other": (200, 403), "admin": (200, 200), "unscoped": (403, 403)}
FOR_ALL = dict.fromkeys(CALLERS, (200, 200))
TABLE = {
    ("POST", "/jobs/start"): {  # the second one on the host's network
        **ON_NO_JOB,
        "owner": (201, 403),
        "other": (201, 403),
        "admin": (201, 201),
    },
    ("GET", "/jobs"): ON_NO_JOB,  # the second one for the owner's jobs
    ("GET", "/jobs/{id}"): ON_A_JOB,
    ("DELETE", "/jobs/{id}"): ON_A_JOB,
    ("POST", "/jobs/{id}/stop"): ON_A_JOB,
    ("POST", "/jobs/{id}/signal"): ON_A_JOB,
    ("GET", "/jobs/{id}/wait"): ON_A_JOB,
    ("GET", "/jobs/{id}/output"): ON_A_JOB,
    ("GET", "/jobs/{id}/output/stream"): ON_A_JOB,
    ("GET", "/events"): {**ON_NO_JOB, "other": (200, 200)},  # there is no other's to ask for
    ("GET", "/whoami"): {**ON_NO_JOB, "other": (200, 200), "unscoped": (200, 200)},  # every token may know what it is
    ("GET", "/metrics"): {**ON_NO_JOB, "owner": (403, 403), "other": (403, 403)},
    ("POST", "/oauth/token"): dict.fromkeys(CALLERS, (400, 400)),
    ("POST", "/oauth/revoke"): dict.fromkeys(CALLERS, (400, 400)),
    ("GET", "/healthz"): FOR_ALL,
}
ROWS = {(route.method, route.path): route.action for route in ROUTES}


def requests(method, path, job_id):
    """The request for a caller's own or the owner's sake, and the one for somebody else's or for no job there is."""
    nobody = str(uuid4())
    match path:
        case "/jobs/start":
            body = {"program": "/bin/sleep", "args": [1000]}
            return {"path": path, "body": body}, {"path": path, "body": {**body, "network": "host"}}
        case "/jobs":
            return {"path": path}, {"path": f"{path}?owner=alice"}
        case "/jobs/{id}/wait":
            extra = {"query": "?timeout=1ms"}
        case "/jobs/{id}/signal":
            extra = {"body": {"signal": "CONT"}}
        case "/jobs/{id}/output/stream":
            extra = {"query": "?follow=false"}
        case "/jobs/{id}" if method == "DELETE":
            extra = {"query": "?force=true"}
        case _:
            extra = {}
    query = extra.pop("query", "")
    return tuple({"path": path.replace("{id}", each) + query, **extra} for each in (job_id, nobody))


def status(door, method, request):
    """The status of the answer; what goes on is left after its header."""
    with door.open(method, **request) as response:
        return response.status


@pytest.fixture(scope="session")
def doors(daemon):
    """The door as every kind of caller finds it; `unscoped` for an action lacks its scope."""
    daemon.add("grace")
    graces = daemon.https_as("grace").token
    daemon.remove("grace")
    expired = tokens.new_token("alice", EVERY_SCOPE, time.time() - 2, 1)
    with Database.open(daemon.directory / "jobworker.db") as database:
        database.write_now(lambda rows: records.add(rows, expired.record))
    revoked = tokens.create(daemon.directory, "alice", ttl=60).token
    tokens.revoke(daemon.directory, revoked.id)
    lacking = {
        action: tokens.create(daemon.directory, "admin", ttl=3600, scopes=EVERY_SCOPE - {SCOPES[action]}).token
        for action in Action
    }

    def door(caller, action):
        match caller:
            case "anonymous":
                return daemon.https_as(None)
            case "owner":
                return daemon.https_as("alice")
            case "other":
                return daemon.https_as("bob")
            case "admin":
                return daemon.https_as("admin")
            case "unscoped":
                return daemon.https_as(token=lacking[action].reveal()) if action else daemon.https_as("admin")
            case _:
                texts = {"expired": expired.token.reveal(), "revoked": revoked.reveal(), "removed": graces}
                return daemon.https_as(token=texts[caller])

    return door


def test_every_route_has_its_row():
    """A4: a new route without a row in this table, or without an action that the policy knows, fails here."""
    assert set(TABLE) == set(ROWS)
    for action in ROWS.values():
        assert action is None or action in SCOPES
    for row in TABLE.values():
        assert set(row) == set(CALLERS)


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize(("method", "path"), TABLE, ids=" ".join)
def test_everybody_gets_what_the_table_says(daemon, doors, method, path, caller):
    """A4."""
    owner, admin = daemon.https_as("alice"), daemon.https_as("admin")
    job_id, control = (owner.start("/bin/sleep", 1000) for _ in range(2))
    door = doors(caller, ROWS[method, path])
    found = tuple(status(door, method, request) for request in requests(method, path, job_id))
    assert found == TABLE[method, path][caller]
    if found[0] >= 400 and ROWS[method, path] is not None:
        assert owner.get(f"/jobs/{job_id}").json["status"] == "Running"
        # Positive control: the very same request of the owner's, or else an admin's, does what it says.
        rightful = owner if TABLE[method, path]["owner"][0] < 300 else admin
        assert status(rightful, method, requests(method, path, control)[0]) < 300
    for job in admin.get("/jobs?state=running&state=pending").json["jobs"]:
        admin.ask("DELETE", f"/jobs/{job['id']}?force=true")


def test_the_error_bodies_are_those_of_the_design(daemon):
    """design.md §9, to the letter."""
    alice, bob = daemon.https_as("alice"), daemon.https_as("bob")
    job_id = alice.start("/bin/true")
    assert alice.get(f"/jobs/{job_id}/wait").json["status"] == "Completed"
    for answer, expected, words in (
        (daemon.https_as(None).get("/jobs"), 401, "bad authentication"),
        (bob.get(f"/jobs/{job_id}"), 403, "unauthorized action"),
        (alice.get(f"/jobs/{uuid4()}"), 404, "job not found"),
        (alice.post("/jobs/start", {"program": "/no/such"}), 404, "program not found"),
        (alice.post(f"/jobs/{job_id}/stop"), 409, "job not running"),
    ):
        assert (answer.status, answer.json) == (expected, {"error": f"Error: {words}"})
        assert answer.headers["Content-Type"] == "application/json"


def test_a_list_shows_the_callers_own_jobs_only(daemon):
    """A4: by every filter, and an admin sees all."""
    ids = {user: daemon.https_as(user).start("/bin/true", name="own", labels={"a": "b"}) for user in ("alice", "bob")}

    def listed(user, query=""):
        return {job["id"] for job in daemon.https_as(user).get(f"/jobs?pageSize=1000{query}").json["jobs"]}

    for query in ("", "&name=own", "&label=a=b", f"&idPrefix={ids['bob'][:8]}"):
        assert ids["bob"] not in listed("alice", query)
        assert ids["bob"] in listed("bob", query)
        assert ids["bob"] in listed("admin", query)  # positive control


def test_events_are_of_jobs_that_the_caller_may_see(daemon):
    """A4."""
    with (
        daemon.https_as("alice").open("GET", "/events") as hers,
        daemon.https_as("admin").open("GET", "/events") as everyones,
    ):
        assert hers.readline() == everyones.readline() == b": listening\n"
        his, her = daemon.https_as("bob").start("/bin/true"), daemon.https_as("alice").start("/bin/true")
        daemon.https_as("admin").get(f"/jobs/{her}/wait")
        seen = b""
        while her.encode() not in seen or b"Completed" not in seen:
            seen += hers.readline()
        assert his.encode() not in seen
        all_of_it = b""
        while not (his.encode() in all_of_it and her.encode() in all_of_it):
            all_of_it += everyones.readline()  # positive control


@pytest.mark.parametrize("path", ["", "/output", "/output/stream", "/wait"])
def test_what_is_not_exactly_an_id_is_an_unknown_job(daemon, path):
    """A6: an upper-case id of one's own included; the server knows no prefixes."""
    alice = daemon.https_as("alice")
    job_id = alice.start("/bin/true")
    while not any(character.isalpha() for character in job_id):  # as good as never
        job_id = alice.start("/bin/true")
    for text in (
        job_id[:8],
        job_id[:-1],
        job_id + "0",
        job_id.upper(),
        job_id.replace("-", ""),
        "%2e%2e",
        "..%2f" + job_id,
        "%2fetc%2fpasswd",
        job_id + "%00",
        job_id + "%0a",
        "%20" + job_id,
        job_id[:-1] + "%25",
        "'%20OR%20'1'='1",
        "x" * 8000,
        "%ff%fe",
    ):
        assert alice.get(f"/jobs/{text}{path}").status == 404, text
    assert alice.get(f"/jobs/{job_id}{path}").status == 200  # positive control


def test_errors_tell_nothing_about_the_server_or_other_users(daemon):
    """A6: no path of ours, no stack, no pid, nobody else's name, and no secret that was sent."""
    alice, bob = daemon.https_as("alice"), daemon.https_as("bob")
    his = bob.start("/bin/sleep", 1000)
    secret = "s3cret-of-the-environment"
    answers = [alice.get(f"/jobs/{his}{path}") for path in ("", "/output", "/output/stream", "/wait")]
    answers += [alice.post(f"/jobs/{his}/stop"), alice.ask("DELETE", f"/jobs/{his}"), alice.get("/jobs?owner=bob")]
    for body in (
        {},
        {"program": ""},
        {"program": "relative/path"},
        {"program": "/etc/passwd"},
        {"program": "/etc"},
        {"program": "no-such-program"},
        {"program": 5},
        {"program": "/bin/true", "env": {"A=B": secret}},
        {"program": "/bin/true", "env": {"A": ["x", secret]}},
        {"program": "/bin/true", "env": {"A": secret + "\0"}},
        {"program": "/bin/true", "env": secret},
        {"program": "/bin/true", "args": [{"base64": secret}]},
        {"program": "/bin/true", "workdir": "/no/such"},
        {"program": "/bin/true", "memory": 1},
        {"program": "/bin/true", "memory": True},
        {"program": "/bin/true", "cpu": "many"},
        {"program": "/bin/true", "pids": "5"},
        {"program": "/bin/true", "ioReadBps": 1, "ioDevice": "/proc"},
        {"program": "/bin/true", "network": "all"},
        {"program": "/bin/true", "onOutputLimit": "explode"},
    ):
        answers.append(alice.post("/jobs/start", body))
        assert answers[-1].status in {400, 404, 422}, body
    answers += [
        alice.get(f"/jobs/{his}/output?since={text}") for text in ("", "x", "1e308", "1e11", "-1", "nan", "9" * 400)
    ]
    answers += [alice.get(f"/jobs/{his}/wait?timeout={text}") for text in ("", "x", "1e308", "-1", "inf")]
    assert {answer.status for answer in answers[-12:]} == {400}
    answers += [alice.post("/jobs/start", body) for body in (b"", b"{", b"[]", b"null", b"\xff", b'{"program": NaN}')]
    forbidden = ["bob", "Traceback", 'File "', ".py", str(daemon.directory), "/var/", "pki", "sqlite", secret]
    forbidden += ["pydantic", "starlette"]
    pids = {str(pid) for pid in (daemon.pid, *daemon.descendants())}
    for answer in answers:
        del answer.headers["Date"], answer.headers["Content-Length"]
        words = answer.body.decode() + str(answer.headers)
        assert set(answer.json) == {"error"}
        assert answer.json["error"].startswith("Error: ")
        for word in forbidden:
            assert word not in words, words
        assert not pids & set(re.findall(r"\w+", words)), words  # as a number: an id may have the same digits
    bob.ask("DELETE", f"/jobs/{his}?force=true")
