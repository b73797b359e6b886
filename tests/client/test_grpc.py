"""What only gRPC has: its statuses, and a server that looks at certificates."""

import asyncio

import grpc
import pytest
from client.throwaway_ca import Authority

from jobworker.client.context import Context, Transport
from jobworker.client.job_client import JobClient
from jobworker.core.errors import ErrorCode, JobError

MISSING = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def transport():
    return Transport.GRPC


def refusal(context, work):
    async def connected():
        async with JobClient.connect(context) as client:
            await work(client)

    with pytest.raises(JobError) as refused:
        asyncio.run(connected())
    return refused.value


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, ErrorCode.PERMISSION_DENIED),
        (grpc.StatusCode.UNAUTHENTICATED, ErrorCode.UNAUTHENTICATED),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ErrorCode.EXHAUSTED),
        (grpc.StatusCode.UNIMPLEMENTED, ErrorCode.UNSUPPORTED),
        (grpc.StatusCode.DATA_LOSS, ErrorCode.INTERNAL),
    ],
)
def test_without_it_the_status_decides(server, context, status, code):
    server.jobs.failures = [(status, "", "no")]
    assert refusal(context, lambda client: client.status(MISSING)).code is code


def test_a_server_that_refuses_the_certificate_is_told_apart(server, authority, transport, tmp_path):
    directory = Authority().context(tmp_path / "foreign", "alice", server.address(transport))
    (directory / "ca.crt").write_bytes(authority.pem)
    error = refusal(Context.load(directory), lambda client: client.status(MISSING))
    assert "refuse the context's certificate" in error.message


def test_an_https_port_is_told_apart(server, authority, tmp_path):
    address = server.address(Transport.HTTPS)
    context = Context.load(authority.context(tmp_path / "swapped", "alice", address))
    error = refusal(context, lambda client: client.status(MISSING))
    assert error.message == f"cannot reach {address}: it does not speak gRPC; is this its gRPC port?"
