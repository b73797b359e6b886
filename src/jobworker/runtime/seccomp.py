"""Which system calls a job may make: a readable table, and the program for the kernel made of it.

Everything is allowed but what the table names, what belongs to another ABI (the process is killed),
and what is newer than the newest call that was reviewed here (as if the kernel did not have it).
The program is classic BPF over `struct seccomp_data`; seccomp(2).
"""

import errno
import os
import struct
from dataclasses import dataclass, field
from typing import Final

#: The newest call that was looked at when the table was made: file_setattr, Linux 6.17.
NEWEST_REVIEWED: Final = 469

_BOTH_ABIS: Final = ("x86_64", "aarch64")


@dataclass(frozen=True, slots=True)
class Denial:
    """Calls that fail with `errno`; their numbers on x86_64 and aarch64, None where there is no such call."""

    why: str
    errno: int
    calls: dict[str, tuple[int | None, int | None]]


DENIALS: Final = (
    Denial(
        "new namespaces open kernel surface that is closed to ordinary users",
        errno.EPERM,
        {"unshare": (272, 97), "setns": (308, 268)},
    ),
    Denial(
        "its flags are behind a pointer, where this program cannot look; libc falls back to clone",
        errno.ENOSYS,
        {"clone3": (435, 435)},
    ),
    Denial(
        "the view of the file system is not the job's to change",
        errno.EPERM,
        {
            "mount": (165, 40),
            "umount2": (166, 39),
            "pivot_root": (155, 41),
            "chroot": (161, 51),
            "open_tree": (428, 428),
            "move_mount": (429, 429),
            "fsopen": (430, 430),
            "fsconfig": (431, 431),
            "fsmount": (432, 432),
            "fspick": (433, 433),
            "mount_setattr": (442, 442),
            "open_tree_attr": (467, 467),
            "quotactl": (179, 60),
            "quotactl_fd": (443, 443),
        },
    ),
    Denial(
        "it makes calls from a queue, where no filter sees them",
        errno.ENOSYS,
        {"io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427)},
    ),
    Denial(
        "its contexts are counted for the whole host, so that one job could take them from everybody",
        errno.ENOSYS,
        {"io_setup": (206, 0)},
    ),
    Denial(
        "keyrings belong to no namespace",
        errno.EPERM,
        {"add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219)},
    ),
    Denial(
        "large surface, and a view of what others do",
        errno.EPERM,
        {
            "bpf": (321, 280),
            "perf_event_open": (298, 241),
            "userfaultfd": (323, 282),
            "kcmp": (312, 272),
            "lookup_dcookie": (212, 18),
        },
    ),
    Denial(
        "reaching into other processes",
        errno.EPERM,
        {
            "ptrace": (101, 117),
            "process_vm_readv": (310, 270),
            "process_vm_writev": (311, 271),
            "pidfd_getfd": (438, 438),
        },
    ),
    Denial(
        "the host is not the job's to control; a second layer below the missing capabilities",
        errno.EPERM,
        {
            "init_module": (175, 105),
            "finit_module": (313, 273),
            "delete_module": (176, 106),
            "kexec_load": (246, 104),
            "kexec_file_load": (320, 294),
            "reboot": (169, 142),
            "swapon": (167, 224),
            "swapoff": (168, 225),
            "acct": (163, 89),
            "iopl": (172, None),
            "ioperm": (173, None),
            "syslog": (103, 116),
            "settimeofday": (164, 170),
            "clock_settime": (227, 112),
            "adjtimex": (159, 171),
            "clock_adjtime": (305, 266),
            "sethostname": (170, 161),
            "setdomainname": (171, 162),
        },
    ),
    Denial(
        "files by number instead of by path",
        errno.EPERM,
        {"open_by_handle_at": (304, 265), "fanotify_init": (300, 262)},
    ),
    Denial(
        "memory of certain nodes: surface that no job needs",
        errno.EPERM,
        {
            "mbind": (237, 235),
            "set_mempolicy": (238, 237),
            "get_mempolicy": (239, 236),
            "migrate_pages": (256, 238),
            "move_pages": (279, 239),
            "set_mempolicy_home_node": (450, 450),
        },
    ),
    Denial(
        "as on kernels that are built without them",
        errno.ENOSYS,
        {"memfd_secret": (447, 447), "modify_ldt": (154, None), "uselib": (134, None)},
    ),
)

#: Calls that are judged by their arguments. What is compared is 32 bits wide, as the kernel itself takes it:
#: a flag in the upper half of a register changes nothing.
CLONE: Final = (56, 220)
SOCKET: Final = (41, 198)
SOCKETPAIR: Final = (53, 199)
IOCTL: Final = (16, 29)
SETSOCKOPT: Final = (54, 208)
MMAP: Final = (9, 222)
MEMFD_CREATE: Final = (319, 279)

#: CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET; linux/sched.h. EPERM.
NEW_NAMESPACES: Final = 0x7E020000
#: AF_UNIX, AF_INET and AF_INET6; AF_NETLINK with protocol NETLINK_ROUTE only. EAFNOSUPPORT for the others,
#: some of which, such as AF_VSOCK and AF_ALG, belong to no network namespace.
FAMILIES: Final = (1, 2, 10)
AF_NETLINK: Final = 16
NETLINK_ROUTE: Final = 0
#: TIOCSTI and TIOCLINUX type into the terminal of whoever looks at it. EPERM.
TERMINAL_INPUT: Final = (0x5412, 0x541C)
#: SO_ATTACH_FILTER, SO_ATTACH_BPF and the two of SO_REUSEPORT, asm-generic/socket.h: compiled filters share an area of
#: the whole host (net.core.bpf_jit_limit), and without room there the filter of no further job can be loaded. EPERM.
SOL_SOCKET: Final = 1
SOCKET_FILTERS: Final = (26, 50, 51, 52)
#: MAP_HUGETLB and MFD_HUGETLB; linux/mman.h, linux/memfd.h: the pages that a host has set aside count for no memory
#: limit. EPERM.
HUGE_MAPPING: Final = 0x40000
HUGE_FILE: Final = 0x4

# struct seccomp_data: nr, arch, instruction_pointer, args[6]; the low half of an argument comes first.
_NR: Final = 0
_ARCH: Final = 4
_ARGS: Final = tuple(16 + 8 * position for position in range(6))

# linux/audit.h, linux/elf-em.h
_AUDIT_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_CALLS: Final = 0x40000000  # numbers from here on are calls of the x32 ABI
_NO_CALL: Final = 0xFFFFFFFF  # -1: what a tracer writes to skip a call

# Return values, linux/seccomp.h
ALLOW: Final = 0x7FFF0000
KILL: Final = 0x80000000  # the whole process
_ERRNO: Final = 0x00050000

# Opcodes, linux/bpf_common.h
_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_RETURN: Final = 0x06  # BPF_RET | BPF_K
_IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_IF_GREATER: Final = 0x25
_IF_GREATER_OR_EQUAL: Final = 0x35
_IF_ANY_BIT: Final = 0x45
_INSTRUCTION: Final = struct.Struct("HBBI")
_LONGEST_JUMP: Final = 255


def fail(number: int) -> int:
    """The return value that makes a call fail with errno `number`."""
    return _ERRNO | number


@dataclass(slots=True)
class _Assembler:
    """Instructions with named places to jump to; None is the next instruction, a number is what to return."""

    lines: list[tuple[int, int, str | int | None, str | int | None]] = field(default_factory=list)
    places: dict[str | int, int] = field(default_factory=dict)

    def place(self, name: str) -> None:
        self.places[name] = len(self.lines)

    def load(self, offset: int) -> None:
        self.lines.append((_LOAD, offset, None, None))

    def go(self, test: int, value: int, then: str | int | None, otherwise: str | int | None = None) -> None:
        self.lines.append((test, value, then, otherwise))

    def end(self, value: int) -> None:
        self.lines.append((_RETURN, value, None, None))

    def assemble(self) -> bytes:
        """The program, with the returns that are jumped to at its end."""
        values = {target for line in self.lines for target in line[2:] if isinstance(target, int)}
        for value in sorted(values):
            self.places[value] = len(self.lines)
            self.end(value)
        return b"".join(
            _INSTRUCTION.pack(code, self._distance(here, then), self._distance(here, otherwise), value)
            for here, (code, value, then, otherwise) in enumerate(self.lines)
        )

    def _distance(self, here: int, target: str | int | None) -> int:
        distance = 0 if target is None else self.places[target] - here - 1
        if not 0 <= distance <= _LONGEST_JUMP:
            raise ValueError(f"the jump from {here} to {target} is too long for a filter program")
        return distance


def assemble(machine: str) -> bytes:
    """The filter for processes on `machine`, as uname(2) names it; nothing when the table does not know it.

    Calls that are allowed whatever their arguments cost nothing: the kernel runs the program for
    them once, when it is loaded, and keeps the answers as a bitmap.
    """
    if machine not in _BOTH_ABIS:
        return b""
    abi = _BOTH_ABIS.index(machine)
    program = _Assembler()
    program.load(_ARCH)
    program.go(_IF_EQUAL, _AUDIT_ARCH[machine], None, KILL)
    program.load(_NR)
    program.go(_IF_EQUAL, _NO_CALL, fail(errno.ENOSYS))
    if machine == "x86_64":
        program.go(_IF_GREATER_OR_EQUAL, _X32_CALLS, KILL)
    program.go(_IF_GREATER, NEWEST_REVIEWED, fail(errno.ENOSYS))
    judged = {
        "clone": CLONE,
        "socket": SOCKET,
        "socketpair": SOCKETPAIR,
        "ioctl": IOCTL,
        "setsockopt": SETSOCKOPT,
        "mmap": MMAP,
        "memfd_create": MEMFD_CREATE,
    }
    for name, numbers in judged.items():
        program.go(_IF_EQUAL, numbers[abi], name)
    for denial in DENIALS:
        for numbers_or_none in denial.calls.values():
            number = numbers_or_none[abi]
            if number is not None:
                program.go(_IF_EQUAL, number, fail(denial.errno))
    program.end(ALLOW)

    program.place("clone")
    program.load(_ARGS[0])
    program.go(_IF_ANY_BIT, NEW_NAMESPACES, fail(errno.EPERM), ALLOW)

    program.place("socket")
    program.load(_ARGS[0])
    for family in FAMILIES:
        program.go(_IF_EQUAL, family, ALLOW)
    program.go(_IF_EQUAL, AF_NETLINK, None, fail(errno.EAFNOSUPPORT))
    program.load(_ARGS[2])
    program.go(_IF_EQUAL, NETLINK_ROUTE, ALLOW, fail(errno.EAFNOSUPPORT))

    program.place("socketpair")
    program.load(_ARGS[0])
    program.go(_IF_EQUAL, FAMILIES[0], ALLOW, fail(errno.EAFNOSUPPORT))

    program.place("ioctl")
    program.load(_ARGS[1])
    for request in TERMINAL_INPUT:
        program.go(_IF_EQUAL, request, fail(errno.EPERM))
    program.end(ALLOW)

    program.place("setsockopt")
    program.load(_ARGS[1])
    program.go(_IF_EQUAL, SOL_SOCKET, None, ALLOW)
    program.load(_ARGS[2])
    for option in SOCKET_FILTERS:
        program.go(_IF_EQUAL, option, fail(errno.EPERM))
    program.end(ALLOW)

    program.place("mmap")
    program.load(_ARGS[3])
    program.go(_IF_ANY_BIT, HUGE_MAPPING, fail(errno.EPERM), ALLOW)

    program.place("memfd_create")
    program.load(_ARGS[1])
    program.go(_IF_ANY_BIT, HUGE_FILE, fail(errno.EPERM), ALLOW)
    return program.assemble()


#: Made once, in the launcher, for all jobs; empty on a machine that the table does not know, and no job starts there.
PROGRAM: Final = assemble(os.uname().machine)
