"""Who may do what to whose jobs: every RPC, every kind of caller, every kind of job, against one table."""

import asyncio
import re
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import cast
from uuid import uuid4

import grpc
import pytest
from host import needs_root

from jobworker.access.authority import CertifiedKey, issue_user
from jobworker.api.grpc._generated import jobworker_pb2 as pb2
from jobworker.api.grpc._generated.jobworker_pb2_grpc import JobWorkerStub
from jobworker.api.grpc.server import RPC_ACTIONS

pytestmark = needs_root

OK = "ok"
NO_ENTRY = "unavailable"  # the TLS handshake fails
UNKNOWN = "unauthenticated"
DENIED = "permission_denied"
NOT_FOUND = "job_not_found"

CALLERS = ("anonymous", "expired", "removed", "owner", "other", "admin")
#: What each caller gets who asks for: a job of the owner's, a job that does not exist.
ON_A_JOB = {
    "anonymous": (NO_ENTRY, NO_ENTRY),
    "expired": (NO_ENTRY, NO_ENTRY),
    "removed": (UNKNOWN, UNKNOWN),
    "owner": (OK, NOT_FOUND),
    "other": (DENIED, NOT_FOUND),
    "admin": (OK, NOT_FOUND),
}
#: The same for calls about no job in particular: for themselves, in the name of another.
ON_NO_JOB = {
    "anonymous": (NO_ENTRY, NO_ENTRY),
    "expired": (NO_ENTRY, NO_ENTRY),
    "removed": (UNKNOWN, UNKNOWN),
    "owner": (OK, OK),
    "other": (OK, DENIED),
    "admin": (OK, OK),
}
TABLE = {
    "Start": {**ON_NO_JOB, "owner": (OK, DENIED), "other": (OK, DENIED)},  # the second one on the host's network
    "List": ON_NO_JOB,  # the second one for the owner's jobs
    "Stop": ON_A_JOB,
    "Status": ON_A_JOB,
    "Stream": ON_A_JOB,
    "Wait": ON_A_JOB,
    "Remove": ON_A_JOB,
    "Signal": ON_A_JOB,
    "WhoAmI": {**ON_NO_JOB, "other": (OK, OK)},  # there is no other to ask about
}

SLEEP = pb2.JobSpec(program=b"/bin/sleep", args=[b"1000"])
SLEEP_ON_THE_HOSTS_NETWORK = pb2.JobSpec(program=b"/bin/sleep", args=[b"1000"], network=pb2.NETWORK_HOST)


def requests(rpc, job_id, owner):
    """The request for a caller's own or the owner's sake, and the one for somebody else's or for no job there is."""
    nobody = str(uuid4())
    match rpc:
        case "Start":
            return pb2.StartRequest(spec=SLEEP), pb2.StartRequest(spec=SLEEP_ON_THE_HOSTS_NETWORK)
        case "WhoAmI":
            return pb2.WhoAmIRequest(), pb2.WhoAmIRequest()
        case "List":
            return pb2.ListRequest(), pb2.ListRequest(owner=owner)
        case "Wait":
            request = pb2.WaitRequest(id=job_id)
            request.timeout.FromMilliseconds(1)
            return request, pb2.WaitRequest(id=nobody)
        case "Signal":
            return pb2.SignalRequest(id=job_id, signal=18), pb2.SignalRequest(id=nobody, signal=18)
        case "Remove":
            return pb2.RemoveRequest(id=job_id, force=True), pb2.RemoveRequest(id=nobody, force=True)
        case _:
            kind = getattr(pb2, f"{rpc}Request")
            return kind(id=job_id), kind(id=nobody)


async def result(stub, rpc, request):
    """`ok`, or the exact code of the error."""
    call = getattr(stub, rpc)(request, timeout=60)
    try:
        if rpc == "Stream":
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        told = dict(cast("Iterable[tuple[str, str]]", error.trailing_metadata() or ())).get("jobworker-error")
        return told or error.code().name.lower()
    return OK


