"""The mounts of a process, as proc(5) lists them in mountinfo."""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

_ESCAPED: Final = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """One line: where, with which options of its own, and of which file system type."""

    path: str
    options: str
    kind: str


def parse_mountinfo(text: str) -> Iterator[Mount]:
    """The mounts in the order in which they were made."""
    for line in text.splitlines():
        fields, _, rest = line.partition(" - ")
        _, _, _, _, path, options, *_ = fields.split(" ")
        if "\\" in path:
            path = _ESCAPED.sub(lambda match: chr(int(match[1], 8)), path)
        yield Mount(path, options, rest.partition(" ")[0])
