"""Between two ends of the wire nothing changes: what a client asks for arrives, what a server tells is read."""

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobworker.api.grpc import convert
from jobworker.api.grpc._generated import jobworker_pb2 as pb2
from jobworker.api.page import token_of
from jobworker.client import messages
from jobworker.client.model import Chunk as ClientChunk
from jobworker.client.model import End, OutputStream
from jobworker.core.errors import ErrorCode, JobError
from jobworker.core.job_id import new_job_id
from jobworker.core.lifecycle import Emptying, Ended, Pending, Phase, Running, State, Stopping, state_of
from jobworker.core.outcome import (
    Ending,
    Exited,
    Lost,
    OomKilled,
    Outcome,
    OutputLimit,
    OutputTotals,
    Signaled,
    Stopped,
    TimedOut,
    Usage,
)
from jobworker.core.spec import JobSpec, Limits, MiB, Network, OnOutputLimit
from jobworker.runtime.output_log import BOTH, Chunk, Stream
from jobworker.service import JobView, OutputEnd
from jobworker.store.jobs import JobRecord

DEFAULTS = Limits()
UNKNOWN: Any = 9  # no value that the protocol names
LIMIT_NAMES = {item.name for item in fields(Limits)}

#: Any bytes without a NUL, as os.fsdecode makes them.
RAW = st.binary(max_size=30).map(lambda raw: raw.replace(b"\0", b"").decode("utf-8", "surrogateescape"))
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
PATHS = st.sampled_from([None, "/tmp", "/usr/share/données", "/a b"])
RATE = st.none() | st.integers(1, 1 << 62)
BYTES = st.integers(0, (1 << 63) - 1)
#: The wire counts in nanoseconds.
DURATIONS = st.integers(1, 10**9).map(lambda milliseconds: milliseconds / 1000)
TIMES = st.floats(0, 4e9)


def close_to(time: float | None) -> Any:
    """The same moment: a float of this size knows no nanoseconds."""
    return pytest.approx(time, abs=1e-6)


@st.composite
def limits(draw: st.DrawFn) -> Limits:
    values: dict[str, Any] = {
        "cpu": draw(st.none() | st.floats(0.01, 4096)),
        "memory": draw(st.none() | st.integers(4 * MiB, 1 << 62)),
        "pids": draw(st.none() | st.integers(1, 4_194_304)),
        "timeout": draw(st.none() | DURATIONS),
        "output_bytes": draw(st.integers(0, 1 << 62)),
        "on_output_limit": draw(st.sampled_from(OnOutputLimit)),
        **{name: draw(RATE) for name in ("io_read_bps", "io_write_bps", "io_read_iops", "io_write_iops")},
    }
    made = Limits(**values)
    return replace(made, io_device=draw(PATHS)) if made.limits_io() else made


SPECS = st.builds(
    JobSpec,
    program=st.sampled_from(["/bin/true", "sleep", "/opt/caf\udce9"]),
    args=st.lists(RAW, max_size=5),
    env=st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,9}", fullmatch=True), RAW, max_size=4),
    workdir=PATHS,
    rootfs=PATHS,
    name=st.none() | st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,20}", fullmatch=True),
    labels=st.dictionaries(
        st.from_regex(r"[A-Za-z0-9]{1,9}", fullmatch=True), TEXT.filter(str.isprintable), max_size=4
    ),
    network=st.sampled_from(Network),
    limits=limits(),
)


def over_the_wire(message: Any) -> Any:
    """As the other end gets it."""
    return type(message).FromString(message.SerializeToString())


@given(SPECS)
def test_a_spec_arrives_as_the_client_built_it(spec: JobSpec) -> None:
    """S9: with every limit asked for, none is the server's."""
    message = over_the_wire(messages.spec_to_message(spec, LIMIT_NAMES))
    assert convert.spec_from(message, Limits(memory=7 * MiB, pids=3, cpu=9.0, timeout=5.0)) == spec


@given(SPECS, st.sets(st.sampled_from(sorted(LIMIT_NAMES - {"io_device"}))))
def test_limits_that_were_not_asked_for_are_the_servers(spec: JobSpec, asked: set[str]) -> None:
    defaults = Limits(memory=7 * MiB, pids=3, cpu=9.0, timeout=5.0, output_bytes=11)
    message = over_the_wire(messages.spec_to_message(spec, asked))
    arrived = convert.spec_from(message, defaults).limits
    for name in LIMIT_NAMES - {"io_device"}:
        expected = spec.limits if name in asked else defaults
        assert getattr(arrived, name) == getattr(expected, name), name


