"""What a user with a good certificate and bad manners can do to the gRPC door: nothing to the others."""

import contextlib
import itertools
import os
import random
import socket
import ssl
from pathlib import Path

import grpc
import h2.config
import h2.connection
import h2.exceptions
import pytest
from host import needs_root

pytestmark = needs_root

COUNTS = [pytest.param(1000, id="few"), pytest.param(100_000, id="all", marks=pytest.mark.soak)]
REQUEST = [
    (":method", "POST"),
    (":scheme", "https"),
    (":path", "/jobworker.v1.JobWorker/Status"),
    (":authority", "x"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
]

RPCS = ("Start", "Stop", "Status", "List", "Wait", "Remove", "Signal", "WhoAmI")
UNARY = (*(f"/jobworker.v1.JobWorker/{name}" for name in RPCS), "/grpc.health.v1.Health/Check")
STREAM = "/jobworker.v1.JobWorker/Stream"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


class Flooder:
    """An HTTP/2 connection that says what it likes, and reads now and then."""

    def __init__(self, socket):
        self.socket = socket
        self.h2 = h2.connection.H2Connection(config=h2.config.H2Configuration(client_side=True))
        self.h2.initiate_connection()
        self.flush()

    def flush(self):
        self.socket.sendall(self.h2.data_to_send())

    def read(self):
        """Whether the server still talks to us."""
        self.socket.settimeout(0.01)
        try:
            data = self.socket.recv(65536)
            self.h2.receive_data(data)
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(10)
        return bool(data)


@contextlib.contextmanager
def flooder(daemon, user="bob"):
    context, door = daemon.context(user), daemon.https_as(None)
    host, _, port = daemon.address.rpartition(":")
    door.host, door.port = host, int(port)
    door.tls.load_cert_chain(context.certificate, context.key)
    door.tls.set_alpn_protocols(["h2"])
    with door.socket() as connection:
        yield Flooder(connection)


def open_and_reset(flood):
    stream = flood.h2.get_next_available_stream_id()
    flood.h2.send_headers(stream, REQUEST)
    flood.h2.reset_stream(stream)


def ping(flood):
    flood.h2.ping(os.urandom(8))


def settings(flood):
    flood.h2.update_settings({4: random.randrange(1, 1 << 20)})


def send_many(flood, act, count):
    """How many frames were sent, and whether the server ended the connection over them."""
    for number in range(count):
        try:
            act(flood)
            flood.flush()
            if number % 50 == 49 and not flood.read():
                return number, True
        except (OSError, ssl.SSLError, h2.exceptions.ProtocolError):
            return number, True
    return count, False


def memory_of(pid):
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


@pytest.mark.timeout(0)
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("act", [open_and_reset, ping, settings])
async def test_a_flood_of_frames_ends_its_own_connection_at_most(own_daemon, act, count):
    """R3: streams that are reset at once, pings, settings; others are served, and memory stays bounded."""
    own_daemon.start()
    before = memory_of(own_daemon.pid)
    with flooder(own_daemon) as flood:
        assert flood.read(), "a connection that says hello and no more is kept"
        done, is_ended = send_many(flood, act, count)
        async with own_daemon.client() as client:
            assert await client.list().__anext__() == []
    assert is_ended or done == count  # how soon the server has had enough is its own affair
    assert own_daemon.process.poll() is None
    assert memory_of(own_daemon.pid) - before < 64


async def first_answer(channel, path, payload):
    """Of an RPC of any kind."""
    if path == STREAM:
        return await channel.unary_stream(path)(payload, timeout=30).read()
    if path == REFLECTION:
        return await channel.stream_stream(path)(iter([payload]), timeout=30).read()
    return await channel.unary_unary(path)(payload, timeout=30)


@pytest.mark.timeout(0)
@pytest.mark.parametrize("count", COUNTS)
async def test_payloads_that_are_no_messages_are_refused_one_by_one(own_daemon, count):
    """R3: random bytes for every RPC: the caller's error each, not worth a line in the log, and the server goes on."""
    own_daemon.start()
    chance = random.Random(1)
    log = own_daemon.log.read_text()
    async with own_daemon.channel() as channel:
        for path in itertools.islice(itertools.cycle((*UNARY, STREAM, REFLECTION)), count):
            with pytest.raises(grpc.aio.AioRpcError, match="not a message of the kind") as refused:
                await first_answer(channel, path, b"\xff" + chance.randbytes(chance.randrange(200)))
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert own_daemon.log.read_text() == log
    async with own_daemon.client() as client:
        assert await client.list().__anext__() == []


def test_who_never_finishes_a_handshake_is_sent_away(daemon):
    """R3: long before the two minutes of the transport itself."""
    host, _, port = daemon.address.rpartition(":")
    words = (b"", b"\x16\x03\x01\x02\x00\x01")  # nothing, and the beginning of a ClientHello
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(socket.create_connection((host, int(port)), timeout=60)) for _ in words]
        for peer, word in zip(peers, words, strict=True):
            peer.sendall(word)
        for peer in peers:
            with contextlib.suppress(ConnectionResetError):
                while peer.recv(1024):
                    pass


def test_whoever_only_connects_leaves_room_for_the_other_door_and_for_jobs(own_daemon, monkeypatch):
    """R3. Anybody can connect, and needs no certificate for it."""
    command = ["prlimit", "--nofile=256:256", *own_daemon.serve_command]
    monkeypatch.setattr(type(own_daemon), "serve_command", command)
    own_daemon.start()
    host, _, port = own_daemon.address.partition(":")
    with contextlib.ExitStack() as connections:
        for _ in range(300):
            connections.enter_context(socket.create_connection((host, int(port)), timeout=10))
        done = own_daemon.jobctl("--transport", "https", "run", "--", "echo", "here")
    assert (done.returncode, done.stdout) == (0, "here\n"), done.stderr
