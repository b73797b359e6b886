"""What the service manager that has started us is told, when it asks to be told; sd_notify(3)."""

import logging
import os
import socket
from typing import Final

_log: Final = logging.getLogger("jobworkerd")
_ADDRESS: Final = "NOTIFY_SOCKET"


def is_managed() -> bool:
    """Whether somebody waits for our word, and starts us again when we end with an error."""
    return bool(os.environ.get(_ADDRESS))


def notify(state: str) -> None:
    """Tells the service manager, such as "READY=1"; without one nothing happens."""
    address = os.environ.get(_ADDRESS)
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
        except OSError as error:
            _log.warning("the service manager could not be told: %s", error.strerror)
