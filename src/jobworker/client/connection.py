"""What a client needs from a transport: one call a method, each tried once."""

from collections.abc import AsyncGenerator, Collection, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from jobworker.client.model import Chunk, End, Identity, Job, OutputStream, Started
from jobworker.core.errors import ErrorCode, JobError, invalid
from jobworker.core.lifecycle import State
from jobworker.core.spec import JobSpec

CONNECT_SECONDS: Final = 4.0  # a server that takes longer for TCP and TLS counts as down
ANSWER_SECONDS: Final = 30.0  # for calls that only look something up
ACT_SECONDS: Final = 60.0  # for calls that start, end or delete processes
MAX_PAGE: Final = 1000  # jobs of one answer
KEEPALIVE_SECONDS: Final = 30  # a cut line is noticed after this and the time-out below
KEEPALIVE_TIMEOUT_SECONDS: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ListQuery:
    """Which jobs to list, and which page of them; what is empty asks for nothing in particular."""

    states: tuple[State, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    owner: str = ""
    id_prefix: str = ""
    name: str = ""
    page_size: int = 0
    page_token: str = ""

    def __post_init__(self) -> None:
        """INVALID_ARGUMENT for what no protocol has a place for."""
        if not 0 <= self.page_size <= MAX_PAGE:
            raise invalid("page_size", self.page_size, f"0 to {MAX_PAGE}")
        for field_name in ("owner", "id_prefix", "name"):
            utf8(field_name, getattr(self, field_name))
        for key, value in self.labels.items():
            utf8("labels", key)
            utf8("labels", value)


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the jobs that a list found, and the token of the next page; empty after the last one."""

    jobs: list[Job]
    next_token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputQuery:
    """Which output of a job to send, and whether to go on until the job ends."""

    job_id: str
    offset: int = 0
    streams: tuple[OutputStream, ...] = ()
    follow: bool = True
    since: float | None = None
    tail_lines: int | None = None


class Connection(Protocol):
    """One user's way to one server. A call that fails raises the JobError that the server meant.

    What is asked for has been checked: an id is a job's to the letter, a number fits every wire format.

    A server that cannot be reached is UNAVAILABLE: `cannot reach HOST:PORT: why`.
    """

    async def reach(self) -> None:
        """Returns once the server has answered; UNAVAILABLE says why it does not."""

    async def start(self, spec: JobSpec, asked_limits: Collection[str], idempotency_key: str) -> Started:
        """Starts a job, or finds the one that the key has started before."""

    async def stop(self, job_id: str, grace: float, signal: int) -> Job:
        """Ends a job; `signal` comes first when there is a `grace`."""

    async def status(self, job_id: str) -> Job:
        """The job as it is now."""

    async def wait(self, job_id: str, seconds: float) -> Job:
        """The job after its end, or as it is after `seconds`."""

    async def remove(self, job_id: str, *, force: bool) -> None:
        """Deletes a job with its output."""

    async def signal(self, job_id: str, signal: int) -> None:
        """Sends `signal` to the job's main process."""

    async def list(self, query: ListQuery) -> Page:
        """One page of jobs, newest first."""

    async def who_am_i(self) -> Identity:
        """Whom the server takes this client for."""

    def stream(self, query: OutputQuery) -> AsyncGenerator[Chunk | End, None]:
        """The output that was asked for, then its End; UNAVAILABLE when the line is cut before that."""


def newer_protocol() -> JobError:
    """The error for an answer that says what this client does not know."""
    return JobError(ErrorCode.UNSUPPORTED, "the server speaks a newer protocol than this client; update the client")


def utf8(field: str, text: str) -> str:
    """`text` when it is UTF-8, where a protocol has no place for raw bytes; otherwise INVALID_ARGUMENT."""
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise invalid(field, text, "UTF-8 text")
    return text