def credentials_of_alice(daemon, age, ttl):
    """A certificate of alice's that was issued `age` seconds ago for `ttl` seconds."""
    place = daemon.directory / "pki/ca"
    issuer = CertifiedKey.from_pem((place / "issuing.crt").read_bytes(), (place / "issuing.key").read_bytes())
    issued = issue_user(issuer, "alice", "jobworker.internal", time.time() - age, ttl)
    return grpc.ssl_channel_credentials(
        (daemon.directory / "pki/bundle.crt").read_bytes(),
        issued.key_pem(),
        issued.certificate_pem() + issuer.certificate_pem(),
    )


def credentials_of(daemon, user):
    context = daemon.context(user)
    return grpc.ssl_channel_credentials(*(file.read_bytes() for file in (context.ca, context.key, context.certificate)))


@pytest.fixture(scope="session")
def credentials(daemon):
    """What every kind of caller shows the server."""
    daemon.add("frank")
    franks = credentials_of(daemon, "frank")
    daemon.remove("frank")
    return {
        "anonymous": grpc.ssl_channel_credentials((daemon.directory / "pki/bundle.crt").read_bytes()),
        "expired": credentials_of_alice(daemon, age=3, ttl=1),
        "removed": franks,
        "owner": credentials_of(daemon, "alice"),
        "other": credentials_of(daemon, "bob"),
        "admin": credentials_of(daemon, "admin"),
    }


@pytest.fixture
async def stubs(daemon, credentials):
    """A stub for every kind of caller."""
    async with AsyncExitStack() as stack:
        found = {}
        for caller, shown in credentials.items():
            channel = grpc.aio.secure_channel(daemon.address, shown, options=[("grpc.enable_retries", 0)])
            found[caller] = JobWorkerStub(await stack.enter_async_context(channel))
        yield found


async def test_the_expired_caller_is_refused_for_the_time_alone(daemon):
    """A4, positive control: made by the same hand and not yet expired, the certificate is alice's."""
    credentials = credentials_of_alice(daemon, age=0, ttl=60)
    async with grpc.aio.secure_channel(daemon.address, credentials) as channel:
        assert await result(JobWorkerStub(channel), "List", pb2.ListRequest()) == OK


def test_every_rpc_has_its_row():
    """A4: a new RPC without a row in this table, or without an action in the policy, fails here."""
    methods = {method.name for method in pb2.DESCRIPTOR.services_by_name["JobWorker"].methods}
    assert set(TABLE) == methods
    assert set(RPC_ACTIONS) == methods
    for row in TABLE.values():
        assert tuple(row) == CALLERS


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("rpc", TABLE)
async def test_everybody_gets_what_the_table_says(daemon, stubs, rpc, caller):
    """A4."""
    started = [(await stubs["owner"].Start(pb2.StartRequest(spec=SLEEP))).job.id for _ in range(2)]
    job_id, control = started
    mine, foreign = requests(rpc, job_id, "alice")
    assert (await result(stubs[caller], rpc, mine), await result(stubs[caller], rpc, foreign)) == TABLE[rpc][caller]
    if TABLE[rpc][caller][0] is not OK:
        untouched = (await stubs["owner"].Status(pb2.StatusRequest(id=job_id))).job
        assert untouched.state == pb2.JOB_STATE_RUNNING
    # Positive control: the very same request of the owner's does what it says.
    assert await result(stubs["owner"], rpc, requests(rpc, control, "alice")[0]) == OK
    listed = (await stubs["admin"].List(pb2.ListRequest(states=[pb2.JOB_STATE_RUNNING]))).jobs
    for job in listed:
        await stubs["admin"].Remove(pb2.RemoveRequest(id=job.id, force=True))


