"""The faces that every promise is run over: the library, and the client over each transport."""

from contextlib import AsyncExitStack
from types import SimpleNamespace

import pytest
from conformance.faces import Library
from e2e.conftest import daemon, installation  # noqa: F401 - fixtures: one server for the session
from host import needs_root

from jobworker import Worker
from jobworker.client.context import Transport
from jobworker.client.job_client import JobClient
from jobworker.core.lifecycle import State
from jobworker.core.spec import JobSpec

_LIBRARY = "library"
_REMOTE = [transport.value for transport in Transport]


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "conformance":
            item.add_marker(needs_root)


@pytest.fixture(params=[_LIBRARY, *_REMOTE])
async def face(request, daemon, tmp_path):  # noqa: F811
    """One user's way to start, watch and end jobs; whatever a test leaves running is ended."""
    if request.param == _LIBRARY:
        state = daemon.directory.parent / f"library-{tmp_path.name}"
        async with await Worker.open(state) as worker:
            yield Library(worker)
            for job in worker.list():
                await worker.remove(job.id, force=True)
        return
    async with JobClient.connect(daemon.context(), Transport(request.param)) as client:
        yield client
        await _end_all(client)


@pytest.fixture(params=_REMOTE)
async def users(request, daemon):  # noqa: F811
    """Clients of alice and bob, who own their jobs, and of admin, over one transport."""
    async with AsyncExitStack() as stack:
        clients = {
            user: await stack.enter_async_context(JobClient.connect(daemon.context(user), Transport(request.param)))
            for user in ("alice", "bob", "admin")
        }
        yield SimpleNamespace(**clients)
        await _end_all(clients["admin"])


async def _end_all(client) -> None:
    async for page in client.list(states=[State.PENDING, State.RUNNING]):
        for job in page:
            await client.remove(job.id, force=True)


@pytest.fixture(scope="session")
def shell():
    """Makes the spec of a shell script with its arguments."""

    def make(script, *args, **values):
        return JobSpec(program="/bin/sh", args=("-c", script, "sh", *args), **values)

    return make
