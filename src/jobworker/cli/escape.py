"""Makes text harmless to a terminal: nothing that a job writes can command it.

Escaped are the control characters of C0 and C1 other than newline and tab, carriage returns
that are not part of a line's end, the characters that reorder text (Unicode's bidirectional
controls), and bytes that are not UTF-8. (kubectl had to learn this: CVE-2021-25743.)
"""

import codecs
import re
from typing import Final

_BIDIRECTIONAL: Final = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_RAW_BYTES: Final = "\udc80-\udcff"  # as surrogateescape decodes what is not UTF-8
_UNSAFE: Final = re.compile(f"\r(?!\n)|[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f{_BIDIRECTIONAL}{_RAW_BYTES}]")
_UNSAFE_IN_A_LINE: Final = re.compile(f"[\0-\x1f\x7f-\x9f\u2028\u2029{_BIDIRECTIONAL}\ud800-\udfff]")


def escape_text(text: str) -> str:
    """`text` as one line that is safe to show: newlines and tabs are escaped too."""
    return _UNSAFE_IN_A_LINE.sub(_visible, text)


class TerminalEscaper:
    """Escapes one stream of bytes, however its characters are split into pieces."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._held = ""

    def escape(self, data: bytes, *, final: bool = False) -> bytes:
        """The safe form of the next piece; an incomplete character or line end waits for the rest of it."""
        text = self._held + self._decoder.decode(data, final)
        self._held = "\r" if text.endswith("\r") and not final else ""
        return _UNSAFE.sub(_visible, text.removesuffix(self._held)).encode()


def _visible(match: re.Match[str]) -> str:
    r"""A control character as people write it: ^[ for escape, \x9b, \u202e."""
    code = ord(match[0])
    if code < 0x20:
        return f"^{chr(code + 0x40)}"
    if code == 0x7F:
        return "^?"
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
