"""What only HTTPS has: the token and who gets it, statuses, and TLS that asks for no certificate."""

import asyncio
import socket
import ssl
import threading
from contextlib import aclosing, contextmanager
from pathlib import Path

import pytest
from client.scripted_https import TOKEN
from client.scripted_server import STDOUT, Script, Wire

from jobworker import __version__
from jobworker.client.context import Context, Token, Transport
from jobworker.client.job_client import JobClient
from jobworker.core.errors import ErrorCode, JobError
from jobworker.core.spec import JobSpec

MISSING = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def transport():
    return Transport.HTTPS


async def status(client):
    await client.status(MISSING)


def refusal(context, work=status):
    async def connected():
        async with JobClient.connect(context) as client:
            await work(client)

    with pytest.raises(JobError) as refused:
        asyncio.run(connected())
    return refused.value


@contextmanager
def tls_server(authority, **settings):
    """A port of 127.0.0.1 that shakes hands, and collects what is sent to it."""
    received = []
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    key, certificate = authority.server(settings.get("host", "127.0.0.1"))
    with authority.written(key + certificate) as file:
        tls.load_cert_chain(file)
    if "maximum" in settings:
        tls.maximum_version = settings["maximum"]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        is_over = threading.Event()

        def serve():
            while not is_over.is_set():
                try:
                    connection, _ = listener.accept()
                    connection.settimeout(1)
                    with tls.wrap_socket(connection, server_side=True) as secure:
                        received.append(secure.recv(4096))
                        secure.sendall(settings.get("answer", b""))
                except OSError:
                    continue

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1], received
        finally:
            is_over.set()
            thread.join()


def test_an_older_tls_is_not_spoken(authority, context_to):  # A9
    with tls_server(authority, maximum=ssl.TLSVersion.TLSv1_2) as (port, received):
        error = refusal(context_to(port))
    assert error.message == f"cannot reach 127.0.0.1:{port}: the TLS handshake failed"
    assert received == []
    with tls_server(authority) as (port, received):  # positive control
        refusal(context_to(port))
    assert received[0].startswith(b"GET /healthz HTTP/1.1\r\n")


def test_a_certificate_for_another_host_is_refused(authority, context_to):  # A1
    with tls_server(authority, host="127.0.0.2") as (port, received):
        error = refusal(context_to(port))
    assert error.message == f"cannot reach 127.0.0.1:{port}: its certificate is for another host name"
    assert received == []


def test_a_port_without_tls_gets_no_token(context_to):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        heard = []

        def answer():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:  # closed: the test is over
                    return
                with connection:
                    heard.append(connection.recv(4096))
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        port = listener.getsockname()[1]
        error = refusal(context_to(port))
        listener.shutdown(socket.SHUT_RDWR)  # which ends accept
        thread.join()
    assert error.message == f"cannot reach 127.0.0.1:{port}: it does not speak TLS; is this its HTTPS port?"
    assert heard
    assert not any(TOKEN.encode() in words for words in heard)


def test_the_grpc_port_is_told_apart(server, context_to):
    error = refusal(context_to(server.ports[Transport.GRPC]))
    assert error.code is ErrorCode.UNAVAILABLE
    assert "no HTTPS port" in error.message


def test_a_redirect_is_not_followed(server, context, authority, context_to):
    with tls_server(authority) as (port, received):
        elsewhere = {"Location": f"https://127.0.0.1:{port}/"}
        for code in (301, 302, 303, 307, 308):
            server.https.answers = [(200, {}, b"{}"), (code, elsewhere, b"")]
            error = refusal(context)
            assert error.code is ErrorCode.INTERNAL
            assert f"HTTP {code}" in error.message
    assert received == []


