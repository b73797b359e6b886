"""The numbers of system calls as the kernel's own headers have them, for each machine that we know."""

import re
from pathlib import Path

import pytest

MACHINES = ("x86_64", "aarch64")
#: Where Debian's linux-libc-dev keeps the numbers; none of our making. aarch64 has the generic ones.
_HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


def call_numbers(machine: str) -> dict[str, int]:
    """The calls of the machine by name."""
    header = _HEADERS[machine]
    if not header.exists():
        pytest.skip(f"needs {header.name} of linux-libc-dev")
    found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text())
    return {name: int(number) for name, number in found}
