"""Between the client's values and the wire."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobworker.api.grpc._generated import jobworker_pb2 as pb2
from jobworker.client.messages import job_from_message, spec_to_message
from jobworker.core.errors import ErrorCode, JobError
from jobworker.core.outcome import Exited, OomKilled
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


def there_and_back(spec, asked=tuple(ALL)):
    message = spec_to_message(spec, asked)
    return job_from_message(pb2.Job(spec=message, state=pb2.JOB_STATE_RUNNING)).spec


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
    assert list(spec_to_message(spec, ()).args) == arguments
    assert there_and_back(spec) == spec


@pytest.mark.parametrize("name", ALL)
def test_only_limits_that_were_asked_for_are_sent(name):
    message = spec_to_message(JobSpec(program="p", limits=Limits(**ALL)), [name]).limits
    sent = {field.name.removesuffix("_bytes") for field, _ in message.ListFields()}
    assert sent == {name.removesuffix("_bytes")}


def test_a_lifted_limit_is_sent_as_0():
    message = spec_to_message(JobSpec(program="p", limits=Limits(memory=None)), ["memory", "timeout"]).limits
    assert message.HasField("memory_bytes")
    assert message.memory_bytes == 0
    assert message.HasField("timeout")
    assert message.timeout.ToNanoseconds() == 0


def test_an_absent_exit_code_differs_from_0():
    running = job_from_message(pb2.Job(spec=pb2.JobSpec(program=b"p"), state=pb2.JOB_STATE_RUNNING))
    assert (running.outcome, running.exit_code, running.ended_at) == (None, None, None)
    outcome = pb2.Outcome(exited=0)
    ended = job_from_message(pb2.Job(spec=pb2.JobSpec(program=b"p"), state=pb2.JOB_STATE_COMPLETED, outcome=outcome))
    assert (ended.outcome, ended.exit_code) == (Exited(0), 0)


def test_an_outcome_without_fields_is_told_apart():
    outcome = pb2.Outcome(oom_killed=pb2.Outcome.OomKilled())
    job = job_from_message(pb2.Job(spec=pb2.JobSpec(program=b"p"), state=pb2.JOB_STATE_FAILED, outcome=outcome))
    assert job.outcome == OomKilled()


@pytest.mark.parametrize("job", [{"state": 99}, {"state": pb2.JOB_STATE_FAILED, "outcome": pb2.Outcome()}])
def test_what_a_newer_server_says_is_refused_by_name(job):
    with pytest.raises(JobError, match="newer protocol") as refused:
        job_from_message(pb2.Job(spec=pb2.JobSpec(program=b"p"), **job))
    assert refused.value.code is ErrorCode.UNSUPPORTED


def test_a_path_that_is_not_utf8_is_an_invalid_argument():
    with pytest.raises(JobError, match="workdir") as refused:
        spec_to_message(JobSpec(program="p", workdir="/\udcff"), ())
    assert refused.value.code is ErrorCode.INVALID_ARGUMENT
