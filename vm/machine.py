"""A virtual machine with Debian's kernel and this host's file system: runs one command, as root, on a cgroup layout.

    python vm/machine.py --layout v2 -- .venv/bin/python -m pytest tests/kernel

The guest sees the host's files as they are and can change none of them: they come by 9p, read-only, under an overlay in
the guest's memory. What survives is the directory that the guest finds as /run/host. Two scratch disks, virtio and
NVMe, hold real block devices; the first is /var/tmp. QEMU emulates the processor, so everything takes some ten times as
long, and needs neither KVM nor any right of the user's.
"""

import argparse
import contextlib
import lzma
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROJECT: Final = Path(__file__).resolve().parent.parent
KERNEL: Final = PROJECT / ".vm" / "kernel"  # what scripts/setup_vm.sh has taken out of the kernel's package
LAYOUTS: Final = ("v2", "hybrid", "v1")

# In this order: the bus, the file systems, the disks, and what the tests of disks make of them.
_MODULES: Final = (
    *("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"),
    *("virtio_blk", "nvme", "crc32c_generic", "ext4", "loop", "dm_mod"),
)
_DISK_SIZE: Final = 1 << 30
_NVME_SIZE: Final = 256 << 20
_PARTITION_START: Final = 1 << 20  # where vm/init has the first partition begin
_ENDED_BY_TIMEOUT: Final = 124
_NO_RESULT: Final = 125


class NotReadyError(Exception):
    """The machine cannot be built here; says what is missing."""


def missing() -> list[str]:
    """What this host lacks to run a machine, each with the way to get it; empty when all is there."""
    needed = {
        "qemu-system-x86": shutil.which("qemu-system-x86_64"),
        "busybox-static": _busybox(),
        "e2fsprogs": _mkfs(),
    }
    lacking = [f"package {package}" for package, place in needed.items() if place is None]
    if not (KERNEL / "vmlinuz").exists():
        lacking.append("Debian's kernel, which scripts/setup_vm.sh gets")
    if PROJECT.is_relative_to("/var/tmp") or PROJECT.is_relative_to("/run"):
        lacking.append("a place of this project outside of /var/tmp and /run, which are the guest's own")
    return lacking


def _busybox() -> str | None:
    return next((place for place in ("/bin/busybox", "/usr/bin/busybox") if os.path.exists(place)), None)


