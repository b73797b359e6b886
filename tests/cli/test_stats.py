"""What running jobs use: rates between two samples, as a live table, once, and as JSON lines."""

import json
import os
from dataclasses import replace

import pytest
from client.scripted_server import Script

from jobworker.api.grpc._generated import jobworker_pb2 as pb2
from jobworker.cli.stats import Rates, Sample
from jobworker.client.messages import job_from_message
from jobworker.core.outcome import Usage

RUNS_ON = Script([], outcome=None)
JOB = job_from_message(pb2.Job(spec=pb2.JobSpec(program=b"p"), state=pb2.JOB_STATE_RUNNING))

BEFORE = Usage(
    cpu_seconds=1.0, cpu_periods=10, throttled_periods=4, throttled_seconds=0.5, io_read_bytes=100, io_write_bytes=0
)


@pytest.mark.parametrize(
    ("after", "seconds", "rates"),
    [
        (BEFORE, 1.0, Rates(cpu=0.0, read=0.0, written=0.0, throttled=0.0)),
        (
            replace(
                BEFORE, cpu_seconds=4.0, cpu_periods=30, throttled_periods=14, io_read_bytes=2100, io_write_bytes=8
            ),
            2.0,
            Rates(cpu=1.5, read=1000.0, written=4.0, throttled=0.5),
        ),
        (Usage(), 1.0, Rates(cpu=None, read=None, written=None, throttled=None)),
        (BEFORE, 0.0, Rates(cpu=None, read=None, written=None, throttled=0.0)),
        (replace(BEFORE, cpu_seconds=0.5), 1.0, Rates(cpu=0.0, read=0.0, written=0.0, throttled=0.0)),
    ],
)
def test_rates_come_from_two_samples(after, seconds, rates):
    samples = Sample(10.0, replace(JOB, usage=BEFORE)), Sample(10.0 + seconds, replace(JOB, usage=after))
    assert Rates.between(*samples) == rates


@pytest.fixture
def running(server):
    """The id of a job that uses something, beside one that has ended."""
    server.jobs.scripts[b"p"] = RUNS_ON
    server.add(b"echo")
    job_id = server.add(b"p", name="web")
    job = server.jobs.jobs[job_id]
    job.spec.limits.memory_bytes = 64 << 20
    job.spec.limits.pids = 9
    job.usage.CopyFrom(
        pb2.Usage(
            cpu_seconds=1.0,
            cpu_periods=5,
            throttled_periods=0,
            memory_current_bytes=16 << 20,
            io_read_bytes=4096,
            pids_current=3,
        )
    )
    return job_id


def test_once_into_a_pipe_is_a_plain_table(running, jobctl):
    done = jobctl("stats", "--no-stream")
    head, row = done.stdout.decode().splitlines()
    assert " ".join(head.split()) == "ID NAME CPU % MEM USAGE / LIMIT MEM % IO READ IO WRITTEN PIDS THROTTLED"
    assert " ".join(row.split()) == f"{running} web 0.0% 16 MiB / 64 MiB 25.0% 4 KiB - 3 0.0%"
    assert done.returncode == 0


def test_once_as_json_is_one_document(running, jobctl):
    (shown,) = json.loads(jobctl("stats", "--no-stream", "-o", "json", running[:13]).stdout)
    assert (shown["id"], shown["cpu_percent"], shown["memory_percent"]) == (running, 0.0, 25.0)
    assert (shown["pids"], shown["pids_limit"]) == (3, 9)
    assert (shown["io_read_bytes"], shown["io_write_bytes"], shown["io_write_bytes_per_second"]) == (4096, None, None)


def test_into_a_pipe_it_goes_on_as_json_lines_until_the_jobs_have_ended(server, running, jobctl):
    process = jobctl.begin("stats", running)
    lines = [json.loads(process.stdout.readline()) for _ in range(2)]
    server.end(running)
    rest, words = process.communicate(timeout=30)
    assert [line["id"] for line in lines] == [running, running]
    assert (process.returncode, words) == (0, b"jobctl: none of these jobs runs any more\n")
    assert all(json.loads(line) for line in rest.splitlines())


def test_a_terminal_sees_one_table_that_is_written_over_itself(server, running, jobctl, terminal):
    near, far = terminal
    jobctl.environment |= {"COLUMNS": "70", "LINES": "24"}
    process = jobctl.begin("stats", running, stdout=far, stderr=far)
    seen = b""
    while seen.count(b"CPU %") < 2:
        seen += os.read(near, 65536)
    server.end(running)
    assert process.wait(30) == 0
    first, second = seen.split(b"\x1b[2F")[:2]
    assert first.startswith(b"ID ")
    assert first.endswith(b"\x1b[J")
    lines = first.removesuffix(b"\x1b[J").decode().split("\x1b[K\n")
    assert running[:12] in lines[1]
    assert all(len(line) <= 70 for line in lines), "a line that is too long would break the picture"
    assert "\x1b" not in "".join(lines)
    assert second.startswith(b"ID ")


def test_with_nothing_to_show_there_is_only_the_head(server, jobctl):
    assert jobctl("stats", "--no-stream").stdout.count(b"\n") == 1


def test_an_unknown_job_is_named(server, jobctl):
    done = jobctl("stats", "ffffffff")
    assert (done.returncode, done.stdout) == (125, b"")
    assert b"no job" in done.stderr
