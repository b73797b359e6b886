"""The system calls and constants that Python's standard library does not offer.

The only file with call numbers, flags and ctypes in it. Every function raises OSError with the
call's name. Numbers above 423 are the same on every architecture; man 2 of each call has the rest.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import socket
import struct
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from typing import Final

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_python: Final = ctypes.PyDLL(None, use_errno=True)
_python.syscall.restype = ctypes.c_long

# unshare(2), setns(2), clone(2): linux/sched.h
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

_CLONE_INTO_CGROUP: Final = 0x200000000
_SIGCHLD: Final = 17
_NR_CLONE3: Final = 435

# mount(2), umount2(2): linux/mount.h
MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_REMOUNT: Final = 0x20
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x40000
MNT_DETACH: Final = 0x2

# open_tree(2), move_mount(2), mount_setattr(2): linux/mount.h, linux/fcntl.h
_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_OPEN_TREE_CLONE: Final = 0x1
_OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH: Final = 0x4
_MOUNT_ATTR_RDONLY: Final = 0x1
_MOUNT_ATTR_NOSUID: Final = 0x2
_MOUNT_ATTR_NODEV: Final = 0x4
_MOUNT_ATTR_NOEXEC: Final = 0x8
_AT_RECURSIVE: Final = 0x8000
# openat2(2): linux/openat2.h
_RESOLVE_NO_SYMLINKS: Final = 0x4
_NR_OPENAT2: Final = 437
_NR_OPEN_TREE: Final = 428
_NR_MOVE_MOUNT: Final = 429
_NR_MOUNT_SETATTR: Final = 442
_NR_CLOSE_RANGE: Final = 436
_NR_PIVOT_ROOT: Final = {"x86_64": 155, "aarch64": 41}.get(platform.machine(), -1)

# prctl(2): linux/prctl.h; capabilities(7)
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_PR_CAPBSET_DROP: Final = 24
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_SET_NO_NEW_PRIVS: Final = 38
_CAPABILITY_VERSION_3: Final = 0x20080522
_NR_CAPGET: Final = {"x86_64": 125, "aarch64": 90}.get(platform.machine(), -1)
_NR_CAPSET: Final = {"x86_64": 126, "aarch64": 91}.get(platform.machine(), -1)
CAP_CHOWN: Final = 0
CAP_DAC_OVERRIDE: Final = 1
CAP_KILL: Final = 5
CAP_SETGID: Final = 6
CAP_SETUID: Final = 7
CAP_SETPCAP: Final = 8
CAP_NET_ADMIN: Final = 12
CAP_SYS_ADMIN: Final = 21
CAP_SYS_RESOURCE: Final = 24
CAP_MKNOD: Final = 27

# seccomp(2): linux/seccomp.h
_NR_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}.get(platform.machine(), -1)
_SECCOMP_SET_MODE_FILTER: Final = 1
_FILTER_INSTRUCTION_SIZE: Final = 8

# landlock(7): linux/landlock.h. Rights to write: WRITE_FILE, from version 3 on TRUNCATE, and all that changes
# directories, REMOVE_DIR to REFER.
_NR_LANDLOCK_CREATE_RULESET: Final = 444
_NR_LANDLOCK_ADD_RULE: Final = 445
_NR_LANDLOCK_RESTRICT_SELF: Final = 446
_LANDLOCK_CREATE_RULESET_VERSION: Final = 1
_LANDLOCK_RULE_PATH_BENEATH: Final = 1
_LANDLOCK_WRITE_FILE: Final = 1 << 1
_LANDLOCK_TRUNCATE: Final = 1 << 14
_LANDLOCK_CHANGE_DIRECTORIES: Final = sum(1 << bit for bit in range(4, 14))

# keyctl(2): linux/keyctl.h
_NR_KEYCTL: Final = {"x86_64": 250, "aarch64": 219}.get(platform.machine(), -1)
_KEYCTL_GET_KEYRING_ID: Final = 0
_KEYCTL_JOIN_SESSION_KEYRING: Final = 1
_KEYCTL_SETPERM: Final = 5
_KEYCTL_CLEAR: Final = 7
_KEY_SPEC_USER_KEYRING: Final = -4

# rt_sigaction(2): the two signals that libc keeps for itself and refuses to name
LIBC_SIGNALS: Final = (32, 33)
_NR_RT_SIGACTION: Final = {"x86_64": 13, "aarch64": 134}.get(platform.machine(), -1)
_SIGNAL_SET_SIZE: Final = 8

_UCRED: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid

# Network interfaces, see netdevice(7).
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 0x1

# Events, see inotify(7).
IN_MODIFY: Final = 0x2
IN_CHANGED: Final = 0x2 | 0x4 | 0x8 | 0x80  # written, mode changed, closed after writing, moved into a directory
IN_IGNORED: Final = 0x8000
IN_Q_OVERFLOW: Final = 0x4000


def _check(result: int, call: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{call}: {os.strerror(error)}")
    return result


def unshare(flags: int) -> None:
    """Gives the calling process new namespaces."""
    _check(_libc.unshare(flags), "unshare")


def setns(fd: int, kind: int) -> None:
    """Joins the namespace of type `kind` behind `fd`; a PID namespace counts for later children."""
    _check(_libc.setns(fd, kind), "setns")


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """Mounts, binds or remounts, as `flags` say."""
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        os.fsencode(kind) if kind is not None else None,
        ctypes.c_ulong(flags),
        os.fsencode(data) if data is not None else None,
    )
    _check(result, "mount")


def umount(target: str, flags: int) -> None:
    """Detaches what is mounted at `target`."""
    _check(_libc.umount2(os.fsencode(target), flags), "umount2")


def pivot_root(new_root: str, put_old: str) -> None:
    """Makes the mount at `new_root` the root of the calling process's mount namespace."""
    _check(_libc.syscall(_NR_PIVOT_ROOT, os.fsencode(new_root), os.fsencode(put_old)), "pivot_root")


