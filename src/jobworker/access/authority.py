"""The certificate authority: issues the certificates of servers and users.

Times are seconds since the epoch, lifetimes seconds.
"""

import datetime as dt
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from jobworker.access.certificates import BACKDATED, user_uri_prefix
from jobworker.access.key_files import KeyRefused
from jobworker.access.principal import check_trust_domain, check_user_name
from jobworker.core.errors import invalid
from jobworker.core.units import format_duration

_DAY: Final = 86400.0
_ROOT_TTL: Final = 3650 * _DAY
_ISSUING_TTL: Final = 365 * _DAY
SERVER_TTL: Final = 30 * _DAY
USER_TTL: Final = 1 * _DAY
_MIN_TTL: Final = 1.0

_HOST_LABEL: Final = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_HOST_NAME: Final = re.compile(rf"(?=.{{1,253}}$){_HOST_LABEL}(\.{_HOST_LABEL})*")


@dataclass(frozen=True, slots=True)
class CertifiedKey:
    """A private key and the certificate that vouches for it."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def not_after(self) -> float:
        """When the certificate expires."""
        return self.certificate.not_valid_after_utc.timestamp()

    def certificate_pem(self) -> bytes:
        """The certificate alone, as PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self) -> bytes:
        """The private key as unencrypted PKCS #8 PEM, fit for a file of mode 0600 only."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @classmethod
    def from_pem(cls, certificate: bytes, key: bytes) -> Self:
        """The pair that `certificate_pem` and `key_pem` wrote; KeyRefused when they do not belong together."""
        try:
            loaded = serialization.load_pem_private_key(key, password=None)
            vouched = x509.load_pem_x509_certificate(certificate)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise KeyRefused("the CA's key or certificate cannot be read; restore both from a backup") from None
        if not isinstance(loaded, ec.EllipticCurvePrivateKey) or loaded.public_key() != vouched.public_key():
            raise KeyRefused("the CA's key does not belong to its certificate; restore both from a backup")
        return cls(vouched, loaded)


def create_root_ca(now: float) -> CertifiedKey:
    """A self-signed root, valid for 10 years, that certifies issuing CAs only."""
    return _certify("jobworker root CA", None, now, _ROOT_TTL, _authority(path_length=1))


def create_issuing_ca(root: CertifiedKey, now: float) -> CertifiedKey:
    """A CA under `root`, valid for a year, that certifies servers and users only."""
    return _certify("jobworker issuing CA", root, now, _ISSUING_TTL, _authority(path_length=0))


def issue_server(issuer: CertifiedKey, hosts: Sequence[str], now: float, ttl: float = SERVER_TTL) -> CertifiedKey:
    """A certificate with which `hosts`, DNS names and IP addresses, can serve and do nothing else."""
    if not hosts:
        raise invalid("host", "", "one or more host names or IP addresses")
    names = [_host_name(host) for host in hosts]
    return _certify("jobworker server", issuer, now, ttl, _leaf(names, ExtendedKeyUsageOID.SERVER_AUTH))


def issue_user(issuer: CertifiedKey, name: str, trust_domain: str, now: float, ttl: float = USER_TTL) -> CertifiedKey:
    """A certificate with which user `name` can call servers of `trust_domain` and do nothing else."""
    identity = x509.UniformResourceIdentifier(user_uri_prefix(check_trust_domain(trust_domain)) + check_user_name(name))
    return _certify(name, issuer, now, ttl, _leaf([identity], ExtendedKeyUsageOID.CLIENT_AUTH))


def hosts_of(chain_pem: bytes) -> list[str]:
    """The names and addresses that the first certificate of `chain_pem` may serve; KeyRefused when it has none."""
    try:
        leaf, *_ = x509.load_pem_x509_certificates(chain_pem)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        raise KeyRefused("the server's certificate cannot be read; name the hosts of a new one with --host") from None
    return [str(name.value) for name in names if isinstance(name, (x509.DNSName, x509.IPAddress))]


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not _HOST_NAME.fullmatch(host.lower()):
            raise invalid("host", host, "a host name or an IP address, without a port") from None
        return x509.DNSName(host.lower())


_Extensions = list[tuple[x509.ExtensionType, bool]]  # each with whether it is critical


def _authority(path_length: int) -> _Extensions:
    return [
        (x509.BasicConstraints(ca=True, path_length=path_length), True),
        (_key_usage(authority=True), True),
    ]


def _leaf(names: Sequence[x509.GeneralName], purpose: x509.ObjectIdentifier) -> _Extensions:
    return [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_key_usage(authority=False), True),
        (x509.ExtendedKeyUsage([purpose]), False),
        (x509.SubjectAlternativeName(names), False),
    ]


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _certify(
    common_name: str, issuer: CertifiedKey | None, now: float, ttl: float, extensions: _Extensions
) -> CertifiedKey:
    """A new key with a certificate by `issuer`, or by itself; it never outlives its issuer."""
    if ttl < _MIN_TTL:
        raise invalid("ttl", format_duration(ttl), "1s or more")
    if issuer is not None and now + ttl > issuer.not_after:
        left = format_duration(max(0.0, issuer.not_after - now))
        raise invalid("ttl", format_duration(ttl), f"at most {left}, since then the issuing CA itself expires")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    signer = key if issuer is None else issuer.key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_moment(now - BACKDATED))
        .not_valid_after(_moment(now + ttl))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return CertifiedKey(builder.sign(signer, hashes.SHA256()), key)


def _moment(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.UTC)
