"""What is done for a caller and the caller itself may end in the same instant, in any order."""

import asyncio

import pytest
from starlette.requests import ClientDisconnect

from jobworker.api.http.presence import while_present


class Connection:
    """What a server gives an application to hear its caller by."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()

    async def receive(self) -> dict[str, str]:
        await self.gone.wait()
        return {"type": "http.disconnect"}


async def test_a_caller_that_goes_ends_what_is_done_for_it() -> None:
    connection = Connection()
    asyncio.get_running_loop().call_later(0.01, connection.gone.set)
    with pytest.raises(ClientDisconnect):
        async with asyncio.timeout(30), while_present(connection.receive):
            await asyncio.Event().wait()


@pytest.mark.parametrize("turns", range(6))
async def test_a_caller_may_go_when_everything_is_done_already(turns: int) -> None:
    """Nothing of it is left for the event loop to complain of."""
    complaints: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, complaint: complaints.append(complaint))
    connection = Connection()
    try:
        async with while_present(connection.receive):
            await asyncio.sleep(0)
            connection.gone.set()
            for _ in range(turns):
                await asyncio.sleep(0)
    except ClientDisconnect:
        pass
    for _ in range(10):
        await asyncio.sleep(0)
    assert complaints == []
