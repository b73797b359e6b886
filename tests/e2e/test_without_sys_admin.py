"""A server of root without CAP_SYS_ADMIN, as in most containers: it runs no job, and tells everybody what to do."""

import tomllib

import pytest
from e2e.conftest import Daemon
from host import needs_root

from jobworker.client.context import Transport
from jobworker.runtime.controls import DISPENSABLE

pytestmark = needs_root


class _Contained(Daemon):
    """A server that root has started in a container, or on the host itself."""

    is_contained = True

    @property
    def serve_command(self):
        through = ["setpriv", "--bounding-set=-sys_admin"] if self.is_contained else []
        return [*through, *super().serve_command]

    def allow_all_that_can_be_allowed(self):
        config = self.directory / "jobworker.toml"
        names = ", ".join(f'"{name}"' for name in DISPENSABLE)
        config.write_text(config.read_text().replace("allow_degraded = []", f"allow_degraded = [{names}]"))
        assert set(tomllib.loads(config.read_text())["isolation"]["allow_degraded"]) == set(DISPENSABLE)


@pytest.fixture
def contained(state, installation):
    daemon = _Contained(state, installation)
    daemon.init("alice")
    try:
        yield daemon
    finally:
        daemon.close()


@pytest.mark.parametrize("allows_all", [False, True], ids=["by default", "whatever is allowed"])
def test_every_job_is_refused_at_both_doors_and_nothing_is_left(contained, allows_all):
    """E25, S3. The control: out of the container the same server runs the same job."""
    if allows_all:
        contained.allow_all_that_can_be_allowed()
    contained.start()
    for contained.transport in Transport:
        refused = contained.jobctl("run", "--", "true")
        assert (refused.returncode, refused.stdout) == (125, "")
        assert refused.stderr.startswith("jobctl: this host cannot isolate jobs: pid-namespace, mount-namespace, ")
        assert refused.stderr.endswith(" missing; its operator runs jobworkerd check\n")
        assert contained.jobctl("list", "-a", "-o", "json").stdout == "[]\n"
    assert list((contained.directory / "jobs").iterdir()) == []
    assert contained.job_groups() == []
    assert "no job can run here: pid-namespace, mount-namespace, " in contained.log.read_text()
    assert contained.stop() == 0
    contained.is_contained = False
    contained.start()
    assert contained.jobctl("run", "--", "true").returncode == 0
    contained.clear()
