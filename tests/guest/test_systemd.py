"""The units of packaging/ under a real systemd, which is the first process of namespaces of its own."""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from host import descendants, eventually

from jobworker import JobSpec, State
from jobworker.client.context import Context
from jobworker.client.job_client import JobClient
from jobworker.daemon.address import Address
from jobworker.daemon.init import init
from jobworker.daemon.users import add

_PROJECT = Path(__file__).parents[2]
_SYSTEMD = "/lib/systemd/systemd"
_SERVER, _LAUNCHER = "jobworkerd.service", "jobworkerd-launcher.service"
_STATE = Path("/var/lib/jobworker")
_PREFIX = Path("/opt/jobworker")
_TREE = Path("/sys/fs/cgroup")
_GROUP = _TREE / "systemd"

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(os.environ["JOBWORKER_VM"] != "v2", reason="needs the v2 layout: only there is Delegate= ours"),
    pytest.mark.skipif(not os.path.exists(_SYSTEMD), reason="needs the package systemd"),
]

# The units hide /tmp, /home and /root, where the project may be; so its packages are bound to other places. What the
# host has in units stays out of it, but for the targets that every service comes after.
_BOOT = r"""
set -e
mount --bind {project}/src /opt/project
mount --bind {packages} /opt/packages
mount -t proc proc /proc
umount /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs -o mode=755 run /run
mkdir /run/units
cp {project}/packaging/*.service /lib/systemd/system/basic.target /lib/systemd/system/sysinit.target \
    /lib/systemd/system/shutdown.target /run/units
for unit in jobworkerd jobworkerd-launcher; do
    mkdir /run/units/$unit.service.d
    printf '[Service]\nStandardError=append:/var/tmp/%s.log\n' $unit >/run/units/$unit.service.d/log.conf
done
exec env -i SYSTEMD_UNIT_PATH=/run/units container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    {systemd} --system --unit=basic.target
"""
_COMMAND = """#!{prefix}/bin/python
import sys
from jobworker.daemon.main import main
sys.exit(main())
"""


class Systemd:
    """The service manager, spoken to by systemctl."""

    def __init__(self, pid: int) -> None:
        self._enter = ("nsenter", "--target", str(pid), "--mount", "--pid", "--cgroup")

    def ctl(self, *arguments: str) -> str:
        ran = subprocess.run(
            [*self._enter, "systemctl", "--no-pager", *arguments], capture_output=True, text=True, check=False
        )
        return f"{ran.stdout}{ran.stderr}".strip()

    def do(self, verb: str, unit: str) -> None:
        """Fails, with what the unit has said, unless it is done."""
        said = self.ctl(verb, unit)
        assert said == "", said + "".join(log.read_text() for log in Path("/var/tmp").glob("jobworkerd*.log"))

    def pid(self, unit: str) -> str:
        return self.ctl("show", "--property=MainPID", "--value", unit)

    def is_active(self, unit: str) -> bool:
        return self.ctl("is-active", unit) == "active"


def _install() -> None:
    """The server, as packaging/README.md has it installed: a user, a prefix, a state directory."""
    subprocess.run(["useradd", "--system", "jobworker"], check=True)
    packages = _PREFIX / sysconfig.get_path("purelib", vars={"base": ""}).lstrip("/")
    for directory in (_PREFIX / "bin", packages, Path("/opt/project"), Path("/opt/packages")):
        directory.mkdir(parents=True)
    (_PREFIX / "bin/python").symlink_to(os.path.realpath(sys.executable))
    shutil.copy(Path(sys.prefix) / "pyvenv.cfg", _PREFIX)
    (packages / "jobworker.pth").write_text("/opt/project\n/opt/packages\n")
    (_PREFIX / "bin/jobworkerd").write_text(_COMMAND.format(prefix=_PREFIX))
    (_PREFIX / "bin/jobworkerd").chmod(0o755)
    init(_STATE, ["localhost"], "jobworker", "jobworker.internal", Address.parse("127.0.0.1:50053"))
    add(_STATE, "alice")


def _boot() -> subprocess.Popen[bytes]:
    """What the first process is a child of."""
    boot = _BOOT.format(project=_PROJECT, packages=sysconfig.get_path("purelib"), systemd=_SYSTEMD)
    enter = f'echo 0 >{_GROUP}/cgroup.procs && exec unshare --cgroup --uts sh -c "$0"'
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", enter, boot]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL)


@pytest.fixture
async def systemd() -> AsyncIterator[Systemd]:
    """A systemd that runs no unit yet, in a group that is the top of the tree for it."""
    _install()
    (_TREE / "cgroup.subtree_control").write_text("+cpu +memory +pids +io")
    _GROUP.mkdir()
    outer = _boot()
    try:
        await eventually(lambda: bool(descendants(outer.pid)), seconds=60)
        systemd = Systemd(min(descendants(outer.pid)))
        await eventually(lambda: systemd.ctl("is-system-running") == "running", seconds=120)
        yield systemd
    finally:
        outer.kill()
        outer.wait()
        await eventually(lambda: "populated 0" in (_GROUP / "cgroup.events").read_text(), seconds=60)
        for group in sorted(_GROUP.glob("**/"), reverse=True):
            group.rmdir()


@pytest.mark.timeout(900)
async def test_jobs_outlive_whatever_systemd_does_to_the_services(systemd: Systemd) -> None:
    """S5, C2. One job sees it all, in a group below the launcher's, which systemd has handed over."""

    async def run(*command: str) -> None:
        async with JobClient.connect(Context.load(_STATE / "clients" / "alice")) as client:
            started = await client.start(JobSpec(program=command[0], args=command[1:]))
            assert (await client.wait(started.job.id)).state is State.COMPLETED

    systemd.do("start", _SERVER)
    assert systemd.is_active(_LAUNCHER)
    await run("/bin/true")
    async with JobClient.connect(Context.load(_STATE / "clients" / "alice")) as client:
        job = (await client.start(JobSpec(program="/bin/sleep", args=("100000",)))).job.id
    [group] = _GROUP.glob(f"system.slice/{_LAUNCHER}/*/{job}")
    processes = (group / "cgroup.procs").read_text()
    assert processes

    async def is_untouched() -> None:
        assert (group / "cgroup.procs").read_text() == processes
        async with JobClient.connect(Context.load(_STATE / "clients" / "alice")) as client:
            assert (await client.status(job)).state is State.RUNNING
        await run("/bin/true")

    systemd.do("restart", _SERVER)
    await is_untouched()
    systemd.do("stop", _SERVER)
    assert (group / "cgroup.procs").read_text() == processes
    systemd.do("start", _SERVER)
    await is_untouched()
    server = systemd.pid(_SERVER)
    systemd.ctl("stop", _LAUNCHER)
    assert systemd.pid(_SERVER) == server, "the server has a launcher of its own"
    await is_untouched()
    async with JobClient.connect(Context.load(_STATE / "clients" / "alice")) as client:
        assert (await client.stop(job)).state is State.STOPPED
    systemd.do("stop", _SERVER)
    systemd.do("start", _SERVER)
    await run("/bin/true")
    # Killed, it comes back when no job and no server holds its group; newer releases do not wait for that.
    systemd.ctl("kill", "--kill-whom=main", "--signal=KILL", _LAUNCHER)
    systemd.do("stop", _SERVER)
    await eventually(lambda: systemd.is_active(_LAUNCHER), seconds=60)
    systemd.do("start", _SERVER)
    await run("/bin/true")
    systemd.do("stop", _SERVER)
