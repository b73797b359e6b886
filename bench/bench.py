"""Measures jobworker on this machine, every number beside a floor or a peer of the same run.

bench/README.md says how to read the table. Needs root, the project and bench/floor; nothing of it is a test.
"""

import argparse
import asyncio
import contextlib
import fcntl
import itertools
import os
import platform
import random
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Final

import grpc

from jobworker import JobSpec, Limits, Worker
from jobworker.client.channel import open_channel
from jobworker.client.context import Context, Transport
from jobworker.client.job_client import JobClient
from jobworker.client.model import Chunk, Job
from jobworker.core.errors import JobError
from jobworker.core.lifecycle import State
from jobworker.runtime import seccomp

FLOOR: Final = Path(__file__).parent / "floor"
TRUE: Final = JobSpec(program="/bin/true")
FOREVER: Final = JobSpec(program="/bin/sleep", args=("1000000",))
JOB_PYTHON: Final = "/usr/bin/python3"  # one that jobs can read
MiB: Final = 1 << 20
GiB: Final = 1 << 30

# What a row was measured to be; every time is in seconds.


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `is_reached` is None where there is no target to reach."""

    what: str
    measured: str
    beside: str = "-"
    ratio: float | None = None
    target: str = "-"
    is_reached: bool | None = None


_WIDTHS: Final = (34, 35, 62, 8, 22)


def print_row(row: Row) -> None:
    ratio = "-" if row.ratio is None else f"{row.ratio:.2f} x"
    reached = {None: "-", True: "yes", False: "NO"}[row.is_reached]
    print_line(row.what, row.measured, row.beside, ratio, row.target, reached)


def print_line(*cells: str) -> None:
    print(*(f"{cell:<{width}}" for cell, width in itertools.zip_longest(cells, _WIDTHS, fillvalue=0)), flush=True)


def quantile(times: Iterable[float], part: float) -> float:
    """The value that `part` of the values are not above."""
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def in_ms(times: Sequence[float]) -> str:
    return f"p50 {median(times) * 1e3:.2f} ms, p99 {quantile(times, 0.99) * 1e3:.2f} ms"


def ratio_row(what: str, own: Sequence[float], beside: str, other: Sequence[float], most: float) -> Row:
    """A row that compares two medians, for a target of `most` times the other."""
    ratio = median(own) / median(other)
    target = f"<= {most:g} x" if most != 1 else "faster"
    return Row(what, in_ms(own), f"{beside}: {in_ms(other)}", ratio, target, ratio <= most)


class Bench:
    """Where and how much to measure."""

    def __init__(self, base: Path, *, is_full: bool) -> None:
        self.base = base
        self.is_full = is_full
        self.floor_batches: list[float] = []  # the median of each, which tells how noisy the machine is
        self._filter = base / "filter"
        self._filter.write_bytes(seccomp.PROGRAM)

    def choose(self, quick: int, full: int) -> int:
        return full if self.is_full else quick

    def directory(self) -> Path:
        """A new directory, which stays until the end of the bench."""
        path = Path(tempfile.mkdtemp(dir=self.base))
        path.chmod(0o755)
        return path

    def floor(self, runs: int, concurrency: int = 1, *options: object) -> list[float]:
        """The times of `runs` runs of the floor; the first ones, which warm up, are not in it."""
        warm_up = 2 if concurrency == 1 else 0
        command = [FLOOR, *(options or ("-f", self._filter)), str(runs + warm_up), str(concurrency), self.base]
        done = subprocess.run(command, capture_output=True, text=True, check=False, start_new_session=True)
        if done.returncode:
            sys.exit(done.stderr.strip() or "bench: the floor failed")
        times = [float(line) / 1e6 for line in done.stdout.split()][warm_up:]
        if concurrency == 1 and not options:
            self.floor_batches.append(median(times))
        return times


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A place whose directories have nothing to do with what was deleted elsewhere.

    ext4 does not give a freed inode to a new file for minutes and looks past all of them, one by
    one: where many files were deleted lately, making one takes a millisecond instead of ten
    microseconds. The children of a directory with the flag T are put elsewhere on the disk
    (chattr(1)), and nothing is deleted before the end.
    """
    base = Path(tempfile.mkdtemp(prefix="jobworker-bench-", dir="/var/tmp"))
    base.chmod(0o755)
    get_flags, set_flags, top_of_hierarchy = 0x8008_6601, 0x4008_6602, 0x0002_0000  # linux/fs.h
    descriptor = os.open(base, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # another file system
            (flags,) = struct.unpack("l", fcntl.ioctl(descriptor, get_flags, bytes(8)))
            fcntl.ioctl(descriptor, set_flags, struct.pack("l", flags | top_of_hierarchy))
    finally:
        os.close(descriptor)
    try:
        yield base
    finally:
        shutil.rmtree(base)


class Server:
    """A jobworkerd of its own, in a process of its own, with a client in this one."""

    def __init__(self, bench: Bench, state: Path) -> None:
        self.state = state
        self._log = bench.directory() / "log"
        self._process: subprocess.Popen[str] | None = None

    @classmethod
    @contextlib.contextmanager
    def running(cls, bench: Bench) -> Iterator["Server"]:
        """A new state directory, served; in the end nothing of it runs."""
        server = cls(bench, bench.directory() / "state")
        server._command(
            "init",
            "--dir",
            server.state,
            "--listen",
            f"127.0.0.1:{_free_port()}",
            "--listen-https",
            f"127.0.0.1:{_free_port()}",
        )
        try:
            server.start()
            yield server
        finally:
            try:
                asyncio.run(server._end_all_jobs())
            finally:
                server.stop()

    def _command(self, *arguments: object) -> None:
        program = [sys.executable, "-m", "jobworker.daemon.main", *map(str, arguments)]
        done = subprocess.run(program, capture_output=True, text=True, cwd="/", check=False)
        if done.returncode:
            sys.exit(f"bench: {done.stderr.strip()}")

    def start(self) -> float:
        """The seconds until it is ready."""
        begin = time.perf_counter()
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "jobworker.daemon.main", "serve", "--config", self.state / "jobworker.toml"],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd="/",
                start_new_session=True,  # Ctrl-C is for the bench, which then ends jobs and server
            )
        assert self._process.stdout is not None
        if not self._process.stdout.readline().startswith("ready"):
            sys.exit(f"bench: jobworkerd did not start: {self._log.read_text()}")
        return time.perf_counter() - begin

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(20)
            finally:
                self._process.kill()
                self._process = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def context_directory(self) -> Path:
        return self.state / "clients" / "admin"

    def add_user(self, name: str) -> Path:
        """The context of a new user."""
        self._command("user", "add", name, "--dir", self.state)
        return self.state / "clients" / name

    def client(self, transport: Transport = Transport.GRPC) -> contextlib.AbstractAsyncContextManager[JobClient]:
        return JobClient.connect(Context.load(self.context_directory), transport)

    async def _end_all_jobs(self) -> None:
        if self._process is None:
            self.start()
        async with self.client() as client:
            unfinished = [job async for job in jobs(client, State.PENDING, State.RUNNING)]
            await at_once(16, [lambda job=job: client.remove(job.id, force=True) for job in unfinished])


