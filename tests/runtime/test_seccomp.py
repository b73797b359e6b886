"""The filter of system calls, run by an interpreter of its own over every call number and the arguments that count."""

import errno
import itertools
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from kernel_headers import MACHINES, call_numbers

from jobworker.runtime import seccomp

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
I386 = 0x40000003
ARM = 0x40000028
ALLOWED, KILLED = "allowed", "killed"
GOLDEN = Path(__file__).parent / "data"

_NAMES = {0x20: "load", 0x06: "return", 0x15: "==", 0x25: ">", 0x35: ">=", 0x45: "&"}
_DATA = {0: "number", 4: "arch", **{16 + 8 * n: f"argument {n}" for n in range(6)}}


def instructions(program: bytes) -> list[tuple[int, int, int, int]]:
    return list(struct.iter_unpack("HBBI", program))


def run(program: bytes, arch: int, number: int, *arguments: int) -> int:
    """What classic BPF makes of a call; seccomp(2), bpf(2)."""
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("IIQ6Q", number, arch, 0, *padded)
    lines, here, register = instructions(program), 0, 0
    while True:
        code, then, otherwise, value = lines[here]
        here += 1
        match code:
            case 0x20:
                [register] = struct.unpack_from("I", data, value)
            case 0x06:
                return value
            case 0x15:
                here += then if register == value else otherwise
            case 0x25:
                here += then if register > value else otherwise
            case 0x35:
                here += then if register >= value else otherwise
            case 0x45:
                here += then if register & value else otherwise
            case _:
                raise AssertionError(f"an instruction that the kernel's shortcut does not know: {code:#x}")


def verdict(machine: str, number: int, *arguments: int, arch: int | None = None) -> str:
    """The word for what becomes of a call: allowed, killed, or the errno."""
    program = seccomp.assemble(machine)
    value = run(program, AUDIT_ARCH[machine] if arch is None else arch, number, *arguments)
    match value & 0xFFFF0000:
        case 0x7FFF0000:
            return ALLOWED
        case 0x80000000:
            return KILLED
        case 0x00050000:
            return errno.errorcode[value & 0xFFFF]
    raise AssertionError(f"not a verdict: {value:#x}")


def disassembly(program: bytes) -> Iterator[str]:
    for here, (code, then, otherwise, value) in enumerate(instructions(program)):
        if code == 0x20:
            yield f"{here:3}  load {_DATA[value]}"
        elif code == 0x06:
            yield f"{here:3}  return {value:#010x}"
        else:
            yield f"{here:3}  {_NAMES[code]} {value:#x} ? {here + 1 + then} : {here + 1 + otherwise}"


@pytest.mark.parametrize("machine", MACHINES)
def test_the_program_is_the_one_that_was_reviewed(machine: str) -> None:
    """A change of the table is a change of tests/runtime/data, to be read by somebody."""
    golden = GOLDEN / f"seccomp-{machine}.txt"
    assert list(disassembly(seccomp.assemble(machine))) == golden.read_text().splitlines()


@pytest.mark.parametrize("machine", MACHINES)
def test_every_call_has_the_number_that_the_kernels_header_gives_it(machine: str) -> None:
    known = call_numbers(machine)
    abi = MACHINES.index(machine)
    ours = {name: calls[abi] for denial in seccomp.DENIALS for name, calls in denial.calls.items()}
    ours |= {
        "clone": seccomp.CLONE[abi],
        "socket": seccomp.SOCKET[abi],
        "socketpair": seccomp.SOCKETPAIR[abi],
        "setsockopt": seccomp.SETSOCKOPT[abi],
        "mmap": seccomp.MMAP[abi],
        "memfd_create": seccomp.MEMFD_CREATE[abi],
        "ioctl": seccomp.IOCTL[abi],
    }
    newer_than_the_header = {name for name in ours if name not in known and ours[name] is not None}
    assert newer_than_the_header <= {"open_tree_attr", "set_mempolicy_home_node", "memfd_secret", "lookup_dcookie"}
    assert {name: number for name, number in ours.items() if name in known} == {
        name: known[name] for name in ours if name in known
    }
    # A call that exists on one machine only is not forgotten on the other.
    assert {name for name, number in ours.items() if number is None and name in known} == set()


#: From the security profile, and not from the table under test.
REFUSED = {
    "EPERM": (
        "unshare setns mount umount2 pivot_root chroot quotactl open_tree move_mount fsopen fsconfig fsmount fspick "
        "mount_setattr keyctl add_key request_key bpf perf_event_open userfaultfd kcmp ptrace process_vm_readv "
        "process_vm_writev pidfd_getfd init_module finit_module delete_module kexec_load kexec_file_load reboot "
        "swapon swapoff acct iopl ioperm syslog settimeofday clock_settime open_by_handle_at fanotify_init mbind "
        "set_mempolicy get_mempolicy migrate_pages move_pages"
    ),
    "ENOSYS": "clone3 io_uring_setup io_uring_enter io_uring_register modify_ldt uselib",
}
ORDINARY = (
    "read write openat close mmap mprotect brk futex execve execveat exit_group wait4 kill pidfd_open "
    "pidfd_send_signal getrandom statx epoll_pwait clock_gettime clock_nanosleep prctl seccomp rt_sigaction "
    "sched_setaffinity copy_file_range memfd_create inotify_init1 eventfd2 timerfd_create mremap madvise "
    "membarrier rseq close_range openat2 faccessat2 landlock_create_ruleset landlock_restrict_self prlimit64 "
    "setresuid getdents64 sendmsg recvmsg accept4 sendfile"
)


