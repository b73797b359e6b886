"""Notice of writes: everyone who watches a file is called, once a turn, and never for nothing."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from host import eventually

from jobworker.runtime.inotify import Inotify


@pytest.fixture
async def inotify() -> AsyncIterator[Inotify]:
    opened = Inotify.open()
    yield opened
    opened.close()


class Watched:
    """A file that grows, and how often its watcher was called."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self.calls = 0

    def called(self) -> None:
        self.calls += 1

    def grow(self) -> None:
        os.write(self.file, b"x")

    def close(self) -> None:
        os.close(self.file)


@pytest.fixture
async def file(tmp_path: Path) -> AsyncIterator[Watched]:
    watched = Watched(tmp_path / "file")
    yield watched
    watched.close()


async def test_a_write_is_told_to_everyone_who_watches_the_file(inotify: Inotify, file: Watched) -> None:
    """O3."""
    others: list[int] = []
    inotify.watch(file.file, file.called)
    inotify.watch(file.file, lambda: others.append(1))
    file.grow()
    await eventually(lambda: file.calls == 1 and others == [1])


async def test_writes_between_two_turns_of_the_loop_are_told_once(inotify: Inotify, file: Watched) -> None:
    inotify.watch(file.file, file.called)
    for _ in range(1000):
        file.grow()
    await eventually(lambda: file.calls == 1)
    await asyncio.sleep(0)
    assert file.calls == 1


async def test_who_has_closed_its_watch_is_not_called_and_the_others_are(inotify: Inotify, file: Watched) -> None:
    silent: list[int] = []
    first = inotify.watch(file.file, lambda: silent.append(1))
    second = inotify.watch(file.file, file.called)
    first.close()
    file.grow()
    await eventually(lambda: file.calls == 1)
    assert silent == []
    second.close()
    assert not inotify._callbacks
    file.grow()
    third = inotify.watch(file.file, file.called)
    file.grow()
    await eventually(lambda: file.calls == 2)
    third.close()


async def test_a_watcher_may_close_its_watch_while_it_is_called(inotify: Inotify, file: Watched) -> None:
    def close_all() -> None:
        file.called()
        first.close()
        second.close()

    first = inotify.watch(file.file, close_all)
    second = inotify.watch(file.file, file.called)
    file.grow()
    await eventually(lambda: file.calls >= 1)
    assert not inotify._callbacks


async def test_a_file_that_is_removed_while_it_is_watched_is_no_error(inotify: Inotify, tmp_path: Path) -> None:
    gone = Watched(tmp_path / "gone")
    watch = inotify.watch(gone.file, gone.called)
    gone.path.unlink()
    gone.grow()
    await eventually(lambda: gone.calls == 1)
    gone.close()  # the last descriptor: the kernel ends the watch by itself
    await eventually(lambda: not inotify._callbacks)
    watch.close()


async def test_when_events_were_lost_everyone_is_called(inotify: Inotify, tmp_path: Path) -> None:
    """The kernel's queue is bounded; 16384 events by default."""
    bound = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    files = [Watched(tmp_path / name) for name in ("a", "b", "quiet")]
    for watched in files:
        inotify.watch(watched.file, watched.called)
    for _ in range(bound):  # events of one file in turn with another's are not merged
        files[0].grow()
        files[1].grow()
    await eventually(lambda: all(watched.calls for watched in files))
    for watched in files:
        watched.close()
