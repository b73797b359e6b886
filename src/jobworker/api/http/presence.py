"""What is done for a caller ends when the caller is gone."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect
from starlette.types import Receive


@contextlib.asynccontextmanager
async def while_present(receive: Receive) -> AsyncIterator[None]:
    """Ends what is done inside with ClientDisconnect as soon as the connection is gone; the body must be read."""
    try:
        async with asyncio.timeout(None) as presence:
            watch = asyncio.create_task(_until_gone(receive, presence))
            try:
                yield
            finally:
                watch.cancel()
    except TimeoutError:
        if not presence.expired():
            raise
        raise ClientDisconnect from None


async def _until_gone(receive: Receive, presence: asyncio.Timeout) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    presence.reschedule(asyncio.get_running_loop().time())
