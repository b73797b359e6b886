"""A scripted server and the context of a user it knows."""

import pytest
from client.scripted_server import ScriptedServer
from client.throwaway_ca import Authority

from jobworker.client.context import Context, Transport


@pytest.fixture(scope="session")
def authority():
    return Authority()


@pytest.fixture
def server(authority):
    with ScriptedServer(authority) as running:
        yield running


@pytest.fixture(params=Transport, ids=lambda transport: transport.value)
def transport(request):
    """Over which transport a test runs: over each."""
    return request.param


@pytest.fixture
def context(authority, server, transport, tmp_path):
    return Context.load(authority.context(tmp_path / "clients/alice", "alice", server.address(transport), transport))


@pytest.fixture
def context_to(authority, transport, tmp_path):
    """Makes alice's context for whatever listens on a port."""

    def make(port, by=authority):
        return Context.load(by.context(tmp_path / f"to-{port}", "alice", f"127.0.0.1:{port}", transport))

    return make
