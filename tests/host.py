"""What tests ask about the host they run on."""

import os
import sys
from pathlib import Path

import pytest

from jobworker.worker import bootstrap

_TREES = Path("/sys/fs/cgroup")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: jobs are isolated with CAP_SYS_ADMIN")

#: A Python that jobs can run: their own user cannot read one below /root.
JOB_PYTHON = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable


def job_groups(state: Path) -> list[Path]:
    """The control groups of jobs below `state`, in every hierarchy."""
    parent = bootstrap(state).cgroup_parent
    roots = [_TREES, *_TREES.iterdir()] if _TREES.is_dir() else []
    return sorted(group for root in roots for group in root.glob(f"{parent}/*") if group.is_dir())


def children() -> set[int]:
    """The processes that this one has started and not yet collected."""
    tasks = Path("/proc/self/task").iterdir()
    return {int(pid) for task in tasks for pid in (task / "children").read_text().split()}
