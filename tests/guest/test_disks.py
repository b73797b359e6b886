"""Limits of io and of memory on real disks: partitions of virtio and NVMe, a volume, a loop device, and swap."""

import asyncio
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from host import job_groups, run_job

from jobworker import JobSpec, Limits, State, Worker
from jobworker.core.outcome import Exited, OomKilled
from jobworker.core.spec import MiB
from jobworker.runtime.block_device import disks_of
from jobworker.runtime.cgroup_host import CgroupHost
from jobworker.worker import bootstrap

pytestmark = pytest.mark.layout

_NVME = "/dev/nvme0n1"
_SECTORS = 64 * MiB // 512  # of each partition
_KINDS = ("virtio", "nvme", "mapper", "loop")
_AMOUNT = 4 * MiB
_RATE = 2 * MiB
_SECONDS = _AMOUNT / _RATE


def _do(*command: object) -> str:
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def partitions() -> Iterator[list[str]]:
    """Three partitions of the NVMe disk."""
    for number in (1, 2, 3):
        _do("addpart", _NVME, number, 2048 + (number - 1) * _SECTORS, _SECTORS)
    yield [f"{_NVME}p{number}" for number in (1, 2, 3)]
    for number in (1, 2, 3):
        _do("delpart", _NVME, number)


@pytest.fixture(scope="module")
def places(partitions: list[str]) -> Iterator[dict[str, tuple[Path, list[str]]]]:
    """A directory with a file to read on each kind of disk, and the disks that a limit there is for."""
    Path("/var/tmp/image").write_bytes(b"")
    os.truncate("/var/tmp/image", 32 * MiB)
    loop = _do("losetup", "--show", "--find", "/var/tmp/image")
    _do("dmsetup", "create", "scratch", "--noudevsync", "--table", f"0 {_SECTORS} linear {partitions[1]} 0")
    _do("dmsetup", "mknodes", "scratch")
    found = {"virtio": (Path("/var/tmp/disk-virtio"), ["vda"])}
    found["virtio"][0].mkdir()
    for kind, device, disks in (
        ("nvme", partitions[0], ["nvme0n1"]),
        ("mapper", "/dev/mapper/scratch", ["dm-0", "nvme0n1"]),
        ("loop", loop, [os.path.basename(loop), "vda"]),
    ):
        place = Path(f"/var/tmp/disk-{kind}")
        place.mkdir()
        _do("mkfs.ext4", "-q", device)
        _do("mount", device, place)
        found[kind] = place, disks
    for place, _ in found.values():
        (place / "big").write_bytes(os.urandom(_AMOUNT))
        (place / "big").chmod(0o644)
    os.sync()
    yield {kind: (place, [_number(disk) for disk in disks]) for kind, (place, disks) in found.items()}
    for kind in _KINDS[1:]:
        _do("umount", found[kind][0])
    _do("dmsetup", "remove", "--noudevsync", "scratch")
    _do("losetup", "--detach", loop)


def _number(disk: str) -> str:
    return Path(f"/sys/class/block/{disk}/dev").read_text().strip()


def _seconds(said: bytes) -> float:
    """What dd says about how long it took."""
    match = re.search(rb"copied, ([0-9.e+-]+) s", said)
    assert match is not None, said
    return float(match[1])


@pytest.mark.parametrize("kind", _KINDS)
async def test_reads_are_held_on_every_kind_of_disk(
    places: dict[str, tuple[Path, list[str]]], worker: Worker, kind: str
) -> None:
    """S2, S4: a path stands for the disks behind it, and what the kernel shows is a limit on just these."""
    place, disks = places[kind]
    took = {}
    for rate in (_RATE, None):
        read = JobSpec(
            program="/bin/dd",
            args=(f"if={place}/big", "of=/dev/null", "iflag=direct", "bs=512k"),
            limits=Limits(io_read_bps=rate, io_device=str(place)) if rate else Limits(),
        )
        job, said = await run_job(worker, read)
        assert job.state is State.COMPLETED
        took[rate] = _seconds(said)
        if rate is not None:
            assert re.findall(r"\d+:\d+", job.effective_limits["io_read_bps"]) == disks
    assert took[_RATE] >= 0.8 * _SECONDS
    assert took[None] < 0.8 * _SECONDS, "the control: without the limit"