async def jobs(client: JobClient, *states: State) -> AsyncIterator[Job]:
    async for page in client.list(states=states, page_size=500):
        for job in page:
            yield job


async def at_once(most: int, calls: Iterable[Callable[[], Awaitable[object]]]) -> None:
    """Does all the calls, `most` at a time."""
    waiting = iter(calls)

    async def work() -> None:
        for call in waiting:
            await call()

    await asyncio.gather(*(work() for _ in range(most)))


def _free_port() -> int:
    """A port outside of the range that clients' own ports are from."""
    while True:
        port = random.randrange(10_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


# Times of one thing and of another, in turns, so that the noise of the machine meets both.

Batch = Callable[[int], Awaitable[list[float]]]


async def in_turns(rounds: int, size: int, *batches: Batch) -> list[list[float]]:
    times: list[list[float]] = [[] for _ in batches]
    for _ in range(rounds):
        for collected, batch in zip(times, batches, strict=True):
            collected.extend(await batch(size))
    return times


def timed(call: Callable[[], Awaitable[object]]) -> Batch:
    """Batches of times of a call; the first calls, which warm up, are not in it."""

    async def batch(size: int) -> list[float]:
        await call()
        times = []
        for _ in range(size):
            begin = time.perf_counter()
            await call()
            times.append(time.perf_counter() - begin)
        return times

    return batch


def timed_at_once(call: Callable[[], Awaitable[object]]) -> Batch:
    """One time for a whole batch, 16 calls at a time: the seconds for each."""

    async def batch(size: int) -> list[float]:
        begin = time.perf_counter()
        await at_once(16, [call] * size)
        return [(time.perf_counter() - begin) / size]

    return batch


def timed_program(command: Sequence[str]) -> Batch:
    def run() -> object:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True)

    # In line, since a thread or asyncio's subprocesses would make the other program slower.
    return timed(lambda: _done(run()))


async def _done(result: object) -> object:
    return result


def floor_batches(bench: Bench) -> Batch:
    async def batch(size: int) -> list[float]:
        return await asyncio.to_thread(bench.floor, size)

    return batch


def floor_batches_at_once(bench: Bench) -> Batch:
    async def batch(size: int) -> list[float]:
        return [sum(await asyncio.to_thread(bench.floor, size, 16)) / size]

    return batch


def library_run(worker: Worker) -> Callable[[], Awaitable[object]]:
    async def run() -> None:
        job = await worker.start(TRUE)
        await worker.wait(job.id)

    return run


