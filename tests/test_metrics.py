"""What is counted is shown, in both of Prometheus' formats, and from the first moment on."""

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from jobworker.core.errors import ErrorCode
from jobworker.core.lifecycle import State
from jobworker.core.outcome import Exited, Lost, Outcome, Stopped
from jobworker.metrics import ENDINGS, OPENMETRICS_TYPE, DoorName, Figures, Metrics

NOTHING = Figures(jobs={}, held_calls=0, audit_records=0)
FORMATS = [
    pytest.param("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", parse_text, id="text"),
    pytest.param(f"{OPENMETRICS_TYPE};version=1.0.0,text/plain;q=0.5", parse_openmetrics, id="openmetrics"),
    pytest.param("", parse_text, id="nothing"),
    pytest.param("application/json; version=?", parse_text, id="something else"),
]


def samples(metrics, figures=NOTHING, accept="", parse=parse_text):
    """Every sample by its name and the values of its labels, which are in the order of their names."""
    body, media_type = metrics.exposition(figures, accept)
    assert media_type.startswith(OPENMETRICS_TYPE) == (parse is parse_openmetrics)
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in parse(body.decode())
        for sample in family.samples
    }


@pytest.mark.parametrize(("accept", "parse"), FORMATS)
def test_what_has_happened_is_in_the_format_that_the_scraper_reads(accept, parse):
    metrics = Metrics()
    metrics.started(0.03)
    metrics.ended(Exited(3))
    metrics.ended(Stopped(by="alice", signal=9))
    metrics.refused(DoorName.GRPC, ErrorCode.EXHAUSTED)
    metrics.sent(1000)
    metrics.show_controls(degraded=["seccomp"], missing=["masks"])
    metrics.show_capacity(uids=7)
    found = samples(metrics, Figures(jobs={State.RUNNING: 2}, held_calls=4, audit_records=5), accept, parse)
    expected = {
        ("jobworker_start_seconds_count",): 1,
        ("jobworker_start_seconds_bucket", "0.02"): 0,
        ("jobworker_start_seconds_bucket", "0.05"): 1,
        ("jobworker_jobs_ended_total", "exited", "failed"): 1,
        ("jobworker_jobs_ended_total", "stopped", "stopped"): 1,
        ("jobworker_jobs_ended_total", "exited", "completed"): 0,
        ("jobworker_calls_refused_total", "exhausted", "grpc"): 1,
        ("jobworker_calls_refused_total", "exhausted", "https"): 0,
        ("jobworker_output_sent_bytes_total",): 1000,
        ("jobworker_jobs", "running"): 2,
        ("jobworker_jobs", "pending"): 0,
        ("jobworker_held_calls",): 4,
        ("jobworker_audit_records",): 5,
        ("jobworker_degraded", "seccomp"): 1,
        ("jobworker_degraded", "masks"): 0,
        ("jobworker_missing", "masks"): 1,
        ("jobworker_capacity", "uids"): 7,
        ("jobworker_launcher_up",): 1,
    }
    assert {name: found.get(name) for name in expected} == expected


def test_every_error_and_every_way_to_end_is_shown_before_it_happens():
    """A rate is wrong about a counter that begins with its first event; no later event makes a new series."""
    metrics = Metrics()
    before = set(samples(metrics))
    assert {type(ending) for ending in ENDINGS} == set(Outcome.__args__)
    for ending in (*ENDINGS, Exited(255), Lost("the host rebooted")):
        metrics.ended(ending)
    for door in DoorName:
        for code in ErrorCode:
            metrics.refused(door, code)
    metrics.started(1000)
    assert set(samples(metrics)) == before
    metrics.lost_launcher()
    assert samples(metrics)["jobworker_launcher_up",] == 0


def test_two_servers_in_one_process_count_apart():
    one, other = Metrics(), Metrics()
    one.sent(1)
    assert samples(one)["jobworker_output_sent_bytes_total",] == 1
    assert samples(other)["jobworker_output_sent_bytes_total",] == 0
