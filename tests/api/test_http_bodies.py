"""Bodies and queries of the HTTPS API, and what they become."""

import json
import os
from base64 import b64encode
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from jobworker.api.error_map import ERROR_MAP
from jobworker.api.http.answers import Job, JobLimits, JobUsage
from jobworker.api.http.errors import failure_of
from jobworker.api.http.requests import ListJobs, StartJob
from jobworker.api.http.words import Argument, Word
from jobworker.api.page import token_of
from jobworker.core.errors import ErrorCode, JobError
from jobworker.core.outcome import Usage
from jobworker.core.spec import JobSpec, Limits, Network, OnOutputLimit

DEFAULTS = Limits(cpu=2.0, memory=64 << 20)


def spec(**body):
    return StartJob.model_validate({"program": "/bin/true", **body}).to_spec(DEFAULTS)


@given(st.binary().filter(lambda data: b"\0" not in data))
def test_every_word_survives_json(data):
    """S9: byte for byte, as text where it is text."""
    word = TypeAdapter(Word)
    text = os.fsdecode(data)
    told = json.loads(word.dump_json(text))
    assert word.validate_python(told) == text
    assert isinstance(told, str) == (data.decode("utf-8", "ignore").encode() == data)


@pytest.mark.parametrize(("field", "name"), [("program", "program"), ("workdir", "workdir"), ("ioDevice", "io_device")])
def test_a_path_is_text_or_bytes_for_the_server_and_in_its_document(field, name):
    """S9."""
    path = b"/caf\xe9"
    made = spec(**{"ioReadIops": 5, field: {"base64": b64encode(path).decode()}})
    assert os.fsencode(getattr(made.limits if field == "ioDevice" else made, name)) == path
    described = json.dumps(StartJob.model_json_schema()["properties"][field])
    assert '"pattern": "^' in described
    assert '"required": ["base64"]' in described


@pytest.mark.parametrize(
    "value", [None, True, ["x"], {}, {"base64": "x"}, {"base64": 5}, {"base64": "", "x": 1}, "\udc80"]
)
def test_what_is_no_word_is_refused(value):
    with pytest.raises(ValidationError):
        TypeAdapter(Word).validate_python(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [(5, "5"), (-1, "-1"), (0.5, "0.5"), (1e21, "1000000000000000000000"), (1e-7, "0.0000001"), ("x", "x")],
)
def test_numbers_among_the_arguments_are_their_decimal_text(value, text):
    """design.md §9."""
    assert TypeAdapter(Argument).validate_python(value) == text


@pytest.mark.parametrize("value", [True, None, float("nan"), float("inf"), ["x"]])
def test_what_is_no_argument_is_refused(value):
    with pytest.raises(ValidationError):
        TypeAdapter(Argument).validate_python(value)


def test_a_limit_is_a_number_or_text_with_a_unit_the_default_or_lifted():
    limits = spec(cpu="500m", memory="128M", pids=5.0, timeout="1h", outputBytes="1M", ioReadBps="1M/s").limits
    assert (limits.cpu, limits.memory, limits.pids, limits.timeout) == (0.5, 128 << 20, 5, 3600.0)
    assert (limits.output_bytes, limits.io_read_bps) == (1 << 20, 1 << 20)
    assert spec().limits == DEFAULTS
    assert spec(cpu=None, memory=None).limits == Limits(cpu=None, memory=None)
    assert spec(onOutputLimit="kill", network="host").limits.on_output_limit is OnOutputLimit.KILL
    assert spec(network="host").network is Network.HOST


@pytest.mark.parametrize(
    "body",
    [{"cpu": 0}, {"memory": "1Q"}, {"pids": 1.5}, {"memory": 1.5e9 + 0.5}, {"ioDevice": "/x"}, {"timeout": "soon"}],
)
def test_a_limit_that_is_none_is_refused(body):
    with pytest.raises(JobError):
        spec(**body)


@pytest.mark.parametrize("name", ["owner", "io_read_bps", "Program", "role", "uid"])
def test_unknown_names_are_refused(name):
    """A7: also ours, in the spelling of another language."""
    with pytest.raises(ValidationError, match=name):
        spec(**{name: "x"})


def test_every_field_of_a_spec_can_be_asked_for_and_is_told():
    """A new field of ours that is missing on the way in or out fails."""
    ours, limits = ({item.name for item in fields(kind)} for kind in (JobSpec, Limits))
    assert set(StartJob.model_fields) == (ours - {"limits"}) | limits
    assert ours <= set(Job.model_fields)


def test_every_limit_and_every_figure_of_the_usage_is_told():
    """A new field of ours that is not told here fails."""
    limits = json.loads(JobLimits.of(Limits()).model_dump_json())
    assert set(limits) == {item.name for item in fields(Limits)}
    amounts = {item.name: number for number, item in enumerate(fields(Usage))}
    told = json.loads(JobUsage.of(Usage(**amounts)).model_dump_json())
    assert sorted(told.values()) == sorted(amounts.values())
    assert set(told) == set(JobUsage.model_fields)


@given(st.integers(0, (1 << 63) - 1))
def test_a_page_token_leads_to_where_it_came_from(cursor):
    assert ListJobs(pageToken=token_of(cursor)).cursor() == cursor


@pytest.mark.parametrize("text", ["", "x", "AAAA", "//////////8=", "é", "A" * 1000])
def test_a_page_token_of_no_page_is_refused(text):
    with pytest.raises(JobError, match="pageToken"):
        ListJobs(pageToken=text).cursor()


@pytest.mark.parametrize("code", ErrorCode, ids=lambda code: code.value)
def test_every_error_has_its_status_and_words(code):
    """design.md §9: fixed words for some, ours for the others, and for programs the whole message."""
    status, headers, body = failure_of(JobError(code, "what happened: 50 %, é"))
    told = dict(headers)
    assert status == ERROR_MAP[code].http
    assert json.loads(body)["error"].startswith("Error: ")
    assert (b"www-authenticate" in told) == (code is ErrorCode.UNAUTHENTICATED)
    assert (b"retry-after" in told) == (status in {429, 503})
    if code is not ErrorCode.UNAUTHENTICATED:
        assert told[b"jobworker-error"] == code.value.encode()
        assert told[b"jobworker-message"] == b"what happened%3A 50 %25%2C %C3%A9"
