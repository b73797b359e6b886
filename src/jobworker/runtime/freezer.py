"""The freezer of cgroup version 1: what it holds does not die, not even of SIGKILL, until it is let go."""

import contextlib
import os

from jobworker.runtime import kernel_file
from jobworker.runtime.mountinfo import parse_mountinfo


def release(pids: set[str]) -> None:
    """Takes the processes out of frozen groups, and leaves those, which are not ours, frozen.

    At the top of the tree nothing is frozen. freezer-subsystem.rst of the kernel's admin guide.
    """
    for top in _trees() if pids else ():
        for group, _, _ in os.walk(top):
            if kernel_file.read_or_empty(f"{group}/freezer.state") in {"", "THAWED\n"}:
                continue
            for pid in pids.intersection(kernel_file.read_or_empty(f"{group}/cgroup.procs").split()):
                with contextlib.suppress(OSError):  # it has ended, or we are not root and could not have it freed
                    kernel_file.write(f"{top}/cgroup.procs", pid)


def _trees() -> list[str]:
    return [
        mount.path
        for mount in parse_mountinfo(kernel_file.read("/proc/self/mountinfo"))
        if mount.kind == "cgroup" and "freezer" in mount.file_system_options.split(",")
    ]
