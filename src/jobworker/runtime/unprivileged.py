"""Isolation without root: a user namespace for each job, and the steps that do with its rights.

In a namespace of its own a process has every capability over what the namespace owns, and none
over the host; user_namespaces(7). The caller's uid stands for itself in it, so that nothing inside
is uid 0, and it is the only one there is: no job has a uid of its own.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass

from jobworker.runtime import kernel_file, linux
from jobworker.runtime.sandbox_steps import (
    DEVICES,
    BecomeUser,
    BindRoot,
    BuildRoot,
    Mask,
    MountDev,
    PrepareMasks,
    ReadBack,
    Step,
    begin_dev,
    complete_dev,
)


def enter_user_namespace() -> None:
    """Moves the calling process to a new user namespace, in which its uid and gid are the only ones."""
    uid, gid = os.geteuid(), os.getegid()
    linux.unshare(linux.CLONE_NEWUSER)
    # The kernel wants the first before it lets the last be written: a group could be what forbids a file.
    for name, content in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        kernel_file.write(f"/proc/self/{name}", content)


@dataclass(frozen=True, slots=True)
class CopyRoot:
    """A read-only copy of all that is mounted, in a place nobody else sees.

    Of mounts that came from the host a user namespace can only copy all or none; mount_namespaces(7).
    """

    def apply(self) -> None:  # noqa: D102 - a step says in its class docstring what apply does
        linux.bind_read_only("/", "/proc", recursive=True)
        os.chdir("/proc")


@dataclass(frozen=True, slots=True)
class TakeAlong:
    """What the steps after it need of the old root, in the new one before the old one goes.

    Devices can be copied only, and who sees no /proc may not mount one; user_namespaces(7).
    """

    def apply(self) -> None:  # noqa: D102
        linux.bind_read_only("/dev", "dev", recursive=True)
        linux.mount("proc", "proc", "proc", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)


@dataclass(frozen=True, slots=True)
class BindDev:
    """A /dev with the harmless devices only, read-only: the host's own nodes, since nobody else can make any."""

    def apply(self) -> None:  # noqa: D102
        devices = {name: linux.copy_device(f"/dev/{name}") for name in DEVICES}
        begin_dev()
        for name, device in devices.items():
            os.close(os.open(f"/dev/{name}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o444))
            linux.attach_mount(device, f"/dev/{name}")
            os.close(device)
        complete_dev()


def do_without_root(step: Step) -> Iterable[Step]:
    """What takes a step's place in a user namespace."""
    match step:
        case BuildRoot():
            return [CopyRoot()]
        case BindRoot(path):
            return [BindRoot(path, with_mounts=True), TakeAlong()]
        case PrepareMasks():
            return [step, Mask("/sys", is_directory=True)]  # it came along with the copy
        case MountDev():
            return [BindDev()]
        case BecomeUser():
            return []  # there is no other to become, and groups can be neither given nor taken
        case ReadBack(expected=expected):
            return [step.expecting(namespaces=f"{expected['namespaces']},user", groups=None)]
        case _:
            return [step]
