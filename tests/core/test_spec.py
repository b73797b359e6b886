"""A job spec is right or cannot be built, and survives its way over the disk and the wire unchanged."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import MISSING, FrozenInstanceError, fields, replace
from enum import Enum
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobworker.core.errors import ErrorCode, JobError
from jobworker.core.spec import JobSpec, Limits, MiB, Network, OnOutputLimit, words

# Every field by name, with values that the type allows and the field does not.
REFUSED_LIMITS: dict[str, list[Any]] = {
    "cpu": [0, -1, 0.009, 4097, math.nan, math.inf, True, "0.5"],
    "memory": [0, -1, 4 * MiB - 1, 1 << 63, 64.5, True, "64M"],
    "pids": [0, -1, 4_194_305, 1.5, True, "8"],
    "io_read_bps": [0, -1, 1 << 63, 0.5, True, "10M"],
    "io_write_bps": [0, -1, 1 << 63, 0.5, True, "10M"],
    "io_read_iops": [0, -1, 1 << 63, 0.5, True, "10"],
    "io_write_iops": [0, -1, 1 << 63, 0.5, True, "10"],
    "io_device": ["", "sda", "dev/sda", "/dev/../sda", "/dev/sda\0", 8],
    "timeout": [0, -1, 0.0001, 3660 * 86400, math.nan, math.inf, True, "1h"],
    "output_bytes": [None, -1, 1 << 63, 0.5, True, "1G"],
}
ACCEPTED_LIMITS: dict[str, list[Any]] = {
    "cpu": [None, 0.01, 0.5, 2, 4096],
    "memory": [None, 4 * MiB, 1 << 62],
    "pids": [None, 1, 4_194_304],
    "io_read_bps": [None, 1, 1 << 62],
    "io_write_bps": [None, 1, 1 << 62],
    "io_read_iops": [None, 1, 1 << 62],
    "io_write_iops": [None, 1, 1 << 62],
    "io_device": [None, "/", "/dev/nvme0n1", "/srv/data.d/..x"],
    "timeout": [None, 0.001, 1, 3650 * 86400],
    "output_bytes": [0, 1, 1 << 62],
}
REFUSED_FIELDS: dict[str, list[Any]] = {
    "program": ["", "/", ".", "..", "bin/sh", "./sh", "/bin/", "/bin/../sh", "../sh", "sh\0", "\ud800", None, b"sh"],
    "args": ["one two", None, [b"bytes"], [1], ["nul\0"], ["\ud800"], ["x"] * 65_537],
    "env": [
        ["A=1"],
        *({name: ""} for name in ("", "1A", "A=B", "A B", "Ä", "A\n", 1)),
        *({"A": value} for value in (1, None, "\0", "\ud800")),
    ],
    "workdir": ["", "tmp", "/tmp/..", "/tmp/../etc", "/tmp\0", 1],
    "rootfs": ["", "srv", "/srv/..", "/srv/../etc", "/srv\0", 1],
    "name": ["", "-a", ".a", "a b", "a/b", "é", "a\n", "a" * 64, 1],
    "labels": [
        ["a"],
        *({key: ""} for key in ("", "-a", "a-", "a b", "a" * 64, 1)),
        *({"a": value} for value in (1, None, "\n", "x" * 256)),
        {f"k{number}": "" for number in range(65)},
    ],
}
ACCEPTED_FIELDS: dict[str, list[Any]] = {
    "program": ["/bin/sh", "sh", "a.out", "/opt/with space/..x", "/bin/\udcff", "-", "ünï"],
    "args": [(), [], ["; rm -rf /", "", " ", "\n", "*", "$(x)", "\udcff\udc80", "ünï"], ["x"] * 65_536],
    "env": [{}, {"_": "", "A1": "a=b", "lower": "\udcff"}],
    "workdir": [None, "/", "/tmp", "/tmp/..x"],
    "rootfs": [None, "/", "/srv/roots/a"],
    "name": [None, "a", "A.b_c-9", "a" * 63],
    "labels": [{}, {"a": ""}, {"example.org/team": "ünï x"}, {f"k{number}": "" for number in range(64)}],
}


def cases(table: dict[str, list[Any]]) -> list[Any]:
    """One test a field and value, with an id that does not spell the value."""
    return [
        pytest.param(field, value, id=f"{field}-{index}")
        for field, values in table.items()
        for index, value in enumerate(values)
    ]


def limits_with(field: str, value: Any) -> Limits:
    # A device is allowed only beside a limit for it.
    return Limits(**({"io_read_bps": 1} if field == "io_device" else {}) | {field: value})


def spec_with(field: str, value: Any) -> JobSpec:
    return JobSpec(**({"program": "/bin/true"} | {field: value}))


@pytest.mark.parametrize(("field", "value"), cases(REFUSED_LIMITS))
def test_a_bad_limit_is_refused_by_its_name_its_value_and_what_is_allowed(field: str, value: Any) -> None:
    with pytest.raises(JobError) as refusal:
        limits_with(field, value)
    assert refusal.value.code is ErrorCode.INVALID_ARGUMENT
    assert refusal.value.message.startswith(f"{field}: {value!r} is not valid; allowed: ")


@pytest.mark.parametrize(("field", "value"), cases(ACCEPTED_LIMITS))
def test_a_good_limit_is_kept_as_given(field: str, value: Any) -> None:
    assert getattr(limits_with(field, value), field) == value


@pytest.mark.parametrize(("field", "value"), cases(REFUSED_FIELDS))
def test_a_bad_field_is_refused_by_its_name_and_what_is_allowed(field: str, value: Any) -> None:
    with pytest.raises(JobError) as refusal:
        spec_with(field, value)
    assert refusal.value.code is ErrorCode.INVALID_ARGUMENT
    assert refusal.value.message.startswith(field)
    assert " is not valid; allowed: " in refusal.value.message


@pytest.mark.parametrize(("field", "value"), cases(ACCEPTED_FIELDS))
def test_a_good_field_is_kept_as_given(field: str, value: Any) -> None:
    kept = getattr(spec_with(field, value), field)
    assert kept == (tuple(value) if field == "args" else value)


def test_every_field_is_in_the_tables_above() -> None:
    chosen_from_an_enum_or_checked_alone = {"network", "limits", "on_output_limit"}
    known = {item.name for kind in (JobSpec, Limits) for item in fields(kind)}
    assert REFUSED_LIMITS.keys() | REFUSED_FIELDS.keys() == known - chosen_from_an_enum_or_checked_alone
    assert ACCEPTED_LIMITS.keys() | ACCEPTED_FIELDS.keys() == known - chosen_from_an_enum_or_checked_alone


def test_a_device_without_a_limit_for_it_is_refused() -> None:
    with pytest.raises(JobError, match=r"^io_device: '/dev/sda' is not .* only together with an io limit$"):
        Limits(io_device="/dev/sda")


def test_limits_bound_memory_processes_and_output_unless_told_otherwise() -> None:
    limits = Limits()
    assert (limits.memory, limits.pids, limits.output_bytes) == (512 * MiB, 256, 1024 * MiB)
    assert not limits.limits_io()
    io_limits = ("io_read_bps", "io_write_bps", "io_read_iops", "io_write_iops")
    assert all(limits_with(name, 1).limits_io() for name in io_limits)


def test_a_spec_cannot_be_changed_through_what_it_was_built_from() -> None:
    args, env, labels = ["a"], {"A": "1"}, {"k": "v"}
    spec = JobSpec(program="true", args=args, env=env, labels=labels)  # type: ignore[arg-type]
    args.append("b")
    env["B"] = "2"
    labels["l"] = "w"
    assert (spec.args, dict(spec.env), dict(spec.labels)) == (("a",), {"A": "1"}, {"k": "v"})


def test_a_spec_cannot_be_changed() -> None:
    spec = JobSpec(program="true", env={"A": "1"})
    with pytest.raises(FrozenInstanceError):
        spec.program = "false"  # type: ignore[misc]
    with pytest.raises(TypeError):
        spec.env["A"] = "2"  # type: ignore[index]


def test_a_changed_copy_is_checked_like_a_new_spec() -> None:
    spec = JobSpec(program="true", env={"A": "1"})
    assert replace(spec, name="copy").env == spec.env
    with pytest.raises(JobError):
        replace(spec, name="no copy")


def test_neither_repr_nor_an_error_shows_a_value_of_the_environment() -> None:
    spec = JobSpec(program="true", env={"TOKEN": "s3cret", "HOME": "/x"})
    assert "s3cret" not in repr(spec)
    assert "['HOME', 'TOKEN']" in repr(spec)
    with pytest.raises(JobError, match=r"^env TOKEN: its value is not valid; allowed: text without a NUL byte$"):
        JobSpec(program="true", env={"TOKEN": "s3cret\0"})


@given(st.lists(st.binary(max_size=20).filter(lambda word: b"\0" not in word), max_size=5))
def test_arguments_are_kept_byte_for_byte(command: list[bytes]) -> None:  # S9
    spec = JobSpec(program="true", args=words(command))
    carried = JobSpec.from_document(json.loads(json.dumps(spec.to_document())))
    assert [os.fsencode(word) for word in carried.args] == command


def test_words_take_text_as_it_is() -> None:
    assert words(["a b", b"\xff", "é", "é".encode()]) == ("a b", "\udcff", "é", "é")


# Generated from the fields themselves: a new field is in the round trip without a line here.

BYTES_AS_TEXT = st.binary(max_size=12).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"")))
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "program": st.sampled_from(["/bin/true", "true", "/bin/\udcff"]),
    "name": st.none() | st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", fullmatch=True),
    "workdir": st.none() | st.just("/tmp"),
    "rootfs": st.none() | st.just("/srv/roots/a"),
    "env": st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True), BYTES_AS_TEXT, max_size=3),
    "labels": st.dictionaries(
        st.from_regex(r"[A-Za-z0-9]{1,8}", fullmatch=True), st.sampled_from(["", "v", "é"]), max_size=3
    ),
    "cpu": st.none() | st.floats(min_value=0.01, max_value=4096),
    "timeout": st.none() | st.floats(min_value=0.001, max_value=1e8),
    "memory": st.none() | st.integers(min_value=4 * MiB, max_value=1 << 62),
    "pids": st.none() | st.integers(min_value=1, max_value=4_194_304),
    "io_read_bps": st.integers(min_value=1, max_value=1 << 62),
    "io_device": st.none() | st.just("/dev/sda"),
}


def value_of(name: str, kind: Any) -> st.SearchStrategy[Any]:
    """Values for the field `name` of the type `kind`."""
    if name in VALUES:
        return VALUES[name]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return st.sampled_from(kind)
    if kind is Limits:
        return instances(Limits)
    return {
        tuple[str, ...]: st.lists(BYTES_AS_TEXT, max_size=4).map(tuple),
        int: st.integers(min_value=0, max_value=1 << 62),
        int | None: st.none() | st.integers(min_value=1, max_value=1 << 62),
    }[kind]


def instances(kind: type[Any]) -> st.SearchStrategy[Any]:
    """Values of the dataclass `kind`, every field of it set."""
    hints = get_type_hints(kind)
    return st.builds(kind, **{item.name: value_of(item.name, hints[item.name]) for item in fields(kind)})


@given(instances(JobSpec))
def test_a_spec_comes_back_from_its_document_unchanged(spec: JobSpec) -> None:
    document = json.loads(json.dumps(spec.to_document()))
    assert JobSpec.from_document(document) == spec
    assert document.keys() == {item.name for item in fields(JobSpec)}
    assert document["limits"].keys() == {item.name for item in fields(Limits)}


def test_an_absent_field_takes_its_default() -> None:
    assert JobSpec.from_document({"program": "true"}) == JobSpec(program="true")
    assert JobSpec.from_document({"program": "true", "limits": {"pids": 8}}).limits == Limits(pids=8)
    assert [item.name for item in fields(JobSpec) if item.default is item.default_factory is MISSING] == ["program"]


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ({}, "program: None is not valid"),
        ([], "spec: [] is not valid"),
        ({"program": "true", "owner": "root"}, "spec: 'owner' is not valid"),
        ({"program": "true", "uid": 0, "isolation": "none"}, "spec: 'isolation, uid' is not valid"),
        ({"program": "true", "limits": {"memroy": 1}}, "limits: 'memroy' is not valid"),
        ({"program": "true", "limits": 64}, "limits: 64 is not valid"),
        ({"program": "true", "limits": {"memory": 1}}, "memory: 1 is not valid"),
        (
            {"program": "true", "limits": {"on_output_limit": "die"}},
            "on_output_limit: 'die' is not valid; allowed: drop",
        ),
        ({"program": "true", "network": "bridge"}, "network: 'bridge' is not valid; allowed: none or host"),
        ({"program": "true", "network": None}, "network: None is not valid"),
        ({"program": "true", "args": "one two"}, "args: 'one two' is not valid"),
    ],
)
def test_a_document_is_checked_like_a_new_spec_and_unknown_fields_are_refused(
    document: Any, complaint: str
) -> None:  # A7
    with pytest.raises(JobError) as refusal:
        JobSpec.from_document(document)
    assert refusal.value.code is ErrorCode.INVALID_ARGUMENT
    assert refusal.value.message.startswith(complaint)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.fixed_dictionaries({}, optional={item.name: JSON for item in fields(JobSpec)}))
def test_no_document_breaks_anything_but_itself(document: Mapping[str, Any]) -> None:
    try:
        spec = JobSpec.from_document(document)
    except JobError as error:
        assert error.code is ErrorCode.INVALID_ARGUMENT  # noqa: PT017 - either way out is right
    else:
        assert JobSpec.from_document(spec.to_document()) == spec


def test_the_words_for_enums_are_those_of_the_interfaces() -> None:
    assert [kind.value for kind in Network] == ["none", "host"]
    assert [kind.value for kind in OnOutputLimit] == ["drop", "kill"]
