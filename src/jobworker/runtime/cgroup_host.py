"""The part of the host's cgroup trees that is ours: our parent groups, or the group that was delegated to us."""

import contextlib
import errno
import os
from collections.abc import Iterable, Sequence
from typing import Final, Self

from jobworker.runtime import kernel_file
from jobworker.runtime.cgroup import Cgroup
from jobworker.runtime.cgroup_hierarchy import Hierarchy, find_hierarchies

_USED_V2: Final = ("cpu", "memory", "io", "pids")
_OWN_LEAF: Final = "server"  # where the server's processes go below a group that is delegated to it


class CgroupHost:
    """The part of the host's cgroup trees that is ours: one parent group in each."""

    def __init__(self, hierarchies: Iterable[Hierarchy], parent: str) -> None:
        self.hierarchies = [hierarchy for hierarchy in hierarchies if hierarchy.is_v2 or hierarchy.controllers]
        self._parent = parent

    @classmethod
    def discover(cls, parent: str) -> Self:
        """The trees of this host."""
        mountinfo = kernel_file.read("/proc/self/mountinfo")
        hierarchies = find_hierarchies(mountinfo)
        own = kernel_file.read("/proc/self/cgroup").partition("0::")[2].partition("\n")[0]
        for hierarchy in hierarchies:
            if hierarchy.is_v2:
                return cls(find_hierarchies(mountinfo, _delegated_group(hierarchy.path, own)), parent)
        return cls(hierarchies, parent)

    def prepare(self) -> None:
        """Makes the parent groups and hands the v2 controllers down to them; trees that are not ours are left out."""
        self.hierarchies = [hierarchy for hierarchy in self.hierarchies if self._prepare(hierarchy)]

    def _prepare(self, hierarchy: Hierarchy) -> bool:
        """Whether we may have groups in the tree."""
        try:
            return self._take(hierarchy)
        except FileNotFoundError:
            # The launcher of an earlier server has removed the group on its way out.
            return self._take(hierarchy)

    def _take(self, hierarchy: Hierarchy) -> bool:
        """As `_prepare`; FileNotFoundError when the group goes meanwhile."""
        path = f"{hierarchy.path}/{self._parent}"
        try:
            os.mkdir(path, 0o755)
        except FileExistsError:
            if not os.access(path, os.W_OK):
                os.stat(path)
                return False
        except OSError as error:
            if error.errno not in {errno.EACCES, errno.EPERM, errno.EROFS}:
                raise
            return False
        wanted = [name for name in _USED_V2 if hierarchy.is_v2 and name in hierarchy.controllers]
        if wanted:
            if os.geteuid() == 0 or _is_marked_delegated(hierarchy.path):
                _vacate(hierarchy.path)
            _hand_down(hierarchy.path, wanted)
            _hand_down(path, wanted)
        return True

    def remove_parent(self) -> None:
        """Removes the parent groups, as far as no job is in them."""
        for hierarchy in self.hierarchies:
            with contextlib.suppress(OSError):
                os.rmdir(f"{hierarchy.path}/{self._parent}")

    def group(self, name: str) -> "Cgroup":
        """The groups of job `name`, whether they exist or not."""
        return Cgroup([(hierarchy, f"{hierarchy.path}/{self._parent}/{name}") for hierarchy in self.hierarchies])

    def names(self) -> set[str]:
        """The names of all jobs that have a group in some tree."""
        found: set[str] = set()
        for hierarchy in self.hierarchies:
            # The launcher of an earlier server may remove the parent group at any moment, when it is empty.
            with contextlib.suppress(FileNotFoundError):
                found.update(entry.name for entry in os.scandir(f"{hierarchy.path}/{self._parent}") if entry.is_dir())
        return found


def _hand_down(path: str, controllers: Sequence[str]) -> None:
    """Enables controllers for the children of the group at `path`."""
    enabled = kernel_file.read(f"{path}/cgroup.subtree_control").split()
    for name in controllers:
        if name not in enabled:
            # A controller that cannot be handed down is missed by the job that needs it, by name.
            with contextlib.suppress(OSError):
                kernel_file.write(f"{path}/cgroup.subtree_control", f"+{name}")


def _vacate(path: str) -> None:
    """Moves the processes of the group at `path`, the server's own, to a leaf below it.

    Only a group without processes hands controllers down ("no internal processes", cgroup-v2.rst).
    The top of all has no such rule, and no cgroup.type.
    """
    if not os.path.exists(f"{path}/cgroup.type"):
        return
    members = f"{path}/{_OWN_LEAF}/cgroup.procs"
    # Until none is left, since they may fork meanwhile; 0 is one that a namespace keeps out of our sight.
    while moving := set(kernel_file.read(f"{path}/cgroup.procs").split()) - {"0"}:
        with contextlib.suppress(FileExistsError):
            os.mkdir(f"{path}/{_OWN_LEAF}", 0o755)
        for pid in moving:
            with contextlib.suppress(ProcessLookupError):
                kernel_file.write(members, pid)


def _delegated_group(tree: str, own: str) -> str:
    """The group that a service manager has handed to us (systemd's Delegate=): `own`, or above our leaf; else "".

    To root by a mark, since root may write everywhere; to anybody else by the right to write.
    """
    group = os.path.dirname(own) if os.path.basename(own) == _OWN_LEAF else own
    place = tree + group
    may_write = os.geteuid() != 0 and os.access(f"{place}/cgroup.procs", os.W_OK)
    # A path with .. leads out of what our namespace shows.
    is_ours = "/.." not in own and group != "/" and (may_write or _is_marked_delegated(place))
    return group if is_ours else ""


def _is_marked_delegated(path: str) -> bool:
    """Whether a service manager has said that the group at `path` is for us to divide."""
    for attribute in ("trusted.delegate", "user.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(path, attribute) == b"1":
                return True
    return False
