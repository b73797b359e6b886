"""A launcher whose sandbox goes wrong where the labels of a job say: `fail_at` or `wait_at` step N."""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

from jobworker.core.spec import JobSpec
from jobworker.runtime import launcher, sandbox


class WaitForRelease:
    """Stops the process, for all to see, until SIGCONT."""

    def apply(self) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)


def _fail(_: object) -> None:
    raise PermissionError(1, os.strerror(1))


def plan(spec: JobSpec, host: sandbox.HostView, job: sandbox.Confinement) -> list[sandbox.Step]:
    """The real steps, with one that fails in place of its namesake, or one that waits before it."""
    steps = sandbox.plan(spec, host, job)
    if at := spec.labels.get("fail_at"):
        name = type(steps[int(at)]).__name__
        steps[int(at)] = type(name, (), {"apply": _fail})()
    if at := spec.labels.get("wait_at"):
        steps.insert(int(at), WaitForRelease())
    return steps


def main() -> None:
    """Serves as the real launcher does."""
    launcher.main(plan=plan)
