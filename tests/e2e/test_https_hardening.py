"""What a hostile peer can do to the HTTPS door: nothing to others, and little for itself."""

import contextlib
import json
import re
import socket
import ssl
import time
import warnings
from pathlib import Path

import pytest
from host import needs_root

pytestmark = needs_root

FIVE = [pytest.param(200, id="few"), pytest.param(5000, id="all", marks=pytest.mark.soak)]


def get(token, path="/jobs", *lines):
    """A request as bytes, with more header lines."""
    head = (f"GET {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {token}", *lines, "", "")
    return "\r\n".join(head).encode("latin-1")


def post(token, *lines, body=b""):
    head = ("POST /jobs/start HTTP/1.1", "Host: x", f"Authorization: Bearer {token}", "Content-Type: application/json")
    return "\r\n".join((*head, *lines, "", "")).encode("latin-1") + body


def statuses(received):
    return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]


def starts_of(daemon):
    return len([record for record in daemon.audit() if record["action"] == "job.start"])


BODY = b'{"program":"/bin/true"}'
HIDDEN = b"POST /jobs/start HTTP/1.1\r\nHost: x\r\n\r\n"


def smuggled(token):
    """Requests whose end two programs could see in two places."""
    length = f"Content-Length: {len(BODY)}"
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    return {
        "length and chunked": post(token, length, "Transfer-Encoding: chunked", body=chunked),
        "chunked and length": post(token, "Transfer-Encoding: chunked", length, body=chunked),
        "two lengths": post(token, length, "Content-Length: 0", body=BODY),
        "two equal lengths": post(token, length, length, body=BODY),
        "lengths in a list": post(token, f"Content-Length: {len(BODY)}, {len(BODY)}", body=BODY),
        "signed length": post(token, f"Content-Length: +{len(BODY)}", body=BODY),
        "negative length": post(token, "Content-Length: -1", body=BODY),
        "hexadecimal length": post(token, "Content-Length: 0x17", body=BODY),
        "long length": post(token, "Content-Length: 99999999999999999999999", body=BODY),
        "space before the colon": post(token, f"Content-Length : {len(BODY)}", body=BODY),
        "folded line": post(token, "X-Folded: a\r\n b", length, body=BODY),
        "folded length": post(token, f"Content-Length:\r\n {len(BODY)}", body=BODY),
        "two codings": post(token, "Transfer-Encoding: chunked", "Transfer-Encoding: chunked", body=chunked),
        "chunked twice": post(token, "Transfer-Encoding: chunked, chunked", body=chunked),
        "other coding": post(token, "Transfer-Encoding: gzip, chunked", body=chunked),
        "identity": post(token, "Transfer-Encoding: identity", length, body=BODY),
        "coding in disguise": post(token, "Transfer-Encoding: xchunked", body=chunked),
        "coding behind a tab": post(token, "Transfer-Encoding:\x0bchunked", body=chunked),
        "chunk size with a sign": post(token, "Transfer-Encoding: chunked", body=b"+17\r\n%s\r\n0\r\n\r\n" % BODY),
        "chunk size with 0x": post(token, "Transfer-Encoding: chunked", body=b"0x17\r\n%s\r\n0\r\n\r\n" % BODY),
        "chunk size too large": post(token, "Transfer-Encoding: chunked", body=b"f" * 17 + b"\r\n" + BODY),
        "no end of a chunk": post(token, "Transfer-Encoding: chunked", body=b"17\r\n%s0\r\n\r\n" % BODY),
        "bare line feeds": post(token, length, body=BODY).replace(b"\r\n", b"\n"),
        "carriage return alone": post(token, "X: a\rb", length, body=BODY),
        "NUL": post(token, "X: a\0b", length, body=BODY),
        "no host": post(token, length, body=BODY).replace(b"Host: x\r\n", b""),
        "two hosts": post(token, "Host: y", length, body=BODY),
        "no name": post(token, ": x", length, body=BODY),
        "HTTP/1.0 chunked": post(token, "Transfer-Encoding: chunked", body=chunked).replace(b"1.1", b"1.0", 1),
        "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
        "junk": bytes(range(256)) * 4,
        "CONNECT": f"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode(),
    }


