"""What operators watch of one server: counts, times and capacities, in Prometheus' own formats.

No label has a value that callers choose: not a job's, not a user's, not a program's.
"""

import platform
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.openmetrics import exposition as openmetrics

import jobworker
from jobworker.core.errors import ErrorCode
from jobworker.core.lifecycle import State, final_state
from jobworker.core.outcome import (
    Exited,
    Lost,
    OomKilled,
    Outcome,
    OutputLimit,
    Signaled,
    Stopped,
    TimedOut,
    outcome_kind,
)
from jobworker.runtime.controls import DECISIVE

OPENMETRICS_TYPE: Final = "application/openmetrics-text"
TEXT_TYPE: Final = "text/plain"
#: One of each way to end that is counted apart.
ENDINGS: Final = (
    Exited(0),
    Exited(1),
    Signaled(9),
    OomKilled(),
    TimedOut(),
    Stopped(by="", signal=9),
    OutputLimit(),
    Lost(""),
)
_START_SECONDS: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class DoorName(Enum):
    """Where a call came in."""

    GRPC = "grpc"
    HTTPS = "https"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What there is at one moment."""

    jobs: Mapping[State, int]
    held_calls: int
    audit_records: int


class Metrics:
    """The metrics of one server; counting costs a microsecond, and everything else is done when somebody asks."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._start_seconds = Histogram(
            "jobworker_start_seconds",
            "From a start's arrival until its program ran.",
            buckets=_START_SECONDS,
            registry=self._registry,
        )
        self._ended = self._counter("jobworker_jobs_ended", "Jobs that have ended, by how.", "state", "outcome")
        self._refused = self._counter("jobworker_calls_refused", "Calls that got an error.", "door", "code")
        self._streamed = self._counter("jobworker_output_sent_bytes", "Output of jobs that readers were sent.")
        self._jobs = self._gauge("jobworker_jobs", "Unfinished jobs, by state.", "state")
        self._held_calls = self._gauge("jobworker_held_calls", "Open streams, waits and graceful stops.")
        self._audit_records = self._gauge("jobworker_audit_records", "Records in the audit trail.")
        self._launcher_up = self._gauge("jobworker_launcher_up", "0 when no job can be started for want of a launcher.")
        self._launcher_up.set(1)
        self._degraded = self._gauge("jobworker_degraded", "1 when jobs run without this control.", "control")
        self._missing = self._gauge("jobworker_missing", "1 when no job runs for want of this control.", "control")
        self._capacity = self._gauge("jobworker_capacity", "How much there may be at a time.", "of")
        build = {"version": jobworker.__version__, "python": platform.python_version()}
        Info("jobworker_build", "Which server this is.", registry=self._registry).info(build)
        self._begin_at_zero()

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(name, about, labels, registry=self._registry)

    def _gauge(self, name: str, about: str, *labels: str) -> Gauge:
        return Gauge(name, about, labels, registry=self._registry)

    def _begin_at_zero(self) -> None:
        """What has not happened yet is shown all the same, so that the first time is seen as a change."""
        for door in DoorName:
            for code in ErrorCode:
                self._refused.labels(door.value, code.value)
        for outcome in ENDINGS:
            self._ended_by(outcome)

    def _ended_by(self, outcome: Outcome) -> Counter:
        return self._ended.labels(final_state(outcome).value.lower(), outcome_kind(outcome))

    # What holds while a server runs.

    def show_controls(self, *, degraded: Collection[str], missing: Collection[str]) -> None:
        """The controls that jobs run without, and those for want of which none runs."""
        for control in DECISIVE:
            self._degraded.labels(control.name).set(control.name in degraded)
            self._missing.labels(control.name).set(control.name in missing)

    def show_capacity(self, **amounts: int) -> None:
        """How much there may be of what."""
        for name, amount in amounts.items():
            self._capacity.labels(name).set(amount)

    # What happens.

    def started(self, seconds: float) -> None:
        """A job was started in this time."""
        self._start_seconds.observe(seconds)

    def ended(self, outcome: Outcome) -> None:
        """A job has ended."""
        self._ended_by(outcome).inc()

    def refused(self, door: DoorName, code: ErrorCode) -> None:
        """A call got an error."""
        self._refused.labels(door.value, code.value).inc()

    def sent(self, size: int) -> None:
        """A reader is sent so many bytes of output."""
        self._streamed.inc(size)

    def lost_launcher(self) -> None:
        """No job can be started any more."""
        self._launcher_up.set(0)

    # Who asks.

    def exposition(self, figures: Figures, accept: str) -> tuple[bytes, str]:
        """Everything, and the media type of it: OpenMetrics for those who accept it, Prometheus' text for others."""
        for state in (State.PENDING, State.RUNNING):
            self._jobs.labels(state.value.lower()).set(figures.jobs.get(state, 0))
        self._held_calls.set(figures.held_calls)
        self._audit_records.set(figures.audit_records)
        if OPENMETRICS_TYPE in accept:
            body: bytes = openmetrics.generate_latest(self._registry)  # type: ignore[no-untyped-call]  # the library's
            return body, openmetrics.CONTENT_TYPE_LATEST
        return generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4
