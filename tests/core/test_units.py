"""Sizes, cpu shares and durations are read as people of this field write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobworker.core.errors import ErrorCode, JobError
from jobworker.core.units import (
    format_duration,
    format_size,
    parse_count,
    parse_cpu,
    parse_duration,
    parse_rate,
    parse_size,
)

KiB, MiB, GiB, TiB = 1024, 1024**2, 1024**3, 1024**4


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("128974848", 128974848),
        ("7b", 7),
        ("7B", 7),
        ("64k", 64 * KiB),
        ("64K", 64 * KiB),
        ("64kb", 64 * KiB),
        ("64KiB", 64 * KiB),
        ("64m", 64 * MiB),
        ("64M", 64 * MiB),
        ("64MB", 64 * MiB),
        ("64Mi", 64 * MiB),
        ("64MiB", 64 * MiB),
        ("2g", 2 * GiB),
        ("2Gi", 2 * GiB),
        ("1.5G", 3 * GiB // 2),
        ("1T", TiB),
        ("1 TiB", TiB),
        ("  64M  ", 64 * MiB),
    ],
)
def test_sizes_take_the_spellings_of_docker_and_kubernetes(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "M",
        "-1",
        "+1",
        "1e3",
        "64X",
        "64Mib/s",
        "64 M B",
        "1,5G",
        "1..5G",
        "0x10",
        "٦٤",
        "nan",
        "inf",
        "9" * 5000,
        "1.",
        "64M\n64M",
    ],
)
def test_what_is_no_size_is_refused_with_the_field_the_value_and_what_is_allowed(text: str) -> None:
    with pytest.raises(JobError) as refusal:
        parse_size(text, "memory")
    assert refusal.value.code is ErrorCode.INVALID_ARGUMENT
    assert refusal.value.message.startswith("memory: ")
    assert repr(text)[:20] in refusal.value.message
    assert "64M or 512MiB" in refusal.value.message


@pytest.mark.parametrize(("text", "rate"), [("10mb", 10 * MiB), ("10M/s", 10 * MiB), (" 1 MiB/s ", MiB), ("512", 512)])
def test_rates_are_sizes_with_or_without_their_second(text: str, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "/s", "10M/m", "10M/s/s", "fast"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(JobError, match=r"^io_read_bps: "):
        parse_rate(text, "io_read_bps")


@pytest.mark.parametrize(
    ("text", "cores"),
    [("2", 2.0), ("0.5", 0.5), (".5", 0.5), ("500m", 0.5), ("1500m", 1.5), (" 1.25 ", 1.25), ("0", 0.0)],
)
def test_cpu_takes_cores_and_thousandths(text: str, cores: float) -> None:
    assert parse_cpu(text) == cores


@pytest.mark.parametrize("text", ["", "m", ".", "-1", "1e3", "50%", "0.5 cores", "1M", "nan", "inf", "9" * 400])
def test_what_is_no_cpu_share_is_refused_with_the_field_the_value_and_what_is_allowed(text: str) -> None:
    with pytest.raises(JobError) as refusal:
        parse_cpu(text)
    assert refusal.value.code is ErrorCode.INVALID_ARGUMENT
    assert refusal.value.message.startswith(f"cpu: {text!r}"[:40])
    assert "0.5, 2 or 500m" in refusal.value.message


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90.0),
        ("0.5", 0.5),
        ("90s", 90.0),
        ("90sec", 90.0),
        ("1h30m", 5400.0),
        ("5min 20s", 320.0),
        ("1 h 30 m", 5400.0),
        ("1.5h", 5400.0),
        ("2d", 172800.0),
        ("500ms", 0.5),
        ("250us", 0.00025),
        ("0", 0.0),
    ],
)
def test_durations_take_the_spellings_of_go_systemd_and_plain_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    ["", " ", "h", "-1s", "1x", "1h30", "1 0", "30 1h", "1e3s", "1h-30m", "1,5h", "nan", "inf", "soon", "9" * 400],
)
def test_what_is_no_duration_is_refused_with_the_field_the_value_and_what_is_allowed(text: str) -> None:
    with pytest.raises(JobError) as refusal:
        parse_duration(text, "timeout")
    assert refusal.value.code is ErrorCode.INVALID_ARGUMENT
    assert refusal.value.message.startswith(f"timeout: {text!r}"[:40])
    assert "1h30m" in refusal.value.message


@given(st.text(max_size=30))
def test_any_text_is_a_number_or_an_error_that_the_caller_may_read(text: str) -> None:
    for parse in (parse_size, parse_rate, parse_cpu, parse_duration, parse_count):
        try:
            assert parse(text) >= 0
        except JobError as error:
            assert error.code is ErrorCode.INVALID_ARGUMENT  # noqa: PT017 - either way out is right


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (KiB, "1 KiB"),
        (1536, "1.5 KiB"),
        (64 * MiB, "64 MiB"),
        (MiB - 1, "1 MiB"),
        (GiB, "1 GiB"),
        (5 * TiB, "5 TiB"),
        (5000 * TiB, "5000 TiB"),
    ],
)
def test_sizes_are_shown_in_the_largest_unit_that_fits(count: int, text: str) -> None:
    assert format_size(count) == text


@given(st.integers(min_value=0, max_value=1 << 62))
def test_a_shown_size_reads_back_within_the_digits_shown(count: int) -> None:
    assert parse_size(format_size(count).replace(" B", "")) == pytest.approx(count, rel=0.051)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ms"),
        (0.35, "350ms"),
        (0.9996, "1s"),
        (1.9996, "1s"),
        (42, "42s"),
        (60, "1m"),
        (90, "1m30s"),
        (5400, "1h30m"),
        (5401, "1h30m"),
        (86400, "1d"),
        (90000, "1d1h"),
    ],
)
def test_durations_are_shown_in_at_most_two_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.floats(min_value=0, max_value=1e8))
def test_a_shown_duration_reads_back_within_the_units_shown(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, rel=0.5, abs=0.001)


@pytest.mark.parametrize("text", ["0", "007", "9" * 18])
def test_a_count_is_a_whole_number(text):
    assert parse_count(text) == int(text)


@pytest.mark.parametrize("text", ["", "-1", "1.0", "1e3", "9" * 19, "\u0663", " 1"])
def test_what_is_no_count_is_refused(text):
    with pytest.raises(JobError, match=r"^--last: .* is not valid; allowed: a whole number of at most 18 digits$"):
        parse_count(text, "--last")
