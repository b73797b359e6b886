"""A launcher whose sandbox goes wrong where the labels of a job say.

`fail_at`, `wait_at` or `skip_at` step N: what becomes of a start. `without` a step of that name: a
weaker sandbox, with nobody to ask whether it is as planned; for the control of what a step holds.
`with_host_root` in place of the root that was asked for.
"""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

from jobworker.core.spec import JobSpec
from jobworker.runtime import launcher, sandbox
from jobworker.runtime.host_view import HostView
from jobworker.runtime.sandbox_steps import BindRoot, BuildRoot, ReadBack, Step


class WaitForRelease:
    """Stops the process, for all to see, until SIGCONT."""

    def apply(self) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)


def _fail(_: object) -> None:
    raise PermissionError(1, os.strerror(1))


def _without(name: str | None, steps: list[Step]) -> list[Step]:
    if name is None:
        return steps
    kept = [step for step in steps if type(step).__name__ != name]
    return [replace(step, expected={}) if isinstance(step, ReadBack) else step for step in kept]


def plan(spec: JobSpec, host: HostView, job: sandbox.Confinement) -> list[Step]:
    """The real steps, with one that fails in place of its namesake, one that waits before it, or one left out."""
    steps = _without(spec.labels.get("without"), sandbox.plan(spec, host, job))
    if "with_host_root" in spec.labels:
        steps = [BuildRoot(host.file_systems) if isinstance(step, BindRoot) else step for step in steps]
    if at := spec.labels.get("fail_at"):
        name = type(steps[int(at)]).__name__
        steps[int(at)] = type(name, (), {"apply": _fail})()
    if at := spec.labels.get("wait_at"):
        steps.insert(int(at), WaitForRelease())
    if at := spec.labels.get("skip_at"):
        del steps[int(at)]
    return steps


def main() -> None:
    """Serves as the real launcher does."""
    launcher.main(plan=plan)
