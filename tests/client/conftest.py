"""A scripted server and the context of a user it knows."""

import pytest
from client.scripted_server import ScriptedServer
from client.throwaway_ca import Authority

from jobworker.client.context import Context


@pytest.fixture(scope="session")
def authority():
    return Authority()


@pytest.fixture
def server(authority):
    with ScriptedServer(authority) as running:
        yield running


@pytest.fixture
def context(authority, server, tmp_path):
    return Context.load(authority.context(tmp_path / "clients/alice", "alice", server.address))
