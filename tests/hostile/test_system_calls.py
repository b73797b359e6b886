"""Calls to the kernel that a job must not get an answer to; outside the same calls are answered otherwise."""

import errno
import json
import platform
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from host import JOB_PYTHON, needs_root, run_job

from jobworker import JobSpec, State, Worker
from jobworker.core.outcome import Signaled
from jobworker.core.spec import Limits, MiB
from jobworker.runtime import sandbox, seccomp

pytestmark = needs_root

_ABI = {"x86_64": 0, "aarch64": 1}[platform.machine()]
_THREAD = 0x10000  # CLONE_THREAD alone is no valid clone, so that the control makes no process
_NEW = {"NS": 17, "CGROUP": 25, "UTS": 26, "IPC": 27, "USER": 28, "PID": 29, "NET": 30}

#: Makes the calls given as [number, arguments…], each in a child that may be killed for it.
_CALLS = """
import ctypes, errno, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def answer(number, *arguments):
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        failed = libc.syscall(ctypes.c_long(number), *(ctypes.c_ulong(value) for value in arguments)) < 0
        os.write(writable, errno.errorcode.get(ctypes.get_errno(), "?").encode() if failed else b"ok")
        os._exit(0)
    os.close(writable)
    said = os.read(readable, 100).decode()
    os.close(readable)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return said or status
print(json.dumps([answer(*call) for call in json.loads(sys.argv[1])]))
"""


async def _inside(worker: Worker, calls: list[list[int]]) -> list[Any]:
    job, output = await run_job(worker, JobSpec(program=JOB_PYTHON, args=("-c", _CALLS, json.dumps(calls))))
    assert job.state is State.COMPLETED, output
    answers: list[Any] = json.loads(output)
    return answers


def _outside(calls: list[list[int]]) -> list[Any]:
    """The same calls by root without a sandbox: the positive control."""
    command = ["unshare", "--mount", "--uts", JOB_PYTHON, "-c", _CALLS, json.dumps(calls)]
    answers: list[Any] = json.loads(_said(command))
    return answers


def _said(command: list[str]) -> bytes:
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True).stdout


async def test_every_denied_call_is_denied_and_outside_it_is_not(worker: Worker) -> None:
    """E8, E15, E16, E19. With arguments so wrong that root outside gets an error as well, but another one."""
    nonsense = [(1 << 64) - 1] * 6
    denied = {
        name: (numbers[_ABI], errno.errorcode[denial.errno])
        for denial in seccomp.DENIALS
        for name, numbers in denial.calls.items()
    }
    calls = {name: [number, *nonsense] for name, (number, _) in denied.items() if number is not None}
    inside = dict(zip(calls, await _inside(worker, list(calls.values())), strict=True))
    assert inside == {name: denied[name][1] for name in calls}
    control = dict(zip(calls, _outside(list(calls.values())), strict=True))
    assert {name for name in calls if control[name] == "EPERM"} <= {"fanotify_init", "userfaultfd", "perf_event_open"}
    assert {"unshare", "setns", "mount", "chroot", "ptrace", "bpf", "pivot_root", "clone3", "keyctl"} <= {
        name for name in calls if control[name] not in {"EPERM", "ENOSYS"}
    }


async def test_no_namespace_comes_of_clone(worker: Worker) -> None:
    """E8. Also where the flag hides behind bits that the kernel does not look at."""
    dirt = 0xABCD << 32
    flags = [(1 << bit) | _THREAD for bit in _NEW.values()]
    calls = [[seccomp.CLONE[_ABI], flag | dirty, 0, 0, 0, 0] for flag in flags for dirty in (0, dirt)]
    assert set(await _inside(worker, calls)) == {"EPERM"}
    assert set(_outside(calls)) == {"EINVAL"}


async def test_typing_into_a_terminal_is_refused_also_with_dirty_high_bits(worker: Worker) -> None:
    """E18."""
    requests = [request | dirt for request in (0x5412, 0x541C) for dirt in (0, 1 << 32, 0xFFFFFFFF << 32)]
    calls = [[seccomp.IOCTL[_ABI], 0, request, 0] for request in requests]
    assert set(await _inside(worker, calls)) == {"EPERM"}
    # stdin is /dev/null here and there: without the filter the device says that it is no terminal.
    assert set(_outside(calls)) == {"ENOTTY"}


async def test_no_filter_is_attached_to_a_socket(worker: Worker) -> None:
    """R1. Each takes room from an area that the filters of other jobs need as well."""
    options = [(1 | dirt, option | dirt) for option in (26, 50, 51, 52) for dirt in (0, 1 << 32, 0xFFFFFFFF << 32)]
    calls = [[seccomp.SETSOCKOPT[_ABI], 0, level, option, 0, 0] for level, option in options]
    assert set(await _inside(worker, calls)) == {"EPERM"}
    # stdin is /dev/null here and there: without the filter it is no socket.
    assert set(_outside(calls)) == {"ENOTSOCK"}
    assert await _inside(worker, [[seccomp.SETSOCKOPT[_ABI], 0, 1, 2, 0, 0]]) == ["ENOTSOCK"]


