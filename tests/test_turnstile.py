"""A turnstile: whoever has much to do keeps nobody from doing little."""

import asyncio
from itertools import groupby

from jobworker.turnstile import Turnstile


async def _work(turnstile: Turnstile, name: str, order: list[str], pieces: int) -> None:
    for _ in range(pieces):
        await turnstile.wait_turn()
        order.append(name)


async def _look(order: list[str], times: int) -> None:
    """What the event loop does for everybody else."""
    for _ in range(times):
        order.append("-")
        await asyncio.sleep(0)


def _runs(order: list[str]) -> list[int]:
    """How many pieces were done between two looks at everything else, until the last one."""
    until = len(order) - order[::-1].index("-")
    return [len(list(run)) for is_look, run in groupby(order[:until], lambda what: what == "-") if not is_look]


async def test_everybody_else_comes_in_between_however_many_have_much_to_do() -> None:
    """R4."""
    turnstile, order = Turnstile(at_once=3), list[str]()
    await asyncio.gather(*(_work(turnstile, name, order, 20) for name in "abcdefgh"), _look(order, 100))
    assert len(order) == 8 * 20 + 100
    assert max(_runs(order)) <= 3
    # The control: with room for all of them.
    wide, order = Turnstile(at_once=1000), list[str]()
    await asyncio.gather(*(_work(wide, name, order, 20) for name in "abcdefgh"), _look(order, 100))
    assert max(_runs(order)) == 8


async def test_those_who_wait_pass_in_their_order() -> None:
    turnstile, order = Turnstile(at_once=2), list[str]()
    await asyncio.gather(*(_work(turnstile, name, order, 10) for name in "abcde"))
    assert order == list("abcde" * 10)


async def test_whoever_stops_waiting_takes_no_turn_along() -> None:
    turnstile, order = Turnstile(at_once=1), list[str]()
    tasks = [asyncio.create_task(_work(turnstile, name, order, 1)) for name in "abc"]
    await asyncio.sleep(0)
    tasks[1].cancel()
    async with asyncio.timeout(10):
        await asyncio.gather(tasks[0], tasks[2])
    assert order == ["a", "c"]
