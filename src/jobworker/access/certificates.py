"""The certificates of servers and users: how they are issued, verified and kept.

Times are seconds since the epoch, lifetimes seconds.
"""

import datetime as dt
import errno
import hashlib
import ipaddress
import os
import re
import shlex
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from jobworker.access.principal import check_user_name
from jobworker.core.errors import ErrorCode, JobError, invalid
from jobworker.core.units import format_duration

_DAY: Final = 86400.0
BACKDATED: Final = 300.0  # every certificate is valid this long before its issue, for clocks that lag
ROOT_TTL: Final = 3650 * _DAY
ISSUING_TTL: Final = 365 * _DAY
SERVER_TTL: Final = 30 * _DAY
USER_TTL: Final = 1 * _DAY
_MIN_TTL: Final = 1.0
_MIN_RSA_BITS: Final = 2048
_MAX_CHAIN: Final = 3  # CAs above a leaf

_TRUST_DOMAIN: Final = re.compile(r"[a-z0-9]([a-z0-9._-]{0,253}[a-z0-9])?")  # SPIFFE-ID §2.1
_HOST_LABEL: Final = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_HOST_NAME: Final = re.compile(rf"(?=.{{1,253}}$){_HOST_LABEL}(\.{_HOST_LABEL})*")


class CertificateRefused(JobError):  # noqa: N818 - it says what happened, as every refusal here does
    """A certificate does not prove what it has to; the message says which rule it breaks."""

    def __init__(self, reason: str) -> None:
        super().__init__(ErrorCode.UNAUTHENTICATED, f"certificate refused: {reason}")
        self.reason = reason


class KeyRefused(Exception):  # noqa: N818 - it says what happened, as every refusal here does
    """A private key's file is not private, or not a key; the message holds the command that mends it."""


# Issuing


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
    return _certify("jobworker root CA", None, now, ROOT_TTL, _authority(path_length=1))


def create_issuing_ca(root: CertifiedKey, now: float) -> CertifiedKey:
    """A CA under `root`, valid for a year, that certifies servers and users only."""
    return _certify("jobworker issuing CA", root, now, ISSUING_TTL, _authority(path_length=0))


def issue_server(issuer: CertifiedKey, hosts: Sequence[str], now: float, ttl: float = SERVER_TTL) -> CertifiedKey:
    """A certificate with which `hosts`, DNS names and IP addresses, can serve and do nothing else."""
    if not hosts:
        raise invalid("host", "", "one or more host names or IP addresses")
    names = [_host_name(host) for host in hosts]
    return _certify("jobworker server", issuer, now, ttl, _leaf(names, ExtendedKeyUsageOID.SERVER_AUTH))


def issue_user(issuer: CertifiedKey, name: str, trust_domain: str, now: float, ttl: float = USER_TTL) -> CertifiedKey:
    """A certificate with which user `name` can call servers of `trust_domain` and do nothing else."""
    identity = x509.UniformResourceIdentifier(_user_prefix(check_trust_domain(trust_domain)) + check_user_name(name))
    return _certify(name, issuer, now, ttl, _leaf([identity], ExtendedKeyUsageOID.CLIENT_AUTH))


def hosts_of(chain_pem: bytes) -> list[str]:
    """The names and addresses that the first certificate of `chain_pem` may serve; KeyRefused when it has none."""
    try:
        leaf, *_ = x509.load_pem_x509_certificates(chain_pem)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        raise KeyRefused("the server's certificate cannot be read; name the hosts of a new one with --host") from None
    return [str(name.value) for name in names if isinstance(name, (x509.DNSName, x509.IPAddress))]


def check_trust_domain(text: str) -> str:
    """`text` when it can be a SPIFFE trust domain; otherwise INVALID_ARGUMENT."""
    if not _TRUST_DOMAIN.fullmatch(text):
        raise invalid("trust_domain", text, "up to 255 characters a-z, 0-9, . _ and -, as in jobs.example.org")
    return text


def _user_prefix(trust_domain: str) -> str:
    return f"spiffe://{trust_domain}/user/"


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


# Verifying


