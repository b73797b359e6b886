"""One verb's conversation with the server, about one job or several."""

import asyncio
import shlex
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from jobworker.cli import interruption
from jobworker.cli.notice import SomeFailed
from jobworker.client.connection import MAX_PAGE
from jobworker.client.context import Transport, ambient_transport, find_context
from jobworker.client.job_client import JobClient
from jobworker.core.errors import ErrorCode, JobError
from jobworker.core.job_id import is_job_id

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Target:
    """Which server the user wants, as whom, and over which transport; None leaves a choice to the surroundings."""

    context: str | None
    transport: Transport | None

    def command(self, *words: str) -> str:
        """The command line that has jobctl do `words` there, for people to copy."""
        context = ["--context", self.context] if self.context else []
        transport = ["--transport", self.transport.value] if self.transport else []
        return shlex.join(["jobctl", *context, *transport, *words])


def talk(target: Target, work: Callable[[JobClient], Awaitable[_T]]) -> _T:
    """What `work` returns when it is given a connection to the target."""

    async def connected() -> _T:
        transport = target.transport or ambient_transport()
        async with JobClient.connect(find_context(target.context), transport) as client:
            return await work(client)

    return interruption.run(connected())


async def find_job(client: JobClient, text: str) -> str:
    """The full id that `text` is or begins; JOB_NOT_FOUND when it begins none, INVALID_ARGUMENT when several."""
    if is_job_id(text):
        return text
    if not text or text.strip("0123456789abcdefABCDEF-"):
        raise JobError(
            ErrorCode.JOB_NOT_FOUND, f"no job {text!r}: an id has hexadecimal digits only; see: jobctl list -a"
        )
    async for found in client.list(id_prefix=text.lower(), page_size=MAX_PAGE):
        match found:
            case []:
                break
            case [job]:
                return job.id
            case _:
                count = f"{MAX_PAGE} or more" if len(found) >= MAX_PAGE else str(len(found))
                raise JobError(
                    ErrorCode.INVALID_ARGUMENT, f"id {text!r} is ambiguous: {count} jobs begin so; write more of it"
                )
    raise JobError(ErrorCode.JOB_NOT_FOUND, f"no job begins with {text!r}; see: jobctl list -a")


async def for_each(client: JobClient, ids: list[str], act: Callable[[str], Awaitable[_T]]) -> list[_T]:
    """What `act` returns for every job, all at once; after all have been tried, SomeFailed tells which failed why."""

    async def one(text: str) -> _T:
        job_id = await find_job(client, text)
        try:
            return await act(job_id)
        except JobError as error:
            raise JobError(error.code, f"{job_id}: {error.message}") from error

    results = await asyncio.gather(*(one(text) for text in ids), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, JobError):
            raise result
    if failures := [result for result in results if isinstance(result, JobError)]:
        raise SomeFailed(failures)
    return [result for result in results if not isinstance(result, BaseException)]
