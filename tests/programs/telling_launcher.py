"""A launcher that lets a job find, as its arguments, the modules that were loaded before its exec."""

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

from jobworker.core.spec import JobSpec
from jobworker.runtime import launcher, sandbox
from jobworker.runtime.host_view import HostView
from jobworker.runtime.sandbox_steps import Exec, Step


def plan(spec: JobSpec, host: HostView, job: sandbox.Confinement) -> list[Step]:
    """The real steps, with more words for the program."""
    *steps, execute = sandbox.plan(spec, host, job)
    if not isinstance(execute, Exec):
        raise TypeError("the last step is the exec")
    return [*steps, dataclasses.replace(execute, argv=(*execute.argv, *sorted(sys.modules)))]


def main() -> None:
    """Serves as the real launcher does."""
    launcher.main(plan=plan)
