"""What the certificates of users prove, and which of them are believed.

Times are seconds since the epoch.
"""

import datetime as dt
import hashlib
from dataclasses import dataclass
from typing import Final, Self, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from jobworker.access.principal import check_user_name
from jobworker.core.errors import ErrorCode, JobError

BACKDATED: Final = 300.0  # every certificate is valid this long before its issue, for clocks that lag
_MIN_RSA_BITS: Final = 2048
_MAX_CHAIN: Final = 3  # CAs above a leaf


class CertificateRefused(JobError):  # noqa: N818 - it says what happened, as every refusal here does
    """A certificate does not prove what it has to; the message says which rule it breaks."""

    def __init__(self, reason: str) -> None:
        super().__init__(ErrorCode.UNAUTHENTICATED, f"certificate refused: {reason}")
        self.reason = reason


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
        """Returns when the certificate is valid at `now`; otherwise CertificateRefused. Cheap: once a call."""
        if now < self.not_before:
            raise CertificateRefused("it is not valid yet; compare the clocks of both machines")
        if now > self.not_after:
            raise CertificateRefused("it has expired; ask the operator to renew it")


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
        """Returns when the first certificate of `chain_pem` leads to this bundle at `now`; else CertificateRefused.

        Further certificates of the chain are taken as intermediates and believed in nothing else.
        """
        try:
            leaf, *intermediates = x509.load_pem_x509_certificates(chain_pem)
            self._policy.time(dt.datetime.fromtimestamp(now, dt.UTC)).build_client_verifier().verify(
                leaf, intermediates
            )
        except (ValueError, verification.VerificationError):
            raise CertificateRefused("no trusted CA vouches for it") from None


def user_uri_prefix(trust_domain: str) -> str:
    """What stands before a user's name in the URI of a certificate; a SPIFFE ID."""
    return f"spiffe://{trust_domain}/user/"


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
    prefix = user_uri_prefix(trust_domain)
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