@pytest.mark.parametrize("machine", MACHINES)
def test_what_the_profile_refuses_is_refused_and_what_programs_need_is_not(machine: str) -> None:
    """E8, E15, E16, E19."""
    known = call_numbers(machine)
    for expected, names in REFUSED.items():
        for name in names.split():
            if name in known:
                assert verdict(machine, known[name]) == expected, name
                assert verdict(machine, known[name], *[(1 << 64) - 1] * 6) == expected, name
    for name in ORDINARY.split():
        assert verdict(machine, known[name]) == ALLOWED, name


@pytest.mark.parametrize("machine", MACHINES)
def test_every_number_has_the_verdict_of_the_table_and_new_ones_do_not_exist(machine: str) -> None:
    """E19. All 32-bit numbers up to well beyond the newest, and those around the borders of the ABIs."""
    abi = MACHINES.index(machine)
    denied = {
        calls[abi]: errno.errorcode[denial.errno] for denial in seccomp.DENIALS for calls in denial.calls.values()
    }
    by_arguments = (
        seccomp.CLONE,
        seccomp.SOCKET,
        seccomp.SOCKETPAIR,
        seccomp.IOCTL,
        seccomp.SETSOCKOPT,
        seccomp.MMAP,
        seccomp.MEMFD_CREATE,
    )
    judged = {numbers[abi] for numbers in by_arguments}
    for number in range(seccomp.NEWEST_REVIEWED + 1):
        if number not in judged:
            assert verdict(machine, number) == denied.get(number, ALLOWED), number
    for number in (*range(seccomp.NEWEST_REVIEWED + 1, 1200), 0x3FFFFFFF, 0xFFFFFFFF):
        assert verdict(machine, number) == "ENOSYS", number
    for number in (0x40000000, 0x40000000 + 59, 0x40000000 + 520, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE):
        assert verdict(machine, number) == (KILLED if machine == "x86_64" else "ENOSYS"), number


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_of_another_architecture_kill(machine: str) -> None:
    """E19. i386 on x86_64, 32-bit ARM on aarch64, and either of the two in the other's place."""
    [other] = set(MACHINES) - {machine}
    for arch in (I386, ARM, AUDIT_ARCH[other], 0):
        for number in (0, 1, 11, 59, 1000):
            assert verdict(machine, number, arch=arch) == KILLED
    assert verdict(machine, call_numbers(machine)["read"]) == ALLOWED


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("dirt", [0, 1 << 32, 0xFFFFFFFF << 32], ids=["clean", "one high bit", "all high bits"])
def test_arguments_are_judged_by_their_low_half(machine: str, dirt: int) -> None:
    """E8, E18, E20."""
    abi = MACHINES.index(machine)
    for bit in range(32):
        new = bit in {17, 25, 26, 27, 28, 29, 30}  # NEWNS NEWCGROUP NEWUTS NEWIPC NEWUSER NEWPID NEWNET
        assert verdict(machine, seccomp.CLONE[abi], 17 | 1 << bit | dirt) == ("EPERM" if new else ALLOWED)
    for family in range(64):
        expected = ALLOWED if family in {1, 2, 10, 16} else "EAFNOSUPPORT"
        assert verdict(machine, seccomp.SOCKET[abi], family | dirt, 1, 0) == expected, family
        pair = ALLOWED if family == 1 else "EAFNOSUPPORT"
        assert verdict(machine, seccomp.SOCKETPAIR[abi], family | dirt, 1, 0) == pair, family
    for protocol in range(32):
        expected = ALLOWED if protocol == 0 else "EAFNOSUPPORT"
        assert verdict(machine, seccomp.SOCKET[abi], 16 | dirt, 3, protocol | dirt) == expected
    for request in (0x5401, 0x5410, 0x5412, 0x5413, 0x541C, 0x5421):
        expected = "EPERM" if request in {0x5412, 0x541C} else ALLOWED
        assert verdict(machine, seccomp.IOCTL[abi], 0, request | dirt) == expected
    for level, option in itertools.product(range(4), range(80)):
        expected = "EPERM" if level == 1 and option in {26, 50, 51, 52} else ALLOWED
        assert verdict(machine, seccomp.SETSOCKOPT[abi], 0, level | dirt, option | dirt) == expected
    for bit in range(32):
        mapping = verdict(machine, seccomp.MMAP[abi], 0, 4096, 3, 1 << bit | dirt)
        assert mapping == ("EPERM" if bit == 18 else ALLOWED)
        file = verdict(machine, seccomp.MEMFD_CREATE[abi], 0, 1 << bit | dirt)
        assert file == ("EPERM" if bit == 2 else ALLOWED)


@pytest.mark.parametrize("machine", MACHINES)
def test_allowed_calls_are_decided_by_their_number_alone(machine: str) -> None:
    """The kernel keeps answers only for calls whose verdict needs no argument; the others cost each time."""
    abi = MACHINES.index(machine)
    offsets = {value for code, _, _, value in instructions(seccomp.assemble(machine)) if code == 0x20}
    assert offsets == {0, 4, 16, 24, 32, 40}
    read = call_numbers(machine)["read"]
    assert verdict(machine, read, *[0x5412] * 6) == verdict(machine, read) == ALLOWED
    assert verdict(machine, seccomp.IOCTL[abi], 0, 0x5412) == "EPERM"


def test_a_machine_that_the_table_does_not_know_gets_no_filter() -> None:
    """And so no job: the kernel refuses to load one of no instructions."""
    assert seccomp.assemble("riscv64") == b""
