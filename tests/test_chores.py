"""What goes on behind a call: done in the end, and its errors are in the log."""

import asyncio
import logging
import re

import pytest

from jobworker.chores import Chores
from jobworker.core.errors import ErrorCode, JobError


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device"), r"the work has to wait: .*No space left"),
        (JobError(ErrorCode.UNAVAILABLE, "the disk is full"), "the work has to wait: the disk is full"),
        (RuntimeError("a fault of ours"), r"the work failed, internal error [0-9a-f]{12}; it is tried again"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_a_chore_that_fails_is_told_once_and_tried_again(
    error: Exception, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    done = asyncio.Event()
    failures = [error]

    async def work() -> None:
        if failures:
            raise failures.pop()
        done.set()

    chores = Chores()
    await chores.begin("the work", work).wait()
    assert not done.is_set(), "the first try is over, and has failed"
    await asyncio.wait_for(done.wait(), 30)
    [record] = caplog.records
    assert record.levelno >= logging.WARNING
    assert re.search(told, record.getMessage())
    await chores.close()


async def test_closing_ends_what_is_not_done() -> None:
    chores = Chores()
    began = asyncio.Event()

    async def work() -> None:
        began.set()
        await asyncio.Event().wait()

    tried = chores.begin("the work", work)
    await began.wait()
    await chores.close()
    assert len(asyncio.all_tasks()) == 1
    assert tried.is_set(), "nobody waits for it for ever"
