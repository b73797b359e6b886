"""What to write to a job's control groups for its limits, in the words of each version."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from jobworker.core.spec import Limits

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_CPU_PERIOD_US: Final = 100_000
# Every job has the same weight, so that one with a thousand threads gets no more of a busy cpu than one with one.
_CPU_SHARES_V1: Final = "1024"
_CPU_WEIGHT_V2: Final = "100"
_IO_V1: Final = {
    "io_read_bps": "blkio.throttle.read_bps_device",
    "io_write_bps": "blkio.throttle.write_bps_device",
    "io_read_iops": "blkio.throttle.read_iops_device",
    "io_write_iops": "blkio.throttle.write_iops_device",
}
_IO_V2: Final = {"io_read_bps": "rbps", "io_write_bps": "wbps", "io_read_iops": "riops", "io_write_iops": "wiops"}


@dataclass(frozen=True, slots=True)
class Knob:
    """One value to write to a group's file, which must show it then: as a line, or beside its device."""

    limit: str
    controller: str
    file: str
    value: str
    limits_swap: bool = False  # its file may be missing where there is no swap
    is_default: bool = False  # nobody has asked for it, so a host without it runs the job all the same

    def holds(self, shown: str) -> bool:
        """Whether the file's text tells that the value is in force."""
        for line in shown.splitlines():
            device, *values = line.split() or [""]
            if line == self.value or (":" in device and self.value in {f"{device} {value}" for value in values}):
                return True
        return False


def knobs_v1(limits: Limits, disks: Sequence[str]) -> Iterator[Knob]:
    """What to write for `limits` in version 1 controllers."""
    if limits.memory is not None:
        size = str(limits.memory // _PAGE * _PAGE)
        yield Knob("memory", "memory", "memory.limit_in_bytes", size)
        # Memory and swap together; there is nothing to limit without swap accounting.
        yield Knob("memory_and_swap", "memory", "memory.memsw.limit_in_bytes", size, limits_swap=True)
        # What waits in sockets is counted apart, by kernels that can, and not at all without this.
        yield Knob("socket_memory", "memory", "memory.kmem.tcp.limit_in_bytes", size, is_default=True)
    if limits.pids is not None:
        yield Knob("pids", "pids", "pids.max", str(limits.pids))
    yield Knob("cpu_shares", "cpu", "cpu.shares", _CPU_SHARES_V1, is_default=True)
    if limits.cpu is not None:
        quota = str(round(limits.cpu * _CPU_PERIOD_US))
        yield Knob("cpu_period_us", "cpu", "cpu.cfs_period_us", str(_CPU_PERIOD_US))
        yield Knob("cpu_quota_us", "cpu", "cpu.cfs_quota_us", quota)
    for name, file in _IO_V1.items():
        rate = getattr(limits, name)
        for disk in disks if rate is not None else ():
            yield Knob(name, "io", file, f"{disk} {rate}")


def knobs_v2(limits: Limits, disks: Sequence[str]) -> Iterator[Knob]:
    """What to write for `limits` in version 2 controllers."""
    if limits.memory is not None:
        size = str(limits.memory // _PAGE * _PAGE)
        yield Knob("memory", "memory", "memory.max", size)
        yield Knob("swap", "memory", "memory.swap.max", "0", limits_swap=True)
        yield Knob("oom_kills_all", "memory", "memory.oom.group", "1")
    if limits.pids is not None:
        yield Knob("pids", "pids", "pids.max", str(limits.pids))
    yield Knob("cpu_weight", "cpu", "cpu.weight", _CPU_WEIGHT_V2, is_default=True)
    if limits.cpu is not None:
        quota = f"{round(limits.cpu * _CPU_PERIOD_US)} {_CPU_PERIOD_US}"
        yield Knob("cpu_max", "cpu", "cpu.max", quota)
    for name, key in _IO_V2.items():
        rate = getattr(limits, name)
        for disk in disks if rate is not None else ():
            yield Knob(name, "io", "io.max", f"{disk} {key}={rate}")
