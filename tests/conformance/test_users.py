"""What the server promises its users, over each transport: whose jobs are whose, lists, and repeated starts."""

import asyncio
import re
import time
from dataclasses import replace
from uuid import uuid4

import pytest
from conformance.faces import read, refused
from conformance.test_end import ABOUT_A_JOB

from jobworker.access.principal import Role, Scope
from jobworker.access.tokens import DEFAULT_SCOPES
from jobworker.client.context import Token, Transport
from jobworker.client.job_client import JobClient
from jobworker.core.errors import ErrorCode
from jobworker.core.lifecycle import State
from jobworker.core.spec import JobSpec, Limits, Network
from jobworker.daemon import tokens

SLEEP = JobSpec(program="/bin/sleep", args=("1000",))
TRUE = JobSpec(program="/bin/true")
NOT_YOURS = (ErrorCode.PERMISSION_DENIED, "unauthorized action: the job belongs to another user")


async def listed(client, **query):
    return [job async for page in client.list(**query) for job in page]


@pytest.mark.parametrize("call", ABOUT_A_JOB)
async def test_a_job_is_its_owners_and_the_admins(users, call):
    """A4."""
    ask = ABOUT_A_JOB[call]
    hers = (await users.alice.start(SLEEP)).job.id
    assert await refused(ask(users.bob, hers)) == NOT_YOURS
    assert (await users.alice.status(hers)).state is State.RUNNING
    ended = call in {"output", "wait"}  # which would last until then
    if ended:
        await users.alice.stop(hers)
    await ask(users.alice, hers)  # positive control
    another = (await users.alice.start(SLEEP)).job.id
    if ended:
        await users.alice.stop(another)
    await ask(users.admin, another)


async def test_who_stopped_a_job_is_told(users):
    hers = (await users.alice.start(SLEEP)).job.id
    assert (await users.admin.stop(hers)).outcome.by == "admin"


async def test_lists_show_ones_own_jobs_and_an_admin_all(users):
    """A4."""
    name = f"n{uuid4().hex}"
    spec = JobSpec(program="/bin/true", name=name, labels={"team": "web"})
    hers, his = [(await user.start(spec)).job.id for user in (users.alice, users.bob)]
    assert [job.id for job in await listed(users.alice, name=name)] == [hers]
    assert [job.id for job in await listed(users.bob, name=name)] == [his]
    assert [job.id for job in await listed(users.admin, name=name)] == [his, hers]
    assert [job.id for job in await listed(users.admin, name=name, owner="alice")] == [hers]
    assert await listed(users.alice, id_prefix=his) == []
    denied = (ErrorCode.PERMISSION_DENIED, "unauthorized action: only admins see the jobs of other users")
    assert await refused(listed(users.alice, owner="bob")) == denied


async def test_a_list_is_filtered_by_everything_that_is_asked(users):
    name = f"n{uuid4().hex}"
    web = JobSpec(program="/bin/true", name=name, labels={"team": "web", "odd": "a=b &+/ü"})
    ended = (await users.alice.start(web)).job.id
    await users.alice.wait(ended)
    running = (await users.alice.start(JobSpec(program="/bin/sleep", args=("1000",), name=name))).job.id

    async def found(**query):
        return [job.id for job in await listed(users.alice, name=name, **query)]

    assert await found() == [running, ended]
    assert await found(states=[State.RUNNING]) == [running]
    assert await found(states=[State.COMPLETED, State.FAILED]) == [ended]
    assert await found(labels={"team": "web"}) == [ended]
    assert await found(labels={"odd": "a=b &+/ü"}) == [ended]
    assert await found(labels={"team": "web", "odd": "other"}) == []
    assert await found(id_prefix=running[:13]) == [running]
    assert await found(id_prefix=running[:13], states=[State.COMPLETED]) == []


async def test_a_list_comes_in_pages_newest_first(users):
    name = f"n{uuid4().hex}"
    ids = [(await users.alice.start(JobSpec(program="/bin/true", name=name))).job.id for _ in range(5)]
    pages = [[job.id for job in page] async for page in users.alice.list(name=name, page_size=2)]
    newest_first = ids[::-1]
    assert pages == [newest_first[:2], newest_first[2:4], newest_first[4:]]
    assert [page async for page in users.alice.list(name="nobody-has-this-name")] == [[]]


async def test_lists_show_no_values_of_the_environment(users):
    name = f"n{uuid4().hex}"
    spec = JobSpec(program="/bin/true", name=name, env={"SECRET": "hush"})
    job_id = (await users.alice.start(spec)).job.id
    (job,) = await listed(users.alice, name=name)
    assert dict(job.spec.env) == {"SECRET": ""}
    assert dict((await users.alice.status(job_id)).spec.env) == {"SECRET": "hush"}


