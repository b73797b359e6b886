"""What the kernel says of processes, in and out of namespaces, told in the words of a status."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from host import needs_root

from jobworker.runtime import isolation
from jobworker.runtime.mountinfo import Mount, parse_mountinfo

SOURCE = Path(__file__).parents[2] / "src"


def read(*masked: str, read_only: tuple[str, ...] = ()) -> dict[str, str]:
    return isolation.read(isolation.Outside.look(), masked, read_only, kept=())


def test_an_ordinary_process_is_told_as_it_is() -> None:
    """The control of E25: nothing that a job must have is there."""
    found = read("/usr", read_only=("/",))
    assert (found["namespaces"], found["network"]) == ("", "host")
    assert found["uid"] == str(os.getuid())
    assert found["descriptors"].startswith("0,1,2")
    assert found["no_new_privs"] == "no"
    assert found["seccomp"] == "no"
    assert found["masks"] == "1 missing"
    assert found["hostname"] == os.uname().nodename


def test_a_path_that_has_gone_is_masked_well_enough() -> None:
    assert read("/no/such/path")["masks"] == "complete"


@needs_root
@pytest.mark.parametrize(
    ("option", "name"),
    [("--net", "net"), ("--uts", "uts"), ("--ipc", "ipc"), ("--mount", "mount"), ("--cgroup", "cgroup")],
)
def test_each_namespace_of_its_own_is_seen(option: str, name: str) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(SOURCE)!r}); from jobworker.runtime import isolation\n"
        f"print(isolation.read(isolation.{isolation.Outside.look()!r}, (), (), ())['namespaces'])"
    )
    said = subprocess.run(["unshare", option, sys.executable, "-c", program], capture_output=True, check=True).stdout
    assert said.decode().strip() == name


@needs_root
@pytest.mark.parametrize(
    ("confinement", "name", "value"),
    [
        (["--no-new-privs"], "no_new_privs", "yes"),
        (["--reuid=1234", "--regid=1235", "--clear-groups"], "uid", "1234"),
        (["--reuid=1234", "--regid=1235", "--clear-groups"], "gid", "1235"),
        (["--groups=7,8"], "groups", "7 8"),
        (["--clear-groups"], "groups", "none"),
        (["--inh-caps=-all", "--bounding-set=-all", "--reuid=1234"], "capabilities", "none"),
    ],
)
def test_what_setpriv_takes_away_is_told(confinement: list[str], name: str, value: str) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(SOURCE)!r}); from jobworker.runtime import isolation\n"
        f"print(isolation.read(isolation.{isolation.Outside.look()!r}, (), (), ())[{name!r}])"
    )
    command = ["setpriv", *confinement, "/usr/bin/python3", "-c", program]
    said = subprocess.run(command, capture_output=True, check=True, cwd="/").stdout
    assert said.decode().strip() == value


def test_a_line_of_mountinfo_is_taken_apart_with_its_escapes() -> None:
    lines = (
        "30 1 254:1 / / rw,relatime shared:1 master:2 - ext4 /dev/vda1 rw\n"
        "50 30 8:5 /sub /my\\040disk ro,nosuid - xfs /dev/a\\040disk rw,name=a\\054b\n"
    )
    assert list(parse_mountinfo(lines)) == [
        Mount("30", "/", "rw,relatime", "ext4", "/dev/vda1", "rw"),
        Mount("50", "/my disk", "ro,nosuid", "xfs", "/dev/a disk", "rw,name=a\\054b"),
    ]


@pytest.mark.parametrize(
    ("limits", "shown"),
    [(((4, 0, 0),), "core=0:0"), (((7, 1024, -1), (6, -1, -1)), "nofile=1024:unlimited,nproc=unlimited:unlimited")],
)
def test_rlimits_are_told_by_name(limits: tuple[tuple[int, int, int], ...], shown: str) -> None:
    assert isolation.show_rlimits(limits) == shown
