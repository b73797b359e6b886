"""Private keys in files: written so that nobody else ever sees them, and read from no others."""

import errno
import os
import shlex
import stat
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa


class KeyRefused(Exception):  # noqa: N818 - it says what happened, as every refusal here does
    """A private key's file is not private, or not a key; the message holds the command that mends it."""


def write_private(path: Path, data: bytes) -> None:
    """Writes a new file of mode 0600 that never had a looser one; durable on return.

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


def server_key_type(key: Path, certificate: Path, ca: Path) -> str:
    """Whether the server's key is "ec" or "rsa", when it is the certificate's, and the CA bundle can be read.

    Otherwise KeyRefused, naming the file that is wrong: grpc would only say that it cannot listen.
    """
    try:
        loaded = serialization.load_pem_private_key(read_key(key, "server key"), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise KeyRefused(f"the server key {key} cannot be read; it must be an unencrypted PEM") from None
    if not isinstance(loaded, (ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey)):
        raise KeyRefused(f"the server key {key} must be an ECDSA or an RSA key")
    served, *_ = _read_certificates(certificate, "server certificate")
    _read_certificates(ca, "CA bundle")
    if served.public_key() != loaded.public_key():
        raise KeyRefused(f"the server key {key} does not belong to {certificate}; restore both from a backup")
    return "ec" if isinstance(loaded, ec.EllipticCurvePrivateKey) else "rsa"


def _read_certificates(path: Path, role: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except ValueError:
        raise KeyRefused(f"the {role} {path} holds no readable certificate; restore it from a backup") from None


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
