"""User certificates prove a user to the letter, and the authority issues no others."""

import datetime as dt
import subprocess
import time
from functools import cache

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from jobworker.access.authority import CertifiedKey, create_issuing_ca, create_root_ca, issue_server, issue_user
from jobworker.access.certificates import BACKDATED, CertificateRefused, TrustBundle, read_user
from jobworker.access.key_files import KeyRefused
from jobworker.core.errors import ErrorCode, JobError

NOW = float(int(time.time()))
DOMAIN = "jobs.example.org"
ALICE = f"spiffe://{DOMAIN}/user/alice"


@cache
def root() -> CertifiedKey:
    return create_root_ca(NOW)


@cache
def issuing() -> CertifiedKey:
    return create_issuing_ca(root(), NOW)


@cache
def rsa_key(bits: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


def certificate(
    *,
    uris=(ALICE,),
    names=(),
    common_names=("alice",),
    purposes=(ExtendedKeyUsageOID.CLIENT_AUTH,),
    authority: bool | None = False,
    signs: bool | None = True,
    certifies=False,
    key=None,
    issuer=None,
) -> bytes:
    """A certificate as some CA could issue it, by default a faultless one for alice."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    issuer = issuer or issuing()
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in common_names]))
        .issuer_name(issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(dt.datetime.fromtimestamp(NOW - 60, dt.UTC))
        .not_valid_after(dt.datetime.fromtimestamp(NOW + 60, dt.UTC))
    )
    if authority is not None:
        builder = builder.add_extension(x509.BasicConstraints(authority, None), critical=True)
    if signs is not None:
        usage = x509.KeyUsage(signs, False, True, False, False, certifies, False, False, False)
        builder = builder.add_extension(usage, critical=True)
    if purposes:
        builder = builder.add_extension(x509.ExtendedKeyUsage(list(purposes)), critical=False)
    if uris or names:
        alternatives = [x509.UniformResourceIdentifier(uri) for uri in uris] + list(names)
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return builder.sign(issuer.key, hashes.SHA256()).public_bytes(Encoding.PEM)


ACCEPTED = {
    "exactly as issued here": {},
    "ECDSA P-384": {"key": ec.generate_private_key(ec.SECP384R1())},
    "RSA 2048": {"key": rsa_key(2048)},
    "no basic constraints, as for any end entity": {"authority": None},
    "no key usage": {"signs": None},
    "a DNS name and an address beside the URI": {"names": (x509.DNSName("alice.example.org"),)},
    "also for servers": {"purposes": (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH)},
}

REFUSED = {
    "no extended key usage": ({"purposes": ()}, "clientAuth"),
    "a server's extended key usage": ({"purposes": (ExtendedKeyUsageOID.SERVER_AUTH,)}, "clientAuth"),
    "any extended key usage": ({"purposes": (ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,)}, "clientAuth"),
    "no alternative name": ({"uris": ()}, "exactly one URI"),
    "a DNS name only": ({"uris": (), "names": (x509.DNSName("alice"),)}, "exactly one URI"),
    "two URIs": ({"uris": (ALICE, f"spiffe://{DOMAIN}/user/admin")}, "exactly one URI"),
    "the same URI twice": ({"uris": (ALICE, ALICE)}, "exactly one URI"),
    "common name admin with URI alice": ({"common_names": ("admin",)}, "common name"),
    "common name Alice with URI alice": ({"common_names": ("Alice",)}, "common name"),
    "no common name": ({"common_names": ()}, "common name"),
    "two common names": ({"common_names": ("alice", "alice")}, "common name"),
    "another trust domain": ({"uris": ("spiffe://evil.example.org/user/alice",)}, "its URI must"),
    "a longer trust domain": ({"uris": (f"spiffe://{DOMAIN}.evil/user/alice",)}, "its URI must"),
    "an upper-case trust domain": ({"uris": (f"spiffe://{DOMAIN.upper()}/user/alice",)}, "its URI must"),
    "another scheme": ({"uris": (f"https://{DOMAIN}/user/alice",)}, "its URI must"),
    "another kind of identity": ({"uris": (f"spiffe://{DOMAIN}/server/alice",)}, "its URI must"),
    "no name": ({"uris": (f"spiffe://{DOMAIN}/user/",)}, "not a user name"),
    "a path behind the name": ({"uris": (f"{ALICE}/x",)}, "not a user name"),
    "a slash behind the name": ({"uris": (f"{ALICE}/",)}, "not a user name"),
    "a query behind the name": ({"uris": (f"{ALICE}?role=admin",)}, "not a user name"),
    "an escaped name": ({"uris": (f"spiffe://{DOMAIN}/user/%61lice",)}, "not a user name"),
    "dots as the name": ({"uris": (f"spiffe://{DOMAIN}/user/..",), "common_names": ("..",)}, "not a user name"),
    "a way up in the name": ({"uris": (f"spiffe://{DOMAIN}/user/../admin",)}, "not a user name"),
    "a NUL in the name": ({"uris": (f"{ALICE}\0",)}, "not a user name"),
    "upper case in the name": ({"uris": (f"spiffe://{DOMAIN}/user/Alice",)}, "not a user name"),
    "a CA's basic constraints": ({"authority": True}, "it is a CA's"),
    "a key that certifies": ({"certifies": True}, "it is a CA's"),
    "a key that does not sign": ({"signs": False}, "digitalSignature"),
    "RSA 1024": ({"key": rsa_key(1024)}, "its key must"),
    "ECDSA P-521": ({"key": ec.generate_private_key(ec.SECP521R1())}, "its key must"),
    "Ed25519": ({"key": ed25519.Ed25519PrivateKey.generate()}, "its key must"),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_a_certificate_that_keeps_the_rules_proves_its_user(case):
    """The positive control of every refusal below: the same builder with nothing wrong is accepted."""
    assert read_user(certificate(**ACCEPTED[case]), DOMAIN).name == "alice"


@pytest.mark.parametrize("case", REFUSED)
def test_a_certificate_that_breaks_a_rule_proves_nothing(case):
    """A1."""
    parts, reason = REFUSED[case]
    with pytest.raises(CertificateRefused, match=reason) as refused:
        read_user(certificate(**parts), DOMAIN)
    assert refused.value.code is ErrorCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("seconds", "reason"),
    [(-61, "not valid yet"), (-60, None), (0, None), (60, None), (61, "expired")],
)
def test_a_certificate_proves_its_user_only_in_its_time(seconds, reason):
    """A1, A3: expired, not yet valid; the same certificate in its time is the positive control."""
    user = read_user(certificate(), DOMAIN)
    if reason is None:
        user.check_time(NOW + seconds)
    else:
        with pytest.raises(CertificateRefused, match=reason):
            user.check_time(NOW + seconds)


@pytest.mark.parametrize("pem", [b"", b"alice", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_no_certificate_is_refused(pem):
    with pytest.raises(CertificateRefused):
        read_user(pem, DOMAIN)


def test_two_certificates_prove_nobody():
    with pytest.raises(CertificateRefused, match="several"):
        read_user(certificate() + certificate(), DOMAIN)


def test_an_issued_user_certificate_proves_its_user_and_cannot_serve():
    issued = issue_user(issuing(), "alice", DOMAIN, NOW, ttl=3600)
    user = read_user(issued.certificate_pem(), DOMAIN)
    user.check_time(NOW)
    assert (user.name, user.not_before, user.not_after) == ("alice", NOW - BACKDATED, NOW + 3600)
    assert user.issued_at == NOW
    assert user.serial == f"{issued.certificate.serial_number:x}"
    purposes = issued.certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_an_issued_server_certificate_names_its_hosts_and_is_no_user():
    """A1: a server's certificate as client."""
    issued = issue_server(issuing(), ["Jobs.example.org", "127.0.0.1", "::1"], NOW)
    names = issued.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["jobs.example.org"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    with pytest.raises(CertificateRefused, match="clientAuth"):
        read_user(issued.certificate_pem(), DOMAIN)


@pytest.mark.parametrize("host", ["", "a b", "a:80", "*.example.org", "-a", "a_b", "x" * 64, "é.org"])
def test_a_host_that_is_no_host_gets_no_certificate(host):
    with pytest.raises(JobError, match="host"):
        issue_server(issuing(), [host], NOW)


@pytest.mark.parametrize("name", ["Alice", "..", "a/b", ""])
def test_an_impossible_user_gets_no_certificate(name):
    with pytest.raises(JobError, match="user"):
        issue_user(issuing(), name, DOMAIN, NOW)


@pytest.mark.parametrize("ttl", [0, -5, 400 * 86400])
def test_a_lifetime_of_nothing_or_beyond_the_ca_is_refused(ttl):
    with pytest.raises(JobError, match="ttl"):
        issue_user(issuing(), "alice", DOMAIN, NOW, ttl=ttl)


def test_every_serial_is_new():
    assert len({issue_user(issuing(), "alice", DOMAIN, NOW).certificate.serial_number for _ in range(20)}) == 20


def test_openssl_accepts_the_chain_for_its_purpose_and_no_other(tmp_path):
    """The positive control and the refusal use the same files; only the purpose differs."""
    files = {
        "root": root().certificate_pem(),
        "issuing": issuing().certificate_pem(),
        "server": issue_server(issuing(), ["127.0.0.1"], NOW).certificate_pem(),
        "user": issue_user(issuing(), "alice", DOMAIN, NOW).certificate_pem(),
    }
    for name, pem in files.items():
        (tmp_path / name).write_bytes(pem)

    def verifies(name, purpose):
        verify = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", "root", "-untrusted", "issuing"]
        return subprocess.run([*verify, name], cwd=tmp_path, capture_output=True, check=False).returncode == 0

    assert verifies("server", "sslserver")
    assert verifies("user", "sslclient")
    assert not verifies("user", "sslserver")
    assert not verifies("server", "sslclient")


def test_a_chain_leads_to_the_bundle_or_is_refused():
    """A1: another CA; self-signed."""
    bundle = TrustBundle.from_pem(root().certificate_pem() + issuing().certificate_pem())
    bundle.verify_chain(certificate(), NOW)  # positive control
    stranger = create_issuing_ca(create_root_ca(NOW), NOW)
    with pytest.raises(CertificateRefused, match="no trusted CA"):
        bundle.verify_chain(certificate(issuer=stranger), NOW)
    with pytest.raises(CertificateRefused, match="no trusted CA"):
        bundle.verify_chain(certificate(issuer=stranger) + stranger.certificate_pem(), NOW)
    with pytest.raises(CertificateRefused, match="no trusted CA"):
        bundle.verify_chain(create_root_ca(NOW).certificate_pem(), NOW)


def test_an_intermediate_comes_from_the_peer_or_from_the_bundle():
    bundle = TrustBundle.from_pem(root().certificate_pem())
    bundle.verify_chain(certificate() + issuing().certificate_pem(), NOW)
    with pytest.raises(CertificateRefused, match="no trusted CA"):
        bundle.verify_chain(certificate(), NOW)


def test_a_user_certificate_certifies_nobody():
    """A1: alice's own key as a CA."""
    alice = issue_user(issuing(), "alice", DOMAIN, NOW)
    bundle = TrustBundle.from_pem(root().certificate_pem() + issuing().certificate_pem())
    bundle.verify_chain(alice.certificate_pem(), NOW)  # positive control
    with pytest.raises(CertificateRefused, match="no trusted CA"):
        bundle.verify_chain(certificate(issuer=alice) + alice.certificate_pem(), NOW)


@pytest.mark.parametrize("pem", [b"", b"nothing"])
def test_a_bundle_without_a_certificate_is_refused(pem):
    with pytest.raises(CertificateRefused, match="bundle"):
        TrustBundle.from_pem(pem)


def test_a_key_and_its_certificate_come_back_from_their_pem():
    again = CertifiedKey.from_pem(issuing().certificate_pem(), issuing().key_pem())
    assert again.certificate == issuing().certificate


def test_a_key_with_the_certificate_of_another_is_refused():
    with pytest.raises(KeyRefused, match="does not belong"):
        CertifiedKey.from_pem(issuing().certificate_pem(), root().key_pem())


def test_a_key_does_not_print():
    assert "key=" not in repr(issuing())