async def _run_in_group(state: Path, limits: Limits, disks: Sequence[str], command: str, *, loosen: str = "") -> str:
    """What a process of ours says that runs in the groups of a job: no job may write to a disk."""
    host = CgroupHost.discover(bootstrap(state).cgroup_parent)
    host.prepare()
    group = host.group("a-job")
    group.create()
    try:
        group.limit(limits, disks)
        places = job_groups(state)
        for path in places:
            for file in (path / "memory.memsw.limit_in_bytes", path / "memory.swap.max"):
                if loosen and file.exists():
                    file.write_text(loosen)
        join = " && ".join(f"echo 0 > {path}/cgroup.procs" for path in places)
        ran = await asyncio.to_thread(
            subprocess.run, ["sh", "-c", f"{join} && {command}"], check=True, capture_output=True, text=True
        )
        return ran.stderr
    finally:
        group.remove()
        host.remove_parent()


@pytest.mark.parametrize("kind", _KINDS)
async def test_writes_are_held_on_every_kind_of_disk(
    places: dict[str, tuple[Path, list[str]]], state: Path, kind: str
) -> None:
    """S2, S4."""
    place, disks = places[kind]
    assert disks_of(str(place)) == disks
    write = f"exec dd if=/dev/zero of={place}/written oflag=direct bs=512k count={_AMOUNT // (512 * 1024)}"
    took = {
        rate: _seconds((await _run_in_group(state, Limits(io_write_bps=rate), disks, write)).encode())
        for rate in (_RATE, None)
    }
    assert took[_RATE] >= 0.8 * _SECONDS
    assert took[None] < 0.8 * _SECONDS, "the control: without the limit"


async def test_the_page_cache_is_no_way_around_a_limit_on_v2(
    places: dict[str, tuple[Path, list[str]]], state: Path
) -> None:
    """S2. Only v2 knows whose a page is when it is written back; on v1 the limits that are shown say so."""
    if os.environ["JOBWORKER_VM"] != "v2":
        pytest.skip("needs the io controller of v2: that of v1 holds direct and synchronous io only")
    place, disks = places["virtio"]
    write = f"exec dd if=/dev/zero of={place}/cached conv=fsync bs=512k count={_AMOUNT // (512 * 1024)}"
    said = await _run_in_group(state, Limits(io_write_bps=_RATE), disks, write)
    assert _seconds(said.encode()) >= 0.8 * _SECONDS


@pytest.fixture
def swap(partitions: list[str]) -> Iterator[None]:
    """Swap, more than what the programs here take."""
    _do("mkswap", partitions[2])
    _do("swapon", partitions[2])
    yield
    _do("swapoff", partitions[2])


async def test_swap_does_not_get_around_the_memory_limit(
    swap: None, worker: Worker, state: Path, programs: Path
) -> None:
    """S2. The control: in the same groups, with swap allowed, the same program ends well."""
    hog = JobSpec(program=str(programs / "hog"), args=("48",), limits=Limits(memory=24 * MiB))
    job, _ = await run_job(worker, hog)
    assert job.ending is not None
    assert job.ending.outcome == OomKilled()
    enough, _ = await run_job(worker, JobSpec(program=hog.program, args=hog.args, limits=Limits(memory=64 * MiB)))
    assert enough.ending is not None
    assert enough.ending.outcome == Exited(0)
    for kept in worker.list():
        await worker.remove(kept.id)
    loose = "-1" if os.environ["JOBWORKER_VM"] != "v2" else "max"
    await _run_in_group(state, Limits(memory=24 * MiB), [], f"exec {programs}/hog 48", loosen=loose)
