"""What a server tells about jobs and their output, as immutable values."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from jobworker.core.lifecycle import State
from jobworker.core.outcome import Exited, Outcome, OutputTotals, Usage, outcome_to_document
from jobworker.core.spec import JobSpec
from jobworker.core.times import rfc3339


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as the server saw it when it answered; times are seconds since the epoch.

    `effective_limits` and `sandbox` are what is in force, as read back from the kernel; `isolation`
    says how complete it is, and is empty until there is a sandbox.
    """

    id: str
    owner: str
    spec: JobSpec
    state: State
    created_at: float
    started_at: float | None
    ended_at: float | None
    outcome: Outcome | None
    usage: Usage
    output: OutputTotals
    effective_limits: Mapping[str, str]
    sandbox: Mapping[str, str]
    isolation: str

    @property
    def is_degraded(self) -> bool:
        """Whether it runs with less isolation than a host should give."""
        return self.isolation.startswith("degraded")

    @property
    def exit_code(self) -> int | None:
        """The program's own exit code; None while it runs and when something else ended it."""
        return self.outcome.code if isinstance(self.outcome, Exited) else None

    def to_document(self) -> dict[str, Any]:
        """The job as plain JSON values, times as RFC 3339; in the same order over every transport."""
        spec = self.spec.to_document()
        return {
            "id": self.id,
            "owner": self.owner,
            "state": self.state.value,
            "exit_code": self.exit_code,
            "outcome": outcome_to_document(self.outcome) if self.outcome else None,
            "created_at": rfc3339(self.created_at),
            "started_at": None if self.started_at is None else rfc3339(self.started_at),
            "ended_at": None if self.ended_at is None else rfc3339(self.ended_at),
            "spec": spec | {name: _sorted(spec[name]) for name in ("env", "labels")},
            "usage": self.usage.to_document(),
            "output": self.output.to_document(),
            "effective_limits": _sorted(self.effective_limits),
            "sandbox": _sorted(self.sandbox),
            "isolation": self.isolation,
        }


def _sorted(values: Mapping[str, str]) -> dict[str, str]:
    return dict(sorted(values.items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Whom a server takes its client for, in the server's words; `expires_at` in seconds since the epoch.

    `credential` is what proves the user, such as `certificate serial 5f3a`, and `scopes` what that
    may be used for.
    """

    user: str
    role: str
    scopes: tuple[str, ...]
    credential: str
    expires_at: float | None

    def to_document(self) -> dict[str, Any]:
        """The identity as plain JSON values."""
        return {
            "user": self.user,
            "role": self.role,
            "scopes": list(self.scopes),
            "credential": self.credential,
            "expires_at": None if self.expires_at is None else rfc3339(self.expires_at),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The answer to a start: the job, and whether its idempotency key had been seen before."""

    job: Job
    existed: bool


class OutputStream(Enum):
    """One of a job's two output streams."""

    STDOUT = "stdout"
    STDERR = "stderr"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes of one stream; `offset` counts in the combined output, `time` in seconds since the epoch."""

    offset: int
    stream: OutputStream
    time: float
    data: bytes

    @property
    def end(self) -> int:
        """The offset right behind these bytes, where a reader who has them resumes."""
        return self.offset + len(self.data)


@dataclass(frozen=True, slots=True)
class End:
    """The last event of a stream: the job's state by then and the whole job's totals.

    `outcome` is None when the job still runs, as it may without following. `offset` is where
    to resume.
    """

    state: State
    outcome: Outcome | None
    output: OutputTotals
    offset: int
