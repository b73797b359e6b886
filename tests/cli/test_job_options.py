"""From options to the spec of a job."""

import inspect
import typing
from pathlib import Path

import pytest

from jobworker.cli.job_options import read_order, takes_job_options
from jobworker.core.errors import ErrorCode, JobError
from jobworker.core.spec import Limits


def test_every_limit_has_an_option():
    order = read_order(
        program="p",
        cpu="500m",
        memory="64M",
        pids="7",
        io_read="1M",
        io_write="2M/s",
        io_read_iops="3",
        io_write_iops="4",
        io_device="/srv",
        timeout="1h30m",
        output_limit="1k",
    )
    assert order.spec.limits == Limits(
        cpu=0.5,
        memory=64 << 20,
        pids=7,
        io_read_bps=1 << 20,
        io_write_bps=2 << 20,
        io_read_iops=3,
        io_write_iops=4,
        io_device="/srv",
        timeout=5400.0,
        output_bytes=1024,
    )
    assert set(Limits.__slots__) - set(order.asked_limits) == {"on_output_limit"}


def test_what_is_not_asked_for_is_left_to_the_server():
    assert set(read_order(program="p", cpu="1").asked_limits) == {"cpu"}


def test_io_counts_for_both_directions_unless_one_is_given():
    limits = read_order(program="p", io="10M", io_write="1M").spec.limits
    assert (limits.io_read_bps, limits.io_write_bps) == (10 << 20, 1 << 20)


def test_unlimited_lifts_a_limit():
    order = read_order(program="p", memory="unlimited", timeout="unlimited", output_limit="0")
    assert (order.spec.limits.memory, order.spec.limits.timeout) == (None, None)
    assert order.spec.limits.output_bytes == 0
    assert set(order.asked_limits) == {"memory", "timeout", "output_bytes"}


def test_the_environment_comes_from_files_options_and_our_own(tmp_path, monkeypatch):
    file = tmp_path / "env"
    file.write_text("# comment\nA=file\nB=b=c\n\nEMPTY=\n")
    monkeypatch.setenv("MINE", "mine")
    order = read_order(program="p", env_file=[file], env=["A=option", "MINE"])
    assert dict(order.spec.env) == {"A": "option", "B": "b=c", "EMPTY": "", "MINE": "mine"}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"cpu": "many"}, "--cpu: 'many'"),
        ({"cpu": "0"}, "--cpu: '0' is not valid; allowed: more than 0, or unlimited"),
        ({"memory": "0M"}, "--memory: '0M'"),
        ({"timeout": "0s"}, "--timeout: '0s'"),
        ({"pids": "0"}, "--pids: '0'"),
        ({"pids": "many"}, "--pids: 'many' is not valid; allowed: a whole number"),
        ({"io": "0"}, "--io: '0'"),
        ({"io_read_iops": "-1"}, "--io-read-iops: '-1'"),
        ({"memory": ""}, "--memory: ''"),
        ({"memory": "64X"}, "--memory: '64X'"),
        ({"timeout": "soon"}, "--timeout: 'soon'"),
        ({"io": "fast"}, "--io: 'fast'"),
        ({"io": "1M", "io_write": ""}, "--io-write: ''"),
        ({"label": ["team"]}, "--label: 'team'"),
        ({"env": ["NOT_SET_ANYWHERE"]}, "--env: 'NOT_SET_ANYWHERE'"),
        ({"env_file": [Path("/nonexistent/env")]}, "--env-file: cannot read /nonexistent/env"),
    ],
)
def test_a_wrong_option_is_named(options, complaint):  # Q4
    with pytest.raises(JobError) as refused:
        read_order(program="p", **options)
    assert refused.value.code is ErrorCode.INVALID_ARGUMENT
    assert refused.value.message.startswith(complaint)


def test_a_verb_with_job_options_takes_them_and_its_own():
    @takes_job_options
    def act(order, *, extra: int = 0) -> int:
        return len(order.spec.args) + extra

    assert act(**_defaults(program="p", args=["a", "b"]), extra=3) == 5
    assert "extra" in inspect.signature(act).parameters
    assert "cpu" in typing.get_type_hints(act)


def _defaults(**given):
    parameters = inspect.signature(read_order).parameters.values()
    return {item.name: item.default for item in parameters if item.default is not item.empty} | given
