"""What the doors prove themselves with, and the CAs whose users they believe: as the files have them now."""

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jobworker.access.certificates import CertificateRefused, TrustBundle
from jobworker.access.key_files import KeyRefused, read_key, server_key_type

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """The server's key and certificate chain, and the CAs of its users, as PEM files."""

    key: Path
    certificate: Path
    ca: Path


@dataclass(frozen=True, slots=True)
class _Loaded:
    key_type: str
    key: bytes
    certificate: bytes
    ca: bytes
    bundle: TrustBundle
    https: ssl.SSLContext


class ServerCertificate:
    """The certificate that the doors show from the next handshake on, and the CAs that they ask for.

    Connections that are open keep the certificate; their users are believed as long as their CA is.
    """

    def __init__(self, files: TlsFiles) -> None:
        """Reads the files; KeyRefused when they cannot be used."""
        self._files = files
        self._loaded = _load(files)

    @property
    def grpc(self) -> tuple[bytes, bytes, bytes]:
        """Key, certificate chain and the users' CAs."""
        return self._loaded.key, self._loaded.certificate, self._loaded.ca

    @property
    def bundle(self) -> TrustBundle:
        """The users' CAs."""
        return self._loaded.bundle

    @property
    def https(self) -> ssl.SSLContext:
        """TLS 1.3 and HTTP/1.1, nothing else; no client certificate is asked for, since here it proves nothing."""
        return self._loaded.https

    def reload(self) -> None:
        """Reads the files again; what cannot be used changes nothing but the log."""
        try:
            fresh = _load(self._files)
        except (CertificateRefused, KeyRefused, OSError) as error:
            _log.warning("the server's certificate stays as it was, and so do the users' CAs: %s", error)
            return
        if fresh.key_type != self._loaded.key_type:
            # The cipher suites that gRPC was loaded with leave out TLS 1.2 for one type of key only.
            _log.warning("the server's certificate stays as it was: a key of another type needs a restart")
            return
        if (fresh.certificate, fresh.ca) != (self._loaded.certificate, self._loaded.ca):
            self._loaded = fresh
            _log.info("the server's certificate and the users' CAs were loaded again")


def _load(files: TlsFiles) -> _Loaded:
    key_type = server_key_type(files.key, files.certificate, files.ca)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(files.certificate, files.key)
    ca = files.ca.read_bytes()
    return _Loaded(
        key_type=key_type,
        key=read_key(files.key, "server key"),
        certificate=files.certificate.read_bytes(),
        ca=ca,
        bundle=TrustBundle.from_pem(ca),
        https=context,
    )
