"""Between the client's values and JSON."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobworker.client.documents import event_from_frame, job_from_document, page_from_document, spec_to_document
from jobworker.core.errors import ErrorCode, JobError
from jobworker.core.outcome import Exited, OomKilled, Usage
from jobworker.core.spec import JobSpec, Limits, Network, OnOutputLimit

ALL = {
    "cpu": 0.5,
    "memory": 64 << 20,
    "pids": 7,
    "io_read_bps": 1,
    "io_write_bps": 2,
    "io_read_iops": 3,
    "io_write_iops": 4,
    "io_device": "/dev/vda",
    "timeout": 1.5,
    "output_bytes": 0,
    "on_output_limit": OnOutputLimit.KILL,
}
SPELLED = {
    "cpu": "cpu",
    "memory": "memory",
    "pids": "pids",
    "io_read_bps": "ioReadBps",
    "io_write_bps": "ioWriteBps",
    "io_read_iops": "ioReadIops",
    "io_write_iops": "ioWriteIops",
    "io_device": "ioDevice",
    "timeout": "timeout",
    "output_bytes": "outputBytes",
    "on_output_limit": "onOutputLimit",
}


def job(spec=None, **told):
    """A job as the server tells it, with limits as in the spec's document."""
    said = spec or {"program": "p", "args": [], "env": {}, "labels": {}, "network": "none"}
    return {
        "id": "6f0c1fd2-8a52-4c0b-9d1a-0c5b1f6f7a01",
        "status": "Running",
        "exitCode": None,
        "error": None,
        "owner": "alice",
        "name": None,
        "workdir": None,
        "rootfs": None,
        "createdAt": "2026-01-31T12:00:00.000000Z",
        "startedAt": "2026-01-31T12:00:00.250000Z",
        "endedAt": None,
        "outcome": None,
        "usage": {"cpuSeconds": 1.5, "memoryPeakBytes": 7, "newInTheServer": 9},
        "output": {"stdoutBytes": 1, "stderrBytes": 2, "droppedBytes": 0, "droppedReason": None},
        "effectiveLimits": {},
        "sandbox": {},
        "isolation": "full",
        "limits": {name: said[name] for name in SPELLED.values() if name in said},
        **{name: value for name, value in said.items() if name not in SPELLED.values()},
        **told,
    }


def there_and_back(spec, asked=tuple(ALL)):
    return job_from_document(job(json.loads(json.dumps(spec_to_document(spec, asked))))).spec


def test_every_field_of_a_spec_survives_the_wire():
    spec = JobSpec(
        program="/bin/sh",
        args=("-c", "exit 3", ""),
        env={"A": "b=c", "EMPTY": ""},
        workdir="/tmp",
        rootfs="/srv/roots/a",
        name="build",
        labels={"team": "web"},
        network=Network.HOST,
        limits=Limits(**ALL),
    )
    assert there_and_back(spec) == spec


@given(st.lists(st.binary().filter(lambda word: b"\0" not in word), max_size=5))
def test_arguments_arrive_byte_for_byte(arguments):
    spec = JobSpec(program="p", args=tuple(word.decode("utf-8", "surrogateescape") for word in arguments))
    assert there_and_back(spec) == spec


@pytest.mark.parametrize("name", ALL)
def test_only_limits_that_were_asked_for_are_sent_and_under_their_names(name):
    document = spec_to_document(JobSpec(program="p", limits=Limits(**ALL)), [name])
    assert set(document) & set(SPELLED.values()) == {SPELLED[name]}


def test_a_lifted_limit_is_null_and_no_output_is_0():
    limits = Limits(memory=None, output_bytes=0)
    document = spec_to_document(JobSpec(program="p", limits=limits), ["memory", "timeout", "output_bytes"])
    assert (document["memory"], document["timeout"], document["outputBytes"]) == (None, None, 0)


def test_words_that_are_no_text_travel_in_base64():
    document = spec_to_document(JobSpec(program="p", args=("ü", "\udcff"), workdir="/\udc80"), ())
    assert document["args"] == ["ü", {"base64": "/w=="}]
    assert document["workdir"] == {"base64": "L4A="}


def test_a_device_that_is_not_utf8_is_an_invalid_argument():
    limits = Limits(io_read_bps=1, io_device="/\udcff")
    with pytest.raises(JobError, match="io_device") as refused:
        spec_to_document(JobSpec(program="p", limits=limits), ["io_device"])
    assert refused.value.code is ErrorCode.INVALID_ARGUMENT


def test_times_and_usage_are_what_they_are_over_grpc():
    told = job_from_document(job())
    assert told.started_at - told.created_at == 0.25
    assert told.ended_at is None
    assert told.usage == Usage(cpu_seconds=1.5, memory_peak=7)


def test_outcomes_are_told_apart():
    assert job_from_document(job(outcome={"kind": "exited", "code": 0})).exit_code == 0
    assert job_from_document(job(outcome={"kind": "oom_killed"})).outcome == OomKilled()
    assert job_from_document(job()).outcome is None


def test_a_last_page_has_no_token():
    page = page_from_document({"jobs": [job()], "nextPageToken": None, "error": None})
    assert (len(page.jobs), page.next_token) == (1, "")


NEWER = {
    "a state": lambda: job_from_document(job(status="Paused")),
    "an outcome": lambda: job_from_document(job(outcome={"kind": "evaporated"})),
    "an outcome's field": lambda: job_from_document(job(outcome={"kind": "exited", "why": "new"})),
    "no job": lambda: job_from_document({}),
    "a list": lambda: page_from_document([]),
    "a kind of frame": lambda: event_from_frame(9, 0, 0, b""),
    "an end that is no JSON": lambda: event_from_frame(3, 0, 0, b"{"),
    "an end without a state": lambda: event_from_frame(3, 0, 0, b"{}"),
}


@pytest.mark.parametrize("what", NEWER)
def test_what_a_newer_server_says_is_refused_by_name(what):
    with pytest.raises(JobError, match="newer protocol") as refused:
        NEWER[what]()
    assert refused.value.code is ErrorCode.UNSUPPORTED


def test_an_end_has_state_outcome_and_totals():
    totals = {"stdoutBytes": 3, "stderrBytes": 0, "droppedBytes": 5, "droppedReason": "limit"}
    payload = {"status": "Completed", "outcome": {"kind": "exited", "code": 0}, "output": totals, "offset": 3}
    end = event_from_frame(3, 3, 0, json.dumps(payload).encode())
    assert (end.outcome, end.output.dropped_bytes, end.output.dropped_reason, end.offset) == (Exited(0), 5, "limit", 3)
