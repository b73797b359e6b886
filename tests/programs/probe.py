"""Asks the kernel what this process may do, without doing any harm; answers in one line of JSON.

The first argument names the question, the others are its own. Kernel files are opened, never written.
"""

import contextlib
import ctypes
import errno
import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_IPC_CREAT = 0o1000


def _try(act: Callable[[], object]) -> str:
    """The word ok, or the name of the error."""
    try:
        act()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, type(error).__name__)
    return "ok"


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def facts() -> object:
    """Everything that a program can inherit."""
    own = Path("/proc/self")
    return {
        "argv": [os.fsencode(word).hex() for word in sys.argv[2:]],
        "env": dict(os.environ),
        "fds": {fd: _link(own / "fd" / fd) for fd in os.listdir(own / "fd")},
        "status": dict(line.split(":\t", 1) for line in (own / "status").read_text().splitlines()),
        "cwd": os.getcwd(),
        "umask": os.umask(0o022),
        "rlimits": {
            name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")
        },
        "session": os.getsid(0) == os.getpid(),
        "group": os.getpgrp() == os.getpid(),
        "terminal": _try(lambda: os.close(os.open("/dev/tty", os.O_RDWR))),
        "oom_score_adj": int((own / "oom_score_adj").read_text()),
        "stdin": os.read(0, 1).hex(),
        "cgroup": (own / "cgroup").read_text(),
        "mountinfo": (own / "mountinfo").read_text(),
        "hostname": socket.gethostname(),
        "ids": [os.getresuid(), os.getresgid(), os.getgroups()],
    }


def _link(path: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        return os.readlink(path)
    return "closed"  # the descriptor of the listing itself


def processes() -> object:
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def stats() -> object:
    return {path: _try(partial(os.stat, path)) for path in sys.argv[2:]}


def opens_for_writing() -> object:

    def reach(path: str) -> None:
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))

    return {path: _try(partial(reach, path)) for path in sys.argv[2:]}


def creates_files() -> object:
    """Whether a file can be made in each directory; it is removed again."""

    def create(place: str) -> None:
        path = f"{place}/probe-{os.getpid()}"
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        os.unlink(path)

    return {place: _try(partial(create, place)) for place in sys.argv[2:]}


def contents() -> object:
    """How much there is to see of each file or directory; -1 for nothing at all."""

    def size(path: str) -> int:
        try:
            if os.path.isdir(path):
                return len(os.listdir(path))
            with open(path, "rb") as file:
                return len(file.read(4096))
        except OSError:
            return -1

    return {path: size(path) for path in sys.argv[2:]}


def devices() -> object:
    def make() -> None:
        path = f"{sys.argv[2]}/device-{os.getpid()}"
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        os.unlink(path)

    with open("/dev/zero", "rb") as zero, open("/dev/null", "wb") as null, open("/dev/urandom", "rb") as random:
        works = zero.read(4) == bytes(4) and null.write(b"x") == 1 and len(random.read(4)) == 4
    full = _try(lambda: os.write(os.open("/dev/full", os.O_WRONLY), b"x"))
    return {"names": sorted(os.listdir("/dev")), "works": works, "full": full, "mknod": _try(make)}