def test_a_request_whose_end_is_in_doubt_is_refused_and_its_connection_closed(daemon):
    """Issue 3: smuggled framing. Nothing of it is done, and what hides behind it is never looked at."""
    alice = daemon.https_as("alice")
    before = starts_of(daemon)
    for name, request in smuggled(alice.token).items():
        received = alice.raw(request + HIDDEN)
        assert statuses(received) in ([400], [413]), (name, received)
        head, _, body = received.partition(b"\r\n\r\n")
        assert json.loads(body)["error"].startswith("Error: "), name
        assert b"connection: close" in head, name
    assert starts_of(daemon) == before
    # Positive controls: the same requests without their fault.
    good = post(alice.token, f"Content-Length: {len(BODY)}", "Connection: close", body=BODY)
    chunked = post(
        alice.token,
        "Transfer-Encoding: chunked",
        "Connection: close",
        body=b"%x;x=y\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    )
    assert statuses(alice.raw(good)) == [201]
    assert statuses(alice.raw(chunked)) == [201]


def test_an_answer_says_nothing_about_its_server_and_is_what_it_says(daemon):
    """Issue 3: no banner, no sniffing, no caching, raw output never shown."""
    alice = daemon.https_as("alice")
    job_id = alice.start("/bin/echo", "<script>alert(1)</script>")
    for answer in (
        alice.get(f"/jobs/{job_id}/wait"),
        alice.get("/no/such"),
        alice.get(f"/jobs/{job_id}/output/stream"),
        alice.get("/openapi.json"),
    ):
        assert answer.headers["Server"] is None
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Date"]
    raw = alice.get(f"/jobs/{job_id}/output/stream")
    assert raw.headers["Content-Type"] == "application/octet-stream"
    assert raw.headers["Content-Disposition"].startswith("attachment")
    assert b"server:" not in alice.raw(b"junk\r\n\r\n").lower()


def test_header_and_body_have_a_size(daemon):
    """Issue 3: refused at the bound, in whatever pieces they come."""
    alice = daemon.https_as("alice")
    fits = get(alice.token, "/healthz", "X: " + "x" * 15_000, "Connection: close")
    assert statuses(alice.raw(fits)) == [200]  # positive control
    for request in (
        get(alice.token, "/healthz", "X: " + "x" * 17_000),
        get(alice.token, "/healthz?" + "x" * 17_000),
        get(alice.token, "/healthz", *(f"X-{number}: x" for number in range(100))),
        b"GET /" + b"x" * 100_000,  # and never a line's end
        b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000,
    ):
        assert statuses(alice.raw(request)) == [431]
    large = 4 * 1024 * 1024 + 1
    assert statuses(alice.raw(post(alice.token, f"Content-Length: {large}"))) == [413]
    endless = post(alice.token, "Transfer-Encoding: chunked", body=b"100000\r\n" + bytes(1 << 20) + b"\r\n")
    with alice.socket() as connection, contextlib.suppress(ConnectionError, ssl.SSLError):
        connection.sendall(endless)
        for _ in range(8):
            connection.sendall(b"100000\r\n" + bytes(1 << 20) + b"\r\n")
        assert statuses(connection.recv(65536)) == [413]
    padded = {"program": "/bin/true", "args": ["x" * 100_000] * 20}  # large and good
    assert alice.post("/jobs/start", padded).status in {201, 422}


def test_tls_1_3_and_http_1_1_are_all_there_is(daemon):
    """A1, A9."""
    alice = daemon.https_as("alice")
    with alice.socket() as connection:
        assert connection.version() == "TLSv1.3"  # positive control
    for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2):
        old = ssl.create_default_context(cafile=daemon.directory / "pki/bundle.crt")
        old.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            old.minimum_version = ssl.TLSVersion.TLSv1
            old.maximum_version = version
        with (
            socket.create_connection((alice.host, alice.port), timeout=30) as bare,
            pytest.raises((ssl.SSLError, ConnectionError)),
        ):
            old.wrap_socket(bare, server_hostname=alice.host)
    alice.tls.set_alpn_protocols(["h2", "http/1.1"])
    with alice.socket() as connection:
        assert connection.selected_alpn_protocol() == "http/1.1"
    with alice.socket(secure=False) as plain:
        plain.sendall(get(alice.token))
        with contextlib.suppress(ConnectionError):
            assert b"HTTP" not in plain.recv(65536)


