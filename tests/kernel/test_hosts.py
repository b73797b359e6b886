"""What `jobworkerd check` says of a host is what jobs meet there; a controller that is missing refuses its limit."""

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from host import needs_root

from jobworker import ErrorCode, JobSpec, Limits, Worker
from jobworker.core.spec import MiB
from jobworker.runtime.controls import describe_isolation
from jobworker.runtime.mountinfo import parse_mountinfo

pytestmark = needs_root

_PROGRAMS = Path(__file__).parent.parent / "programs"
_WORKER = _PROGRAMS / "worker_process.py"
_UNLIMITED = JobSpec(program="/bin/true", limits=Limits(memory=None, pids=None))
_IN_OWN_MOUNTS = ("unshare", "--mount", "--propagation", "private", "sh", "-c")

_FORBIDDING = f"""
import os, sys
sys.path.insert(0, {str(_PROGRAMS)!r})
from lacking import refuse
refuse(sys.argv[1])
os.execv(sys.argv[2], sys.argv[2:])
"""

#: Hosts that lack something: what starts a program there, and a control that is missed for it.
_HOSTS = {
    "as it is": ((), ""),
    "no CAP_SYS_ADMIN": (("setpriv", "--bounding-set=-sys_admin"), "pid-namespace"),
    "no CAP_SETUID": (("setpriv", "--bounding-set=-setuid"), "separate-uid"),
    "no CAP_SETPCAP": (("setpriv", "--bounding-set=-setpcap"), "bounded-capabilities"),
    "no CAP_MKNOD": (("setpriv", "--bounding-set=-mknod"), "devices"),
    "no CAP_SYS_RESOURCE": (("setpriv", "--bounding-set=-sys_resource"), "resource-capability"),
    "a user namespace": (("unshare", "--user", "--map-root-user"), "separate-uid"),
    "a sandbox of bubblewrap": (("bwrap", "--dev-bind", "/", "/", "--cap-drop", "ALL"), "bounded-capabilities"),
    "a filter of system calls": ((sys.executable, "-c", _FORBIDDING, "seccomp"), "seccomp"),
    "no control groups": ((*_IN_OWN_MOUNTS, 'mount -t tmpfs none /sys/fs/cgroup && exec "$@"', "sh"), "memory-limit"),
}


def _run(through: tuple[str, ...], *arguments: object, said: str = "") -> list[str]:
    command = [*through, sys.executable, *map(str, arguments)]
    return subprocess.run(command, input=said, stdout=subprocess.PIPE, text=True, check=False).stdout.splitlines()


def _check(through: tuple[str, ...]) -> list[dict[str, Any]]:
    """The controls that are missing there, as check tells it."""
    shown = json.loads("\n".join(_run(through, "-m", "jobworker.daemon.main", "check", "-o", "json")))
    return [control for control in shown if not control["works"]]


async def _start(through: tuple[str, ...], state: Path, *jobs: JobSpec) -> list[dict[str, str]]:
    """What a worker answers there to each start."""
    said = "".join(json.dumps(job.to_document()) + "\n" for job in jobs)
    _, *answers = await asyncio.to_thread(_run, through, _WORKER, state, said=said)
    async with await Worker.open(state) as worker:
        for job in worker.list():
            await worker.wait(job.id)
            await worker.remove(job.id)
    return [json.loads(answer) for answer in answers]


@pytest.mark.parametrize("host", _HOSTS)
async def test_what_check_says_of_a_host_is_what_jobs_meet_there(state: Path, host: str) -> None:
    """E25, S3. Named, refused or shown; the host as it is comes first, where nothing is refused."""
    through, lost = _HOSTS[host]
    if through and shutil.which(through[0]) is None:
        pytest.skip(f"needs {through[0]}: it makes such a host")
    missing = await asyncio.to_thread(_check, through)
    assert not lost or lost in {control["control"] for control in missing}
    [answer] = await _start(through, state, _UNLIMITED)
    refused = [control["control"] for control in missing if control["needed_by"] == "all jobs"]
    degraded = [control["control"] for control in missing if control["needed_by"] == "jobs with the default limits"]
    if refused:
        assert answer["code"] == ErrorCode.UNSUPPORTED.value
        assert f"{', '.join(refused)} missing" in answer["error"]
    else:
        assert answer["isolation"] == describe_isolation(degraded)


#: A limit of each controller, with the control that it rests on.
_ASKING = {
    "memory": (Limits(memory=64 * MiB, pids=None), "memory-limit"),
    "pids": (Limits(memory=None, pids=9), "pids-limit"),
    "cpu": (Limits(memory=None, pids=None, cpu=0.5), "cpu-limit"),
    "blkio": (Limits(memory=None, pids=None, io_read_bps=MiB), "io-limit"),
}


def _v1_trees() -> dict[str, str]:
    """Where each version 1 controller is mounted."""
    mounts = [mount for mount in parse_mountinfo(Path("/proc/self/mountinfo").read_text()) if mount.kind == "cgroup"]
    return {name: mount.path for mount in mounts for name in mount.file_system_options.split(",") if name in _ASKING}


@pytest.mark.parametrize(
    "controller", [pytest.param(name, marks=pytest.mark.layout if name == "memory" else ()) for name in _ASKING]
)
async def test_a_limit_is_refused_where_its_controller_is_not_mounted(state: Path, controller: str) -> None:
    """S3. By its name, and only that limit; the control: where all are mounted, the same jobs run."""
    trees = _v1_trees()
    if controller not in trees:
        pytest.skip("needs controllers of version 1, which can be missing one by one")
    through = (*_IN_OWN_MOUNTS, f'umount {trees[controller]} && exec "$@"', "sh")
    asking = [JobSpec(program="/bin/true", limits=limits) for limits, _ in _ASKING.values()]
    controls = [control for _, control in _ASKING.values()]
    gone = {name for name, tree in trees.items() if tree == trees[controller]}
    usual = {control["control"] for control in await asyncio.to_thread(_check, ())} & set(controls)
    if _ASKING[controller][1] in usual:
        pytest.skip(f"needs {_ASKING[controller][1]} on the host as it is")
    for host, missing in ((through, gone), ((), set())):
        lost = usual | {_ASKING[name][1] for name in missing}
        found = {control["control"] for control in await asyncio.to_thread(_check, host)}
        assert found & set(controls) == lost
        for name, answer in zip(_ASKING, await _start(host, state, *asking), strict=True):
            assert ("error" in answer) is (_ASKING[name][1] in lost), answer
            assert name not in missing or f"no {name.replace('blkio', 'io')} controller" in answer["error"]