def _mkfs() -> str | None:
    return shutil.which("mkfs.ext4", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of the machine's, in a file of the host's that outlives it."""

    path: Path

    @classmethod
    def create(cls, path: Path, size: int) -> "Disk":
        """An empty one."""
        with path.open("wb") as file:
            file.truncate(size)
        return cls(path)

    @classmethod
    def create_ext4(cls, path: Path, size: int) -> "Disk":
        """One with an empty ext4 file system where its first partition will be."""
        disk = cls.create(path, size)
        mkfs = _mkfs()
        if mkfs is None:
            raise NotReadyError("package e2fsprogs is missing")
        blocks = (size - _PARTITION_START) // 1024
        subprocess.run([mkfs, "-q", "-F", "-E", f"offset={_PARTITION_START}", path, f"{blocks}k"], check=True)
        return disk


class Machine:
    """One boot: made of `home`, a directory of the host's that the guest finds as /run/host and may write to."""

    def __init__(self, home: Path, layout: str, disk: Disk, nvme: Disk) -> None:
        self._home = home
        self._layout = layout
        self._disk = disk
        self._nvme = nvme

    def start(
        self, command: Sequence[str], *, is_interactive: bool = False, stdout: int | None = None
    ) -> "subprocess.Popen[bytes]":
        """QEMU, with the guest's terminal as its standard input and output; when it ends, `status` tells how."""
        lacking = missing()
        if lacking:
            raise NotReadyError(f"missing: {', '.join(lacking)}")
        (self._home / "status").unlink(missing_ok=True)
        (self._home / "command").write_text(f"cd {shlex.quote(str(Path.cwd()))}\nexec {shlex.join(command)}\n")
        (self._home / "initramfs").write_bytes(_initramfs())
        terminal = "interactive" if is_interactive else "raw"
        return subprocess.Popen(
            [*self._qemu(), "-append", f"{_BOOT_OPTIONS} layout={self._layout} terminal={terminal}"],
            stdin=None if is_interactive else subprocess.DEVNULL,
            stdout=stdout,
        )

    def _qemu(self) -> list[str]:
        return [
            *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
            *("-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2G"),
            *("-kernel", str(KERNEL / "vmlinuz"), "-initrd", str(self._home / "initramfs")),
            *("-serial", f"file:{self._home}/kernel.log"),
            *("-chardev", "stdio,id=terminal", "-device", "virtio-serial", "-device", "virtconsole,chardev=terminal"),
            *("-virtfs", "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap"),
            *("-virtfs", f"local,path={self._home},mount_tag=host,security_model=none"),
            *("-drive", f"if=none,id=disk,format=raw,file={self._disk.path}", "-device", "virtio-blk,drive=disk"),
            *("-drive", f"if=none,id=nvme,format=raw,file={self._nvme.path}"),
            *("-device", "nvme,drive=nvme,serial=scratch"),
        ]

    def status(self) -> int | None:
        """The command's exit status; None when the guest ended without one."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int((self._home / "status").read_text())
        return None

    def last_words(self) -> str:
        """The end of what the guest's kernel has said."""
        with contextlib.suppress(FileNotFoundError):
            return "\n".join((self._home / "kernel.log").read_text(errors="replace").splitlines()[-15:])
        return ""


# Nothing to be protected from in here; and a group is moved or removed without waiting for every processor's turn.
_BOOT_OPTIONS: Final = (
    "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off nokaslr random.trust_cpu=on nowatchdog "
    "rcupdate.rcu_expedited=1 transparent_hugepage=never"
)


def _initramfs() -> bytes:
    """The first file system of the guest: busybox, the modules in the order of their loading, and vm/init."""
    busybox = _busybox()
    if busybox is None:
        raise NotReadyError("package busybox-static is missing")
    archive = _CpioWriter()
    for directory in ("bin", "modules", "dev", "proc", "sys", "root", "lower", "upper", "host"):
        archive.add(directory, b"", 0o040755)
    archive.add("bin/busybox", Path(busybox).read_bytes(), 0o100755)
    archive.add("init", (PROJECT / "vm" / "init").read_bytes(), 0o100755)
    for number, (name, content) in enumerate(_load_order(_MODULES).items()):
        archive.add(f"modules/{number:02}-{name}.ko", content, 0o100644)
    return archive.end()


def _load_order(names: Sequence[str]) -> dict[str, bytes]:
    """The modules and all they depend on, as they say themselves, each after what it needs."""
    files = {re.split(r"\.ko", path.name)[0].replace("-", "_"): path for path in (KERNEL / "modules").rglob("*.ko*")}
    ordered: dict[str, bytes] = {}

    def load(name: str) -> None:
        if name in ordered or name not in files:  # what is no module is built in
            return
        content = files[name].read_bytes()
        if files[name].suffix == ".xz":
            content = lzma.decompress(content)
        depends = re.search(rb"\0depends=([^\0]*)\0", content)
        for needed in depends[1].decode().split(",") if depends else ():
            load(needed.replace("-", "_"))
        ordered[name] = content

    for name in names:
        load(name)
    return ordered


class _CpioWriter:
    """The archive format that the kernel unpacks: cpio's "newc"; initramfs-buffer-format.rst."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._entries = 0

    def add(self, name: str, content: bytes, mode: int) -> None:
        self._entries += 1
        path = name.encode() + b"\0"
        fields = (self._entries, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        self._parts += [_padded(header + path), _padded(content)]

    def end(self) -> bytes:
        self.add("TRAILER!!!", b"", 0)
        return b"".join(self._parts)


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 4)


@contextlib.contextmanager
def fresh_machine(layout: str) -> Iterator[Machine]:
    """A machine with empty disks, and nothing of it left afterwards."""
    with tempfile.TemporaryDirectory(prefix="jobworker-vm-", dir="/var/tmp") as home:
        place = Path(home)
        disk = Disk.create_ext4(place / "disk", _DISK_SIZE)
        yield Machine(place, layout, disk, Disk.create(place / "nvme", _NVME_SIZE))


def main() -> int:
    """Boots, runs the command and has its exit status; 124 after the time limit, 125 when there was no result."""
    parser = argparse.ArgumentParser(description="Run a command in a virtual machine with Debian's kernel.")
    parser.add_argument("--layout", choices=LAYOUTS, default="v2", help="how the guest mounts cgroups (default v2)")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds until the machine is switched off")
    parser.add_argument("command", nargs="*", help="what to run in it; without one, a shell")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_NO_RESULT))  # and QEMU ends with us
    try:
        with fresh_machine(options.layout) as machine:
            began = time.monotonic()
            qemu = machine.start(options.command or ["/bin/bash"], is_interactive=not options.command)
            try:
                qemu.wait(options.timeout)
            except subprocess.TimeoutExpired:
                print(f"vm: still running after {options.timeout:g} s, switched off", file=sys.stderr)
            finally:
                qemu.kill()
                qemu.wait()
            status = machine.status()
            if status is None:
                print(f"vm: the machine stopped without a result; its kernel's last words:\n{machine.last_words()}")
                return _ENDED_BY_TIMEOUT if time.monotonic() - began >= options.timeout else _NO_RESULT
            return status
    except NotReadyError as error:
        print(f"vm: {error}", file=sys.stderr)
        return _NO_RESULT


if __name__ == "__main__":
    sys.exit(main())
