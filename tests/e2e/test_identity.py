"""Who gets in: every certificate that proves nothing is refused, and what is proven ends in time."""

import asyncio
import datetime as dt
import os
import socket
import ssl
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from host import needs_root

from jobworker.access.authority import create_issuing_ca, create_root_ca, issue_user
from jobworker.access.certificates import BACKDATED
from jobworker.api.grpc._generated import jobworker_pb2 as pb2
from jobworker.api.grpc._generated.jobworker_pb2_grpc import JobWorkerStub
from jobworker.core.errors import ErrorCode, JobError
from jobworker.core.lifecycle import State
from jobworker.core.spec import JobSpec
from jobworker.daemon import users

pytestmark = needs_root

ALICE = "spiffe://jobworker.internal/user/alice"
HANDSHAKE = None  # refused before a single byte of HTTP/2
DAY = dt.timedelta(days=1)
LATELY = -dt.timedelta(seconds=BACKDATED)


def new_key():
    return ec.generate_private_key(ec.SECP256R1())


@dataclass(kw_only=True)
class Certificate:
    """A client certificate as alice's is, but for what is said otherwise."""

    common_name: str = "alice"
    names: tuple[str, ...] = (ALICE,)
    purposes: tuple[x509.ObjectIdentifier, ...] = (ExtendedKeyUsageOID.CLIENT_AUTH,)
    is_ca: bool = False
    begins: dt.timedelta = LATELY
    ends: dt.timedelta = DAY
    key: Any = field(default_factory=new_key)

    def signed(self, issuer_name, issuer_key):
        now = dt.datetime.now(dt.UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.common_name)])
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only"), False
        )
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer_name or subject)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + self.begins)
            .not_valid_after(now + self.ends)
            .add_extension(x509.BasicConstraints(ca=self.is_ca, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=True, key_cert_sign=self.is_ca, crl_sign=False, decipher_only=False, **usage
                ),
                critical=True,
            )
        )
        if self.purposes:
            builder = builder.add_extension(x509.ExtendedKeyUsage(self.purposes), critical=False)
        if self.names:
            uris = [x509.UniformResourceIdentifier._init_without_validation(name) for name in self.names]
            builder = builder.add_extension(x509.SubjectAlternativeName(uris), critical=False)
        return builder.sign(issuer_key or self.key, hashes.SHA256())


def pem(key):
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@pytest.fixture(scope="session")
def authority(daemon):
    """The server's own issuing CA: name, key, and the certificate for the chain."""
    place = daemon.directory / "pki/ca"
    certificate = (place / "issuing.crt").read_bytes()
    key = serialization.load_pem_private_key((place / "issuing.key").read_bytes(), None)
    return x509.load_pem_x509_certificate(certificate).subject, key, certificate


@pytest.fixture
def credentials(daemon, authority):
    """Channel credentials with a certificate from the server's own CA, from another, or from itself."""
    trust = (daemon.directory / "pki/bundle.crt").read_bytes()

    def make(certificate, issuer="own"):
        if certificate is None:
            return grpc.ssl_channel_credentials(trust)
        name, key, chain = authority
        if issuer == "other":
            other = Certificate(common_name=name.rfc4514_string().removeprefix("CN="), is_ca=True, names=())
            key, chain = other.key, other.signed(None, None).public_bytes(serialization.Encoding.PEM)
        leaf = certificate.signed(*((None, None) if issuer == "self" else (name, key)))
        leaf_pem = leaf.public_bytes(serialization.Encoding.PEM)
        return grpc.ssl_channel_credentials(trust, pem(certificate.key), leaf_pem + chain)

    return make


async def answer(daemon, credentials, call):
    """The error of one call; None when it is answered."""
    options = [("grpc.enable_retries", 0)]
    async with grpc.aio.secure_channel(daemon.address, credentials, options=options) as channel:
        try:
            await call(channel)
        except grpc.aio.AioRpcError as error:
            return error
    return None


async def list_jobs(channel):
    await JobWorkerStub(channel).List(pb2.ListRequest(), timeout=60)


async def check_health(channel):
    answered = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60)
    assert answered.status == health_pb2.HealthCheckResponse.SERVING


async def watch_health(channel):
    async for answered in health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60):
        assert answered.status == health_pb2.HealthCheckResponse.SERVING
        return


async def reflect(channel):
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    async for answered in reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([asked])):
        services = {service.name for service in answered.list_services_response.service}
        assert {"jobworker.v1.JobWorker", "grpc.health.v1.Health"} <= services
        return