@dataclass(frozen=True, slots=True)
class VerifiedUser:
    """What a certificate proves about its holder, apart from the time, which `check_time` adds.

    `serial` is lower-case hex, `key_hash` the SHA-256 of the public key (SubjectPublicKeyInfo) in hex.
    """

    name: str
    serial: str
    key_hash: str
    not_before: float
    not_after: float

    @property
    def issued_at(self) -> float:
        """When the certificate was issued, as far as it can tell: its start without the backdating."""
        return self.not_before + BACKDATED

    def check_time(self, now: float) -> None:
        """Return when the certificate is valid at `now`; otherwise CertificateRefused. Cheap: once a call."""
        if now < self.not_before:
            raise CertificateRefused("it is not valid yet; compare the clocks of both machines")
        if now > self.not_after:
            raise CertificateRefused("it has expired; ask the operator to renew it")


def verify_user(leaf_pem: bytes, trust_domain: str, now: float) -> VerifiedUser:
    """Who the holder of `leaf_pem` is, when every rule for user certificates holds at `now`."""
    user = read_user(leaf_pem, trust_domain)
    user.check_time(now)
    return user


def read_user(leaf_pem: bytes, trust_domain: str) -> VerifiedUser:
    """Who the holder of `leaf_pem` is, by all rules that time cannot change, so the answer may be cached.

    The handshake has verified the chain and that the peer holds the key. What it leaves open is
    checked here, in this order:

    1. one certificate, well-formed
    2. a key that is strong enough: ECDSA on P-256 or P-384, or RSA of 2048 bits or more
    3. an end entity: no CA, and made for signatures where it says what it is made for
    4. made for clients: an extended key usage is present and names clientAuth itself
    5. exactly one URI among its names, spiffe://<trust domain>/user/<name> to the letter
    6. exactly one common name, which repeats the user's name
    """
    leaf = _one_certificate(leaf_pem)  # (1)
    try:
        extensions = leaf.extensions
        key = leaf.public_key()
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise CertificateRefused("its key or its extensions cannot be read") from None
    _check_key(key)  # (2)
    _check_end_entity(extensions)  # (3)
    _check_for_clients(extensions)  # (4)
    name = _user_name(extensions, trust_domain)  # (5)
    common_names = [attribute.value for attribute in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if common_names != [name]:  # (6)
        raise CertificateRefused("its common name must be given once and repeat the user's name")
    spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return VerifiedUser(
        name=name,
        serial=f"{leaf.serial_number:x}",
        key_hash=hashlib.sha256(spki).hexdigest(),
        not_before=leaf.not_valid_before_utc.timestamp(),
        not_after=leaf.not_valid_after_utc.timestamp(),
    )


class TrustBundle:
    """The CA certificates whose users are believed."""

    def __init__(self, authorities: list[x509.Certificate]) -> None:
        self._policy = (
            verification.PolicyBuilder()
            .store(verification.Store(authorities))
            .max_chain_depth(_MAX_CHAIN)
            .extension_policies(
                ca_policy=verification.ExtensionPolicy.webpki_defaults_ca(),
                ee_policy=verification.ExtensionPolicy.permit_all(),  # read_user holds leaves to stricter rules
            )
        )

    @classmethod
    def from_pem(cls, pem: bytes) -> Self:
        """The bundle in `pem`, one or more certificates; CertificateRefused when there is none."""
        try:
            return cls(x509.load_pem_x509_certificates(pem))
        except ValueError:
            raise CertificateRefused("the CA bundle holds no readable certificate") from None

    def verify_chain(self, chain_pem: bytes, now: float) -> None:
        """Return when the first certificate of `chain_pem` leads to this bundle at `now`; else CertificateRefused.

        Further certificates of the chain are taken as intermediates and believed in nothing else.
        """
        try:
            leaf, *intermediates = x509.load_pem_x509_certificates(chain_pem)
            self._policy.time(_moment(now)).build_client_verifier().verify(leaf, intermediates)
        except (ValueError, verification.VerificationError):
            raise CertificateRefused("no trusted CA vouches for it") from None


def _one_certificate(pem: bytes) -> x509.Certificate:
    try:
        certificates = x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise CertificateRefused("it cannot be read") from None
    if len(certificates) != 1:
        raise CertificateRefused("one certificate proves who is asking, not several")
    return certificates[0]


def _check_key(key: object) -> None:
    match key:
        case ec.EllipticCurvePublicKey(curve=ec.SECP256R1() | ec.SECP384R1()):
            return
        case rsa.RSAPublicKey(key_size=bits) if bits >= _MIN_RSA_BITS:
            return
    raise CertificateRefused(f"its key must be ECDSA P-256 or P-384, or RSA of {_MIN_RSA_BITS} bits or more")


def _check_end_entity(extensions: x509.Extensions) -> None:
    constraints = _extension(extensions, x509.BasicConstraints)
    usage = _extension(extensions, x509.KeyUsage)
    if (constraints is not None and constraints.ca) or (usage is not None and usage.key_cert_sign):
        raise CertificateRefused("it is a CA's, and no CA is a user")
    if usage is not None and not usage.digital_signature:
        raise CertificateRefused("its key usage does not include digitalSignature")


def _check_for_clients(extensions: x509.Extensions) -> None:
    purposes = _extension(extensions, x509.ExtendedKeyUsage)
    if purposes is None or ExtendedKeyUsageOID.CLIENT_AUTH not in purposes:
        raise CertificateRefused("it is not made for clients; its extended key usage must include clientAuth")


def _user_name(extensions: x509.Extensions, trust_domain: str) -> str:
    names = _extension(extensions, x509.SubjectAlternativeName)
    identities = [] if names is None else names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(identities) != 1:
        raise CertificateRefused("its alternative names must hold exactly one URI")
    prefix = _user_prefix(trust_domain)
    if not identities[0].startswith(prefix):
        raise CertificateRefused(f"its URI must have the form {prefix}NAME")
    try:
        return check_user_name(identities[0].removeprefix(prefix))
    except JobError:
        raise CertificateRefused("the name in its URI is not a user name") from None


_Extension = TypeVar("_Extension", bound=x509.ExtensionType)


def _extension(extensions: x509.Extensions, kind: type[_Extension]) -> _Extension | None:
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


# Keeping


def write_private(path: Path, data: bytes) -> None:
    """Write a new file of mode 0600 that never had a looser one; durable on return.

    FileExistsError when anything is at `path` already, were it a symbolic link.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def read_key(path: Path, role: str) -> bytes:
    """The content of the private file at `path`, from the very file whose mode was checked."""
    with os.fdopen(_open_private(path, role), "rb") as file:
        return file.read()


def _open_private(path: Path, role: str) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise KeyRefused(f"the {role} {path} is a symbolic link; put the file itself there") from None
        raise KeyRefused(f"the {role} {path} cannot be opened: {error.strerror}") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise KeyRefused(f"the {role} {path} is not a regular file")
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        os.close(descriptor)
        raise KeyRefused(f"the {role} {path} is open to other users; run: chmod 600 {shlex.quote(str(path))}")
    return descriptor


def key_type(pem: bytes) -> str:
    """Whether the private key in `pem` is for "ec" or "rsa"; KeyRefused for anything else."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise KeyRefused("the server key cannot be read; it must be an unencrypted PEM") from None
    match key:
        case ec.EllipticCurvePrivateKey():
            return "ec"
        case rsa.RSAPrivateKey():
            return "rsa"
    raise KeyRefused("the server key must be an ECDSA or an RSA key")


def server_key_type(key: Path, certificate: Path, ca: Path) -> str:
    """The `key_type` of the server's key, when it is the certificate's, and the CA bundle can be read.

    Otherwise KeyRefused, naming the file that is wrong: grpc would only say that it cannot listen.
    """
    pem = read_key(key, "server key")
    try:
        found = key_type(pem)
    except KeyRefused as refused:
        raise KeyRefused(f"{key}: {refused}") from None
    served, *_ = _read_certificates(certificate, "server certificate")
    _read_certificates(ca, "CA bundle")
    if served.public_key() != serialization.load_pem_private_key(pem, password=None).public_key():
        raise KeyRefused(f"the server key {key} does not belong to {certificate}; restore both from a backup")
    return found


def _read_certificates(path: Path, role: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except ValueError:
        raise KeyRefused(f"the {role} {path} holds no readable certificate; restore it from a backup") from None
