"""What callers are told over HTTPS, made of our own types."""

from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel

from jobworker.access.principal import Principal
from jobworker.access.tokens import usable_scopes
from jobworker.api.http.words import Word
from jobworker.core.lifecycle import Ended, Pending, Phase, State
from jobworker.core.outcome import Exited, OutputTotals, Usage, outcome_to_document
from jobworker.core.spec import Limits
from jobworker.core.times import rfc3339
from jobworker.service import JobView

EXAMPLE_ID: Final = "6f0c1fd2-8a52-4c0b-9d1a-0c5b1f6f7a01"


class Answer(BaseModel):
    """What a caller is told."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class Failure(Answer):
    """What went wrong, in words; nothing else is told."""

    error: str = Field(examples=["Error: job not found"])


_Moment = Annotated[str | None, Field(examples=["2026-01-31T12:00:00.000000Z"])]
_Outcome = Annotated[
    dict[str, int | str] | None,
    WithJsonSchema(
        {
            "anyOf": [
                {
                    "type": "object",
                    "properties": {
                        "kind": {
                            "enum": [
                                "exited",
                                "signaled",
                                "oom_killed",
                                "timed_out",
                                "stopped",
                                "output_limit",
                                "lost",
                            ]
                        },
                        "code": {"type": "integer"},
                        "signal": {"type": "integer"},
                        "by": {"type": "string"},
                        "reason": {"type": "string"},
                    },
                    "required": ["kind"],
                },
                {"type": "null"},
            ]
        }
    ),
]


class JobLimits(Answer):
    """The limits of a job; null is unlimited."""

    cpu: float | None
    memory: int | None
    pids: int | None
    io_read_bps: int | None
    io_write_bps: int | None
    io_read_iops: int | None
    io_write_iops: int | None
    io_device: Word | None
    timeout: float | None
    output_bytes: int
    on_output_limit: Literal["drop", "kill"]

    @classmethod
    def of(cls, limits: Limits) -> Self:
        """The limits as they are told."""
        values = {name: getattr(limits, name) for name in cls.model_fields}
        return cls.model_construct(**values | {"on_output_limit": limits.on_output_limit.value})


# The amounts that are called otherwise here: ours → the protocol's.
_USAGE: Final = {"memory_current": "memory_current_bytes", "memory_peak": "memory_peak_bytes"}


class JobUsage(Answer):
    """What a job has used so far; null where the host cannot tell."""

    cpu_seconds: float | None
    cpu_user_seconds: float | None
    cpu_system_seconds: float | None
    cpu_periods: int | None
    throttled_periods: int | None
    throttled_seconds: float | None
    memory_current_bytes: int | None
    memory_peak_bytes: int | None
    oom_kills: int | None
    io_read_bytes: int | None
    io_write_bytes: int | None
    io_read_operations: int | None
    io_write_operations: int | None
    pids_current: int | None
    pids_peak: int | None
    pids_limit_hits: int | None

    @classmethod
    def of(cls, usage: Usage) -> Self:
        """The usage as it is told."""
        return cls.model_construct(**{_USAGE.get(name, name): amount for name, amount in usage.to_document().items()})


class JobOutputTotals(Answer):
    """How much a job has written, and how much of it was dropped and why."""

    stdout_bytes: int
    stderr_bytes: int
    dropped_bytes: int
    dropped_reason: str | None

    @classmethod
    def of(cls, totals: OutputTotals) -> Self:
        """The totals as they are told."""
        return cls.model_construct(**totals.to_document())


class Job(Answer):
    """A job as it is now."""

    id: str = Field(examples=[EXAMPLE_ID])
    status: Literal["Pending", "Running", "Completed", "Failed", "Stopped"]
    exit_code: int | None
    error: None = None
    owner: str
    name: str | None
    labels: dict[str, str]
    program: Word
    args: list[Word]
    env: dict[str, Word]
    workdir: Word | None
    rootfs: Word | None
    network: Literal["none", "host"]
    limits: JobLimits
    created_at: _Moment
    started_at: _Moment
    ended_at: _Moment
    outcome: _Outcome
    usage: JobUsage
    output: JobOutputTotals
    effective_limits: dict[str, str]
    sandbox: dict[str, str]
    isolation: str = Field(description="full, degraded(controls that the host lacks), or empty while pending")

    @classmethod
    def of(cls, view: JobView) -> Self:
        """The job as its owner sees it."""
        record = view.record
        started_at: float | None = None
        ended_at: float | None = None
        outcome = None
        match record.phase:
            case Pending():
                pass
            case Ended(ending):
                started_at, ended_at, outcome = ending.started_at, ending.ended_at, ending.outcome
            case underway:
                started_at = underway.started_at
        # Our own values need no checking.
        return cls.model_construct(
            id=record.id,
            status=status_of(record.state),
            exit_code=exit_code_of(record.phase),
            owner=record.owner,
            name=record.spec.name,
            labels=dict(record.spec.labels),
            program=record.spec.program,
            args=list(record.spec.args),
            env=dict(record.spec.env),
            workdir=record.spec.workdir,
            rootfs=record.spec.rootfs,
            network=record.spec.network.value,
            limits=JobLimits.of(record.spec.limits),
            created_at=rfc3339(record.created_at),
            started_at=None if started_at is None else rfc3339(started_at),
            ended_at=None if ended_at is None else rfc3339(ended_at),
            outcome=None if outcome is None else outcome_to_document(outcome),
            usage=JobUsage.of(view.usage),
            output=JobOutputTotals.of(view.output),
            effective_limits=dict(record.effective_limits),
            sandbox=dict(record.sandbox),
            isolation=record.isolation,
        )

    @classmethod
    def listed(cls, view: JobView) -> Self:
        """The job as lists show it: with the names of its environment and without the values, maybe secrets."""
        job = cls.of(view)
        job.env = dict.fromkeys(job.env, "")
        return job


class JobRef(Answer):
    """The job that was acted on."""

    id: str = Field(examples=[EXAMPLE_ID])
    error: None = None


class JobPage(Answer):
    """Some jobs, newest first, and where the next page begins; null behind the last job."""

    jobs: list[Job]
    next_page_token: str | None
    error: None = None


class JobLines(Answer):
    """What a job has written so far, as lines."""

    id: str = Field(examples=[EXAMPLE_ID])
    stdout: list[str]
    stderr: list[str]
    error: None = None


class WhoAmI(Answer):
    """Who asks, as the server knows them."""

    user: str = Field(examples=["alice"])
    role: Literal["user", "admin"]
    scopes: list[str] = Field(examples=[["jobs:read"]])
    credential: str = Field(
        description="What proves who the caller is, such as a token's id; not a secret.",
        examples=["token 3yp7g8P4SGC9"],
    )
    expires_at: _Moment
    error: None = None

    @classmethod
    def of(cls, principal: Principal) -> Self:
        """The same of a principal."""
        expires_at = principal.expires_at
        return cls.model_construct(
            user=principal.name,
            role=principal.role.value,
            scopes=usable_scopes(principal),
            credential=principal.credential,
            expires_at=None if expires_at is None else rfc3339(expires_at),
        )


class Health(Answer):
    """That the server is there."""

    status: Literal["ok"] = "ok"


def status_of(state: State) -> str:
    """A state as this API spells it."""
    return state.value.capitalize()


def exit_code_of(phase: Phase) -> int | None:
    """The program's own exit code; None while it runs and when something else ended it."""
    outcome = phase.ending.outcome if isinstance(phase, Ended) else None
    return outcome.code if isinstance(outcome, Exited) else None