async def start_job(channel):
    spec = pb2.JobSpec(program=b"/bin/true", name="must-not-run")
    await JobWorkerStub(channel).Start(pb2.StartRequest(spec=spec), timeout=60)


def assert_refused(error, reason):
    assert error is not None, "it was let in"
    if reason is HANDSHAKE:
        assert error.code() is grpc.StatusCode.UNAVAILABLE
    else:
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        assert reason in error.details()


def rsa_key(bits):
    return rsa.generate_private_key(65537, bits)


def user(name):
    return (f"spiffe://jobworker.internal/user/{name}",)


SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH

#: What is wrong, how it is made, who signs it, and how it is refused.
BAD = {
    "none": (None, "own", HANDSHAKE),
    "other CA": (Certificate, "other", HANDSHAKE),
    "self-signed": (Certificate, "self", HANDSHAKE),
    "expired": (lambda: Certificate(ends=dt.timedelta(seconds=-2)), "own", HANDSHAKE),
    "not yet valid": (lambda: Certificate(begins=dt.timedelta(hours=1)), "own", HANDSHAKE),
    "a server's": (lambda: Certificate(purposes=(SERVER,)), "own", HANDSHAKE),
    "no purpose": (lambda: Certificate(purposes=()), "own", "clientAuth"),
    "two URIs": (lambda: Certificate(names=(ALICE, *user("bob"))), "own", "exactly one URI"),
    "the same URI twice": (lambda: Certificate(names=(ALICE, ALICE)), "own", "exactly one URI"),
    "no URI": (lambda: Certificate(names=()), "own", "exactly one URI"),
    "admin by name only": (lambda: Certificate(common_name="admin"), "own", "common name"),
    "wrong trust domain": (lambda: Certificate(names=("spiffe://evil.internal/user/alice",)), "own", "its URI"),
    "longer trust domain": (
        lambda: Certificate(names=("spiffe://jobworker.internal.evil/user/alice",)),
        "own",
        "its URI",
    ),
    "dots in the id": (lambda: Certificate(common_name="../alice", names=user("../alice")), "own", "not a user name"),
    "upper case in the id": (lambda: Certificate(common_name="Alice", names=user("Alice")), "own", "not a user name"),
    "NUL in the id": (
        lambda: Certificate(common_name="alice\0x", names=user("alice\0x")),
        "own",
        "certificate refused",
    ),
    "encoded id": (lambda: Certificate(common_name="alic%65", names=user("alic%65")), "own", "not a user name"),
    "a CA's": (lambda: Certificate(is_ca=True), "own", "no CA is a user"),
    "RSA of 1024 bits": (lambda: Certificate(key=rsa_key(1024)), "own", "RSA of 2048 bits"),
    "unknown user": (lambda: Certificate(common_name="zoe", names=user("zoe")), "own", "no such user"),
}


@pytest.mark.parametrize("wrong", BAD)
async def test_a_certificate_that_proves_nothing_is_refused(daemon, credentials, wrong):
    """A1."""
    make, issuer, reason = BAD[wrong]
    made = credentials(make and make(), issuer)
    for call in (list_jobs, start_job):
        assert_refused(await answer(daemon, made, call), reason)
    async with daemon.client("admin") as admin:
        pages = [page async for page in admin.list(name="must-not-run")]
    assert pages == [[]]


@pytest.mark.parametrize("key", [new_key, lambda: rsa_key(2048)], ids=["ECDSA", "RSA of 2048 bits"])
async def test_a_certificate_that_proves_alice_is_believed(daemon, credentials, key):
    """A1, the positive control: made by the same hand as the bad ones."""
    assert await answer(daemon, credentials(Certificate(key=key())), list_jobs) is None


@pytest.mark.parametrize("call", [check_health, watch_health, reflect])
@pytest.mark.parametrize("wrong", ["none", "other CA", "no purpose", "two URIs", "unknown user"])
async def test_health_and_reflection_are_for_users_only(daemon, credentials, call, wrong):
    """A1."""
    make, issuer, reason = BAD[wrong]
    assert_refused(await answer(daemon, credentials(make and make(), issuer), call), reason)
    assert await answer(daemon, credentials(Certificate()), call) is None  # positive control


def tls_client(daemon, version):
    """A TLS client of the OpenSSL kind with alice's certificate; only its version is chosen."""
    context = daemon.context()
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(context.ca)
    client.load_cert_chain(context.certificate, context.key)
    client.set_alpn_protocols(["h2"])
    client.minimum_version = client.maximum_version = version
    client.set_ciphers("ALL:@SECLEVEL=0")
    return client


