"""What both doors prove themselves with: the server's key and certificate chain, as the files have them now."""

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jobworker.access.certificates import KeyRefused, read_key, server_key_type

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
    https: ssl.SSLContext


class ServerCertificate:
    """The certificate that the doors show from the next handshake on; connections that are open keep theirs."""

    def __init__(self, files: TlsFiles) -> None:
        """Reads the files; KeyRefused when they cannot be used."""
        self._files = files
        self.ca = files.ca.read_bytes()
        self._loaded = _load(files)

    @property
    def pem(self) -> tuple[bytes, bytes]:
        """Key and certificate chain."""
        return self._loaded.key, self._loaded.certificate

    @property
    def https(self) -> ssl.SSLContext:
        """TLS 1.3 and HTTP/1.1, nothing else; asks for no client certificate: they are no credential there."""
        return self._loaded.https

    def reload(self) -> None:
        """Reads the files again; what cannot be used changes nothing but the log."""
        try:
            fresh = _load(self._files)
        except (KeyRefused, OSError) as error:
            _log.warning("the server's certificate stays as it was: %s", error)
            return
        if fresh.key_type != self._loaded.key_type:
            # The cipher suites that gRPC was loaded with leave out TLS 1.2 for one type of key only.
            _log.warning("the server's certificate stays as it was: a key of another type needs a restart")
            return
        if fresh.certificate != self._loaded.certificate:
            self._loaded = fresh
            _log.info("the server's certificate was loaded again")


def _load(files: TlsFiles) -> _Loaded:
    key_type = server_key_type(files.key, files.certificate, files.ca)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(files.certificate, files.key)
    return _Loaded(key_type, read_key(files.key, "server key"), files.certificate.read_bytes(), context)
