"""A server whose state is on a small disk that is full: it refuses what it cannot keep, and serves what it has."""

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing, suppress
from pathlib import Path

import pytest

from jobworker import ErrorCode, JobError, JobSpec, State
from jobworker.client.context import Context
from jobworker.client.job_client import JobClient
from jobworker.core.spec import MiB
from jobworker.daemon.address import Address
from jobworker.daemon.init import init
from jobworker.daemon.users import add

_SIZE = 64 * MiB


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """64 MiB of ext4 on NVMe, none of it kept back for root."""
    place = Path("/var/tmp/small")
    place.mkdir()
    subprocess.run(["addpart", "/dev/nvme0n1", "4", "2048", str(_SIZE // 512)], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "/dev/nvme0n1p4"], check=True)
    subprocess.run(["mount", "/dev/nvme0n1p4", place], check=True)
    place.chmod(0o755)
    yield place
    subprocess.run(["umount", place], check=True)
    subprocess.run(["delpart", "/dev/nvme0n1", "4"], check=True)


@pytest.fixture
async def client(small_disk: Path) -> AsyncIterator[JobClient]:
    """A user of a server with its state on the small disk."""
    state = small_disk / "state"
    init(state, [], None, "jobworker.internal", Address.parse("127.0.0.1:50052"))
    add(state, "alice")
    serve = ("-m", "jobworker.daemon.main", "serve", "--config", str(state / "jobworker.toml"))
    server = await asyncio.create_subprocess_exec(sys.executable, *serve, stdout=subprocess.PIPE)
    assert server.stdout is not None
    assert (await server.stdout.readline()).startswith(b"ready ")
    async with JobClient.connect(Context.load(state / "clients" / "alice")) as client:
        yield client
        async for page in client.list():
            for job in page:
                await client.remove(job.id, force=True)
    server.terminate()
    assert await server.wait() == 0
    with closing(sqlite3.connect(state / "jobworker.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def _fill(path: Path) -> None:
    """Takes all that is left of the disk, to the last block."""
    with path.open("wb", buffering=0) as file:
        for size in (MiB, 4096, 1):
            with suppress(OSError):
                while file.write(bytes(size)):
                    pass
        with suppress(OSError):
            os.fsync(file)


@pytest.mark.machine
async def test_a_server_on_a_full_disk_refuses_starts_serves_the_rest_and_recovers(
    small_disk: Path, client: JobClient
) -> None:
    """R2. The control: before and after, the same start is accepted."""
    started = await client.start(JobSpec(program="/bin/sh", args=("-c", "echo before; exec sleep 100000")))
    running = started.job.id
    filler = small_disk / "filler"
    _fill(filler)
    refused = None
    for _ in range(50):  # what the database's log still has room for is accepted, and durable
        try:
            await client.start(JobSpec(program="/bin/true"))
        except JobError as error:
            refused = error
            break
    assert refused is not None
    assert refused.code in (ErrorCode.UNAVAILABLE, ErrorCode.EXHAUSTED)
    assert (await client.status(running)).state is State.RUNNING
    async with aclosing(client.stream(running, follow=False)) as events:
        assert b"before\n" in [getattr(event, "data", b"") async for event in events]
    assert (await client.stop(running)).state is State.STOPPED
    filler.unlink()
    again = await client.start(JobSpec(program="/bin/true"))
    assert (await client.wait(again.job.id)).state is State.COMPLETED
