"""A server that an ordinary user makes and runs, and that says everywhere what its jobs lack."""

import json
import re
import tomllib

from host import needs_root


def test_a_job_runs_and_every_answer_says_what_its_isolation_lacks(user_daemon):
    """Start, status, list, audit, metrics and log: nothing is weakened silently."""
    started = user_daemon.jobctl("run", "--", "id", "-u")
    assert (started.returncode, started.stdout.strip()) == (0, str(user_daemon.uid))
    assert "degraded(separate-uid" in started.stderr
    [listed] = json.loads(user_daemon.jobctl("list", "-a", "-o", "json").stdout)
    assert listed["isolation"].startswith("degraded(separate-uid")
    table = user_daemon.jobctl("list", "-a").stdout.splitlines()
    assert "ISOLATION" in table[0]
    assert listed["isolation"] in table[1]
    assert listed["isolation"] in user_daemon.jobctl("status", listed["id"]).stdout
    [audited] = [record for record in user_daemon.audit() if record["target"] == listed["id"]]
    assert listed["isolation"] in audited["detail"]
    assert f"isolation of every job: {listed['isolation']}" in user_daemon.log.read_text()
    assert f"job {listed['id']} starts with isolation: {listed['isolation']}" in user_daemon.log.read_text()
    metrics = user_daemon.https_as("admin").get("/metrics").body.decode()
    shown = re.findall(r'^jobworker_degraded\{control="([a-z-]+)"\} 1\.0$', metrics, re.MULTILINE)
    assert set(shown) == set(listed["isolation"].removeprefix("degraded(").removesuffix(")").split(", "))


@needs_root
def test_a_whole_server_says_nothing_of_the_kind(daemon):
    """The control of the test above."""
    started = daemon.jobctl("run", "--name", "whole", "--", "true")
    assert (started.returncode, started.stderr) == (0, "")
    [listed] = json.loads(daemon.jobctl("list", "--filter", "name=whole", "-o", "json").stdout)
    assert listed["isolation"] == "full"
    assert "ISOLATION" not in daemon.jobctl("list", "--filter", "name=whole").stdout
    assert "degraded" not in daemon.log.read_text()
    assert 'jobworker_degraded{control="separate-uid"} 0.0' in daemon.https_as("admin").get("/metrics").body.decode()


def test_what_init_allows_to_be_missing_is_in_the_configuration_and_no_more(user_daemon):
    """Limits that this user cannot have; anything else its operator would have to write."""
    config = tomllib.loads((user_daemon.directory / "jobworker.toml").read_text())
    controls = json.loads(user_daemon.command("check", "-o", "json").stdout)
    missing = {control["control"] for control in controls if not control["works"]}
    assert set(config["isolation"]["allow_degraded"]) == missing & {"memory-limit", "pids-limit"}


def test_a_limit_that_this_user_cannot_have_refuses_the_job_by_name(user_daemon):
    """S3. The control: without it the job runs."""
    controls = json.loads(user_daemon.command("check", "-o", "json").stdout)
    missing = [control["control"] for control in controls if not control["works"]]
    for control, option in (("memory-limit", "--memory=64M"), ("pids-limit", "--pids=64"), ("cpu-limit", "--cpu=0.5")):
        refused = user_daemon.jobctl("run", option, "--", "true")
        if control in missing:
            assert refused.returncode == 125
            assert control.replace("-", " ") in refused.stderr
    assert user_daemon.jobctl("run", "--", "true").returncode == 0


def test_bob_may_not_look_at_alices_job(user_daemon):
    """A4. They share a uid on the host, and nothing in the server."""
    job = user_daemon.start_job("sleep", "1000")
    refused = user_daemon.jobctl("status", job, user="bob")
    assert (refused.returncode, refused.stdout) == (125, "")
    assert user_daemon.jobctl("stop", job).returncode == 0


def test_a_configuration_for_another_user_is_refused(user_daemon):
    """R6."""
    config = user_daemon.directory / "jobworker.toml"
    text = config.read_text()
    other = user_daemon.directory / "other.toml"
    lines = ["user = 1234" if line.startswith("user = ") else line for line in text.splitlines()]
    other.write_text("\n".join(lines))
    other.chmod(0o644)
    refused = user_daemon.command("serve", "--config", other)
    other.unlink()
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "start it as root or as that user" in refused.stderr
    assert refused.stderr.count("\n") == 1
