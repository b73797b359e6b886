"""Control groups of jobs on v2, v1 and hybrid hosts: create, limit, measure, kill, remove.

A job has one group in every hierarchy that is mounted with a controller we use. Where a v2 tree
exists, with controllers or without, it also kills (cgroup.kill) and tells emptiness
(cgroup.events). Sources: cgroup-v2.rst and cgroup-v1/*.rst of the kernel's admin guide.
"""

import errno
import os
import select
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from jobworker.core.errors import ErrorCode, JobError
from jobworker.core.outcome import Usage
from jobworker.core.spec import Limits
from jobworker.runtime import freezer, kernel_file, linux
from jobworker.runtime.block_device import is_stacked
from jobworker.runtime.cgroup_hierarchy import Hierarchy
from jobworker.runtime.cgroup_knob import Knob, knobs_v1, knobs_v2

_V1_NAME: Final = {"io": "blkio"}
_REMOVE_TIMEOUT: Final = 10.0

_HINTS: Final = {
    "memory": "boot with cgroup_enable=memory",
    "io": "boot a kernel with CONFIG_BLK_DEV_THROTTLING",
    "pids": "boot a kernel with CONFIG_CGROUP_PIDS",
    "cpu": "boot a kernel with CONFIG_CFS_BANDWIDTH",
}
_WITHOUT_ROOT: Final = "start the server by systemd-run --user -p Delegate=yes, or ask for no such limit (unlimited)"


