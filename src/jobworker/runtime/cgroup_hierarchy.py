"""The cgroup trees that are mounted on this host, and which controllers each has."""

import os
from dataclasses import dataclass
from typing import Final

from jobworker.runtime import kernel_file
from jobworker.runtime.mountinfo import parse_mountinfo

_USED_V1: Final = ("cpu", "cpuacct", "memory", "blkio", "pids")


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One mounted cgroup tree: where our groups go in it and which controllers it has."""

    path: str
    controllers: tuple[str, ...]
    is_v2: bool


def find_hierarchies(mountinfo: str, delegated: str = "") -> list[Hierarchy]:
    """The usable cgroup trees in the text of /proc/self/mountinfo, v2 first.

    Each v1 controller is looked for by itself, since distributions mount them in any combination.
    In the v2 tree our place is `delegated`, a group that was handed to us, else the top.
    """
    found: dict[str, Hierarchy] = {}
    for mount in parse_mountinfo(mountinfo):
        # One that another mount lies over, as in a container, is in the list and cannot be reached. What is no
        # tree is left alone: a file server that is gone does not answer.
        if not mount.kind.startswith("cgroup") or not os.path.exists(f"{mount.path}/cgroup.procs"):
            continue
        if mount.kind == "cgroup2":
            path = mount.path + delegated
            controllers = tuple(kernel_file.read(f"{path}/cgroup.controllers").split())
            found.setdefault("v2", Hierarchy(path, controllers, is_v2=True))
        else:
            mounted = mount.file_system_options.split(",")
            controllers = tuple(name for name in _USED_V1 if name in mounted)
            if controllers:
                found.setdefault(",".join(controllers), Hierarchy(mount.path, controllers, is_v2=False))
    if "v2" in found:
        found.pop("cpuacct", None)  # every v2 tree counts the time that its groups use
    return sorted(found.values(), key=lambda hierarchy: not hierarchy.is_v2)