def memory_of(pid):
    """Resident memory in MiB."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


@pytest.mark.parametrize("count", FIVE)
def test_idle_and_half_open_connections_bother_nobody(own_daemon, count):
    """R3: from addresses of their own, so that the bound on one address is not what saves us."""
    own_daemon.start()
    alice = own_daemon.https_as("alice")
    before = memory_of(own_daemon.pid)
    kinds = (b"", b"\x16\x03\x01\x02\x00\x01", b"junk that is no TLS")
    with contextlib.ExitStack() as stack:
        for number in range(count):
            # In loopback's network every address is ours; none has more than half of what it may have.
            source = f"127.0.{1 + number // 500}.1"
            try:
                connection = stack.enter_context(alice.socket(source, secure=False))
            except OSError:
                continue  # the bound on all connections: refused, and nobody else is
            with contextlib.suppress(OSError):
                connection.sendall(kinds[number % 3])
        assert alice.get("/jobs").status == 200
        assert memory_of(own_daemon.pid) - before < 32 + count * 0.1
    assert alice.get("/jobs").status == 200


@pytest.mark.parametrize("count", FIVE)
def test_one_address_has_so_many_connections_and_the_others_theirs(own_daemon, count):
    """R3, issue 3: connection cap of an address."""
    own_daemon.start()
    alice = own_daemon.https_as("alice")
    limit = 1024
    with contextlib.ExitStack() as stack:
        held = []
        for _ in range(limit + min(count, 500)):
            with contextlib.suppress(OSError):
                held.append(stack.enter_context(alice.socket("127.9.9.9", secure=False)))
        with pytest.raises((ssl.SSLError, ConnectionError)), alice.socket("127.9.9.9"):
            pass
        assert alice.get("/jobs").status == 200  # positive control: another address
        held.pop(0).close()


def test_who_says_nothing_and_who_never_ends_is_sent_away(daemon, eventually):
    """R3: slow headers and slow bodies, by the server's clock and while others are served."""
    alice = daemon.https_as("alice")
    slow_body = post(alice.token, "Content-Length: 100", body=b"{")
    with contextlib.ExitStack() as stack:
        silent, header, body = (stack.enter_context(alice.socket()) for _ in range(3))
        handshake = stack.enter_context(alice.socket(secure=False))
        header.sendall(b"GET / HTTP/1.1\r\nX: ")
        body.sendall(slow_body)
        begin = time.monotonic()
        assert alice.get("/jobs").status == 200
        for connection in (silent, header, body, handshake):
            connection.settimeout(0.2)
        received = dict.fromkeys((silent, header, body, handshake), b"")
        ended = set()
        while len(ended) < 4:
            assert time.monotonic() - begin < 60
            for connection in set(received) - ended:
                try:
                    if connection is header:
                        with contextlib.suppress(ConnectionError, ssl.SSLError):  # what it was told is read first
                            connection.sendall(b"x")  # a byte now and then keeps nobody alive
                    block = connection.recv(65536)
                except TimeoutError:
                    continue
                except (ConnectionError, ssl.SSLError):
                    block = b""
                received[connection] += block
                if not block:
                    ended.add(connection)
        assert received[silent] == b""
        assert statuses(received[header]) == [408]
        assert statuses(received[body]) == [408]


def test_a_reader_that_stops_reading_costs_no_memory_and_slows_nobody(own_daemon, eventually):
    """O7: 100 MB of output, one reader that never reads and one that does."""
    own_daemon.start()
    alice = own_daemon.https_as("alice")
    job_id = alice.start("/bin/sh", "-c", "head -c 100000000 /dev/zero; exec sleep 1000")
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            stalled = stack.enter_context(alice.socket())
            stalled.sendall(get(alice.token, f"/jobs/{job_id}/output/stream"))
            assert stalled.recv(1024)
        with alice.open("GET", f"/jobs/{job_id}/output/stream") as response:
            before, read = memory_of(own_daemon.pid), 0
            while read < 100_000_000:
                read += len(response.read1(1 << 20))
        assert memory_of(own_daemon.pid) - before < 32
    alice.ask("DELETE", f"/jobs/{job_id}?force=true")


