"""One job as its worker knows it: its phase, what is waited for, and the channel to its monitor."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from jobworker.core.errors import ErrorCode, JobError
from jobworker.core.lifecycle import (
    Ended,
    Launched,
    Pending,
    Phase,
    State,
    StopOrdered,
    advance,
    state_of,
)
from jobworker.core.outcome import Ending, OutputTotals, Usage
from jobworker.core.spec import JobSpec
from jobworker.runtime import wire

_USAGE_TIMEOUT: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """A job as it is now."""

    id: str
    spec: JobSpec
    phase: Phase
    created_at: float
    effective_limits: Mapping[str, str] = field(default_factory=dict)
    sandbox: Mapping[str, str] = field(default_factory=dict)
    usage: Usage = Usage()
    output: OutputTotals = OutputTotals()

    @property
    def state(self) -> State:
        """The state of the job, for people and for decisions."""
        return state_of(self.phase)

    @property
    def ending(self) -> Ending | None:
        """How it ended; None while it has not."""
        return self.phase.ending if isinstance(self.phase, Ended) else None


class Job:
    """One job as this process knows it."""

    def __init__(self, job_id: str, spec: JobSpec, created_at: float, boot_id: str = "") -> None:
        self.id = job_id
        self.spec = spec
        self.created_at = created_at
        self.boot_id = boot_id
        self.phase: Phase = Pending()
        self.listeners: set[Callable[[], None]] = set()
        self.effective_limits: Mapping[str, str] = {}
        self.sandbox: Mapping[str, str] = {}
        self._usage: Usage = Usage()
        self._output: OutputTotals = OutputTotals()
        self._channel: socket.socket | None = None
        self._refusal: JobError | None = None  # what launcher or monitor said instead of running it
        self._failure: JobError | None = None
        self._usage_news: asyncio.Event | None = None  # set when the request for usage that is under way is over

    @property
    def is_ended(self) -> bool:
        """Whether everybody may see its end."""
        return isinstance(self.phase, Ended)

    @property
    def was_stopped(self) -> bool:
        """Whether a user's stop is what ended it."""
        return state_of(self.phase) is State.STOPPED

    def status(self, phase: Phase | None = None) -> JobStatus:
        """The job as last heard of, or as it would be in `phase`."""
        phase = phase or self.phase
        ending = phase.ending if isinstance(phase, Ended) else None
        return JobStatus(
            id=self.id,
            spec=self.spec,
            phase=phase,
            created_at=self.created_at,
            effective_limits=self.effective_limits,
            sandbox=self.sandbox,
            usage=ending.usage if ending else self._usage,
            output=ending.output if ending else self._output,
        )

    async def fresh_status(self) -> JobStatus:
        """The status with the usage of this moment, or of an earlier one when the monitor is slow.

        One request is under way at a time, whoever comes meanwhile shares it: the channel never
        fills up, however many ask.
        """
        if self._channel is None:
            await asyncio.sleep(0)  # its end is being put on record, which must get its turn
            return self.status()
        news = self._usage_news
        if news is None:
            try:
                self.send(wire.AskUsage())
            except JobError:
                return self.status()
            news = self._usage_news = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_USAGE_TIMEOUT):
                await news.wait()
        return self.status()

    def _end_usage_request(self) -> None:
        if self._usage_news is not None:
            self._usage_news.set()
            self._usage_news = None

    # Waiting.

    async def wait_started(self) -> None:
        """Returns when the program runs or has run; raises what kept it from running."""
        await self._wait_until(lambda: not isinstance(self.phase, Pending))

    async def wait_ended(self) -> None:
        """Returns when its end may be seen; raises what kept it from running."""
        await self._wait_until(lambda: self.is_ended)

    async def wait_answer(self) -> None:
        """Returns at the first word of launcher or monitor; raises when it is that nothing runs.

        For the one who started it; to all others a start has failed only when it is undone.
        """
        await self._wait_until(lambda: self._refusal is not None or not isinstance(self.phase, Pending))
        if self._refusal is not None:
            raise self._refusal

    async def _wait_until(self, condition: Callable[[], bool]) -> None:
        news = asyncio.Event()
        self.listeners.add(news.set)
        try:
            while not condition():
                if self._failure is not None:
                    raise self._failure
                news.clear()
                await news.wait()
        finally:
            self.listeners.discard(news.set)

    def _tell(self) -> None:
        for listener in tuple(self.listeners):
            listener()

    # Talking to the monitor.

    def attach(self, channel: socket.socket, on_finished: "Callable[[Job, Ending | None], object]") -> None:
        """Listens to launcher and monitor on `channel`; `on_finished` gets their last word, or None."""
        self._channel = channel
        self._on_finished = on_finished
        asyncio.get_running_loop().add_reader(channel, self._on_readable)

    def detach(self) -> None:
        """Lets go of the channel; the job runs on."""
        if self._channel is not None:
            asyncio.get_running_loop().remove_reader(self._channel)
            self._channel.close()
            self._channel = None
        self._end_usage_request()

    def send(self, order: wire.Message) -> None:
        """Orders that find nobody are answered by the end that is being told at the same time.

        EXHAUSTED when the monitor has as many waiting as the channel holds.
        """
        if self._channel is None:
            return
        try:
            wire.send(self._channel, order)
        except (BrokenPipeError, ConnectionResetError):
            return
        except BlockingIOError:
            raise JobError(ErrorCode.EXHAUSTED, "too many orders to this job at once; try again") from None

    def _on_readable(self) -> None:
        if self._channel is None:
            return
        try:
            message, _ = wire.receive(self._channel)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            message = None
        match message:
            case wire.NowRunning(started_at, effective_limits, sandbox, stopped_by):
                self.effective_limits, self.sandbox = effective_limits, sandbox
                self.phase, _ = advance(self.phase, Launched(started_at))
                if stopped_by is not None:
                    self.phase, _ = advance(self.phase, StopOrdered(stopped_by, signal.SIGTERM, 0))
                self._tell()
            case wire.UsageNow(usage, output):
                self._usage, self._output = Usage(**usage), OutputTotals(**output)
                self._end_usage_request()
            case wire.NowEnded(ending):
                self.detach()
                self._on_finished(self, Ending.from_document(ending))
            case wire.StartFailed():
                self.detach()
                self._refuse(message.error())
            case _ if isinstance(self.phase, Pending) and not self.boot_id:
                self.detach()
                self._refuse(JobError(ErrorCode.UNAVAILABLE, "the job's launch was interrupted; try again"))
            case _:
                self.detach()
                self._on_finished(self, None)

    def _refuse(self, error: JobError) -> None:
        self._refusal = error
        self._tell()

    def fail(self, error: JobError) -> None:
        """The program never ran, and nothing of the try is left."""
        self._failure = error
        self._tell()

    def conclude(self, final: Phase) -> None:
        """The end is on record; everyone may see it."""
        self.phase = final
        self._tell()
