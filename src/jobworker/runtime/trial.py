"""How each control is tried: a function that raises when it does not work here.

Each changes the process that calls it, which is one of its own for that reason. What a job does in
a user namespace is tried in one.
"""

import errno
import os
import resource
import signal
from collections.abc import Callable
from typing import Final

from jobworker.core.spec import Limits, MiB
from jobworker.runtime import kernel_file, linux, seccomp, unprivileged
from jobworker.runtime.block_device import disks_of
from jobworker.runtime.cgroup import Cgroup
from jobworker.runtime.cgroup_host import CgroupHost
from jobworker.runtime.host_view import FIRST_LANDLOCK
from jobworker.runtime.sandbox_steps import FilterSystemCalls, MountDev

_SOME_JOB_UID: Final = 200_000


def in_namespace(attempt: Callable[[], None]) -> Callable[[], None]:
    """The attempt, in a user namespace where the server has no root."""

    def inside() -> None:
        if os.geteuid() != 0:
            unprivileged.enter_user_namespace()
        attempt()

    return inside


def new_namespace(flag: int) -> Callable[[], None]:
    """A namespace of this kind can be made."""
    return in_namespace(lambda: linux.unshare(flag))


def private_mounts() -> None:
    """Mounts can be made that nobody else sees."""
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)


def read_only_root() -> None:
    """The host's tree can be shown read-only."""
    private_mounts()
    linux.bind_read_only("/", "/proc", recursive=os.geteuid() != 0)


def masks() -> None:
    """What is mounted over a directory hides it."""
    private_mounts()
    linux.mount("mask", "/tmp", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "size=4k")  # noqa: S108 - ours alone
    os.mkdir("/tmp/directory")  # noqa: S108
    linux.mount("/tmp/directory", "/proc", None, linux.MS_BIND)  # noqa: S108
    if os.listdir("/proc"):
        raise OSError(1, "what was laid over a directory does not hide it")


def hidden_processes() -> None:
    """A new /proc that shows neither the processes outside nor, without capabilities, the first one inside."""
    linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWPID)
    if _status_of_child(_look_around):
        raise OSError(1, "a new /proc cannot be mounted, or shows the processes of others")


def _look_around() -> None:
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("proc", "/proc", "proc", linux.MS_NOSUID, "hidepid=2")
    if [name for name in os.listdir("/proc") if name.isdecimal()] != ["1"]:
        raise OSError(1, "others are there")


def devices() -> None:
    """A /dev can be made whose /dev/null works."""
    private_mounts()
    step = MountDev()
    for instead in [step] if os.geteuid() == 0 else unprivileged.do_without_root(step):
        instead.apply()
    with open("/dev/null", "wb", buffering=0) as device:
        device.write(b"gone")


def separate_uid() -> None:
    """The uid can be given up for that of a job."""
    if os.geteuid() != 0:
        raise PermissionError(1, "only root can give a job another uid")
    os.setgroups(())
    os.setresgid(_SOME_JOB_UID, _SOME_JOB_UID, _SOME_JOB_UID)
    os.setresuid(_SOME_JOB_UID, _SOME_JOB_UID, _SOME_JOB_UID)


def limit(limits: Limits) -> Callable[[], None]:
    """A group can be made and held to these limits."""
    return lambda: _with_group(lambda group: _set_limit(group, limits))


def _set_limit(group: Cgroup, limits: Limits) -> None:
    group.limit(limits, disks_of("/") if limits.limits_io() else [])


def swap_accounting() -> None:
    """A limit of memory is one of swap as well."""

    def attempt(group: Cgroup) -> None:
        if not {"swap", "memory_and_swap"} & set(group.limit(Limits(memory=64 * MiB, pids=None), [])):
            raise OSError(1, "the kernel does not account swap to groups")

    _with_group(attempt)


def atomic_kill() -> None:
    """A process begins in its group, and the kernel kills all of a group by one write."""

    def attempt(group: Cgroup) -> None:
        if not group.can_kill_at_once:
            raise FileNotFoundError(2, "no cgroup v2 tree that we may use has cgroup.kill")
        child = group.fork()
        if child == 0:
            signal.pause()
        group.kill()
        os.waitpid(child, 0)

    _with_group(attempt)


def _with_group(attempt: Callable[[Cgroup], None]) -> None:
    """Tries something on a group of its own, and removes it."""
    host = CgroupHost.discover(f"jobworker-check-{os.getpid()}")
    host.prepare()
    group = host.group("try")
    try:
        group.create()
        attempt(group)
    finally:
        group.remove()
        host.remove_parent()


def bounded_capabilities() -> None:
    """Capabilities can be given up for good."""
    linux.keep_capabilities(())


def no_new_privileges() -> None:
    """Programs that raise privileges can be kept from doing so."""
    linux.set_no_new_privs()


def filter_system_calls() -> None:
    """A filter can be loaded, and what it denies is denied."""
    linux.set_no_new_privs()
    FilterSystemCalls(seccomp.PROGRAM).apply()
    try:
        linux.unshare(linux.CLONE_NEWUTS)
    except PermissionError:
        return
    raise OSError(1, "what the filter denies is not denied")


def restrict_writing() -> None:
    """Landlock is there, and what it denies is denied."""
    version = linux.landlock_version()
    if version < FIRST_LANDLOCK:
        raise OSError(errno.EOPNOTSUPP, "the kernel has no Landlock in use that can be asked for this")
    linux.set_no_new_privs()
    linux.restrict_writing(version, ("/proc",), ())
    try:
        os.close(os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC))
    except PermissionError:
        return
    raise OSError(errno.EPERM, "what Landlock denies is not denied")


def close_range() -> None:
    """Descriptors can be closed all at once."""
    linux.close_range(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))


def pidfd() -> None:
    """A signal can be sent to a process and to no other that gets its number."""
    child = os.fork()
    if child == 0:
        signal.pause()
    process = os.pidfd_open(child)
    signal.pidfd_send_signal(process, signal.SIGKILL)
    os.waitpid(child, 0)


def raise_rlimits() -> None:
    """A resource limit can be raised again after it was lowered."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lower = hard - 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, lower), lower))
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, lower), hard))


def no_core_pipe() -> None:
    """Cores are not piped to a program of the host's."""
    if kernel_file.read_or_empty("/proc/sys/kernel/core_pattern").startswith("|"):
        raise OSError(1, "the host pipes cores to a program of its own")


def no_terminal_input() -> None:
    """No process can type into its terminal."""
    if kernel_file.read_or_empty("/proc/sys/dev/tty/legacy_tiocsti").strip() != "0":
        raise OSError(1, "the kernel lets any process type into its terminal")


def _status_of_child(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