class Cgroup:
    """One job's groups, one in each tree."""

    def __init__(self, places: list[tuple[Hierarchy, str]]) -> None:
        self._places = places
        self._v2 = next((path for hierarchy, path in places if hierarchy.is_v2), None)

    def create(self) -> None:
        """Makes the groups; what an earlier job of the name left is removed first."""
        for _, path in self._places:
            try:
                os.mkdir(path, 0o755)
            except FileExistsError:
                self.remove()
                self.create()
                return

    def limit(self, limits: Limits, disks: Sequence[str]) -> dict[str, str]:
        """Sets every limit, those of io on each of `disks`, and reads each back; returns what is in force.

        UNSUPPORTED, naming controller and remedy, when one cannot be set or does not hold.
        """
        effective: dict[str, str] = {}
        for knob in self._knobs(limits, disks):
            path = f"{self._path_of(knob.controller)}/{knob.file}"
            try:
                shown = kernel_file.write_and_read(path, knob.value)
            except FileNotFoundError as error:
                if knob.is_default or (knob.limits_swap and not _host_has_swap()):
                    continue
                raise _cannot_limit(knob, "its file is missing") from error
            except OSError as error:
                raise _cannot_limit(knob, os.strerror(error.errno or 0)) from error
            if not knob.holds(shown):
                raise _cannot_limit(knob, f"the kernel shows {shown.strip()!r} instead of {knob.value!r}")
            # A limit of io has a value for each disk.
            effective[knob.limit] = ", ".join(filter(None, (effective.get(knob.limit), knob.value)))
        if limits.limits_io() and self._version_of("io") == 1:
            effective["io_scope"] = "direct and synchronous io only (cgroup v1)"
        return effective

    def _knobs(self, limits: Limits, disks: Sequence[str]) -> list[Knob]:
        """The knobs for this host, taken for each controller from the tree that has it."""
        chosen = []
        for knobs, version in ((knobs_v2(limits, disks), 2), (knobs_v1(limits, disks), 1)):
            chosen += [knob for knob in knobs if self._version_of(knob.controller) == version]
        wanted = {knob.controller for knob in knobs_v2(limits, disks) if not knob.is_default}
        for controller in sorted(wanted - {knob.controller for knob in chosen}):
            raise JobError(ErrorCode.UNSUPPORTED, f"{controller} limit: {_why_missing(controller)}")
        return chosen

    def _version_of(self, controller: str) -> int | None:
        for hierarchy, _ in self._places:
            if hierarchy.is_v2 and controller in hierarchy.controllers:
                return 2
            if not hierarchy.is_v2 and _V1_NAME.get(controller, controller) in hierarchy.controllers:
                return 1
        return None

    def _path_of(self, controller: str) -> str | None:
        for hierarchy, path in self._places:
            name = controller if hierarchy.is_v2 else _V1_NAME.get(controller, controller)
            if name in hierarchy.controllers:
                return path
        return None

    def fork(self) -> int:
        """As os.fork, with the child in the job's v2 group from its first instruction on."""
        if self._v2 is None:
            return os.fork()
        directory = os.open(self._v2, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return linux.fork_into_cgroup(directory)
        finally:
            os.close(directory)

    def is_empty(self) -> bool:
        """Whether no process is in any of the groups."""
        return not any(kernel_file.read_or_empty(f"{path}/cgroup.procs") for _, path in self._places)

    def entry_files(self) -> list[str]:
        """The files that a single-threaded child of `fork` writes 0 to in order to join the v1 groups.

        `tasks`, not `cgroup.procs`: a thread that moves itself need not wait for the whole system.
        """
        return [f"{path}/tasks" for hierarchy, path in self._places if not hierarchy.is_v2]

    def watch_oom(self) -> int | None:
        """An eventfd that becomes readable when the job meets its memory limit, on v1.

        A v2 group kills itself as a whole (memory.oom.group) and needs no watching.
        """
        path = self._path_of("memory")
        if path is None or self._version_of("memory") == 2:
            return None
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        watched = os.open(f"{path}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        try:
            kernel_file.write(f"{path}/cgroup.event_control", f"{event} {watched}")
        except OSError:
            os.close(event)
            raise
        finally:
            os.close(watched)
        return event

    @property
    def can_kill_at_once(self) -> bool:
        """Whether the kernel kills a whole group by one write."""
        return self._v2 is not None and os.path.exists(f"{self._v2}/cgroup.kill")

    def kill(self) -> None:
        """SIGKILL to every process in the group, and those that a freezer holds are let go to die of it."""
        self._send_kill()
        freezer.release(self._members())

    def _send_kill(self) -> None:
        """To all at once where a v2 tree can do it, else to each."""
        try:
            if self._v2 is not None:
                kernel_file.write(f"{self._v2}/cgroup.kill", "1")
                return
        except FileNotFoundError:
            pass  # no such group, or Linux before 5.14
        for _, path in self._places:
            for pid in kernel_file.read_or_empty(f"{path}/cgroup.procs").split():
                _kill_member(pid, f"{path}/cgroup.procs")

    def _members(self) -> set[str]:
        return {pid for _, path in self._places for pid in kernel_file.read_or_empty(f"{path}/cgroup.procs").split()}

    def wait_empty(self, timeout: float = _REMOVE_TIMEOUT) -> None:
        """Returns when no process is in the group any more, told by the kernel; TimeoutError."""
        if self._v2 is None:
            self._wait_empty_v1(timeout)
            return
        try:
            events = os.open(f"{self._v2}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        deadline = time.monotonic() + timeout
        try:
            poll = select.poll()
            poll.register(events, select.POLLPRI)
            while b"populated 1" in os.pread(events, 256, 0):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError("processes of the job are still alive")
                poll.poll(left * 1000)
        finally:
            os.close(events)

    def _wait_empty_v1(self, timeout: float) -> None:
        # Version 1 notifies through a helper program of the host only, which is not ours to set;
        # so each process that is still there tells its own end.
        deadline = time.monotonic() + timeout
        while pids := self._members():
            for pid in pids:
                if not _has_ended(int(pid), deadline - time.monotonic()):
                    raise TimeoutError("processes of the job are still alive")

    def remove(self) -> None:
        """Ends what is in the groups and removes them; it is not an error if they are gone."""
        if not self._try_remove():
            self.kill()
            self.wait_empty()
            deadline = time.monotonic() + _REMOVE_TIMEOUT
            while not self._try_remove():
                # Empty, yet the kernel still holds the last task's reference for an instant.
                if time.monotonic() > deadline:
                    raise TimeoutError("a group of the job cannot be removed")
                os.sched_yield()

    def _try_remove(self) -> bool:
        for _, path in self._places:
            try:
                os.rmdir(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                return False
        return True

    def oom_kills(self) -> int:
        """How many of the job's processes the kernel has killed because memory ran out."""
        return _keyed(self._file("memory", "memory.oom_control", "memory.events")).get("oom_kill", 0)

    def usage(self) -> Usage:
        """What the job has used in all so far, as the kernel counts it."""
        return Usage(
            **self._cpu(),
            **self._io(),
            memory_peak=self._number("memory", "memory.max_usage_in_bytes", "memory.peak"),
            oom_kills=self.oom_kills() if self._path_of("memory") else None,
            pids_peak=self._number("pids", "pids.peak", "pids.peak"),
            pids_limit_hits=self._pids_limit_hits(),
        )

    def usage_now(self) -> Usage:
        """What the job has used so far, and what it has in use at this moment."""
        return replace(
            self.usage(),
            memory_current=self._number("memory", "memory.usage_in_bytes", "memory.current"),
            pids_current=self._number("pids", "pids.current", "pids.current"),
        )

    def _pids_limit_hits(self) -> int | None:
        hits = _keyed(self._file("pids", "pids.events")).get("max")
        # From Linux 6.11 on a version 1 group shows 0 whatever happened: pids_event() in kernel/cgroup/pids.c.
        return hits if self._version_of("pids") == 2 else hits or None

    def _file(self, controller: str, v1: str, v2: str | None = None) -> str | None:
        """The path of a controller's file, by the name that it has in the version of this host."""
        path = self._path_of(controller)
        return path and f"{path}/{v2 if v2 and self._version_of(controller) == 2 else v1}"

    def _number(self, controller: str, v1: str, v2: str) -> int | None:
        """The one number in a controller's file; None where there is no such file."""
        path = self._file(controller, v1, v2)
        text = kernel_file.read_or_empty(path) if path else ""
        return int(text) if text else None

    def _cpu(self) -> dict[str, Any]:
        """Time used, which every v2 tree counts with its cpu controller or without, and time withheld."""
        limited = _keyed(self._file("cpu", "cpu.stat"))
        used = limited if self._version_of("cpu") == 2 else _keyed(self._v2 and f"{self._v2}/cpu.stat")
        withheld = limited["throttled_usec"] * 1000 if "throttled_usec" in limited else limited.get("throttled_time")
        return {
            "cpu_seconds": _times(used.get("usage_usec"), 1e-6) if used else self._cpu_seconds_v1(),
            "cpu_user_seconds": _times(used.get("user_usec"), 1e-6),
            "cpu_system_seconds": _times(used.get("system_usec"), 1e-6),
            "cpu_periods": limited.get("nr_periods"),
            "throttled_periods": limited.get("nr_throttled"),
            "throttled_seconds": _times(withheld, 1e-9),
        }

    def _cpu_seconds_v1(self) -> float | None:
        return _times(self._number("cpuacct", "cpuacct.usage", "cpuacct.usage"), 1e-9)

    def _io(self) -> dict[str, int]:
        """What was read and written on all disks together; nothing where no controller counts it."""
        path = self._path_of("io")
        if path is None:
            return {}
        counted: list[tuple[str, str, int]] = []  # device, kind, count
        if self._version_of("io") == 2:
            for line in kernel_file.read_or_empty(f"{path}/io.stat").splitlines():
                device, *pairs = line.split()
                counted += [(device, kind, int(count)) for kind, _, count in (pair.partition("=") for pair in pairs)]
            kinds = ("rbytes", "wbytes", "rios", "wios")
        else:
            for file in ("io_service_bytes", "io_serviced"):
                rows = (
                    line.split() for line in kernel_file.read_or_empty(f"{path}/blkio.throttle.{file}").splitlines()
                )
                # The last line has no device: it is the sum.
                counted += [(row[0], f"{file} {row[1]}", int(row[2])) for row in rows if len(row) == 3]
            kinds = ("io_service_bytes Read", "io_service_bytes Write", "io_serviced Read", "io_serviced Write")
        totals: Counter[str] = Counter()
        for device, kind, count in counted:
            if count and not is_stacked(device):  # or what goes through it would count twice
                totals[kind] += count
        names = ("io_read_bytes", "io_write_bytes", "io_read_operations", "io_write_operations")
        return {name: totals[kind] for name, kind in zip(names, kinds, strict=True)}


def _times(count: int | None, unit: float) -> float | None:
    """`count` units, as an amount; None stays unknown."""
    return None if count is None else count * unit


def _kill_member(pid: str, members: str) -> None:
    """Kills one process of a group, and never a stranger to whom its number has passed meanwhile."""
    try:
        process = os.pidfd_open(int(pid))
    except ProcessLookupError:
        return
    try:
        # Held by the descriptor, so that what is a member now is what is killed.
        if pid in kernel_file.read_or_empty(members).split():
            signal.pidfd_send_signal(process, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        os.close(process)


def _why_missing(controller: str) -> str:
    if os.geteuid() != 0:
        return f"this host has no {controller} controller for a server without root; {_WITHOUT_ROOT}"
    return f"this host has no {controller} controller; {_HINTS[controller]}"


def _has_ended(pid: int, timeout: float) -> bool:
    """Whether the process ends within the time, told by the kernel."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(process, select.POLLIN)
        return bool(poll.poll(max(0.0, timeout) * 1000))
    finally:
        os.close(process)


def _cannot_limit(knob: Knob, why: str) -> JobError:
    return JobError(
        ErrorCode.UNSUPPORTED, f"{knob.limit}: the {knob.controller} controller refuses {knob.value}: {why}"
    )


def _host_has_swap() -> bool:
    return len(kernel_file.read("/proc/swaps").splitlines()) > 1


def _keyed(path: str | None) -> Mapping[str, int]:
    """A flat keyed file: one `name number` a line; empty where there is none."""
    pairs = (line.split() for line in kernel_file.read_or_empty(path).splitlines()) if path else ()
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}