async def test_huge_pages_are_refused(worker: Worker) -> None:
    """S2. They would count for no memory limit. Outside the kernel gives them, or has none."""
    private_anonymous = 0x22
    huge_mappings = [
        [seccomp.MMAP[_ABI], 0, 2 * MiB, 3, private_anonymous | 0x40000 | size << 26, (1 << 64) - 1, 0]
        for size in (0, 21, 30)
    ]
    huge_files = [[seccomp.MEMFD_CREATE[_ABI], 0, 0x4 | size << 26] for size in (0, 21, 30)]
    assert set(await _inside(worker, huge_mappings + huge_files)) == {"EPERM"}
    assert "EPERM" not in _outside(huge_mappings + huge_files)
    ordinary = [[seccomp.MMAP[_ABI], 0, 2 * MiB, 3, private_anonymous, (1 << 64) - 1, 0]]
    assert await _inside(worker, ordinary) == ["ok"]


async def test_sockets_are_of_four_families_only(worker: Worker) -> None:
    """E20."""
    families = range(48)
    calls = [[seccomp.SOCKET[_ABI], family, kind, 0] for family in families for kind in (1, 2, 3, 5)]
    answers = await _inside(worker, calls)
    denied = {call[1] for call, answer in zip(calls, answers, strict=True) if answer == "EAFNOSUPPORT"}
    made = {call[1] for call, answer in zip(calls, answers, strict=True) if answer == "ok"}
    assert denied == set(families) - {1, 2, 10, 16}
    assert made <= {1, 2, 10, 16}
    assert {1, 2, 16} <= made
    netlink = [[seccomp.SOCKET[_ABI], 16, 3, protocol] for protocol in range(1, 23)]
    assert set(await _inside(worker, netlink)) == {"EAFNOSUPPORT"}
    outside = _outside(calls)
    assert {call[1] for call, answer in zip(calls, outside, strict=True) if answer == "ok"} - {1, 2, 10, 16}


async def test_calls_that_are_newer_than_the_filter_do_not_exist(worker: Worker) -> None:
    """E19."""
    calls = [[number] for number in (*range(seccomp.NEWEST_REVIEWED + 1, seccomp.NEWEST_REVIEWED + 40), 1000)]
    assert set(await _inside(worker, calls)) == {"ENOSYS"}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs x86_64: the i386 and x32 ABIs are its alone")
@pytest.mark.parametrize("abi", ["i386", "x32"])
async def test_calls_of_another_abi_kill_the_process(worker: Worker, programs: Path, abi: str) -> None:
    """E19. The control: outside the program lives and says so."""
    program = str(programs / "foreign_abi")
    assert _said([program, abi]) == b"alive\n"
    job, output = await run_job(worker, JobSpec(program=program, args=(abi,)))
    assert (job.state, output) == (State.FAILED, b"")
    assert job.ending is not None
    assert job.ending.outcome == Signaled(signal.SIGSYS)


_THREADS = """
import threading
done = []
threads = [threading.Thread(target=done.append, args=(n,)) for n in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(sorted(done) == list(range(8)))
"""
_JAVA = 'class Hello { public static void main(String[] a) { System.out.println("works"); } }'
_COMMIT = "git init -q . && git -c user.name=a -c user.email=b commit -qm x --allow-empty && git log --format=%s"
_COMPILE = (
    r"""echo 'int puts(const char *); int main(void) { return puts("works") < 0; }' > a.c && gcc -o a a.c && ./a"""
)
_REAL = {
    "python3": (JOB_PYTHON, ("-c", _THREADS), b"True\n"),
    "git": ("sh", ("-c", _COMMIT), b"x\n"),
    "perl": ("perl", ("-e", r'print "works\n"; exit system("true")'), b"works\n"),
    "gcc": ("sh", ("-c", _COMPILE), b"works\n"),
    "node": ("node", ("-e", "require('fs').promises.readdir('/').then(() => console.log('works'))"), b"works\n"),
    "java": ("sh", ("-c", f"echo '{_JAVA}' > Hello.java && java Hello.java"), b"works\n"),
}


@pytest.mark.parametrize("name", _REAL)
async def test_real_programs_work_under_the_filter(worker: Worker, name: str) -> None:
    program, args, expected = _REAL[name]
    if shutil.which(name, path=sandbox.SEARCH_PATH) is None:
        pytest.skip(f"needs {name}, installed where jobs see it")
    job, output = await run_job(worker, JobSpec(program=program, args=args, limits=Limits(memory=2048 * MiB, pids=512)))
    assert (output, job.state) == (expected, State.COMPLETED)