def test_every_field_of_a_spec_and_its_limits_is_on_the_wire() -> None:
    """A field added to ours and forgotten here would be lost silently."""
    renamed = {"memory_bytes": "memory"}
    on_wire = {renamed.get(field.name, field.name) for field in pb2.Limits.DESCRIPTOR.fields}
    assert on_wire == LIMIT_NAMES
    assert {field.name for field in pb2.JobSpec.DESCRIPTOR.fields} == {item.name for item in fields(JobSpec)}


OUTCOMES: list[Outcome] = [
    *(Exited(code) for code in (0, 1, 255)),
    *(Signaled(number) for number in (1, 9, 64)),
    OomKilled(),
    TimedOut(),
    Stopped("alice", 0),
    Stopped("bob", 9),
    OutputLimit(),
    Lost("host rebooted"),
]
COUNT = st.none() | BYTES
SECONDS = st.none() | st.floats(0, 1e9)
USAGE = st.builds(Usage, **{item.name: SECONDS if item.name.endswith("_seconds") else COUNT for item in fields(Usage)})
TOTALS = st.builds(
    OutputTotals,
    stdout_bytes=BYTES,
    stderr_bytes=BYTES,
    dropped_bytes=BYTES,
    dropped_reason=st.sampled_from([None, "limit", "ENOSPC"]),
)
ENDED = st.builds(
    Ended,
    st.builds(
        Ending,
        outcome=st.sampled_from(OUTCOMES),
        ended_at=TIMES,
        started_at=st.none() | TIMES,
        usage=USAGE,
        output=TOTALS,
    ),
)
PHASES: st.SearchStrategy[Phase] = st.one_of(
    st.just(Pending()),
    st.builds(Running, TIMES),
    st.builds(Stopping, TIMES, st.sampled_from(OUTCOMES)),
    st.builds(Emptying, TIMES, st.sampled_from(OUTCOMES)),
    ENDED,
)
WORDS = st.dictionaries(TEXT, TEXT, max_size=3)


@given(SPECS, PHASES, TIMES, USAGE, TOTALS, WORDS, WORDS)
def test_a_job_is_read_as_the_server_told_it(  # noqa: PLR0917 - one value a part of a job
    spec: JobSpec,
    phase: Phase,
    created_at: float,
    usage: Usage,
    output: OutputTotals,
    effective: dict[str, str],
    sandbox: dict[str, str],
) -> None:
    record = JobRecord(
        id=new_job_id(),
        owner="alice",
        spec=spec,
        phase=phase,
        created_at=created_at,
        node="here",
        effective_limits=effective,
        sandbox=sandbox,
    )
    message = over_the_wire(convert.job_message(JobView(record=record, usage=usage, output=output)))
    job = messages.job_from_message(message)
    assert (job.id, job.owner, job.spec) == (record.id, "alice", spec)
    assert job.state is state_of(phase)
    assert job.created_at == close_to(created_at)
    assert (job.usage, job.output) == (usage, output)
    assert (job.effective_limits, job.sandbox) == (effective, sandbox)
    match phase:
        case Pending():
            assert (job.started_at, job.ended_at, job.outcome) == (None, None, None)
        case Ended(ending):
            assert (job.started_at, job.ended_at) == (close_to(ending.started_at), close_to(ending.ended_at))
            assert job.outcome == ending.outcome
        case underway:
            assert (job.started_at, job.ended_at, job.outcome) == (close_to(underway.started_at), None, None)


@pytest.mark.parametrize("outcome", OUTCOMES, ids=repr)
def test_an_exit_code_is_there_exactly_when_the_program_exited(outcome: Outcome) -> None:
    """P8: an absent exit code differs from 0."""
    ending = Ending(outcome=outcome, ended_at=2.0, started_at=1.0)
    record = JobRecord(
        id=new_job_id(), owner="a", spec=JobSpec(program="x"), phase=Ended(ending), created_at=1.0, node="n"
    )
    message = over_the_wire(convert.job_message(JobView.of(record)))
    assert message.HasField("exit_code") == isinstance(outcome, Exited)
    assert messages.job_from_message(message).exit_code == getattr(outcome, "code", None)