def client_run(client: JobClient, spec: JobSpec = TRUE) -> Callable[[], Awaitable[object]]:
    async def run() -> None:
        started = await client.start(spec)
        await client.wait(started.job.id)

    return run


# The rows.


async def library(bench: Bench) -> Row:
    async with await Worker.open(bench.directory()) as worker:
        own, floor = await in_turns(bench.choose(6, 20), 40, timed(library_run(worker)), floor_batches(bench))
    return ratio_row("library, one job after another", own, "floor", floor, 2.0)


async def library_16(bench: Bench) -> Row:
    async with await Worker.open(bench.directory()) as worker:
        run = library_run(worker)
        await at_once(16, [run] * 32)
        own, floor = await in_turns(bench.choose(4, 12), 160, timed_at_once(run), floor_batches_at_once(bench))
    return Row("library, 16 at once", _rate(own), f"floor, 16 at once: {_rate(floor)}", median(own) / median(floor))


async def grpc_serial(bench: Bench, server: Server) -> Row:
    async with server.client() as client:
        own, floor = await in_turns(bench.choose(6, 20), 40, timed(client_run(client)), floor_batches(bench))
    return ratio_row("gRPC, one client in this process", own, "floor", floor, 3.5)


async def https_serial(bench: Bench, server: Server) -> Row:
    async with server.client() as other, server.client(Transport.HTTPS) as client:
        turns = (timed(client_run(client)), timed(client_run(other)), floor_batches(bench))
        own, over_grpc, floor = await in_turns(bench.choose(6, 20), 40, *turns)
    beside = f"gRPC: {in_ms(over_grpc)}; floor: {in_ms(floor)}"
    return Row("HTTPS, one client in this process", in_ms(own), beside, median(own) / median(floor), "-", None)


async def grpc_16(bench: Bench, server: Server) -> Row:
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(server.client()) for _ in range(16)]
        turn = itertools.cycle([client_run(client) for client in clients])

        async def run() -> None:
            await next(turn)()

        await at_once(16, [run] * 32)
        own, floor = await in_turns(bench.choose(4, 12), 160, timed_at_once(run), floor_batches_at_once(bench))
    rate = 1 / median(own)
    beside = f"floor, 16 at once: {_rate(floor)}"
    return Row(
        "gRPC, 16 clients in this process", _rate(own), beside, median(own) / median(floor), ">= 300/s", rate >= 300
    )


def _rate(times: Sequence[float]) -> str:
    return f"{1 / median(times):.0f} jobs/s ({1 / max(times):.0f} to {1 / min(times):.0f})"


async def profile(bench: Bench) -> Row:
    """What the kernel takes for confining a job: the floor beside itself without the steps of the sandbox."""

    async def unconfined(size: int) -> list[float]:
        return await asyncio.to_thread(bench.floor, size, 1, "-b")

    whole, bare = await in_turns(bench.choose(6, 20), 40, floor_batches(bench), unconfined)
    beside = f"floor without the sandbox: {in_ms(bare)}"
    return Row("floor, the full profile", in_ms(whole), beside, median(whole) / median(bare))


async def beside_bwrap(bench: Bench, command: Sequence[str]) -> Row:
    async with await Worker.open(bench.directory()) as worker:
        own, peer = await in_turns(bench.choose(4, 12), 20, timed(library_run(worker)), timed_program(command))
    return ratio_row("library beside bwrap", own, "bwrap", peer, 1)


async def beside_remote(bench: Bench, server: Server, name: str, command: Sequence[str]) -> Row:
    async with server.client() as client:
        own, peer = await in_turns(bench.choose(3, 8), 5, timed(client_run(client)), timed_program(command))
    return ratio_row(f"gRPC beside {name}", own, name, peer, 1)


def peer_command(name: str) -> list[str] | None:
    """How to run /bin/true with another program; None where that does not work."""
    match name:
        case "bwrap":
            options = "--unshare-all --ro-bind / / --proc /proc --dev /dev --tmpfs /tmp"
            commands = [["bwrap", *options.split(), "/bin/true"]]
        case "ssh":
            commands = [["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=3", "localhost", "/bin/true"]]
        case _:
            commands = [[name, "run", "--rm", "--pull=never", image, "/bin/true"] for image in _images(name)]
    return next((command for command in commands if _works(command)), None)


