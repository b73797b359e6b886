"""The small files in which the kernel tells something and takes a value."""

import os


def read(path: str) -> str:
    """The whole text of the file."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
        return os.fsdecode(b"".join(parts))
    finally:
        os.close(fd)


def read_or_empty(path: str) -> str:
    """The whole text of the file; nothing where there is none."""
    try:
        return read(path)
    except FileNotFoundError:
        return ""


def write(path: str, value: str) -> None:
    """Hands the kernel a value, in one call."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def write_and_read(path: str, value: str) -> str:
    """Hands the kernel a value, and returns what it shows in its place."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
        return os.fsdecode(os.pread(fd, 65536, 0))
    finally:
        os.close(fd)