def open_directory(path: str) -> int:
    """A descriptor for the directory at `path` that stands for it in other calls; ELOOP when a link is on the way."""
    # struct open_how: flags, mode, resolve
    how = struct.pack("QQQ", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, 0, _RESOLVE_NO_SYMLINKS)
    return _check(_libc.syscall(_NR_OPENAT2, _AT_FDCWD, os.fsencode(path), how, len(how)), "openat2")


def bind_read_only(source: str | int, target: str, *, recursive: bool = False) -> None:
    """Attaches the files at `source`, a path or a descriptor, to `target`: read-only, nosuid, nodev, private.

    What is mounted below `source` comes along when `recursive`, and is treated the same. The copy
    gets its flags before anyone can reach it.
    """
    tree = _copy_mount(
        source,
        _AT_RECURSIVE if recursive else 0,
        attr_set=_MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV,
    )
    try:
        attach_mount(tree, target)
    finally:
        os.close(tree)


def copy_device(source: str) -> int:
    """A read-only mount of the one device node at `source`, still usable as a device; for `attach_mount`."""
    flags = _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NOEXEC
    return _copy_mount(source, 0, attr_set=flags, attr_clear=_MOUNT_ATTR_NODEV)


def attach_mount(tree: int, target: str) -> None:
    """Puts a copied mount in its place."""
    _check(
        _libc.syscall(_NR_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH),
        "move_mount",
    )


def _copy_mount(source: str | int, recursive: int, *, attr_set: int, attr_clear: int = 0) -> int:
    """A private copy of what is mounted at `source`, in no place yet."""
    directory, path = (_AT_FDCWD, os.fsencode(source)) if isinstance(source, str) else (source, b"")
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_EMPTY_PATH | recursive
    tree = _check(_libc.syscall(_NR_OPEN_TREE, directory, path, flags), "open_tree")
    # struct mount_attr: attr_set, attr_clr, propagation, userns_fd
    attributes = struct.pack("QQQQ", attr_set, attr_clear, MS_PRIVATE, 0)
    try:
        _check(
            _libc.syscall(_NR_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH | recursive, attributes, len(attributes)),
            "mount_setattr",
        )
    except OSError:
        os.close(tree)
        raise
    return tree


def close_range(first: int) -> None:
    """Closes `first` and every descriptor behind it."""
    _check(_libc.syscall(_NR_CLOSE_RANGE, first, ctypes.c_uint(-1), 0), "close_range")