def first_word(daemon, version):
    """What an HTTP/2 client gets to hear first, and over which TLS."""
    host, _, port = daemon.address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=60) as connection,
        tls_client(daemon, version).wrap_socket(connection, server_hostname=host) as secure,
    ):
        secure.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        return secure.version(), secure.recv(9)


@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1", "TLSv1_2"])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_an_older_tls_is_refused(daemon, version):
    """A1, A9."""
    with pytest.raises((ssl.SSLError, ConnectionError)):
        first_word(daemon, ssl.TLSVersion[version])
    spoken, settings = first_word(daemon, ssl.TLSVersion.TLSv1_3)  # positive control
    assert (spoken, settings[3]) == ("TLSv1.3", 4)  # a SETTINGS frame


def test_plain_text_is_refused(daemon):
    """A1: neither HTTP/2 nor HTTP/1 gets a word of either out of the server."""
    host, _, port = daemon.address.rpartition(":")
    for words in (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"):
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(words)
            heard = b""
            try:
                while part := connection.recv(4096):
                    heard += part
            except ConnectionResetError:
                pass
        assert heard == b"" or heard[0] == 0x15  # nothing, or a TLS alert


async def test_a_channel_without_tls_gets_no_answer(daemon):
    """A1."""
    async with grpc.aio.insecure_channel(daemon.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await list_jobs(channel)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


FORGED = (
    ("authorization", "Bearer admin"),
    ("owner", "admin"),
    ("user", "admin"),
    ("x-user", "admin"),
    ("x-role", "admin"),
    ("x-forwarded-user", "admin"),
    ("x-forwarded-client-cert", "URI=spiffe://jobworker.internal/user/admin"),
    ("x509_common_name", "admin"),
    ("x509_pem_cert", "admin"),
    ("forwarded", "for=127.0.0.1;by=admin"),
)


async def test_identity_comes_from_the_certificate_and_nothing_else(daemon):
    """A2: forged metadata neither opens bob's job to alice nor makes her somebody else."""
    spec = pb2.JobSpec(program=b"/bin/sleep", args=[b"1000"])
    async with daemon.channel("bob") as bobs, daemon.channel("alice") as alices:
        alice, bob = JobWorkerStub(alices), JobWorkerStub(bobs)
        his = (await bob.Start(pb2.StartRequest(spec=spec))).job
        for method, request in (
            (alice.Status, pb2.StatusRequest(id=his.id)),
            (alice.Stop, pb2.StopRequest(id=his.id)),
            (alice.Remove, pb2.RemoveRequest(id=his.id, force=True)),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await method(request, metadata=FORGED)
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        hers = (await alice.Start(pb2.StartRequest(spec=spec), metadata=FORGED)).job
        assert hers.owner == "alice"
        assert (await bob.Status(pb2.StatusRequest(id=his.id), metadata=FORGED)).job.owner == "bob"  # positive control
        await bob.Stop(pb2.StopRequest(id=his.id))
        await alice.Stop(pb2.StopRequest(id=hers.id))


async def follow(client, job_id):
    async for _ in client.stream(job_id):
        pass


async def refused_in_time(call):
    """Promised are 5 seconds; a loaded machine takes longer, and by itself none of these calls would end."""
    async with asyncio.timeout(60):
        with pytest.raises(JobError) as refused:
            await call
    assert refused.value.code is ErrorCode.UNAUTHENTICATED, refused.value
    return refused.value


async def opened(client, job_id):
    """A stream, a wait and a slow stop of a job that takes no notice, all under way."""
    async with aclosing(client.stream(job_id)) as events:
        await anext(events)
    calls = [
        asyncio.ensure_future(call)
        for call in (follow(client, job_id), client.wait(job_id), client.stop(job_id, grace=3600))
    ]
    _, pending = await asyncio.wait(calls, timeout=0.5)
    assert len(pending) == len(calls)
    return calls


DEAF = JobSpec(program="/bin/sh", args=("-c", "trap '' TERM; echo deaf; while :; do sleep 1000; done"))


async def test_a_removed_users_calls_end_and_the_jobs_go_on(daemon):
    """A3, in calls that last and on connections that are open."""
    await asyncio.to_thread(daemon.add, "carol")
    async with daemon.client("carol") as carol, daemon.client("admin") as admin:
        job = (await carol.start(DEAF)).job
        calls = await opened(carol, job.id)
        await asyncio.to_thread(daemon.remove, "carol")
        for call in calls:
            await refused_in_time(call)
        await refused_in_time(carol.status(job.id))
        assert (await admin.status(job.id)).state is State.RUNNING
        await admin.stop(job.id)


async def test_a_denied_certificates_calls_end_and_the_jobs_go_on(daemon):
    """A3, by the serial of one certificate; the control is the same user with a new one."""
    await asyncio.to_thread(daemon.add, "gina")
    async with daemon.client("gina") as gina, daemon.client("admin") as admin:
        job = (await gina.start(DEAF)).job
        calls = await opened(gina, job.id)
        certificate = x509.load_pem_x509_certificate(daemon.context("gina").certificate.read_bytes())
        await asyncio.to_thread(users.deny, daemon.directory, "serial", f"{certificate.serial_number:x}", "lost laptop")
        for call in calls:
            await refused_in_time(call)
        await refused_in_time(gina.status(job.id))
        await asyncio.to_thread(users.renew, daemon.directory, "gina")
        async with daemon.client("gina") as renewed:
            assert (await renewed.status(job.id)).state is State.RUNNING
        await admin.stop(job.id)


async def test_an_expired_certificates_calls_end_and_the_jobs_go_on(daemon):
    """A3, the same by the clock alone. There is time enough to open them."""
    await asyncio.to_thread(daemon.add, "dave")
    async with daemon.client("dave") as dave:
        job = (await dave.start(DEAF)).job
    await asyncio.to_thread(users.renew, daemon.directory, "dave", ttl=5)
    async with daemon.client("dave") as dave, daemon.client("admin") as admin:
        for call in await opened(dave, job.id):
            error = await refused_in_time(call)
            assert "expired" in error.message
        await refused_in_time(dave.status(job.id))
        assert (await admin.status(job.id)).state is State.RUNNING
        await admin.stop(job.id)


async def test_users_of_a_ca_come_and_go_with_it(own_daemon, eventually):
    """A3, A9: without a restart, in calls that last too; a broken bundle changes nothing."""
    own_daemon.start()
    bundle = own_daemon.directory / "pki/bundle.crt"
    ours = bundle.read_bytes()
    other = create_issuing_ca(create_root_ca(time.time()), time.time())
    alice = issue_user(other, "alice", "jobworker.internal", time.time())
    chain = alice.certificate_pem() + other.certificate_pem()
    shown = grpc.ssl_channel_credentials(ours, alice.key_pem(), chain)

    async def is_believed():
        return await answer(own_daemon, shown, list_jobs) is None

    def is_logged(what, times):
        return own_daemon.log.read_text().count(what) >= times

    assert not await is_believed()
    bundle.write_bytes(ours + other.certificate_pem())
    await asyncio.to_thread(eventually, lambda: is_logged("loaded again", 1))
    assert await is_believed()
    async with own_daemon.client() as everyday, grpc.aio.secure_channel(own_daemon.address, shown) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        await watch.read()
        bundle.write_text("-----BEGIN CERTIFICATE-----\nbroken\n")
        await asyncio.to_thread(eventually, lambda: is_logged("stays as it was", 1))
        assert await is_believed()
        bundle.write_bytes(ours)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await watch.read()
        assert_refused(refused.value, "no trusted CA")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await list_jobs(channel)
        assert_refused(refused.value, "no trusted CA")
        assert [page async for page in everyday.list()] == [[]]
    assert not await is_believed()


async def test_a_stream_that_is_never_read_ends_with_its_users_access(daemon, eventually):
    """A3: flow control holds a busy stream up, and it must end all the same."""
    await asyncio.to_thread(daemon.add, "erin")
    async with daemon.channel("erin") as channel, daemon.client("admin") as admin:
        stub = JobWorkerStub(channel)
        spec = pb2.JobSpec(program=b"/usr/bin/yes", limits=pb2.Limits(output_bytes=64 << 20))
        job = (await stub.Start(pb2.StartRequest(spec=spec))).job
        stream = stub.Stream(pb2.StreamRequest(id=job.id, follow=True))
        await stream.read()
        descriptors = f"/proc/{daemon.pid}/fd"
        assert open_files(descriptors, f"{job.id}/output")  # positive control
        await asyncio.to_thread(daemon.remove, "erin")
        await asyncio.to_thread(eventually, lambda: not open_files(descriptors, f"{job.id}/output"))
        assert (await admin.status(job.id)).state is State.RUNNING
        await admin.stop(job.id)


def open_files(descriptors, end):
    found = []
    for number in os.listdir(descriptors):
        try:
            target = os.readlink(f"{descriptors}/{number}")
        except FileNotFoundError:
            continue
        if target.endswith(end):
            found.append(number)
    return found
