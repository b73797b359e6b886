"""What a terminal may see of a job's output."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobworker.cli.escape import TerminalEscaper, escape_text


def escaped(*pieces):
    escaper = TerminalEscaper()
    return b"".join([escaper.escape(piece) for piece in pieces] + [escaper.escape(b"", final=True)]).decode()


@pytest.mark.parametrize("text", ["plain", "two\nlines\tand a tab", "dos\r\n", "grüße 日本 🎉"])
def test_ordinary_text_stays_as_it_is(text):  # O13, positive control
    assert escaped(text.encode()) == text


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"\x1b[31mred", "^[[31mred"),
        (b"\x07\x00\x7f", "^G^@^?"),
        (b"fine\rfaked", "fine^Mfaked"),
        (b"ends\r", "ends^M"),
        ("\u009b31m".encode(), "\\x9b31m"),
        (b"\x9b31m", "\\x9b31m"),
        (b"\xff\xfe", "\\xff\\xfe"),
        ("a\u202eb\u2066c".encode(), "a\\u202eb\\u2066c"),
    ],
)
def test_what_could_command_a_terminal_is_escaped(data, shown):  # O13
    assert escaped(data) == shown


@given(st.lists(st.binary(max_size=9), max_size=9))
def test_how_the_bytes_are_split_changes_nothing(pieces):  # O13
    assert escaped(*pieces) == escaped(b"".join(pieces))


@given(st.binary())
def test_nothing_dangerous_ever_passes(data):  # O13
    for character in escaped(data).replace("\r\n", "\n"):
        assert character in "\n\t" or character.isprintable() or ord(character) > 0x9F


def test_half_a_character_waits_for_its_other_half():
    escaper = TerminalEscaper()
    assert escaper.escape("ü".encode()[:1]) == b""
    assert escaper.escape("ü".encode()[1:]) == "ü".encode()


def test_a_message_stays_on_its_line():
    assert escape_text("one\ntwo\r\x1b[2J\udcff\u2028") == "one^Jtwo^M^[[2J\\xff\\u2028"