async def test_a_list_shows_the_callers_own_jobs_only(daemon, stubs):
    """A4: by every filter, and an admin sees all."""
    spec = pb2.JobSpec(program=b"/bin/true", name="mine", labels={"team": "web"})
    ids = {caller: (await stubs[caller].Start(pb2.StartRequest(spec=spec))).job.id for caller in ("owner", "other")}

    async def listed(caller, **query):
        return {job.id for job in (await stubs[caller].List(pb2.ListRequest(page_size=1000, **query))).jobs}

    for query in ({}, {"name": "mine"}, {"labels": {"team": "web"}}):
        assert ids["other"] not in await listed("owner", **query)
        assert ids["owner"] in await listed("owner", **query)
        assert ids["owner"] not in await listed("other", **query)
        assert {ids["owner"], ids["other"]} <= await listed("admin", **query)  # positive control
    assert await listed("owner", id_prefix=ids["other"]) == set()
    assert await listed("other", id_prefix=ids["other"]) == {ids["other"]}


async def test_one_users_idempotency_key_is_nothing_to_another(daemon, stubs):
    """S11, A4."""
    request = pb2.StartRequest(spec=pb2.JobSpec(program=b"/bin/true"), idempotency_key=str(uuid4()))
    hers = await stubs["owner"].Start(request)
    his = await stubs["other"].Start(request)
    assert hers.job.id != his.job.id
    assert (his.existed, his.job.owner) == (False, "bob")
    assert (await stubs["owner"].Start(request)).existed  # positive control


def no_ids(job_id):
    """What is no id, or not exactly this one."""
    return {
        "empty": "",
        "prefix": job_id[:8],
        "all but one": job_id[:-1],
        "one more": job_id + "0",
        "newline": job_id + "\n",
        "space": f" {job_id}",
        "upper case": job_id.upper(),
        "no dashes": job_id.replace("-", ""),
        "braces": f"{{{job_id}}}",
        "parent": "../",
        "path": f"../jobs/{job_id}",
        "file": f"{job_id}/output",
        "dot": f"./{job_id}",
        "root": "/etc/passwd",
        "NUL": f"{job_id}\0",
        "only NUL": "\0",
        "wildcard": job_id[:-1] + "%",
        "quote": "' OR '1'='1",
        "other digits": "".join(chr(ord(c) + 0xFEE0) if c.isdigit() else c for c in job_id),
        "1 MB": "a" * (1 << 20),
    }


@pytest.mark.parametrize("rpc", [rpc for rpc, row in TABLE.items() if row is ON_A_JOB])
async def test_what_is_not_exactly_an_id_is_an_unknown_job(daemon, stubs, rpc):
    """A6: an upper-case id of one's own included; the server knows no prefixes."""
    job_id = (await stubs["owner"].Start(pb2.StartRequest(spec=SLEEP))).job.id
    while not any(character.isalpha() for character in job_id):  # as good as never
        job_id = (await stubs["owner"].Start(pb2.StartRequest(spec=SLEEP))).job.id
    for text in no_ids(job_id).values():
        request, _ = requests(rpc, text, "alice")
        assert await result(stubs["owner"], rpc, request) == NOT_FOUND, text[:100]
        assert await result(stubs["admin"], rpc, request) == NOT_FOUND, text[:100]
    assert (await stubs["owner"].Status(pb2.StatusRequest(id=job_id))).job.state == pb2.JOB_STATE_RUNNING
    request, _ = requests(rpc, job_id, "alice")
    assert await result(stubs["owner"], rpc, request) == OK  # positive control
    if rpc != "Remove":
        await stubs["admin"].Remove(pb2.RemoveRequest(id=job_id, force=True))


@asynccontextmanager
async def details_of():
    """Collects the words of errors."""
    words = []

    async def refused(call):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call
        words.append((error.value.details() or "") + repr(tuple(error.value.trailing_metadata() or ())))
        return error.value

    yield words, refused


