"""The mounts of a process, as proc(5) lists them in mountinfo."""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

_ESCAPED: Final = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """One line: where, with which options of its own, and of which file system from what.

    The options of the file system are as the kernel escapes them, since there a comma may be part of a value.
    """

    number: str
    path: str
    options: str
    kind: str
    source: str
    file_system_options: str


def parse_mountinfo(text: str) -> Iterator[Mount]:
    """The mounts in the order in which they were made."""
    for line in text.splitlines():
        fields, _, rest = line.partition(" - ")
        number, _, _, _, path, options, *_ = fields.split(" ")
        kind, source, file_system_options = rest.split(" ", 2)
        yield Mount(number, unescape(path), options, kind, unescape(source), file_system_options)


def unescape(text: str) -> str:
    """A name as it is, of which the kernel writes spaces, commas and backslashes in octal."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), text) if "\\" in text else text
