"""A scrape of a running server: what jobs and callers do shows in it, who they are does not."""

import os
import signal

import pytest
from host import needs_root
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from jobworker.access.principal import Scope
from jobworker.core.errors import JobError
from jobworker.daemon import tokens

SCRAPE = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}


class Scraper:
    """Prometheus, with the token that it needs and no other right."""

    def __init__(self, daemon):
        token = tokens.create(daemon.directory, "admin", ttl=3600, scopes=[Scope.METRICS_READ]).token
        self.door = daemon.https_as(token=token.reveal())

    def text(self):
        answer = self.door.get("/metrics", headers=SCRAPE)
        assert answer.status == 200
        return answer.body.decode()

    def samples(self):
        """Every sample by its name and the values of its labels, which are in the order of their names."""
        families = text_string_to_metric_families(self.text())
        return {(each.name, *each.labels.values()): each.value for family in families for each in family.samples}


def moved(before, after):
    """How far each counter of ours has come, and what each gauge of ours is now."""
    return {
        name: value - before[name] if name[0].endswith(("_total", "_count")) else value
        for name, value in after.items()
        if name[0].startswith("jobworker_") and not name[0].endswith(("_created", "_bucket", "_sum"))
    }


@needs_root
def test_metrics_are_read_with_their_own_scope_by_admins_alone(daemon):
    """A4: deny by default; the scraper's token is good for nothing else."""
    scraper = Scraper(daemon)
    assert "jobworker_jobs" in scraper.text()
    for path in ("/jobs", "/events"):
        assert scraper.door.get(path).status == 403
    assert scraper.door.post("/jobs/start", {"program": "/bin/true"}).status == 403
    users = tokens.create(daemon.directory, "alice", ttl=60, scopes=[Scope.METRICS_READ]).token.reveal()
    without = tokens.create(daemon.directory, "admin", ttl=60, scopes=[Scope.ADMIN, Scope.JOBS_READ]).token.reveal()
    for token in (users, without):
        assert daemon.https_as(token=token).get("/metrics").status == 403
    assert daemon.https_as(None).get("/metrics").status == 401


@needs_root
async def test_what_jobs_and_callers_do_moves_the_counters(own_daemon, eventually):
    """Issue 4; real jobs at both doors, and nobody's name, id or program in it."""
    own_daemon.start()
    https, scraper = own_daemon.https_as(), Scraper(own_daemon)
    before = scraper.samples()
    ids = [https.start("/bin/sh", "-c", f"echo out; exit {code}") for code in (0, 0, 3)]
    for job_id in ids:
        assert https.get(f"/jobs/{job_id}/wait").status == 200
    runs = https.start("/bin/sleep", 1000)
    with https.open("GET", f"/jobs/{ids[0]}/output/stream") as response:
        assert response.read() == b"out\n"
    assert https.get("/jobs/no-such-job").status == 404
    form = {"grant_type": "client_credentials", "client_id": "alice", "client_secret": "wrong"}
    assert own_daemon.https_as(None).post("/oauth/token", form=form).status == 401
    async with own_daemon.client("bob") as bob:
        with pytest.raises(JobError):
            await bob.status(runs)
    with https.open("GET", f"/jobs/{runs}/output/stream") as follower:
        assert follower.status == 200
        now = moved(before, scraper.samples())
    expected = {
        ("jobworker_start_seconds_count",): 4,
        ("jobworker_jobs", "running"): 1,
        ("jobworker_jobs_ended_total", "exited", "completed"): 2,
        ("jobworker_jobs_ended_total", "exited", "failed"): 1,
        ("jobworker_jobs_ended_total", "stopped", "stopped"): 0,
        ("jobworker_calls_refused_total", "job_not_found", "https"): 1,
        ("jobworker_calls_refused_total", "unauthenticated", "https"): 1,
        ("jobworker_calls_refused_total", "permission_denied", "grpc"): 1,
        ("jobworker_held_calls",): 1,
        ("jobworker_output_sent_bytes_total",): 4,
        ("jobworker_audit_records",): len(own_daemon.audit()),
        ("jobworker_capacity", "jobs"): 4000,
        ("jobworker_capacity", "uids"): 65_536,
    }
    assert {name: now[name] for name in expected} == expected
    assert not [name for name, value in now.items() if name[0] in {"jobworker_degraded", "jobworker_missing"} and value]
    assert https.post(f"/jobs/{runs}/stop").status == 200
    after = moved(before, scraper.samples())
    assert (after["jobworker_jobs", "running"], after["jobworker_jobs_ended_total", "stopped", "stopped"]) == (0, 1)
    eventually(lambda: scraper.samples()["jobworker_held_calls",] == 0)
    text = scraper.text()
    assert "process_resident_memory_bytes" in text
    for private in ("alice", "bob", "admin", "/bin/", str(own_daemon.directory), *ids, runs):
        assert private not in text


@needs_root
def test_a_launcher_that_is_gone_shows(own_daemon, eventually):
    """C2."""
    own_daemon.start()
    scraper = Scraper(own_daemon)
    assert scraper.samples()["jobworker_launcher_up",] == 1
    for pid in [own_daemon.process_titled(f"jobworker-{title}") for title in ("keeper", "launcher")]:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: scraper.samples()["jobworker_launcher_up",] == 0)
    assert own_daemon.stop() == 0
    own_daemon.start()
    assert scraper.samples()["jobworker_launcher_up",] == 1