def test_who_goes_leaves_nothing(own_daemon, eventually):
    """O9: readers, listeners and waiters of a silent job who vanish."""
    own_daemon.start()
    alice = own_daemon.https_as("alice")
    job_id = alice.start("/bin/sleep", 1000)
    alice.get("/jobs")
    descriptors = Path(f"/proc/{own_daemon.pid}/fd")
    before = len(list(descriptors.iterdir()))
    with contextlib.ExitStack() as stack:
        for path in (f"/jobs/{job_id}/output/stream", "/events", f"/jobs/{job_id}/wait"):
            for _ in range(5):
                connection = stack.enter_context(alice.socket())
                connection.sendall(get(alice.token, path))
        eventually(lambda: len(list(descriptors.iterdir())) >= before + 20)  # each has a socket, a reader its files
    eventually(lambda: len(list(descriptors.iterdir())) <= before)
    alice.ask("DELETE", f"/jobs/{job_id}?force=true")


@pytest.mark.parametrize("how", ["closes", "sends no more", "sends nonsense"])
def test_nothing_is_written_to_a_connection_that_is_over(own_daemon, eventually, how):
    """O9: the answer ends with it; the event loop logs each try to write on."""
    own_daemon.start()
    before = own_daemon.connections()
    https = own_daemon.https_as()
    job = https.start("/usr/bin/head", "-c", 1 << 26, "/dev/zero")  # far more than what sockets hold
    https.get(f"/jobs/{job}/wait")
    eventually(lambda: own_daemon.connections() == before)
    with https.socket() as connection:
        connection.sendall(get(https.token, f"/jobs/{job}/output/stream"))
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        if how == "sends nonsense":
            connection.sendall(b"nonsense\r\n\r\n")
        elif how == "sends no more":
            socket.socket.shutdown(connection, socket.SHUT_WR)
        if how != "closes":
            eventually(lambda: own_daemon.connections() == before)  # what it has not read is not waited for
    eventually(lambda: own_daemon.connections() == before)
    assert https.get(f"/jobs/{job}").status == 200
    own_daemon.stop()
    assert "SSL connection" not in own_daemon.log.read_text()


def test_sigterm_ends_streams_clearly_and_in_time(own_daemon):
    """R5: also with a reader that never reads; the job lives on."""
    own_daemon.start()
    alice = own_daemon.https_as("alice")
    quiet = alice.start("/bin/sh", "-c", "echo on; exec sleep 1000")
    loud = alice.start("/bin/sh", "-c", "head -c 100000000 /dev/zero; exec sleep 1000")
    with contextlib.ExitStack() as stack:
        response = stack.enter_context(alice.open("GET", f"/jobs/{quiet}/output/stream"))
        frames = stack.enter_context(
            alice.open("GET", f"/jobs/{quiet}/output/stream", headers={"Accept": "application/vnd.jobworker.frames"})
        )
        events = stack.enter_context(alice.open("GET", "/events"))
        stalled = stack.enter_context(alice.socket())
        stalled.sendall(get(alice.token, f"/jobs/{loud}/output/stream"))
        idle = stack.enter_context(alice.socket())
        assert response.read(3) == b"on\n"
        begin = time.monotonic()
        assert own_daemon.stop() == 0
        assert time.monotonic() - begin < 10
        for stream in (response, frames, events):
            with pytest.raises(Exception, match="IncompleteRead"):
                stream.read()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            assert idle.recv(1) == b""
    assert len(own_daemon.monitors()) == 2


def test_a_busy_https_port_is_one_clear_line(own_daemon):
    """R6."""
    with socket.create_server(("127.0.0.1", int(own_daemon.https.rpartition(":")[2]))):
        assert_cannot_listen(own_daemon, own_daemon.https)


def test_an_https_host_that_nobody_knows_is_one_clear_line(empty_daemon):
    """R6."""
    configuration = empty_daemon.directory / "jobworker.toml"
    unknown = "host.invalid:8443"  # RFC 6761
    configuration.write_text(configuration.read_text().replace(empty_daemon.https, unknown))
    assert_cannot_listen(empty_daemon, unknown)


def assert_cannot_listen(daemon, address):
    refused = daemon.command("serve", "--config", daemon.directory / "jobworker.toml")
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith(f"jobworkerd: cannot listen on {address}")
    assert "Traceback" not in refused.stderr