def _images(program: str) -> list[str]:
    try:
        listed = subprocess.run([program, "images", "-q"], capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return []
    return listed.stdout.split()


def _works(command: Sequence[str]) -> bool:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


async def replay(bench: Bench, server: Server) -> Row:
    size = GiB
    async with server.client() as client:
        started = await client.start(_writes(size))
        await client.wait(started.job.id)
        chunk_size = max([len(chunk.data) async for chunk in _first_chunks(client, started.job.id)])
        with _bare_server(server, size, chunk_size) as address:
            context = replace(Context.load(server.context_directory), server=address)
            async with open_channel(context) as channel:

                async def bare(_: int) -> list[float]:
                    begin = time.perf_counter()
                    call = channel.unary_stream("/bench/Stream")(b"")
                    received = sum([len(message) async for message in call])
                    assert received == size
                    return [(time.perf_counter() - begin) / size]

                async def own(_: int) -> list[float]:
                    begin = time.perf_counter()
                    received = 0
                    async for event in client.stream(started.job.id):
                        received += len(event.data) if isinstance(event, Chunk) else 0
                    assert received == size
                    return [(time.perf_counter() - begin) / size]

                ours, floor = await in_turns(bench.choose(2, 6), 1, own, bare)
    rate = 1 / median(ours) / 1e6
    beside = f"bare grpc.aio stream, TLS, {chunk_size >> 10} KiB: {1 / median(floor) / 1e6:.0f} MB/s"
    return Row(
        "replay of 1 GiB to one follower",
        f"{rate:.0f} MB/s",
        beside,
        median(ours) / median(floor),
        ">= 500 MB/s",
        rate >= 500,
    )


async def replay_https(bench: Bench, server: Server) -> Row:
    size = GiB
    async with server.client() as client:
        started = await client.start(_writes(size))
        await client.wait(started.job.id)

        async def own(_: int) -> list[float]:
            return [await asyncio.to_thread(_read_all, server, f"/jobs/{started.job.id}/output/stream") / size]

        async def over_grpc(_: int) -> list[float]:
            begin = time.perf_counter()
            events = client.stream(started.job.id)
            received = sum([len(event.data) async for event in events if isinstance(event, Chunk)])
            assert received == size
            return [(time.perf_counter() - begin) / size]

        ours, other = await in_turns(bench.choose(3, 6), 1, own, over_grpc)
    rate = 1 / median(ours) / 1e6
    beside = f"the same over gRPC: {1 / median(other) / 1e6:.0f} MB/s"
    ratio = median(ours) / median(other)
    return Row("replay of 1 GiB over HTTPS", f"{rate:.0f} MB/s", beside, ratio, ">= 1000 MB/s", rate >= 1000)


def _read_all(server: Server, path: str) -> float:
    """The seconds that a whole answer takes a client that does nothing but receive and decrypt."""
    context = Context.load(server.context_directory)
    host, _, port = str(context.https).rpartition(":")
    tls = ssl.create_default_context(cafile=context.ca)
    lines = (f"GET {path} HTTP/1.1", f"Host: {host}", f"Authorization: Bearer {_token(server)}", "Connection: close")
    request = "\r\n".join((*lines, "", ""))
    room, received = bytearray(MiB), 0
    with tls.wrap_socket(socket.create_connection((host, int(port))), server_hostname=host) as connection:
        begin = time.perf_counter()
        connection.sendall(request.encode())
        while count := connection.recv_into(room):
            received += count
        assert received > GiB
        return time.perf_counter() - begin


def _token(server: Server) -> str:
    return (server.context_directory / "token").read_text().strip()


async def wrk(bench: Bench, server: Server) -> Row:
    what = "GET /jobs/{id}, wrk, 16 connections"
    if shutil.which("wrk") is None:
        return Row(what, "-", "wrk is not installed", None, "-")
    async with server.client() as client:
        job_id = (await client.start(TRUE)).job.id
        await client.wait(job_id)
    context = Context.load(server.context_directory)
    with _constant_server(server) as address:
        rates = [
            (
                await asyncio.to_thread(_wrk_rate, f"https://{context.https}/jobs/{job_id}", _token(server)),
                await asyncio.to_thread(_wrk_rate, f"https://{address}/jobs/{job_id}", ""),
            )
            for _ in range(bench.choose(2, 5))
        ]
    own, constant = (median(each) for each in zip(*rates, strict=True))
    beside = f"the same app with a constant answer: {constant:.0f}/s"
    return Row(what, f"{own:.0f}/s", beside, constant / own, "-", None)


def _wrk_rate(url: str, token: str) -> float:
    """Answers a second; all of them must be good ones."""
    command = ["wrk", "-t1", "-c16", "-d3s", "-H", f"Authorization: Bearer {token}", url]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in told
    found = re.search(r"Requests/sec:\s+([\d.]+)", told)
    assert found is not None
    return float(found[1])


@contextlib.contextmanager
def _constant_server(server: Server) -> Iterator[str]:
    """The HTTPS door in a process of its own, with nothing behind it; its address."""
    command = [sys.executable, __file__, "--serve-constant", str(server.state / "pki")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


async def serve_constant(pki: Path) -> None:
    """The other process of `_constant_server`."""
    from fastapi import Response

    from jobworker.api.http.app import Endpoints, JobId, make_api
    from jobworker.api.http.server import HttpServer
    from jobworker.api.tls import ServerCertificate, TlsFiles

    class Constant(Endpoints):
        async def status(self, id: JobId) -> Response:  # noqa: A002, ARG002 - as the path calls it
            return Response(b"{}" + b" " * 1400, media_type="application/json")

    files = TlsFiles(key=pki / "server.key", certificate=pki / "server.crt", ca=pki / "bundle.crt")
    api = make_api(object.__new__(Constant))
    door = await HttpServer.start(api, "127.0.0.1", 0, ServerCertificate(files))
    print(f"127.0.0.1:{door.port}", flush=True)
    await asyncio.Event().wait()


def _writes(size: int) -> JobSpec:
    limits = Limits(output_bytes=size + MiB)
    return JobSpec(program="/usr/bin/head", args=("-c", str(size), "/dev/zero"), limits=limits)


async def _first_chunks(client: JobClient, job_id: str) -> AsyncIterator[Chunk]:
    stream = client.stream(job_id)
    async with contextlib.aclosing(stream):
        async for event in stream:
            if not isinstance(event, Chunk) or event.offset > 16 * MiB:
                return
            yield event


@contextlib.contextmanager
def _bare_server(server: Server, size: int, chunk_size: int) -> Iterator[str]:
    """A grpc.aio server with jobworkerd's keys that sends bytes from memory; its address."""
    command = [sys.executable, __file__, "--serve-bare", str(server.state / "pki"), str(size), str(chunk_size)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


async def serve_bare(pki: Path, size: int, chunk_size: int) -> None:
    """The other process of `_bare_server`."""
    chunk = bytes(chunk_size)

    async def stream(_: bytes, context: grpc.aio.ServicerContext) -> None:
        for left in range(size, 0, -chunk_size):
            await context.write(chunk[:left])

    handlers = {"Stream": grpc.unary_stream_rpc_method_handler(stream)}
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench", handlers),))
    keys = [((pki / "server.key").read_bytes(), (pki / "server.crt").read_bytes())]
    credentials = grpc.ssl_server_credentials(keys, (pki / "bundle.crt").read_bytes(), require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


async def busy(bench: Bench, server: Server) -> Row:
    return await _beside_streams(bench, server, Transport.GRPC)


async def busy_https(bench: Bench, server: Server) -> Row:
    return await _beside_streams(bench, server, Transport.HTTPS)


async def _beside_streams(bench: Bench, server: Server, transport: Transport) -> Row:
    """How long a status and a list take while 100 readers in another process read as fast as they can."""
    count = bench.choose(300, 2000)
    async with server.client() as client:
        started = await client.start(_writes(256 * MiB))
        await client.wait(started.job.id)
        calls = (timed(lambda: client.status(started.job.id)), timed(lambda: anext(client.list(page_size=20))))
        alone = [await call(count) for call in calls]
        command = [sys.executable, __file__, "--read-on", server.context_directory, transport.value, started.job.id]
        readers = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        try:
            assert readers.stdout is not None
            await readers.stdout.readline()
            beside = [await call(count) for call in calls]
        finally:
            readers.terminate()
            rate = (await readers.communicate())[0].decode()
    slowest = max(quantile(times, 0.99) for times in beside)
    return Row(
        f"status, list beside 100 {transport.value} streams",
        ", ".join(f"p99 {quantile(times, 0.99) * 1e3:.1f} ms" for times in beside),
        f"{rate.strip()} MB/s meanwhile; alone: "
        + ", ".join(f"p99 {quantile(times, 0.99) * 1e3:.1f}" for times in alone),
        slowest / max(quantile(times, 0.99) for times in alone),
        "p99 < 50 ms",
        slowest < 0.05,
    )


async def read_on(context: Path, transport: Transport, job_id: str) -> None:
    """The other process of `_beside_streams`; says when all readers read, and in the end how much a second it was."""
    received, stop = 0, asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

    async def read(client: JobClient, begun: asyncio.Event) -> None:
        nonlocal received
        while True:
            async for event in client.stream(job_id):
                begun.set()
                received += len(event.data) if isinstance(event, Chunk) else 0

    async with JobClient.connect(Context.load(context), transport) as client:
        begun = [asyncio.Event() for _ in range(100)]
        readers = [asyncio.create_task(read(client, each)) for each in begun]
        await asyncio.gather(*(each.wait() for each in begun))
        begin, before = time.perf_counter(), received
        print("reading", flush=True)
        await stop.wait()
        print(f"{(received - before) / (time.perf_counter() - begin) / 1e6:.0f}", flush=True)
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


async def crowd(bench: Bench, server: Server) -> Row:
    """How long a user's start takes while another user asks for 10,000."""
    count = bench.choose(60, 300)
    contexts = [server.add_user(name) for name in ("other", "crowd")]
    async with JobClient.connect(Context.load(contexts[0])) as client:
        start = timed(lambda: client.start(TRUE))
        alone = await start(count)
        command = [sys.executable, __file__, "--ask", contexts[1]]
        asking = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        try:
            assert asking.stdout is not None
            await asking.stdout.readline()
            beside = await start(count)
        finally:
            asking.terminate()
            await asking.wait()
    ratio = quantile(beside, 0.99) / quantile(alone, 0.99)
    return Row("start beside another's 10,000", in_ms(beside), f"alone: {in_ms(alone)}", ratio, "p99 < 2 x", ratio < 2)


async def ask(context: Path) -> None:
    """The other process of `crowd`; says when it has got going."""
    async with JobClient.connect(Context.load(context)) as client:

        async def start() -> None:
            with contextlib.suppress(JobError):  # more than one user may have
                await client.start(FOREVER)

        await start()
        print("asking", flush=True)
        await at_once(1000, [start] * 10_000)
        await asyncio.Event().wait()


async def capture(bench: Bench) -> Row:
    size = 2 * GiB
    async with await Worker.open(bench.directory()) as worker:

        async def own(_: int) -> list[float]:
            job = await worker.start(_writes(size))
            ended = await worker.wait(job.id)
            assert ended.ending is not None
            assert ended.ending.started_at is not None
            last = [chunk async for chunk in worker.output(job.id, offset=size - 1)][-1]
            await worker.remove(job.id)
            return [last.time_ns / 1e9 - ended.ending.started_at]

        async def cat(_: int) -> list[float]:
            file = bench.directory() / "copy"
            begin = time.perf_counter()
            await asyncio.to_thread(subprocess.run, f"head -c {size} /dev/zero | cat > {file}", shell=True, check=True)
            times = [time.perf_counter() - begin]
            with file.open("rb+") as copy:
                os.fdatasync(copy)  # as the job does at its end: nobody leaves the other one's work to do
            file.unlink()
            return times

        ours, floor = await in_turns(bench.choose(2, 5), 1, own, cat)
    rate, other = (size / median(times) / 1e9 for times in (ours, floor))
    return Row(
        "capture of 2 GiB, job to disk",
        f"{rate:.2f} GB/s",
        f"| cat > file: {other:.2f} GB/s",
        other / rate,
        ">= 1 GB/s",
        rate >= 1,
    )


_LINES: Final = textwrap.dedent(
    """\
    import sys, time
    begin = time.monotonic()
    for number in range(1, {count} + 1):
        time.sleep(max(0, begin + number * {every} - time.monotonic()))
        sys.stdout.write("%d\\n" % time.monotonic_ns())
        sys.stdout.flush()
    """
)


def _prints_times(count: int, every: float) -> list[str]:
    """A program that prints the monotonic clock `count` times."""
    return [JOB_PYTHON, "-I", "-S", "-c", _LINES.format(count=count, every=every)]


async def followers(bench: Bench, server: Server) -> Row:
    spec = _writes(256 * MiB)
    async with server.client() as client:

        async def alone(_: int) -> list[float]:
            return [await _duration(client, spec, 0)]

        async def followed(_: int) -> list[float]:
            return [await _duration(client, spec, 100)]

        ours, floor = await in_turns(bench.choose(4, 10), 1, followed, alone)
    ratio = median(ours) / median(floor)
    what, beside = (f"{median(times) * 1e3:.0f} ms" for times in (ours, floor))
    return Row(
        "job of 256 MiB, 100 followers",
        f"the job takes {what}",
        f"the same job alone: {beside}",
        ratio,
        "1 x (<= 1.1)",
        ratio <= 1.1,
    )


async def _duration(client: JobClient, spec: JobSpec, count: int) -> float:
    """How long a job takes that `count` followers have opened and do not read, like readers behind a slow line."""
    words = " ".join((spec.program, *spec.args))
    started = await client.start(replace(spec, program="sh", args=("-c", f"echo; kill -STOP $$; exec {words}")))
    streams = [client.stream(started.job.id) for _ in range(max(count, 1))]
    await asyncio.gather(*(anext(stream) for stream in streams))  # everyone has read the first line
    await asyncio.gather(*(stream.aclose() for stream in streams[count:]))
    await asyncio.sleep(0.1)
    begin = time.time()
    await client.signal(started.job.id, signal.SIGCONT)
    job = await client.wait(started.job.id)
    await asyncio.gather(*(stream.aclose() for stream in streams))
    assert job.ended_at is not None
    return job.ended_at - begin


async def latency(bench: Bench, server: Server) -> Row:
    count = bench.choose(600, 4000)
    program, *arguments = _prints_times(count, 0.005)
    async with server.client() as client:

        async def own(_: int) -> list[float]:
            started = await client.start(JobSpec(program=program, args=tuple(arguments)))
            times: list[float] = []
            async for event in client.stream(started.job.id):
                now = time.monotonic_ns()
                times += [(now - int(line)) / 1e9 for line in event.data.split()] if isinstance(event, Chunk) else []
            return times

        async def pipe(_: int) -> list[float]:
            process = await asyncio.create_subprocess_exec(program, *arguments, stdout=subprocess.PIPE)
            assert process.stdout is not None
            times = [(time.monotonic_ns() - int(line)) / 1e9 async for line in process.stdout]
            await process.wait()
            return times

        ours, floor = await in_turns(2, 1, own, pipe)
    is_reached = median(ours) <= 1e-3 and quantile(ours, 0.99) <= 5e-3
    beside = f"a pipe into this process: {in_ms(floor)}"
    return Row(
        "a line, from write to client",
        in_ms(ours),
        beside,
        median(ours) / median(floor),
        "p50 1 ms, p99 5 ms",
        is_reached,
    )


async def idle(bench: Bench, server: Server) -> Row:
    seconds = bench.choose(5, 20)
    async with server.client() as client:
        started = await client.start(FOREVER)
        without = await _wakeups(server.pid, seconds)
        streams = [client.stream(started.job.id) for _ in range(100)]
        waiting = [asyncio.ensure_future(anext(stream)) for stream in streams]
        await asyncio.sleep(1)
        with_followers = await _wakeups(server.pid, seconds)
        await client.stop(started.job.id)
        await asyncio.gather(*waiting)
    more = max(0, with_followers - without) / 100
    beside = f"without followers: {without}"
    return Row(
        "100 idle followers",
        f"{with_followers} wake-ups in {seconds} s",
        beside,
        None,
        "0 for each follower",
        more < 0.5,
    )


async def _wakeups(pid: int, seconds: float) -> int:
    """How often the threads of a process have gone to sleep in the time, and so were woken up."""

    def count() -> int:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return sum(
            int(re.findall(r"^voluntary.*?(\d+)$", (task / "status").read_text(), re.MULTILINE)[0]) for task in tasks
        )

    before = count()
    await asyncio.sleep(seconds)
    return count() - before


async def memory(_: Bench, server: Server) -> Row:
    async with server.client() as client:
        started = [await client.start(FOREVER) for _ in range(50)]
        monitors = _monitors({each.job.id for each in started})
        sizes = [_private_bytes(pid) for pid in monitors]
        await at_once(16, [lambda each=each: client.stop(each.job.id) for each in started])
    size = sum(sizes) / len(sizes) / MiB
    beside = f"{len(sizes)} monitors: {min(sizes) / MiB:.2f} to {max(sizes) / MiB:.2f} MiB"
    return Row("private memory of a running job", f"{size:.2f} MiB", beside, None, "<= 1.5 MB", size * MiB <= 1.5e6)


def _monitors(job_ids: set[str]) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            title = (entry / "cmdline").read_bytes().partition(b"\0")[0].decode(errors="replace")
            if entry.name.isdecimal() and title.removeprefix("jobworker-monitor ") in job_ids:
                found.append(int(entry.name))
    return found


def _private_bytes(pid: int) -> int:
    counted = re.findall(
        r"^Private_(?:Clean|Dirty):\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE
    )
    return sum(map(int, counted)) * 1024


async def growth(bench: Bench, server: Server) -> Row:
    gib = bench.choose(1, 10)
    async with server.client() as client:
        await _follow(client, 16 * MiB)  # what a first follower makes the server load is no growth
        before = most = _private_bytes(server.pid)
        following = asyncio.ensure_future(_follow(client, gib * GiB))
        while not following.done():
            await asyncio.wait([following], timeout=0.1)
            most = max(most, _private_bytes(server.pid))
        begun = await following
    grown = (most - before) / MiB
    beside = f"{before / MiB:.0f} MiB before; {gib * GiB / begun / 1e6:.0f} MB/s live"
    return Row(
        f"jobworkerd during {gib} GiB of output",
        f"grew by {grown:.1f} MiB",
        beside,
        None,
        "<= 16 MB",
        grown * MiB <= 16e6,
    )


async def _follow(client: JobClient, size: int) -> float:
    """The seconds to follow a job that writes `size` bytes from its start to its end."""
    begin = time.perf_counter()
    started = await client.start(_writes(size))
    received = 0
    async for event in client.stream(started.job.id):
        received += len(event.data) if isinstance(event, Chunk) else 0
    assert received == size
    seconds = time.perf_counter() - begin
    await client.remove(started.job.id)
    return seconds


async def restart(bench: Bench, server: Server) -> Row:
    running, finished = bench.choose(50, 1000), bench.choose(500, 10_000)
    server.stop()
    empty = await asyncio.to_thread(server.start)
    async with server.client() as client:
        await at_once(16, [client_run(client)] * finished)
        await at_once(16, [lambda: client.start(FOREVER)] * running)
        before = {job.id: job.state async for job in jobs(client)}
    server.stop()
    ready = await asyncio.to_thread(server.start)
    async with server.client() as client:
        after = {job.id: job.state async for job in jobs(client)}
    counts = Counter(after.values())
    is_whole = after == before and counts == {State.RUNNING: running, State.COMPLETED: finished}
    loss = "nothing lost" if is_whole else f"LOST: {len(before)} before, {dict(counts)} after"
    what = f"restart, {running} running, {finished} ended"
    beside = f"without any job: {empty:.2f} s"
    return Row(what, f"{ready:.2f} s, {loss}", beside, ready / empty, "<= 1 s, nothing lost", is_whole and ready <= 1)


async def jobctl(bench: Bench, server: Server) -> Row:
    async with server.client() as client:
        started = await client.start(TRUE)
        await client.wait(started.job.id)
    main = "import sys; sys.argv[0] = 'jobctl'; from jobworker.cli.main import main; main()"
    place = str(server.context_directory)
    command = [sys.executable, "-c", main, "--context", place, "status", started.job.id]
    just_grpc = [sys.executable, "-c", "import grpc"]
    own, floor = await in_turns(bench.choose(3, 6), 3, timed_program(command), timed_program(just_grpc))
    return ratio_row("jobctl status, cold", own, 'python -c "import grpc"', floor, 2.0)


#: Every row by its name, in the order of the table. Those of SERVED are given a server.
ALONE: Final = {"library": library, "library-16": library_16, "profile": profile, "capture": capture}
SERVED: Final = {
    "grpc": grpc_serial,
    "grpc-16": grpc_16,
    "https": https_serial,
    "replay": replay,
    "replay-https": replay_https,
    "wrk": wrk,
    "busy": busy,
    "busy-https": busy_https,
    "crowd": crowd,
    "followers": followers,
    "latency": latency,
    "idle": idle,
    "memory": memory,
    "growth": growth,
    "restart": restart,
    "jobctl": jobctl,
}
PEERS: Final = ("bwrap", "ssh", "docker", "podman")
ORDER: Final = (
    *("library", "library-16", "profile", "grpc", "grpc-16", "https", "wrk", *PEERS, "replay", "replay-https"),
    *("capture", "busy", "busy-https", "crowd", "followers", "latency", "idle"),
    *("memory", "growth", "restart", "jobctl"),
)


def measure(bench: Bench, name: str) -> Row:
    if name in ALONE:
        return asyncio.run(ALONE[name](bench))
    command = peer_command(name) if name in PEERS else None
    if name in PEERS and command is None:
        return Row(f"beside {name}", "-", f"{name} is not installed, or not usable here", None, "faster")
    if command is not None and name == "bwrap":
        return asyncio.run(beside_bwrap(bench, command))
    with Server.running(bench) as server:
        if command is not None:
            return asyncio.run(beside_remote(bench, server, name, command))
        return asyncio.run(SERVED[name](bench, server))


def main() -> None:
    options = _options()
    if os.geteuid() != 0:
        sys.exit("bench: needs root, since jobs are isolated by it")
    if not FLOOR.exists():
        sys.exit("bench: bench/floor is missing; make bench builds it")
    print_line("row", "measured", "beside", "ratio", "target", "reached")
    with scratch() as base:
        bench = Bench(base, is_full=options.full)
        for name in options.only or ORDER:
            print_row(measure(bench, name))
        print_machine(bench)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="three minutes, the default")
    size.add_argument("--full", action="store_true", help="more runs, 10 GiB of output, a thousand running jobs")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=ORDER, help=f"these rows: {', '.join(ORDER)}")
    return parser.parse_args()


def print_machine(bench: Bench) -> None:
    model = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    processor = f"{os.cpu_count()} cores, {model[1] if model else platform.machine()}"
    print(f"\nmachine: Linux {platform.release()}, {processor}, Python {platform.python_version()}")
    batches = bench.floor_batches or [median(bench.floor(40)) for _ in range(5)]
    low, high = min(batches) * 1e3, max(batches) * 1e3
    print(
        f"noise: the floor's p50, taken {len(batches)} times, was {low:.2f} to {high:.2f} ms: {high / low:.1f} x apart"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve-bare"]:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        asyncio.run(serve_bare(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
    elif sys.argv[1:2] == ["--read-on"]:
        asyncio.run(read_on(Path(sys.argv[2]), Transport(sys.argv[3]), sys.argv[4]))
    elif sys.argv[1:2] == ["--ask"]:
        asyncio.run(ask(Path(sys.argv[2])))
    elif sys.argv[1:2] == ["--serve-constant"]:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        import uvloop

        uvloop.run(serve_constant(Path(sys.argv[2])))
    else:
        main()
