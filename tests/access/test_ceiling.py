"""What a role may ask for at most: everything up to the bound, nothing beyond, and never less than was said."""

from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobworker.access.ceiling import Ceiling
from jobworker.core.errors import ErrorCode, JobError
from jobworker.core.spec import Limits, MiB

# field → (bound, the most that is allowed, the least that is not, how the message says the bound)
TABLE: dict[str, tuple[Any, Any, Any, str]] = {
    "cpu": (2.0, 2.0, 2.001, "2.0"),
    "memory": (64 * MiB, 64 * MiB, 64 * MiB + 1, "64 MiB"),
    "pids": (10, 10, 11, "10"),
    "timeout": (3600.0, 3600.0, 3600.5, "1h"),
    "output_bytes": (MiB, MiB, MiB + 1, "1 MiB"),
}
OPEN = Limits(memory=None, pids=None)


def limits(**values: Any) -> Limits:
    return Limits(**{"memory": None, "pids": None} | values)


def test_every_bound_is_in_the_table() -> None:
    assert TABLE.keys() == {item.name for item in fields(Ceiling)}


@pytest.mark.parametrize("name", TABLE)
def test_up_to_the_bound_is_allowed_and_beyond_is_refused_by_name(name: str) -> None:
    bound, most, too_much, shown = TABLE[name]
    ceiling = Ceiling(**{name: bound})
    ceiling.check(limits(**{name: most}))
    with pytest.raises(JobError, match=rf"^{name}: .* allowed: at most {shown} for your role$") as refused:
        ceiling.check(limits(**{name: too_much}))
    assert refused.value.code is ErrorCode.INVALID_ARGUMENT


@pytest.mark.parametrize("name", set(TABLE) - {"output_bytes"})
def test_no_limit_at_all_is_more_than_any_bound(name: str) -> None:
    with pytest.raises(JobError, match=f"^{name}: 'unlimited'"):
        Ceiling(**{name: TABLE[name][0]}).check(OPEN)


@given(
    st.builds(
        Limits,
        cpu=st.none() | st.floats(0.01, 4096),
        memory=st.none() | st.integers(4 * MiB, 1 << 62),
        pids=st.none() | st.integers(1, 4_194_304),
        timeout=st.none() | st.floats(0.001, 1e8),
        output_bytes=st.integers(0, 1 << 62),
    )
)
def test_without_a_bound_everything_is_allowed(asked: Limits) -> None:
    Ceiling().check(asked)
    Ceiling(**{item.name: getattr(asked, item.name) for item in fields(Ceiling)}).check(asked)
