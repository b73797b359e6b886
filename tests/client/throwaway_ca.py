"""A throw-away certificate authority, with client contexts that trust it."""

import datetime as dt
import ipaddress
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from client.scripted_https import TOKEN
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from jobworker.client.context import Transport


class Authority:
    """Issues a server's certificate and the contexts of its users."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._issue("test CA", self.key, issuer="test CA", is_ca=True)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def server(self, address: str = "127.0.0.1") -> tuple[bytes, bytes]:
        """Key and certificate, both PEM, for an IP address."""
        return self._pair("server", x509.IPAddress(ipaddress.ip_address(address)), ExtendedKeyUsageOID.SERVER_AUTH)

    @contextmanager
    def written(self, pem: bytes) -> Iterator[str]:
        """The name of a private file with this content."""
        with tempfile.NamedTemporaryFile() as file:
            file.write(pem)
            file.flush()
            yield file.name

    def context(self, directory: Path, user: str, server: str, transport: Transport = Transport.GRPC) -> Path:
        """A context directory as `jobworkerd user add` writes it, with what one transport needs."""
        directory.mkdir(parents=True)
        (directory / "ca.crt").write_bytes(self.pem)
        if transport is Transport.HTTPS:
            keys = {"https": server, "token": "token"}
            _write_private(directory / "token", TOKEN.encode())
        else:
            keys = {"server": server, "certificate": "client.crt", "key": "client.key"}
            key, certificate = self._pair(
                user,
                x509.UniformResourceIdentifier(f"spiffe://test/user/{user}"),
                ExtendedKeyUsageOID.CLIENT_AUTH,
            )
            _write_private(directory / "client.key", key)
            (directory / "client.crt").write_bytes(certificate)
        lines = {"user": user, "ca": "ca.crt"} | keys
        (directory / "context.toml").write_text("".join(f'{key} = "{value}"\n' for key, value in lines.items()))
        return directory

    def _pair(self, name: str, alternative: x509.GeneralName, usage: x509.ObjectIdentifier) -> tuple[bytes, bytes]:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._issue(name, key, issuer="test CA", alternative=alternative, usage=usage)
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return private, certificate.public_bytes(serialization.Encoding.PEM)

    def _issue(self, name, key, *, issuer, is_ca=False, alternative=None, usage=None) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=5))
            .not_valid_after(now + dt.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        )
        if alternative is not None:
            builder = builder.add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        if usage is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        return builder.sign(self.key, hashes.SHA256())


def _write_private(file: Path, data: bytes) -> None:
    file.touch(0o600)
    file.write_bytes(data)
