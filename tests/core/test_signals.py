"""Every signal has one name, and what people write for it means it."""

import signal

import pytest

from jobworker.core.errors import ErrorCode, JobError
from jobworker.core.signals import parse_signal, signal_name


@pytest.mark.parametrize("number", sorted(signal.valid_signals()))
def test_the_name_of_every_signal_means_it_in_any_spelling(number: int) -> None:
    name = signal_name(number)
    assert name.startswith("SIG")
    for text in (name, name.lower(), name.removeprefix("SIG"), str(number)):
        assert parse_signal(text) == number


def test_other_names_of_a_signal_mean_it_too() -> None:
    assert (parse_signal("CLD"), parse_signal("IOT")) == (signal.SIGCHLD, signal.SIGABRT)


@pytest.mark.parametrize("text", ["", "0", "65", "-9", "9.0", "BOGUS", "SIG", "SIGSIGTERM", "RTMIN+40", "\u0669"])
def test_what_is_no_signal_is_refused_by_its_field(text: str) -> None:
    with pytest.raises(JobError) as refused:
        parse_signal(text, "--signal")
    assert refused.value.code is ErrorCode.INVALID_ARGUMENT
    assert refused.value.message.startswith(f"--signal: {text!r} is not valid; allowed: ")
