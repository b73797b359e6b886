"""Where a server listens, or is dialed: a host and a TCP port."""

from dataclasses import dataclass
from typing import Self

from jobworker.core.errors import invalid


@dataclass(frozen=True, slots=True)
class Address:
    """A host name or IP address and a TCP port; port 0 picks a free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, name: str = "address") -> Self:
        """The address in `HOST:PORT` or `[IPV6]:PORT`; INVALID_ARGUMENT for anything else."""
        host, colon, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        if not colon or not host or not port.isascii() or not port.isdigit() or (":" in host and not bracketed):
            raise invalid(name, text, "HOST:PORT, as in 127.0.0.1:50051 or [::1]:50051")
        if int(port) > 65535:
            raise invalid(name, text, "a port of 0 to 65535")
        return cls(host.strip("[]"), int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