async def test_errors_tell_nothing_about_the_server_or_other_users(daemon, stubs):
    """A6: no path of ours, no stack, no pid, nobody else's name."""
    his = (await stubs["other"].Start(pb2.StartRequest(spec=SLEEP, idempotency_key="x"))).job.id
    stub = stubs["owner"]

    def start(**spec):
        return stub.Start(pb2.StartRequest(spec=pb2.JobSpec(**{"program": b"/bin/true"} | spec)))

    async with details_of() as (words, refused):
        for rpc in ("Status", "Stop", "Wait", "Remove", "Signal"):
            for text in (his, "../", str(uuid4())):
                await refused(getattr(stub, rpc)(requests(rpc, text, "alice")[0]))
        await refused(stub.List(pb2.ListRequest(owner="bob")))
        await refused(stub.List(pb2.ListRequest(owner="nobody-at-all")))
        await refused(stub.List(pb2.ListRequest(page_token="!!")))
        for spec in (
            {"program": b""},
            {"program": b"relative/path"},
            {"program": b"/nonexistent"},
            {"program": b"/etc/passwd"},
            {"program": b"/etc"},
            {"program": b"nonexistent-program"},
            {"workdir": "/nonexistent"},
            {"workdir": "relative"},
            {"args": [b"x" * 200_000]},
            {"env": {"A=B": b"x"}},
            {"limits": pb2.Limits(memory_bytes=1)},
            {"limits": pb2.Limits(cpu=1e9)},
            {"limits": pb2.Limits(io_read_bps=1, io_device="/nonexistent")},
            {"limits": pb2.Limits(io_read_bps=1, io_device="/proc")},
            {"limits": pb2.Limits(memory_bytes=1 << 50)},
            {"network": 77},
        ):
            await refused(start(**spec))
        await refused(stub.Signal(pb2.SignalRequest(id=his, signal=99)))
    await stubs["other"].Stop(pb2.StopRequest(id=his))
    forbidden = ["bob", "Traceback", 'File "', ".py", str(daemon.directory), "/var/", "pki", "sqlite"]
    pids = {str(pid) for pid in (daemon.pid, *daemon.descendants())}
    for told in words:
        assert len(told) < 1000
        for word in forbidden:
            assert word not in told, told
        assert not pids & set(re.findall(r"\w+", told)), told  # as a number: an id may have the same digits
    assert any("/nonexistent" in told for told in words)  # positive control: the caller's own words do come back


async def test_fields_that_nobody_offered_change_nothing(daemon, stubs):
    """A7: an unknown field in the request, such as a newer client's, makes nobody's job of it."""
    smuggled = b"\xa2\x06\x05admin\xa8\x06\x00"  # fields 100 and 101: "admin", 0
    request = pb2.StartRequest.FromString(pb2.StartRequest(spec=SLEEP).SerializeToString() + smuggled)
    job = (await stubs["owner"].Start(request)).job
    assert job.owner == "alice"
    assert b"admin" not in job.SerializeToString()
    await stubs["owner"].Remove(pb2.RemoveRequest(id=job.id, force=True))


async def test_every_decision_is_one_audit_record(daemon, stubs):
    """U1: allowed or denied, with who, how proven, from where, what and to which job."""
    job_id = (await stubs["owner"].Start(pb2.StartRequest(spec=SLEEP))).job.id
    for caller in ("other", "owner"):
        await result(stubs[caller], "Signal", pb2.SignalRequest(id=job_id, signal=18))
        await result(stubs[caller], "Stop", pb2.StopRequest(id=job_id))
        await result(stubs[caller], "Remove", pb2.RemoveRequest(id=job_id))
    await result(stubs["other"], "Status", pb2.StatusRequest(id=job_id))
    records = [record for record in await asyncio.to_thread(daemon.audit) if record["target"] == job_id]
    assert [(record["principal"], record["action"], record["decision"]) for record in records] == [
        ("alice", "job.start", "allowed"),
        ("bob", "job.signal", "denied"),
        ("bob", "job.stop", "denied"),
        ("bob", "job.remove", "denied"),
        ("alice", "job.signal", "allowed"),
        ("alice", "job.stop", "allowed"),
        ("alice", "job.remove", "allowed"),
    ]
    assert {record["credential"].partition(" serial ")[0] for record in records} == {"certificate"}
    assert all("127.0.0.1" in record["source"] for record in records)
