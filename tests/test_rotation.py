"""Turns that go round: nobody waits for another's crowd, and no turn is lost."""

import asyncio

import pytest

from jobworker import rotation as rotation_module
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
    rotation, order, gate = Rotation(at_once=1, alone=1), [], asyncio.Event()
    tasks = [asyncio.create_task(_take(rotation, owner, order, gate)) for owner in ["crowd"] * 100 + ["late"]]
    await _settle()
    assert order == ["crowd"]
    gate.set()
    await asyncio.gather(*tasks)
    assert order == ["crowd", "crowd", "late", *["crowd"] * 98]


async def test_an_owner_who_is_alone_has_several_turns_and_one_beside_others() -> None:
    """R4."""
    rotation, order, gate = Rotation(at_once=5, alone=3), [], asyncio.Event()
    tasks = [asyncio.create_task(_take(rotation, "a", order, gate)) for _ in range(4)]
    await _settle()
    assert order == ["a"] * 3
    tasks += [asyncio.create_task(_take(rotation, owner, order, gate)) for owner in "bbcc"]
    await _settle()
    assert order == ["a", "a", "a", "b", "c"]
    gate.set()
    await asyncio.gather(*tasks)
    assert sorted(order) == list("aaaabbcc")


async def test_all_owners_have_so_many_turns_at_once() -> None:
    """R4."""
    rotation, order, gate = Rotation(at_once=2, alone=5), [], asyncio.Event()
    tasks = [asyncio.create_task(_take(rotation, owner, order, gate)) for owner in "abcd"]
    await _settle()
    assert order == ["a", "b"]
    gate.set()
    await asyncio.gather(*tasks)
    assert order == list("abcd")


async def test_whoever_was_not_alone_has_its_turns_back_when_the_others_are_quiet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rotation_module, "_PRESENT_SECONDS", 0.05)
    rotation, order, gate = Rotation(at_once=9, alone=3), [], asyncio.Event()
    async with rotation.turn("other"):
        tasks = [asyncio.create_task(_take(rotation, "a", order, gate)) for _ in range(4)]
        await _settle()
        assert order == ["a"]
    await asyncio.sleep(0.1)  # what is waited for is that time passes
    tasks.append(asyncio.create_task(_take(rotation, "a", order, gate)))
    await _settle()
    assert order == ["a"] * 3
    gate.set()
    await asyncio.gather(*tasks)


async def test_whoever_stops_waiting_takes_no_turn_along() -> None:
    rotation, order, gate = Rotation(at_once=1, alone=1), [], asyncio.Event()
    tasks = [asyncio.create_task(_take(rotation, owner, order, gate)) for owner in "abc"]
    await _settle()
    tasks[1].cancel()  # still waits
    await _settle()
    gate.set()
    tasks[2].cancel()  # the turn comes to it in the same instant
    await asyncio.gather(*tasks, return_exceptions=True)
    async with asyncio.timeout(10), rotation.turn("d"):
        assert order[0] == "a"
