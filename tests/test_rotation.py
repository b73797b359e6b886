"""Turns that go round: nobody waits for another's crowd, and no turn is lost."""

import asyncio

from jobworker.rotation import Rotation


async def _settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def _take(rotation: Rotation, owner: str, order: list[str], goes_on: asyncio.Event) -> None:
    async with rotation.turn(owner):
        order.append(owner)
        await goes_on.wait()


async def test_a_late_comer_waits_for_one_turn_however_many_another_waits_for() -> None:
    """R4."""
    rotation, order, gate = Rotation(at_once=1, each=1), [], asyncio.Event()
    tasks = [asyncio.create_task(_take(rotation, owner, order, gate)) for owner in ["crowd"] * 100 + ["late"]]
    await _settle()
    assert order == ["crowd"]
    gate.set()
    await asyncio.gather(*tasks)
    assert order == ["crowd", "crowd", "late", *["crowd"] * 98]


async def test_one_owner_has_so_many_turns_at_once_and_all_owners_so_many() -> None:
    """R4."""
    rotation, order, gate = Rotation(at_once=5, each=2), [], asyncio.Event()
    tasks = [asyncio.create_task(_take(rotation, owner, order, gate)) for owner in "aaaabbbbcccc"]
    await _settle()
    assert sorted(order) == ["a", "a", "b", "b", "c"]
    gate.set()
    await asyncio.gather(*tasks)
    assert sorted(order) == list("aaaabbbbcccc")


async def test_whoever_stops_waiting_takes_no_turn_along() -> None:
    rotation, order, gate = Rotation(at_once=1, each=1), [], asyncio.Event()
    tasks = [asyncio.create_task(_take(rotation, owner, order, gate)) for owner in "abc"]
    await _settle()
    tasks[1].cancel()  # still waits
    await _settle()
    gate.set()
    tasks[2].cancel()  # the turn comes to it in the same instant
    await asyncio.gather(*tasks, return_exceptions=True)
    async with asyncio.timeout(10), rotation.turn("d"):
        assert order[0] == "a"
