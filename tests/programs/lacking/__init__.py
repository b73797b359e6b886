"""Launchers on hosts that lack something: each takes it away from itself, and the kernel then really refuses it."""

import errno
import os
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "src"))

from jobworker.runtime import linux

_CALLS = {"x86_64": {"unshare": 272, "seccomp": 317}, "aarch64": {"unshare": 97, "seccomp": 277}}[os.uname().machine]
# Classic BPF: load a word, jump if equal, jump if a bit is set, return.
_LOAD, _IF_EQUAL, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
_CALL_NUMBER, _FIRST_ARGUMENT = 0, 16


def refuse(call: str, bits: int | None = None) -> None:
    """Every later call of this name fails; with `bits`, every one that has some of them in its first argument."""
    judge = (_RETURN, 0, 0, _REFUSE) if bits is None else (_IF_ANY_BIT, 0, 1, bits)
    instructions = (
        (_LOAD, 0, 0, _CALL_NUMBER),
        (_IF_EQUAL, 0, 3, _CALLS[call]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        judge,
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    )
    linux.filter_system_calls(b"".join(struct.pack("HBBI", *instruction) for instruction in instructions))