def set_no_new_privs() -> None:
    """From now on no exec of this process or its children can gain a privilege."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def filter_system_calls(program: bytes) -> None:
    """Every call of this process and its children is judged by `program` from now on; there is no way back."""
    # struct sock_fprog: how many instructions, and where they are
    instructions = ctypes.create_string_buffer(program, len(program))
    description = struct.pack("H6xP", len(program) // _FILTER_INSTRUCTION_SIZE, ctypes.addressof(instructions))
    _check(_libc.syscall(_NR_SECCOMP, _SECCOMP_SET_MODE_FILTER, 0, description), "seccomp")


def landlock_version() -> int:
    """Which version of Landlock the kernel has in use; 0 for none."""
    return max(0, int(_libc.syscall(_NR_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_CREATE_RULESET_VERSION)))


def restrict_writing(version: int, directories: Iterable[str], contents: Iterable[str]) -> None:
    """From now on this process and its children write below `directories`, and to files at or below `contents`, only.

    A second layer, whatever mounts and permissions say; also for FIFOs and devices, which a read-only
    mount does not keep from being written to.
    """
    write = _LANDLOCK_WRITE_FILE | (_LANDLOCK_TRUNCATE if version >= 3 else 0)
    everything = write | _LANDLOCK_CHANGE_DIRECTORIES
    attributes = struct.pack("Q", everything)  # struct landlock_ruleset_attr: handled_access_fs
    ruleset = _check(
        _libc.syscall(_NR_LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0), "landlock_create_ruleset"
    )
    try:
        for paths, rights in ((directories, everything), (contents, write)):
            for path in paths:
                _allow_beneath(ruleset, path, rights)
        _check(_libc.syscall(_NR_LANDLOCK_RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
    finally:
        os.close(ruleset)


def _allow_beneath(ruleset: int, path: str, rights: int) -> None:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        # struct landlock_path_beneath_attr: allowed_access, parent_fd; packed
        rule = struct.pack("=Qi", rights, place)
        added = _libc.syscall(_NR_LANDLOCK_ADD_RULE, ruleset, _LANDLOCK_RULE_PATH_BENEATH, rule, 0)
        _check(added, "landlock_add_rule")
    finally:
        os.close(place)


def drop_bounding_set(kept: Collection[int] = ()) -> None:
    """Leaves only the `kept` in the capability bounding set: no later exec can fill another set with the rest."""
    for capability in range(64):
        if capability not in kept and _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            # EINVAL marks the first number that this kernel has no capability for.
            if ctypes.get_errno() == errno.EINVAL and capability > 0:
                return
            _check(-1, "prctl(PR_CAPBSET_DROP)")


def clear_capabilities() -> None:
    """Empties the effective, permitted and inheritable sets; the ambient set follows them."""
    _set_capabilities(0)


def keep_capabilities(kept: Collection[int]) -> None:
    """Of the capabilities that the process has it keeps these only, and can have no others any more."""
    drop_bounding_set(kept)
    _set_capabilities(_permitted() & sum(1 << capability for capability in kept))


def _permitted() -> int:
    header, sets = struct.pack("Ii", _CAPABILITY_VERSION_3, 0), ctypes.create_string_buffer(24)
    _check(_libc.syscall(_NR_CAPGET, header, sets), "capget")
    _, low, _, _, high, _ = struct.unpack("6I", sets.raw)  # effective, permitted, inheritable: first the low halves
    return int(high << 32 | low)


def _set_capabilities(capabilities: int) -> None:
    """Permitted and effective; nothing is inheritable."""
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    low, high = capabilities & 0xFFFFFFFF, capabilities >> 32
    _check(_libc.syscall(_NR_CAPSET, header, struct.pack("6I", low, low, 0, high, high, 0)), "capset")


def seal_session_keyring() -> None:
    """Gives the caller, and all that it forks, a new session keyring in which nobody can find or leave a key.

    Sessions belong to no namespace and are inherited; keyrings(7). Where there are no keys, or nobody
    may use them, nothing is to be done.
    """
    try:
        keyring = _check(_libc.syscall(_NR_KEYCTL, _KEYCTL_JOIN_SESSION_KEYRING, None), "keyctl(JOIN_SESSION_KEYRING)")
    except OSError as error:
        if error.errno not in {errno.ENOSYS, errno.EPERM}:
            raise
        return
    _check(_libc.syscall(_NR_KEYCTL, _KEYCTL_SETPERM, keyring, 0), "keyctl(SETPERM)")


def clear_user_keyring() -> None:
    """Nothing is left in the keyring of the caller's uid, which outlives the processes that have used it.

    The question alone makes one, and it stays until the host goes down.
    """
    if _libc.syscall(_NR_KEYCTL, _KEYCTL_GET_KEYRING_ID, _KEY_SPEC_USER_KEYRING, 0) > 0:
        _check(_libc.syscall(_NR_KEYCTL, _KEYCTL_CLEAR, _KEY_SPEC_USER_KEYRING), "keyctl(CLEAR)")


def set_parent_death_signal(signal: int) -> None:
    """The kernel sends `signal` to this process when its parent ends."""
    _prctl(_PR_SET_PDEATHSIG, signal)


def restore_default_signal(number: int) -> None:
    """Gives a signal its default disposition, also one that libc hides; some parents leave those ignored."""
    default = bytes(32)  # struct kernel_sigaction with SIG_DFL, which is 0
    _check(_libc.syscall(_NR_RT_SIGACTION, number, default, None, _SIGNAL_SET_SIZE), "rt_sigaction")


def become_subreaper() -> None:
    """Orphaned descendants become children of this process."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, argument: int) -> None:
    _check(_libc.prctl(option, ctypes.c_ulong(argument), 0, 0, 0), "prctl")


