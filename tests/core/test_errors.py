"""A failed request says why, in a closed set of codes and a message that its caller may read."""

import pytest

from jobworker.core.errors import ErrorCode, JobError, invalid


def test_every_code_is_spelled_as_it_goes_over_the_wire() -> None:
    assert {code.value for code in ErrorCode} == {code.name.lower() for code in ErrorCode}


def test_an_error_carries_its_code_and_its_message() -> None:
    error = JobError(ErrorCode.JOB_NOT_RUNNING, "cannot stop: it has already ended")
    assert (error.code, error.message) == (ErrorCode.JOB_NOT_RUNNING, str(error))
    assert repr(error) == "JobError(job_not_running, 'cannot stop: it has already ended')"


def test_an_invalid_value_is_named_with_its_field_and_what_is_allowed() -> None:
    error = invalid("pids", 0, "1 to 4194304")
    assert error.code is ErrorCode.INVALID_ARGUMENT
    assert error.message == "pids: 0 is not valid; allowed: 1 to 4194304"


@pytest.mark.parametrize("value", ["a" * 1_000_000, b"\0" * 1000, list(range(1000))])
def test_a_long_value_is_shown_in_part(value: object) -> None:
    assert len(invalid("args", value, "less").message) < 130


def test_a_value_cannot_write_control_characters_into_a_message() -> None:  # O13
    assert invalid("name", "\x1b[2J\r\n\u202e", "letters").message.isprintable()
