"""The messages between server, launcher and monitor: what one end says, the other end hears."""

import json
import os
import socket
from dataclasses import fields
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobworker.core.errors import ErrorCode
from jobworker.runtime import wire

KINDS: tuple[type[Any], ...] = get_args(wire.Message)

VALUES: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(-(1 << 63), 1 << 63),
    float: st.floats(allow_nan=False),
    # Lone surrogates stand for bytes that are not UTF-8.
    str: st.text(st.characters() | st.characters(categories=["Cs"]), max_size=20),
    str | None: st.none() | st.text(max_size=20),
    list[str]: st.lists(st.text(max_size=20), max_size=5),
    dict[str, str]: st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=5),
    dict[str, Any]: st.dictionaries(st.text(max_size=9), st.none() | st.integers() | st.text(), max_size=5),
}


def messages(kind: type[Any]) -> st.SearchStrategy[Any]:
    """Any message of a kind, from the types of its fields: a new field needs no new test."""
    hints = get_type_hints(kind)
    return st.builds(kind, **{item.name: VALUES[hints[item.name]] for item in fields(kind)})


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_a_message_comes_back_as_it_was(kind: type[Any], data: st.DataObject) -> None:
    message = data.draw(messages(kind))
    assert wire.decode(wire.encode(message)) == message


def test_every_message_has_a_name_of_its_own() -> None:
    assert sorted(wire._TYPES) == sorted(kind.__name__ for kind in KINDS)
    assert set(wire._TYPES.values()) == set(KINDS)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_message_are_a_value_error(packet: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        wire.decode(packet)


@given(JSON, st.sampled_from([None, "OrderStop", "Ready", "Launch", "object", "__class__", [], {}, 5]))
def test_documents_that_are_no_message_are_a_value_error(document: Any, kind: Any) -> None:
    if isinstance(document, dict):
        document = {"unknown": 1} | document | {"type": kind}
    with pytest.raises(ValueError, match="not a message"):
        wire.decode(json.dumps(document).encode())


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"{}",
        b'{"type": "Launch"}',
        b'{"type": "Launch", "job_id": "x", "uid": 0}',
        b'{"type": "Bootstrap"}',
        b'"\xff"',
        b"[" * wire.MAX_PACKET,
        b'{"a":' * 10_000,
    ],
    ids=lambda packet: packet[:20],
)
def test_garbage_is_a_value_error(packet: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        wire.decode(packet)


def test_a_failed_start_is_the_error_that_its_caller_sees() -> None:
    error = wire.StartFailed(ErrorCode.PROGRAM_NOT_FOUND.value, "program not found: 'x'", "Exec").error()
    assert (error.code, error.message) == (ErrorCode.PROGRAM_NOT_FOUND, "program not found: 'x'")


def test_messages_and_descriptors_travel_together_one_a_packet() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, open("/dev/null") as null:
        wire.send(ours, wire.Launch("first"), (null.fileno(),))
        wire.send(ours, wire.Launch("second"))
        message, (received,) = wire.receive(theirs, max_fds=2)
        try:
            assert message == wire.Launch("first")
            assert os.readlink(f"/proc/self/fd/{received}") == "/dev/null"
            assert not os.get_inheritable(received)
        finally:
            os.close(received)
        assert wire.receive(theirs, max_fds=2) == (wire.Launch("second"), [])
        ours.close()
        assert wire.receive(theirs) == (None, [])