@given(st.builds(Chunk, BYTES, st.sampled_from(Stream), st.integers(0, 4 * 10**18), st.binary(max_size=50)))
def test_output_arrives_byte_for_byte(chunk: Chunk) -> None:
    """O2."""
    response = over_the_wire(convert.chunk_message(chunk))
    arrived = messages.chunk_from_message(response.chunk)
    assert arrived.time == close_to(chunk.time_ns / 1e9)
    stream = {Stream.STDOUT: OutputStream.STDOUT, Stream.STDERR: OutputStream.STDERR}[chunk.stream]
    assert arrived == ClientChunk(chunk.offset, stream, arrived.time, chunk.data)
    assert arrived.end == chunk.end


@given(
    st.builds(
        OutputEnd,
        state=st.sampled_from(State),
        outcome=st.none() | st.sampled_from(OUTCOMES),
        output=TOTALS,
        offset=BYTES,
    )
)
def test_the_end_of_a_stream_is_read_as_it_was_told(end: OutputEnd) -> None:
    response = over_the_wire(convert.end_message(end))
    assert messages.end_from_message(response.end) == End(end.state, end.outcome, end.output, end.offset)


@given(st.integers(0, (1 << 63) - 1))
def test_a_page_token_comes_back_as_its_cursor(cursor: int) -> None:
    assert convert.cursor_from(token_of(cursor)) == cursor


def test_no_page_token_is_the_first_page() -> None:
    assert convert.cursor_from("") is None


@given(st.text(min_size=1, max_size=20))
def test_a_made_up_page_token_is_an_invalid_argument_or_a_number(token: str) -> None:
    """R3: never an internal error."""
    code = None
    try:
        convert.cursor_from(token)
    except JobError as error:
        code = error.code
    assert code in {None, ErrorCode.INVALID_ARGUMENT}


@given(
    st.builds(
        pb2.StreamRequest,
        offset=st.integers(0, (1 << 64) - 1),
        streams=st.lists(st.integers(-5, 5), max_size=3),
        follow=st.booleans(),
    )
)
def test_any_stream_request_is_understood_or_an_invalid_argument(message: pb2.StreamRequest) -> None:
    if set(message.streams) - {1, 2}:
        with pytest.raises(JobError) as refused:
            convert.output_request_from(over_the_wire(message))
        assert refused.value.code is ErrorCode.INVALID_ARGUMENT
        return
    request = convert.output_request_from(over_the_wire(message))
    assert request.offset == message.offset
    assert request.streams == (frozenset(map(Stream, message.streams)) or BOTH)
    assert (request.since, request.tail_lines) == (None, None), "absent is not zero"


@pytest.mark.parametrize(
    "message",
    [
        pb2.JobSpec(program=b"true", network=UNKNOWN),
        pb2.JobSpec(program=b"true", limits=pb2.Limits(on_output_limit=UNKNOWN)),
        pb2.JobSpec(program=b"true", limits=pb2.Limits(cpu=float("nan"))),
        pb2.JobSpec(program=b"true", limits=pb2.Limits(cpu=float("inf"))),
        pb2.JobSpec(program=b"true", limits=pb2.Limits(memory_bytes=1)),
        pb2.JobSpec(program=b"true", limits=pb2.Limits(io_device="/dev/sda")),
        pb2.JobSpec(program=b"tr\0ue"),
        pb2.JobSpec(),
    ],
    ids=lambda message: str(message).replace("\n", " ").strip() or "nothing",
)
def test_a_spec_that_cannot_be_is_an_invalid_argument(message: pb2.JobSpec) -> None:
    """R3, A7."""
    with pytest.raises(JobError) as refused:
        convert.spec_from(over_the_wire(message), DEFAULTS)
    assert refused.value.code is ErrorCode.INVALID_ARGUMENT


def test_a_filter_with_more_labels_than_a_job_can_have_is_an_invalid_argument() -> None:
    message = pb2.ListRequest(labels={str(number): "" for number in range(65)})
    with pytest.raises(JobError, match="labels: 65 is not valid"):
        convert.filter_from(message)


def test_a_list_shows_the_names_of_the_environment_without_the_values() -> None:
    record = JobRecord(
        id=new_job_id(), owner="alice", spec=JobSpec(program="true", env={"A": "secret"}), created_at=1.0, node="n"
    )
    assert dict(convert.listed_job_message(JobView.of(record)).spec.env) == {"A": b""}
