"""Why jobs ended and what they use, told by a real server over both transports."""

import json

import pytest
from host import needs_root

pytestmark = [needs_root, pytest.mark.parametrize("transport", ["grpc", "https"])]


def test_why_tells_what_to_change(daemon, programs, transport):
    """S2: the figures are the kernel's own."""
    hog = daemon.jobctl("run", "-m", "32M", "--", programs / "hog", "64")
    assert hog.returncode == 137, hog.stderr
    storm = daemon.jobctl("run", "--pids", "20", "--timeout", "1s", "--", programs / "fork_storm")
    assert storm.returncode == 124, storm.stderr
    late, full = json.loads(daemon.jobctl("list", "-n", "2", "-o", "json").stdout)
    told = daemon.jobctl("why", "--transport", transport, full["id"])
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("killed: out of memory, peak ")
    assert told.stdout.endswith(" of 32 MiB; try --memory 48M\n")
    told = daemon.jobctl("why", "--transport", transport, "-o", "json", late["id"])
    cause, *others = json.loads(told.stdout)["remarks"]
    assert cause == {"what": "killed: it ran longer than its timeout of 1s", "advice": "try --timeout 2s"}
    if late["usage"]["pids_peak"] is not None or late["usage"]["pids_limit_hits"] is not None:
        assert "try --pids 40" in {remark["advice"] for remark in others}


def test_stats_show_what_a_busy_job_uses(daemon, transport):
    """S2. The control: a job that sleeps uses nothing."""
    limits = ("--cpu", "0.2", "-m", "64M")
    busy = daemon.jobctl("start", *limits, "--", "sh", "-c", "while :; do :; done").stdout.strip()
    idle = daemon.jobctl("start", *limits, "--", "sleep", "1000").stdout.strip()
    once = daemon.jobctl("stats", "--transport", transport, "--no-stream", "-o", "json", busy, idle)
    shown = {job["id"]: job for job in json.loads(once.stdout)}
    assert 0 < shown[busy]["cpu_percent"] < 60
    assert shown[busy]["throttled_percent"] > 0
    assert shown[idle]["cpu_percent"] < shown[busy]["cpu_percent"]
    assert shown[idle]["pids"] == 1
    assert 0 < shown[busy]["memory_bytes"] <= shown[busy]["memory_limit_bytes"] == 64 << 20
    assert daemon.jobctl("stop", busy, idle).returncode == 0