def kills_everyone() -> object:
    """SIGKILL to all that this process may signal, with one child to show that it does something."""
    child = os.fork()
    if child == 0:
        signal.pause()
    os.kill(-1, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def privileges() -> object:
    """Every way to more rights that an ordinary system offers; the last argument is a place to write."""
    place = sys.argv[2]
    copy, below = f"{place}/id", f"{place}/below"
    os.mkdir(below)
    subprocess.run(["cp", "/usr/bin/id", copy], check=True)
    os.chmod(copy, 0o6755)
    capability = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_raw+ep, as setcap writes it
    return {
        "setuid copy": subprocess.run([copy, "-u"], capture_output=True, check=False).stdout.decode().strip(),
        "su": _says(["su", "-c", "id -u"]),
        "mount": subprocess.run(["mount", "-t", "tmpfs", "x", below], capture_output=True, check=False).returncode,
        "setcap": _try(lambda: os.setxattr(copy, "security.capability", capability)),
        "raw socket": _try(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close()),
        "setuid": _try(lambda: os.setresuid(0, 0, 0)),
        "chown": _try(lambda: os.chown(copy, 0, 0)),
        "chroot": _try(lambda: os.chroot("/")),
        "hostname": _try(lambda: socket.sethostname(socket.gethostname())),
        "nice": _try(lambda: os.setpriority(os.PRIO_PROCESS, 0, -5)),
    }


def _says(command: list[str]) -> str:
    answer = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    return answer.stdout.decode().strip()


def interfaces() -> object:
    return [name for _, name in socket.if_nameindex()]


def connects() -> object:
    """Whether a connection comes about: to `tcp` HOST PORT, or to `abstract` NAME."""
    if sys.argv[2] == "tcp":
        with socket.socket() as probe:
            probe.settimeout(5)
            return _try(lambda: probe.connect((sys.argv[3], int(sys.argv[4]))))
    with socket.socket(socket.AF_UNIX) as probe:
        return _try(lambda: probe.connect("\0" + sys.argv[3]))


def listens() -> object:
    """Listens on a port of 127.0.0.1 and on an abstract name until it is ended."""
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as abstract:
        tcp.bind(("127.0.0.1", int(sys.argv[2])))
        tcp.listen()
        abstract.bind("\0" + sys.argv[3])
        abstract.listen()
        print("listening", flush=True)
        while True:
            signal.pause()


def shares() -> object:
    """What other processes have left under this key and name; makes its own first with "make"."""
    key, name = int(sys.argv[3]), sys.argv[4]
    create = _IPC_CREAT | 0o666 if sys.argv[2] == "make" else 0
    flags = os.O_RDWR | (os.O_CREAT if create else 0)
    return {
        "shm": _try(lambda: _check(_libc.shmget(key, 4096 if create else 0, create))),
        "sem": _try(lambda: _check(_libc.semget(key, 1 if create else 0, create))),
        "msg": _try(lambda: _check(_libc.msgget(key, create))),
        "posix": _try(lambda: os.close(os.open(f"/dev/shm/{name}", flags, 0o666))),
        "mqueue": _try(lambda: _check(_libc.mq_open(f"/{name}".encode(), flags, 0o666, None))),
        "tmp": _try(lambda: os.close(os.open(f"/tmp/{name}", flags, 0o666))),
    }


def unshares() -> object:
    """Removes what `shares make` has made."""
    key, name = int(sys.argv[2]), sys.argv[3]
    _libc.shmctl(_libc.shmget(key, 0, 0), 0, None)
    _libc.semctl(_libc.semget(key, 0, 0), 0, 0)
    _libc.msgctl(_libc.msgget(key, 0), 0, None)
    _libc.mq_unlink(f"/{name}".encode())
    for place in ("/dev/shm", "/tmp"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{place}/{name}")
    return "removed"


def crashes() -> object:
    """A child that crashes in the place given, with as big a core as it may leave."""
    os.chdir(sys.argv[2])
    child = os.fork()
    if child == 0:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        os.kill(os.getpid(), signal.SIGSEGV)
    status = os.waitpid(child, 0)[1]
    return {"signal": os.WTERMSIG(status), "core": os.WCOREDUMP(status), "files": os.listdir(".")}


def owns() -> object:
    """Every file of this user below the places where a job may write, and every process of its own."""
    found = [
        f"{place}/{name}"
        for top in ("/tmp", "/dev/shm", "/var/tmp")
        for place, folders, files in os.walk(top)
        for name in (*folders, *files)
        if os.lstat(f"{place}/{name}").st_uid == os.getuid()
    ]
    return {"files": found, "processes": processes()}


def sleeps() -> object:
    print("sleeping", flush=True)
    time.sleep(1000)
    return None


_QUESTIONS = (
    facts,
    processes,
    stats,
    opens_for_writing,
    creates_files,
    contents,
    devices,
    kills_everyone,
    privileges,
    interfaces,
    connects,
    listens,
    shares,
    unshares,
    crashes,
    owns,
    sleeps,
)

if __name__ == "__main__":
    print(json.dumps({question.__name__: question for question in _QUESTIONS}[sys.argv[1]]()))
