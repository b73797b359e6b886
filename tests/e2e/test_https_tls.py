"""The server's certificate at both doors: renewed without a restart, and never a broken one."""

import asyncio
import json
import os
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography import x509
from host import needs_root

from jobworker.daemon import server_certificate

pytestmark = needs_root


def serial(daemon, address):
    """The serial of the certificate that a door shows in a new handshake."""
    context = daemon.context("alice")
    tls = ssl.create_default_context(cafile=context.ca)
    tls.load_cert_chain(context.certificate, context.key)
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=30) as bare,
        tls.wrap_socket(bare, server_hostname=host) as connection,
    ):
        return x509.load_der_x509_certificate(connection.getpeercert(binary_form=True)).serial_number


def serials(daemon):
    return {serial(daemon, address) for address in (daemon.address, daemon.https)}


def on_file(daemon):
    return x509.load_pem_x509_certificate((daemon.directory / "pki/server.crt").read_bytes()).serial_number


async def test_a_renewed_certificate_is_shown_at_both_doors_and_no_request_fails(own_daemon):
    """A9: the new serial within 5 seconds, under load."""
    own_daemon.start()
    before = on_file(own_daemon)
    assert serials(own_daemon) == {before}
    https = own_daemon.https_as("alice")
    stop = asyncio.Event()
    answered = [0]

    async def ask_again_and_again():
        while not stop.is_set():
            async with own_daemon.client() as client:
                assert await client.list().__anext__() is not None
            assert (await asyncio.to_thread(https.get, "/jobs")).status == 200
            answered[0] += 1

    asking = [asyncio.create_task(ask_again_and_again()) for _ in range(3)]
    renewed = await asyncio.to_thread(own_daemon.command, "cert", "renew", "--dir", own_daemon.directory)
    assert renewed.returncode == 0, renewed.stderr
    begin = time.monotonic()
    while await asyncio.to_thread(serials, own_daemon) != {on_file(own_daemon)}:
        assert time.monotonic() - begin < 30
    seen, least = answered[0], 5
    while answered[0] < seen + least:  # and some requests after it
        await asyncio.sleep(0.01)
        assert not any(task.done() for task in asking)
    stop.set()
    await asyncio.gather(*asking)
    assert on_file(own_daemon) != before


@pytest.mark.parametrize("how", ["broken certificate", "other key", "open key"])
def test_what_cannot_be_used_leaves_the_old_one(own_daemon, eventually, how):
    """A9: a broken file keeps the old certificate, and the next good one is taken."""
    own_daemon.start()
    before = on_file(own_daemon)
    key, certificate = own_daemon.directory / "pki/server.key", own_daemon.directory / "pki/server.crt"
    match how:
        case "broken certificate":
            certificate.write_text("-----BEGIN CERTIFICATE-----\nbroken\n")
        case "other key":
            key.write_bytes((own_daemon.directory / "clients/alice/client.key").read_bytes())
        case "open key":
            key.chmod(0o644)
            os.utime(certificate)
    eventually(lambda: "stays as it was" in own_daemon.log.read_text())
    assert serials(own_daemon) == {before}
    server_certificate.renew(own_daemon.directory, ["localhost", "127.0.0.1"])
    fresh = on_file(own_daemon)
    assert fresh != before
    eventually(lambda: serials(own_daemon) == {fresh})


def test_renewal_keeps_the_names_the_owner_and_the_mode(own_daemon):
    own_daemon.start()
    pki = own_daemon.directory / "pki"
    old = {name: (pki / name).stat() for name in ("server.crt", "server.key")}
    names = x509.load_pem_x509_certificate((pki / "server.crt").read_bytes()).extensions
    assert server_certificate.renew(own_daemon.directory) > time.time() + 29 * 86400
    for name, was in old.items():
        now = (pki / name).stat()
        assert (now.st_uid, now.st_gid, now.st_mode) == (was.st_uid, was.st_gid, was.st_mode)
        assert now.st_ino != was.st_ino
    renewed = x509.load_pem_x509_certificate((pki / "server.crt").read_bytes()).extensions
    kind = x509.SubjectAlternativeName
    assert renewed.get_extension_for_class(kind).value == names.get_extension_for_class(kind).value
    assert sorted(path.name for path in pki.iterdir()) == ["bundle.crt", "ca", "server.crt", "server.key"]


def test_a_link_in_place_of_the_directory_leads_renewal_nowhere(empty_daemon, tmp_path):
    """The service's user owns the state directory, and root runs the command."""
    pki = empty_daemon.directory / "pki"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "ca").symlink_to(Path("/nonexistent"))
    pki.rename(tmp_path / "kept")
    pki.symlink_to(elsewhere)
    refused = empty_daemon.command("cert", "renew", "--dir", empty_daemon.directory)
    assert refused.returncode == 1
    assert sorted(path.name for path in elsewhere.iterdir()) == ["ca"]


FAULTS = {
    "heartbleed": ("heartbleed", "is_vulnerable_to_heartbleed"),
    "openssl_ccs": ("openssl_ccs_injection", "is_vulnerable_to_ccs_injection"),
    "compression": ("tls_compression", "supports_compression"),
}


VERSIONS = ("sslv3", "tlsv1", "tlsv1_1", "tlsv1_2", "tlsv1_3")  # sslyze's SSL 2 client can show no certificate


def scan(daemon, address, place):
    """What sslyze finds at a door; gRPC talks to nobody without a certificate."""
    scanner = Path(sys.prefix) / "sslyze/bin/sslyze"
    if not scanner.exists():
        pytest.skip("needs sslyze: scripts/setup.sh installs it where it can")
    found = place / "found.json"
    looks = [f"--{look}" for look in (*VERSIONS, *FAULTS)]
    context = daemon.context("alice")
    shown = ("--cert", context.certificate, "--key", context.key)
    command = [scanner, "--json_out", found, *looks, *shown, address]
    subprocess.run(command, capture_output=True, check=False, timeout=100)
    [server] = json.loads(found.read_text())["server_scan_results"]
    assert server["scan_status"] == "COMPLETED", server
    return server["scan_result"]


@pytest.mark.parametrize("door", ["address", "https"])
def test_a_scanner_finds_tls_1_3_and_nothing_else(daemon, tmp_path, door):
    """A9: no older version, and none of the faults that sslyze looks for."""
    found = scan(daemon, getattr(daemon, door), tmp_path)
    versions = ("ssl_3_0", "tls_1_0", "tls_1_1", "tls_1_2", "tls_1_3")
    accepted = {version: found[f"{version}_cipher_suites"]["result"]["accepted_cipher_suites"] for version in versions}
    assert [version for version in versions if accepted[version]] == ["tls_1_3"]  # which is the positive control too
    for look, (field, fault) in FAULTS.items():
        assert found[field]["result"][fault] is False, look
