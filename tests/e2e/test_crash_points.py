"""C3: server, launcher or monitor die at the N-th system call of a job's life; each job still happens once."""

import asyncio
import contextlib
import signal
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from host import eventually, job_groups, needs_root, process_status, strace

from jobworker.client.model import Chunk
from jobworker.core.errors import JobError
from jobworker.core.outcome import Exited, Lost, Signaled, Stopped
from jobworker.core.spec import JobSpec, Network

pytestmark = needs_root

#: Tells the test that it runs, once; goes on when it is let; ends in its own way.
_KNOCK = "exec 3<>/dev/tcp/127.0.0.1/{port}; echo {key} >&3; echo here; read -u 3; exit 7"


class Door:
    """Where jobs knock when their programs run: how often each did is seen from outside of the server."""

    def __init__(self):
        self.knocks = Counter()
        self.is_open = asyncio.Event()
        self.port = 0

    @classmethod
    @asynccontextmanager
    async def build(cls):
        door = cls()
        async with await asyncio.start_server(door._hear, "127.0.0.1", 0) as server:
            door.port = server.sockets[0].getsockname()[1]
            yield door

    async def _hear(self, reader, writer):
        self.knocks[(await reader.readline()).decode().strip()] += 1
        await self.is_open.wait()
        writer.close()

    def job(self, key):
        script = _KNOCK.format(port=self.port, key=key)
        return JobSpec(program="/bin/bash", args=("-c", script), network=Network.HOST)


@asynccontextmanager
async def killed_at(pid, number):
    """Inside, `pid` and all that it forks are killed, each at its `number`-th system call from now on."""
    tracer = strace(pid, Path("/dev/null"), "-e", f"inject=all:signal=KILL:when={number}")
    try:
        await eventually(lambda: process_status(pid).get("TracerPid") != "0")
        yield
    finally:
        tracer.send_signal(signal.SIGINT)  # or it has ended with the process it looks at
        await asyncio.to_thread(tracer.wait)


async def try_life(daemon, door, key, *, is_stopped):
    """What a user does, as far as it works: start, look, stop or wait."""
    with contextlib.suppress(JobError):
        async with daemon.client("admin") as client:
            job = (await client.start(door.job(key), idempotency_key=key)).job
            if is_stopped:
                await client.stop(job.id)
            door.is_open.set()
            await client.wait(job.id, timeout=5)


async def judge(daemon, door, key):
    """The same request once more: it stands for one job, which has ended in one way and has run as the record says."""
    door.is_open.set()
    async with daemon.client("admin") as client:
        job_id = (await client.start(door.job(key), idempotency_key=key)).job.id
        job = await client.wait(job_id, timeout=20)
        assert (await client.start(door.job(key), idempotency_key=key)).job.id == job_id
        output = b"".join([event.data async for event in client.stream(job_id) if isinstance(event, Chunk)])
        match job.outcome:
            case Exited(7):
                assert (door.knocks[key], output) == (1, b"here\n")
            case Stopped(by="admin") | Lost() | Signaled(signal.SIGKILL):  # the program has system calls of its own
                assert door.knocks[key] <= 1
            case _:
                pytest.fail(f"{job.outcome}, knocked {door.knocks[key]} times")
        await client.remove(job_id)
    assert job_groups(daemon.directory) == []


async def crash_server(daemon, number, *, is_stopped):
    """Threads count each for itself, so it may be any of them that takes the server down."""
    key = str(uuid4())
    async with Door.build() as door:
        async with killed_at(daemon.pid, number):
            await try_life(daemon, door, key, is_stopped=is_stopped)
        if process_status(daemon.pid).get("State", "Z").startswith("Z"):
            await asyncio.to_thread(daemon.collect)
            await asyncio.to_thread(daemon.start)
        await judge(daemon, door, key)


async def crash_launcher(daemon, number, *, is_stopped):
    """Launcher, monitor or the child that becomes the program, whichever makes so many calls."""
    key = str(uuid4())
    async with Door.build() as door:
        launcher = await asyncio.to_thread(daemon.process_titled, "jobworker-launcher")
        async with killed_at(launcher, number):
            await try_life(daemon, door, key, is_stopped=is_stopped)
        await judge(daemon, door, key)


async def crash_monitor(daemon, number, *, is_stopped):
    """From when the program runs to the end."""
    key = str(uuid4())
    async with Door.build() as door:
        async with daemon.client("admin") as client:
            job_id = (await client.start(door.job(key), idempotency_key=key)).job.id
            monitor = (await asyncio.to_thread(daemon.monitors))[job_id]
            async with killed_at(monitor, number):
                if is_stopped:
                    with contextlib.suppress(JobError):
                        await client.stop(job_id)
                door.is_open.set()
                await client.wait(job_id, timeout=20)
        await judge(daemon, door, key)


def sweep(daemon, crash, numbers):
    """Crashes at each of these system calls, in a life that ends by itself and in one that is stopped."""

    async def crash_at_each():
        for number in numbers:
            for is_stopped in (False, True):
                print(f"system call {number}, stopped: {is_stopped}")
                await crash(daemon, number, is_stopped=is_stopped)

    daemon.start()
    asyncio.run(crash_at_each())


CRASHES = [(crash_server, 1500), (crash_launcher, 260), (crash_monitor, 120)]
NAMES = [crash.__name__ for crash, _ in CRASHES]


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("crash", "calls"), CRASHES, ids=NAMES)
def test_a_crash_at_any_system_call_of_its_life_neither_loses_nor_doubles_a_job(own_daemon, crash, calls):
    """C3, S10, S11."""
    sweep(own_daemon, crash, range(1, calls, 5 if crash is crash_server else 1))
