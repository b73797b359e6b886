"""What goes on behind the call that asked for it: tried again until it is done, and never lost from sight."""

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable
from typing import Final

from jobworker.core.errors import JobError

_log: Final = logging.getLogger(__name__)
_RETRY_SECONDS: Final = 1.0
_LONGEST_PAUSE: Final = 60.0

#: Something that may be begun again from the start when it has failed half-way.
Chore = Callable[[], Awaitable[object]]


class Chores:
    """Work that nobody waits for, until `close`: the one door at which its errors end."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, name: str, chore: Chore) -> asyncio.Event:
        """Has it done, however often it must be tried; the event is set after the first try.

        `name` is what the log calls it when it fails.
        """
        tried = asyncio.Event()
        task = asyncio.create_task(_insist(name, chore, tried))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return tried

    async def close(self) -> None:
        """Ends what is not done; whoever comes next finds out by itself what there is to do."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _insist(name: str, chore: Chore, tried: asyncio.Event) -> None:
    pause = _RETRY_SECONDS
    while True:
        try:
            await chore()
        except (JobError, OSError) as error:
            # No descriptors, no room on the disk: both may come back.
            _log.log(logging.DEBUG if tried.is_set() else logging.WARNING, "%s has to wait: %s", name, error)
        except Exception:  # noqa: BLE001 - a door: nobody else would hear of it
            _log.exception("%s failed, internal error %s; it is tried again", name, uuid.uuid4().hex[:12])
            pause = min(2 * pause, _LONGEST_PAUSE)
        else:
            return
        finally:
            tried.set()
        await asyncio.sleep(pause)