@cache
def _argument_area() -> tuple[int, int]:
    """Where the process's arguments lie on the stack: fields 48 and 49 of /proc/self/stat, see proc(5)."""
    with open("/proc/self/stat", "rb") as stat:
        fields = stat.read().rpartition(b")")[2].split()
    return int(fields[45]), int(fields[46])


def set_process_title(title: str) -> None:
    """What `ps` shows for this process, in place of a command line that may hold paths.

    Written over the arguments and cut to their length.
    """
    encoded = os.fsencode(title)
    _libc.prctl(_PR_SET_NAME, encoded[:15], 0, 0, 0)
    start, end = _argument_area()
    if 0 < start < end:
        ctypes.memset(start, 0, end - start)
        ctypes.memmove(start, encoded, min(len(encoded), end - start - 1))


def fork_into_cgroup(cgroup: int) -> int:
    """fork(2) whose child is born in the v2 group behind the directory descriptor `cgroup`.

    Moving a process into a v2 group afterwards waits for an RCU grace period, some 10 ms; this
    does not (cgroups(7), CLONE_INTO_CGROUP). Only for single-threaded processes, and for children
    that exec soon: libc is not told of the fork.
    """
    # struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls,
    # set_tid, set_tid_size, cgroup
    arguments = struct.pack("11Q", _CLONE_INTO_CGROUP, 0, 0, 0, _SIGCHLD, 0, 0, 0, 0, 0, cgroup)
    # PyDLL keeps the interpreter lock, so that the child wakes up holding it.
    return _check(_python.syscall(_NR_CLONE3, arguments, len(arguments)), "clone3")


def set_file_system_ids(uid: int, gid: int) -> None:
    """Files are looked up, opened and created as `uid`:`gid` from now on; see setfsuid(2)."""
    _libc.setfsgid(gid)
    _libc.setfsuid(uid)
    # Neither call reports failure; asking again for an impossible id returns the one in force.
    if _libc.setfsuid(-1) != uid or _libc.setfsgid(-1) != gid:
        raise PermissionError(1, "setfsuid: cannot take the file system ids of the service user")


@contextlib.contextmanager
def file_system_ids(uid: int, gid: int) -> Iterator[None]:
    """What is done with files inside is done as `uid`:`gid`, with no more than their rights.

    Only root can take ids that are not its own.
    """
    set_file_system_ids(uid, gid)
    own = os.geteuid(), os.getegid()
    try:
        yield
    finally:
        set_file_system_ids(*own)


def peer_credentials(channel: socket.socket) -> tuple[int, int]:
    """Process id and uid of whoever made the other end of a Unix socket; unix(7), SO_PEERCRED."""
    pid, uid, _ = _UCRED.unpack(channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid


def raise_loopback() -> None:
    """Switches on the loopback interface of the current network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        fcntl.ioctl(probe, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


def inotify_init() -> int:
    """A new non-blocking inotify descriptor."""
    return _check(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify_init1")


def inotify_add_watch(fd: int, path: str, mask: int) -> int:
    """Watches `path`; the same file always has the same watch number."""
    return _check(_libc.inotify_add_watch(fd, os.fsencode(path), mask), "inotify_add_watch")


def inotify_rm_watch(fd: int, watch: int) -> None:
    """Ends a watch; it is not an error if it is gone already."""
    _libc.inotify_rm_watch(fd, watch)
