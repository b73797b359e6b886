"""A launcher on a host with two more file systems, one of odd name and one that is gone at the first job.

Both are mounted in its own mount namespace, below directories that it removes at its end.
"""

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

from jobworker.core.spec import JobSpec
from jobworker.runtime import launcher, linux, sandbox
from jobworker.runtime.host_view import HostView
from jobworker.runtime.sandbox_steps import Step

_ODD = "odd \u00fc \\ name"


def main() -> None:
    """Serves as the real launcher does."""
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("tmpfs", "/opt", "tmpfs", 0)  # a place to make directories in that the host does not see
    gone = tempfile.mkdtemp(dir="/opt")
    for path in (gone, f"/opt/{_ODD}"):
        Path(path).mkdir(exist_ok=True)
        linux.mount("tmpfs", path, "tmpfs", 0, "mode=0755")
    Path(f"/opt/{_ODD}/file").touch()

    def plan(spec: JobSpec, host: HostView, job: sandbox.Confinement) -> list[Step]:
        if os.path.exists(gone):
            linux.umount(gone, linux.MNT_DETACH)
            os.rmdir(gone)
        return sandbox.plan(spec, host, job)

    launcher.main(plan=plan)
