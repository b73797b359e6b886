"""The messages between server, launcher and monitor: one JSON document a packet.

Each is a dataclass; its class name travels with it, and the codec follows from the fields.
"""

import json
import socket
import struct
from dataclasses import dataclass
from typing import Any, Final

from jobworker.core.errors import ErrorCode, JobError

MAX_PACKET: Final = 64 * 1024
PROTOCOL_VERSION: Final = 2
_DESCRIPTOR: Final = struct.Struct("i")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """Server → launcher, the first packet: everything that holds for all jobs."""

    version: int
    service_uid: int  # job directories belong to this user
    service_gid: int
    first_uid: int  # of the range that jobs run as
    last_uid: int
    cgroup_parent: str  # the name of our group in every hierarchy
    lock_dir: str  # host-wide, root's own
    hidden: list[str]  # paths that no job may see, beside the standard ones
    roots: list[str]  # directories that, or of which any below, a job may have as its root
    allow_degraded: list[str]  # controls that jobs may run without


@dataclass(frozen=True, slots=True)
class Ready:
    """Launcher → server: set up; what this host lacks, by the names of controls."""

    degraded: list[str]  # jobs run without these, and show it
    refused: list[str]  # for want of these no job runs
    empty_groups: list[str]  # jobs that have control groups and no process


@dataclass(frozen=True, slots=True)
class Launch:
    """Server → launcher, with the descriptors of the job directory and of the job's channel."""

    job_id: str


@dataclass(frozen=True, slots=True)
class CleanUp:
    """Server → launcher, with a channel: end and remove whatever a dead monitor left of the job."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Cleaned:
    """Launcher → channel: nothing of the job is left."""


@dataclass(frozen=True, slots=True)
class StartFailed:
    """Launcher or monitor → channel: the program does not run, and nothing is left of the try."""

    code: str
    message: str
    step: str | None = None

    def error(self) -> JobError:
        """The failure as the caller of start sees it."""
        return JobError(ErrorCode(self.code), self.message)


@dataclass(frozen=True, slots=True)
class NowRunning:
    """Monitor → channel, first on every connection: the program runs."""

    started_at: float
    effective_limits: dict[str, str]
    sandbox: dict[str, str]
    stopped_by: str | None = None  # the user whose stop order is being carried out


@dataclass(frozen=True, slots=True)
class NowEnded:
    """Monitor → channel, last: `ending` is on disk and nothing of the job is left."""

    ending: dict[str, Any]


@dataclass(frozen=True, slots=True)
class OrderStop:
    """Server → monitor: end the job for user `by`."""

    by: str
    signal: int
    grace: float


@dataclass(frozen=True, slots=True)
class OrderSignal:
    """Server → monitor: send `signal` to the job's main process."""

    signal: int


@dataclass(frozen=True, slots=True)
class AskUsage:
    """Server → monitor: what has the job used so far?"""


@dataclass(frozen=True, slots=True)
class UsageNow:
    """Monitor → channel, one for each AskUsage in order."""

    usage: dict[str, Any]
    output: dict[str, Any]


Message = (
    Bootstrap
    | Ready
    | Launch
    | CleanUp
    | Cleaned
    | StartFailed
    | NowRunning
    | NowEnded
    | OrderStop
    | OrderSignal
    | AskUsage
    | UsageNow
)

_TYPES: Final[dict[str, type[Message]]] = {
    kind.__name__: kind
    for kind in (
        Bootstrap,
        Ready,
        Launch,
        CleanUp,
        Cleaned,
        StartFailed,
        NowRunning,
        NowEnded,
        OrderStop,
        OrderSignal,
        AskUsage,
        UsageNow,
    )
}


def encode(message: Message) -> bytes:
    """The message as one packet."""
    fields = {name: getattr(message, name) for name in message.__slots__}
    return json.dumps({"type": type(message).__name__} | fields).encode()


def decode(packet: bytes) -> Message:
    """The message in a packet; ValueError for anything else."""
    try:
        document = json.loads(packet)
        return _TYPES[document.pop("type")](**document)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a message: {packet[:80]!r}") from error


def send(channel: socket.socket, message: Message, fds: tuple[int, ...] = ()) -> None:
    """Sends one message, with descriptors when given; blocks when the channel does."""
    if fds:
        socket.send_fds(channel, [encode(message)], fds)
    else:
        channel.send(encode(message))


def receive(channel: socket.socket, max_fds: int = 0) -> tuple[Message | None, list[int]]:
    """The next message and its descriptors; None at the end of the channel."""
    if max_fds:
        # Not socket.recv_fds: it drops its flags, and the descriptors would be inherited by every exec.
        room = socket.CMSG_SPACE(max_fds * _DESCRIPTOR.size)
        packet, ancillary, _, _ = channel.recvmsg(MAX_PACKET, room, socket.MSG_CMSG_CLOEXEC)
        fds = [
            fd for _, kind, data in ancillary if kind == socket.SCM_RIGHTS for (fd,) in _DESCRIPTOR.iter_unpack(data)
        ]
    else:
        packet, fds = channel.recv(MAX_PACKET), []
    return (decode(packet) if packet else None), fds