def test_no_proxy_is_asked(server, context, monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert refusal(context).code is ErrorCode.JOB_NOT_FOUND


def test_every_request_has_the_token_in_its_header_and_nowhere_else(server, context):
    refusal(context)
    for headers in server.https.seen:
        assert headers["Authorization"] == f"Bearer {TOKEN}"
        assert headers["User-Agent"] == f"jobworker/{__version__}"
        assert "Cookie" not in headers


def test_a_token_shows_itself_nowhere(context, server, caplog):
    caplog.set_level("DEBUG")
    token = context.read_token()
    assert token.reveal() == TOKEN
    server.https.token = "another"
    error = refusal(context)
    for shown in (repr(token), str(token), repr(context), repr(error), str(error), caplog.text, f"{[token]}"):
        assert TOKEN not in shown


@pytest.mark.parametrize("text", ["", "two words", "a\r\nb", "ü", "a\0", "x" * 5000])
def test_what_cannot_be_a_token_is_refused(text):
    with pytest.raises(JobError, match="that is no token") as refused:
        Token(text)
    assert text not in repr(refused.value) or not text


def test_a_refused_token_is_told_with_the_remedy(server, context):
    server.https.token = "another"
    error = refusal(context)
    assert error.code is ErrorCode.UNAUTHENTICATED
    assert "jobctl login" in error.message


@pytest.mark.parametrize(
    ("code", "body", "wanted", "message"),
    [
        (403, b'{"error": "Error: unauthorized action"}', ErrorCode.PERMISSION_DENIED, "unauthorized action"),
        (404, b"<html>", ErrorCode.JOB_NOT_FOUND, "HTTP 404"),
        (429, b'{"error": "Error: too many"}', ErrorCode.EXHAUSTED, "too many"),
        (418, b"", ErrorCode.INTERNAL, "HTTP 418"),
        (599, b"[]", ErrorCode.INTERNAL, "HTTP 599"),
        (200, b"not JSON", ErrorCode.INTERNAL, "does not answer as a jobworkerd does"),
        (200, b"[]", ErrorCode.UNSUPPORTED, "newer protocol"),
        (200, b'{"id": 1}', ErrorCode.UNSUPPORTED, "newer protocol"),
    ],
)
def test_without_the_exact_code_the_status_decides(server, context, code, body, wanted, message):  # noqa: PLR0917
    server.https.answers = [(200, {}, b"{}"), (code, {}, body)]
    error = refusal(context)
    assert error.code is wanted
    assert message in error.message


def test_a_gateway_without_its_server_is_asked_again(server, context):
    server.https.answers = [(200, {}, b"{}"), (502, {}, b"bad gateway"), (503, {}, b"")]
    assert refusal(context).code is ErrorCode.JOB_NOT_FOUND


def test_a_stream_that_is_left_is_closed(server, context):  # O9
    server.jobs.scripts[b"p"] = Script([(STDOUT, b"x")], outcome=None)
    job_id = server.add(b"p")

    async def look_and_leave():
        async with JobClient.connect(context) as client:
            async with aclosing(client.stream(job_id)) as events:
                await anext(events)
                assert server.https.streams == 1
            async with asyncio.timeout(60):
                while server.https.streams:  # noqa: ASYNC110 - it is of another thread
                    await asyncio.sleep(0.005)

    asyncio.run(look_and_leave())


def test_a_client_that_is_left_leaves_no_connection_behind(server, context_to):
    server.jobs.scripts[b"p"] = Script([(STDOUT, b"x")], outcome=None)
    job_id = server.add(b"p")

    async def look_and_leave():
        async with Wire(server.ports[Transport.HTTPS]) as wire:
            async with JobClient.connect(context_to(wire.port)) as client:
                async with aclosing(client.stream(job_id)) as events:
                    await anext(events)
                    assert connections_to(wire.port)  # positive control
                for turns in range(0, 200, 5):  # of the loop: so far a call gets with its connection and its request
                    wait = asyncio.create_task(client.wait(job_id))
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    wait.cancel()
                    await asyncio.gather(wait, return_exceptions=True)
            assert connections_to(wire.port) == []

    asyncio.run(look_and_leave())


def connections_to(port):
    """The addresses of open sockets whose other end is the port."""
    sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [
        near
        for _, near, far, *_, inode in (each[:10] for each in sockets)
        if inode != "0" and far == f"0100007F:{port:04X}"
    ]


def test_a_key_that_no_header_can_hold_is_refused(server, context):
    for key in ("a\r\nX-Evil: 1", "a\0", " a"):
        error = refusal(context, lambda client, key=key: client.start(JobSpec(program="echo"), idempotency_key=key))
        assert (error.code, "idempotency_key" in error.message) == (ErrorCode.INVALID_ARGUMENT, True)
    assert not any("X-Evil" in headers for headers in server.https.seen)


def test_a_host_that_cannot_be_is_named(authority, tmp_path):
    directory = authority.context(tmp_path / "x", "alice", "a..b:443", Transport.HTTPS)
    assert refusal(Context.load(directory)).message == "cannot reach a..b:443: host not found"


def test_a_body_without_a_length_ends_with_its_connection(authority, context_to):
    answer = b"HTTP/1.1 403 Forbidden\r\n\r\n" + b'{"error": "Error: go away"}'
    with tls_server(authority, answer=answer) as (port, _):
        assert refusal(context_to(port)).message == "go away"


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", b"SSH-2.0-OpenSSH\r\n", b""])
def test_an_answer_that_is_cut_or_none_is_told_apart(authority, context_to, answer):
    with tls_server(authority, answer=answer) as (port, _):
        error = refusal(context_to(port))
    assert error.code is ErrorCode.UNAVAILABLE
    assert "no HTTPS port" in error.message


def test_more_streams_than_a_pool_has_connections_are_open_at_once(server, context):
    server.jobs.scripts[b"p"] = Script([(STDOUT, b"x")], outcome=None)
    job_id = server.add(b"p")

    async def follow_many():
        async with JobClient.connect(context) as client:
            followers = [client.stream(job_id) for _ in range(120)]
            first = await asyncio.gather(*(anext(follower) for follower in followers))
            assert {chunk.data for chunk in first} == {b"x"}
            assert (await client.start(JobSpec(program="echo"))).job.owner == "alice"
            for follower in followers:
                await follower.aclose()

    asyncio.run(follow_many())


def test_a_context_without_a_ca_trusts_the_systems(server, tmp_path, authority, monkeypatch):
    directory = authority.context(tmp_path / "x", "alice", server.address(Transport.HTTPS), Transport.HTTPS)
    file = directory / "context.toml"
    file.write_text("".join(line for line in file.read_text().splitlines(keepends=True) if not line.startswith("ca")))
    assert "not from" in refusal(Context.load(directory)).message
    monkeypatch.setenv("SSL_CERT_FILE", str(directory / "ca.crt"))
    assert refusal(Context.load(directory)).code is ErrorCode.JOB_NOT_FOUND


def test_a_ca_file_without_a_certificate_is_named(context):
    context.ca.write_text("nothing")
    error = refusal(context)
    assert error.code is ErrorCode.UNAUTHENTICATED
    assert str(context.ca) in error.message
