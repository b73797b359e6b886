"""What both doors prove themselves with: the server's key and certificate chain."""

import ssl
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """The server's key and certificate chain, and the CAs of its users, as PEM files."""

    key: Path
    certificate: Path
    ca: Path


def https_context(files: TlsFiles) -> ssl.SSLContext:
    """TLS 1.3 and HTTP/1.1, nothing else; asks for no client certificate: they are no credential there."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(files.certificate, files.key)
    return context