async def test_the_same_key_starts_one_job(users):
    """S11."""
    key = str(uuid4())
    started = await asyncio.gather(*(users.alice.start(TRUE, idempotency_key=key) for _ in range(20)))
    assert len({one.job.id for one in started}) == 1
    assert [one.existed for one in started].count(False) == 1
    again = await users.alice.start(TRUE, idempotency_key=key)
    assert (again.job.id, again.existed) == (started[0].job.id, True)
    his = await users.bob.start(TRUE, idempotency_key=key)
    assert (his.existed, his.job.owner) == (False, "bob")
    assert his.job.id != again.job.id


async def test_limits_that_nobody_asked_for_are_the_servers(users):
    lifted = (await users.admin.start(JobSpec(program="/bin/true", limits=Limits(memory=None)))).job
    left = (await users.alice.start(JobSpec(program="/bin/true", limits=Limits(memory=None)), asked_limits=())).job
    some = (await users.alice.start(JobSpec(program="/bin/true", limits=Limits(pids=7)), asked_limits=["pids"])).job
    assert lifted.spec.limits == Limits(memory=None)
    assert left.spec.limits == Limits()
    assert some.spec.limits == Limits(pids=7)


async def test_the_hosts_network_is_for_those_who_may(users):
    on_the_host = JobSpec(program="/bin/true", network=Network.HOST)
    code, _ = await refused(users.alice.start(on_the_host))
    assert code is ErrorCode.PERMISSION_DENIED
    assert (await users.admin.start(on_the_host)).job.spec == on_the_host


async def test_over_both_transports_it_is_the_same_job(daemon, users):
    """One server, two doors: what one started the other shows, to the letter."""
    async with daemon.client() as over_grpc:
        started = (await users.alice.start(JobSpec(program="/bin/echo", args=("x",), labels={"a": "b"}))).job
        await users.alice.wait(started.id)
        seen = (await over_grpc.status(started.id)).to_document()
        assert seen == (await users.alice.status(started.id)).to_document()
        chunks, end = await read(over_grpc, started.id)
        same, same_end = await read(users.alice, started.id)
        assert [(chunk.offset, chunk.stream, chunk.data) for chunk in chunks] == [
            (chunk.offset, chunk.stream, chunk.data) for chunk in same
        ]
        assert end == same_end


#: One rule for both transports: what every header can hold.
KEYS = ["!", "~", "build-7:nightly/2", "k" * 255]
NO_KEYS = ["", " ", "two words", "ké", "new\nline", "\udcff", "\0", "k" * 256]


@pytest.mark.parametrize("key", KEYS, ids=repr)
async def test_a_key_means_the_same_job_over_both_transports(daemon, key):
    """S11."""
    key = f"{uuid4()}{key}"[-255:]
    started = []
    for transport in (Transport.GRPC, Transport.HTTPS, Transport.GRPC):
        async with JobClient.connect(daemon.context(), transport) as client:
            started.append(await client.start(TRUE, idempotency_key=key))
    assert [each.existed for each in started] == [False, True, True]
    assert len({each.job.id for each in started}) == 1


@pytest.mark.parametrize("key", NO_KEYS, ids=repr)
async def test_what_is_no_key_is_refused_alike(users, key):
    """S11."""
    code, message = await refused(users.alice.start(TRUE, idempotency_key=key))
    assert code is ErrorCode.INVALID_ARGUMENT
    assert message.startswith("idempotency_key: ")
    assert message.endswith(" is not valid; allowed: 1 to 255 visible ASCII characters")


@pytest.mark.parametrize(
    "query",
    [{"page_size": -1}, {"page_size": 1001}, {"owner": "\udcff"}, {"name": "\udcff"}, {"id_prefix": "\udcff"}],
    ids=str,
)
async def test_a_list_that_cannot_be_asked_for_is_refused_by_its_name(users, query):
    ((name, value),) = query.items()
    code, message = await refused(listed(users.alice, **query))
    assert code is ErrorCode.INVALID_ARGUMENT
    assert message.startswith(f"{name}: {value!r} is not valid; allowed: ")


async def test_everybody_learns_who_they_are_and_until_when(users):
    """A2: what the credential proves, and nothing that was sent."""
    for name, role in (("alice", Role.USER), ("bob", Role.USER), ("admin", Role.ADMIN)):
        told = await getattr(users, name).who_am_i()
        assert (told.user, told.role) == (name, role.value)
        assert list(told.scopes) == sorted(scope.value for scope in DEFAULT_SCOPES[role])
        assert re.fullmatch("certificate serial [0-9a-f]+|token [0-9A-Za-z]{12}", told.credential)
        assert time.time() < told.expires_at


async def test_a_token_learns_what_it_is_good_for(daemon):
    made = tokens.create(daemon.directory, "alice", ttl=3600, scopes=[Scope.JOBS_OUTPUT])
    context = daemon.context("alice")
    narrow = replace(context, token=context.directory / "narrow")
    narrow.save_token(Token(made.token.reveal()))
    async with JobClient.connect(narrow, Transport.HTTPS) as client:
        told = await client.who_am_i()
    assert (told.scopes, told.credential) == (("jobs:output",), f"token {made.token.id}")
    assert told.expires_at == pytest.approx(made.record.expires_at, abs=0.001)
