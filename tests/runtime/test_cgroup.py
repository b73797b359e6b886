"""Control groups: which trees a host has, what a limit becomes in each, and refusals that name the remedy."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from host import needs_root
from hypothesis import given
from hypothesis import strategies as st

from jobworker.core.errors import ErrorCode, JobError
from jobworker.core.outcome import Usage
from jobworker.core.spec import Limits, MiB
from jobworker.runtime.cgroup import Cgroup
from jobworker.runtime.cgroup_hierarchy import Hierarchy, find_hierarchies
from jobworker.runtime.cgroup_host import CgroupHost
from jobworker.runtime.cgroup_knob import Knob, knobs_v1, knobs_v2
from jobworker.runtime.mountinfo import parse_mountinfo

# /proc/self/mountinfo of real distributions; {root} is where the trees of a test are.
DEBIAN_12 = """\
24 30 0:22 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
30 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,discard,errors=remount-ro
29 24 0:26 / {root} rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
33 25 0:29 / /dev/hugepages rw,relatime shared:15 - hugetlbfs hugetlbfs rw,pagesize=2M
"""
HYBRID_ONE_TREE_A_CONTROLLER = """\
23 27 0:22 / /sys rw,relatime - sysfs sysfs rw
31 23 0:28 / {root} rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / {root}/cpu rw,relatime - cgroup cgroup rw,cpu
33 31 0:30 / {root}/cpuacct rw,relatime - cgroup cgroup rw,cpuacct
34 31 0:31 / {root}/cpuset rw,relatime - cgroup cgroup rw,cpuset
35 31 0:32 / {root}/memory rw,relatime - cgroup cgroup rw,memory
37 31 0:34 / {root}/freezer rw,relatime - cgroup cgroup rw,freezer
38 31 0:35 / {root}/blkio rw,relatime - cgroup cgroup rw,blkio
39 31 0:36 / {root}/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / {root}/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / {root}/unified rw,relatime - cgroup2 cgroup2 rw
"""
CENTOS_7 = """\
17 60 0:17 / /sys rw,nosuid,nodev,noexec,relatime shared:6 - sysfs sysfs rw
23 17 0:21 / {root} ro,nosuid,nodev,noexec shared:8 - tmpfs tmpfs ro,mode=755
24 23 0:22 / {root}/systemd rw,nosuid shared:9 - cgroup cgroup rw,xattr,name=systemd
26 23 0:24 / {root}/cpu,cpuacct rw,nosuid,nodev,noexec,relatime shared:10 - cgroup cgroup rw,cpuacct,cpu
27 23 0:25 / {root}/memory rw,nosuid,nodev,noexec,relatime shared:11 - cgroup cgroup rw,memory
28 23 0:26 / {root}/net_cls,net_prio rw,nosuid,nodev,noexec,relatime shared:12 - cgroup cgroup rw,net_prio,net_cls
29 23 0:27 / {root}/blkio rw,nosuid,nodev,noexec,relatime shared:13 - cgroup cgroup rw,blkio
30 23 0:28 / {root}/pids rw,nosuid,nodev,noexec,relatime shared:14 - cgroup cgroup rw,pids
"""
CONTAINER_V2 = """\
1500 1400 0:90 / / rw,relatime master:500 - overlay overlay rw,lowerdir=/l,upperdir=/u,workdir=/w
1503 1500 0:93 / /sys ro,nosuid,nodev,noexec,relatime - sysfs sysfs ro
1504 1503 0:26 / {root} rw,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate,memory_recursiveprot
"""


def v2_tree(path: Path, controllers: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "cgroup.controllers").write_text(controllers + "\n")
    (path / "cgroup.subtree_control").write_text("\n")
    (path / "cgroup.procs").touch()
    return path


def v1_trees(mountinfo: str, root: Path) -> None:
    for mount in parse_mountinfo(mountinfo.format(root=root)):
        if mount.kind == "cgroup":
            Path(mount.path).mkdir(parents=True)
            Path(mount.path, "cgroup.procs").touch()


def found(mountinfo: str, root: Path, delegated: str = "") -> list[tuple[str, tuple[str, ...], bool]]:
    trees = find_hierarchies(mountinfo.format(root=root), delegated)
    return [(str(Path(tree.path).relative_to(root)), tree.controllers, tree.is_v2) for tree in trees]


def test_a_pure_v2_host_has_one_tree(tmp_path: Path) -> None:
    v2_tree(tmp_path, "cpuset cpu io memory hugetlb pids rdma misc")
    assert found(DEBIAN_12, tmp_path) == [
        (".", ("cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma", "misc"), True)
    ]


def test_a_hybrid_host_has_v1_controllers_and_a_v2_tree_without_any(tmp_path: Path) -> None:
    """Except for cpuacct: the v2 tree counts the time that is used, and one group less is one less to make."""
    v2_tree(tmp_path / "unified", "")
    v1_trees(HYBRID_ONE_TREE_A_CONTROLLER, tmp_path)
    assert found(HYBRID_ONE_TREE_A_CONTROLLER, tmp_path) == [
        ("unified", (), True),
        ("cpu", ("cpu",), False),
        ("memory", ("memory",), False),
        ("blkio", ("blkio",), False),
        ("pids", ("pids",), False),
    ]


def test_controllers_that_are_mounted_together_are_one_tree(tmp_path: Path) -> None:
    v1_trees(CENTOS_7, tmp_path)
    assert found(CENTOS_7, tmp_path) == [
        ("cpu,cpuacct", ("cpu", "cpuacct"), False),
        ("memory", ("memory",), False),
        ("blkio", ("blkio",), False),
        ("pids", ("pids",), False),
    ]


def test_in_a_container_the_top_of_the_tree_is_what_the_container_shows(tmp_path: Path) -> None:
    v2_tree(tmp_path, "cpu io memory pids")
    assert found(CONTAINER_V2, tmp_path) == [(".", ("cpu", "io", "memory", "pids"), True)]


def test_a_tree_that_another_mount_lies_over_is_not_there(tmp_path: Path) -> None:
    """S5: the list of mounts has it all the same, and no group can be made in it."""
    assert found(DEBIAN_12, tmp_path) == []
    assert found(HYBRID_ONE_TREE_A_CONTROLLER, tmp_path) == []


def test_a_group_that_is_delegated_to_us_is_our_place(tmp_path: Path) -> None:
    """S5."""
    v2_tree(tmp_path, "cpu io memory pids")
    v2_tree(tmp_path / "system.slice/jobworkerd.service", "memory pids")
    assert found(DEBIAN_12, tmp_path, "/system.slice/jobworkerd.service") == [
        ("system.slice/jobworkerd.service", ("memory", "pids"), True)
    ]


def test_a_host_without_control_groups_has_no_trees(tmp_path: Path) -> None:
    assert found("30 1 254:1 / / rw - ext4 /dev/vda1 rw\n", tmp_path) == []


DISKS = ["254:0"]
UNLIMITED = Limits(memory=None, pids=None)
# limits → (what v1 writes, what v2 writes), as file and value
TABLE: list[tuple[Limits, dict[str, str], dict[str, str]]] = [
    (UNLIMITED, {"cpu.shares": "1024"}, {"cpu.weight": "100"}),
    (
        Limits(memory=64 * MiB + 5, pids=None),
        {
            "memory.limit_in_bytes": "67108864",
            "memory.memsw.limit_in_bytes": "67108864",
            "memory.kmem.tcp.limit_in_bytes": "67108864",
            "cpu.shares": "1024",
        },
        {"memory.max": "67108864", "memory.swap.max": "0", "memory.oom.group": "1", "cpu.weight": "100"},
    ),
    (Limits(memory=None, pids=7), {"pids.max": "7", "cpu.shares": "1024"}, {"pids.max": "7", "cpu.weight": "100"}),
    (
        Limits(memory=None, pids=None, cpu=0.5),
        {"cpu.shares": "1024", "cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "50000"},
        {"cpu.weight": "100", "cpu.max": "50000 100000"},
    ),
    (
        Limits(memory=None, pids=None, cpu=2.25),
        {"cpu.shares": "1024", "cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "225000"},
        {"cpu.weight": "100", "cpu.max": "225000 100000"},
    ),
    (
        Limits(memory=None, pids=None, io_read_bps=10, io_write_bps=20, io_read_iops=30, io_write_iops=40),
        {
            "cpu.shares": "1024",
            "blkio.throttle.read_bps_device": "254:0 10",
            "blkio.throttle.write_bps_device": "254:0 20",
            "blkio.throttle.read_iops_device": "254:0 30",
            "blkio.throttle.write_iops_device": "254:0 40",
        },
        {
            "cpu.weight": "100",
            "io.max": "254:0 rbps=10",
            "io.max ": "254:0 wbps=20",
            "io.max  ": "254:0 riops=30",
            "io.max   ": "254:0 wiops=40",
        },
    ),
]


def test_a_limit_of_io_is_set_on_every_disk() -> None:
    """S4: of a file system on several, and of a device that is made of others."""
    limits = Limits(memory=None, pids=None, io_read_bps=10)
    two = ["253:1", "254:0"]
    assert written(knobs_v1(limits, two))[1:] == [
        ("blkio.throttle.read_bps_device", "253:1 10"),
        ("blkio.throttle.read_bps_device", "254:0 10"),
    ]
    assert written(knobs_v2(limits, two))[1:] == [("io.max", "253:1 rbps=10"), ("io.max", "254:0 rbps=10")]


def written(knobs: Iterable[Knob]) -> list[tuple[str, str]]:
    return [(knob.file, knob.value) for knob in knobs]


@pytest.mark.parametrize(("limits", "v1", "v2"), TABLE)
def test_a_limit_becomes_the_values_that_the_kernel_documents(
    limits: Limits, v1: dict[str, str], v2: dict[str, str]
) -> None:
    assert written(knobs_v1(limits, DISKS)) == list(v1.items())
    assert written(knobs_v2(limits, DISKS)) == [(file.strip(), value) for file, value in v2.items()]


@given(
    st.builds(
        Limits,
        cpu=st.none() | st.floats(0.01, 4096),
        memory=st.none() | st.integers(4 * MiB, 1 << 62),
        pids=st.none() | st.integers(1, 4_194_304),
        io_read_bps=st.none() | st.integers(1, 1 << 62),
        io_write_iops=st.none() | st.integers(1, 1 << 62),
    )
)
def test_both_versions_limit_the_same_things(limits: Limits) -> None:
    by_v1 = {knob.controller for knob in knobs_v1(limits, DISKS) if not knob.is_default}
    by_v2 = {knob.controller for knob in knobs_v2(limits, DISKS) if not knob.is_default}
    asked = {
        "cpu": limits.cpu is not None,
        "memory": limits.memory is not None,
        "pids": limits.pids is not None,
        "io": limits.limits_io(),
    }
    assert by_v1 == by_v2 == {controller for controller, is_asked in asked.items() if is_asked}


# Refusals: trees of plain files, which are as wrong as no kernel's.

ASKED = {
    "cpu": Limits(memory=None, pids=None, cpu=0.5),
    "memory": Limits(pids=None),
    "pids": Limits(memory=None),
    "io": Limits(memory=None, pids=None, io_read_bps=1000),
}


@pytest.mark.parametrize("missing", ASKED)
@pytest.mark.parametrize("is_v2", [True, False])
def test_a_limit_without_its_controller_is_refused_with_the_remedy(tmp_path: Path, missing: str, is_v2: bool) -> None:  # noqa: FBT001
    """S3."""
    names = {"cpu", "memory", "pids", "io" if is_v2 else "blkio"} - {missing, "blkio" if missing == "io" else ""}
    group = Cgroup([(Hierarchy(str(tmp_path), tuple(names), is_v2), str(tmp_path))])
    remedy = "; boot" if os.geteuid() == 0 else ".*Delegate=yes"
    with pytest.raises(JobError, match=f"{missing} limit: this host has no {missing} controller{remedy}") as refused:
        group.limit(ASKED[missing], DISKS)
    assert refused.value.code is ErrorCode.UNSUPPORTED


@pytest.mark.parametrize("is_v2", [True, False])
def test_a_limit_of_io_says_what_it_does_not_hold(tmp_path: Path, is_v2: bool) -> None:  # noqa: FBT001
    """S2: version 1 does not know whose a page is when it is written back."""
    file, controller = ("io.max", "io") if is_v2 else ("blkio.throttle.read_bps_device", "blkio")
    (tmp_path / file).touch()
    limits = Cgroup([(Hierarchy(str(tmp_path), (controller,), is_v2), str(tmp_path))]).limit(ASKED["io"], ["254:0"])
    assert limits.get("io_scope") == (None if is_v2 else "direct and synchronous io only (cgroup v1)")
    assert limits["io_read_bps"].startswith("254:0 ")


@pytest.mark.parametrize("controller", ASKED)
def test_a_limit_whose_file_is_missing_is_refused_by_name(tmp_path: Path, controller: str) -> None:
    """S3: as when the controller was not handed down to our group."""
    tree = Hierarchy(str(tmp_path), ("cpu", "memory", "pids", "io"), is_v2=True)
    with pytest.raises(JobError, match=f"the {controller} controller refuses") as refused:
        Cgroup([(tree, str(tmp_path))]).limit(ASKED[controller], DISKS)
    assert refused.value.code is ErrorCode.UNSUPPORTED


def test_a_limit_that_the_kernel_does_not_show_is_refused(tmp_path: Path) -> None:
    """S3: what was written is read back; /dev/null takes everything and shows nothing."""
    (tmp_path / "pids.max").symlink_to("/dev/null")
    tree = Hierarchy(str(tmp_path), ("pids",), is_v2=True)
    with pytest.raises(JobError, match="pids: the pids controller refuses 256: the kernel shows '' instead"):
        Cgroup([(tree, str(tmp_path))]).limit(ASKED["pids"], DISKS)
    (tmp_path / "pids.max").unlink()
    (tmp_path / "pids.max").touch()
    assert Cgroup([(tree, str(tmp_path))]).limit(ASKED["pids"], DISKS) == {"pids": "256"}, "the control"


@pytest.mark.parametrize(
    ("shown", "holds"),
    [
        ("8:0 rbps=1000 wbps=max riops=max wiops=max\n254:0 rbps=1000 wbps=max riops=max wiops=max\n", True),
        ("8:0 rbps=1000 wbps=max riops=max wiops=max\n254:0 rbps=max wbps=7 riops=max wiops=max\n", False),
        ("254:0 rbps=10001 wbps=max riops=max wiops=max\n", False),
        ("", False),
    ],
)
def test_a_limit_of_io_counts_only_as_shown_for_its_own_disk(shown: str, holds: bool) -> None:  # noqa: FBT001
    """S3."""
    *_, knob = knobs_v2(Limits(io_read_bps=1000), ["254:0"])
    assert knob.holds(shown) is holds


def test_a_number_that_is_part_of_another_value_does_not_count() -> None:
    """S3: a cpu limit of one core has the quota that no limit has as its period."""
    *_, knob = knobs_v2(Limits(cpu=1.0), [])
    assert knob.holds("100000 100000\n")
    assert not knob.holds("max 100000\n")


@needs_root
def test_groups_are_made_limited_measured_and_removed_on_this_host() -> None:
    """S2: in every tree that this host has; what is shown is what the kernel shows."""
    host = CgroupHost.discover(f"jobworker-test-{os.getpid()}")
    host.prepare()
    try:
        group = host.group("a-job")
        group.create()
        try:
            effective = group.limit(Limits(cpu=0.5, memory=64 * MiB, pids=9), [])
            assert effective["memory"] == str(64 * MiB)
            assert effective["pids"] == "9"
            assert host.names() == {"a-job"}
            usage = group.usage_now()
            unknown = {name for name, amount in usage.to_document().items() if amount is None}
            old_kernels_tell_not = {"cpu_user_seconds", "cpu_system_seconds", "pids_peak", "memory_peak"}
            assert unknown <= old_kernels_tell_not | {"pids_limit_hits"}
            # The first period of a cpu limit begins with the limit.
            assert not any(replace(usage, cpu_periods=0).to_document().values())
            group.create()  # what is left of an earlier one is no obstacle
            group.wait_empty()
        finally:
            group.remove()
        assert host.names() == set()
        group.remove()
        group.kill()
        group.wait_empty()
    finally:
        host.remove_parent()
    assert not [tree.path for tree in host.hierarchies if list(Path(tree.path).glob(f"jobworker-test-{os.getpid()}"))]


#: What groups of Linux 6.12 show after a busy job, as version 2 and as version 1 have it.
USED_V2 = {
    "cpu.stat": "usage_usec 2500000\nuser_usec 2000000\nsystem_usec 500000\nnice_usec 0\n"
    "nr_periods 40\nnr_throttled 30\nthrottled_usec 1250000\nnr_bursts 0\nburst_usec 0\n",
    "memory.current": "1048576\n",
    "memory.peak": "4194304\n",
    "memory.events": "low 0\nhigh 0\nmax 12\noom 1\noom_kill 2\noom_group_kill 1\n",
    "io.stat": "254:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n"
    "7:0 \n8:0 rbytes=1 wbytes=0 rios=1 wios=0\n",
    "pids.current": "3\n",
    "pids.peak": "9\n",
    "pids.events": "max 5\n",
}
USED_V1 = {
    "cpu.stat": "nr_periods 40\nnr_throttled 30\nthrottled_time 1250000000\n",
    "cpuacct.usage": "2500000000\n",
    "memory.usage_in_bytes": "1048576\n",
    "memory.max_usage_in_bytes": "4194304\n",
    "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    "blkio.throttle.io_service_bytes": "254:0 Read 4096\n254:0 Write 8192\n254:0 Total 12288\n"
    "8:0 Read 1\nTotal 12289\n",
    "blkio.throttle.io_serviced": "254:0 Read 1\n254:0 Write 2\n254:0 Total 3\n8:0 Read 1\nTotal 4\n",
    "pids.current": "3\n",
    "pids.events": "max 5\n",
}
USED = Usage(
    cpu_seconds=2.5,
    cpu_user_seconds=2.0,
    cpu_system_seconds=0.5,
    cpu_periods=40,
    throttled_periods=30,
    throttled_seconds=1.25,
    memory_current=1 * MiB,
    memory_peak=4 * MiB,
    oom_kills=2,
    io_read_bytes=4097,
    io_write_bytes=8192,
    io_read_operations=2,
    io_write_operations=2,
    pids_current=3,
    pids_peak=9,
    pids_limit_hits=5,
)
#: What Linux before 6.11 does not count in a version 1 group, and version 1 not at all.
V1_CANNOT_TELL = {"cpu_user_seconds": None, "cpu_system_seconds": None, "pids_peak": None}


@pytest.mark.parametrize(
    ("files", "controllers", "is_v2", "used"),
    [
        (USED_V2, ("cpu", "memory", "io", "pids"), True, USED),
        (USED_V1, ("cpu", "cpuacct", "memory", "blkio", "pids"), False, replace(USED, **V1_CANNOT_TELL)),
    ],
)
def test_what_a_job_has_used_is_read_as_the_kernel_counts_it(
    tmp_path: Path,
    files: dict[str, str],
    controllers: tuple[str, ...],
    is_v2: bool,  # noqa: FBT001
    used: Usage,
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    tree = Hierarchy(str(tmp_path), controllers, is_v2)
    now = Cgroup([(tree, str(tmp_path))]).usage_now()
    assert {name: pytest.approx(amount) for name, amount in used.to_document().items()} == now.to_document()
    in_all = Cgroup([(tree, str(tmp_path))]).usage()
    assert in_all == replace(now, memory_current=None, pids_current=None)


@pytest.mark.parametrize("is_v2", [True, False])
def test_what_the_kernel_does_not_count_is_unknown_and_not_zero(tmp_path: Path, is_v2: bool) -> None:  # noqa: FBT001
    tree = Hierarchy(str(tmp_path), (), is_v2)
    assert Cgroup([(tree, str(tmp_path))]).usage_now() == Usage()


@needs_root
def test_a_value_that_the_kernel_refuses_is_named() -> None:
    """S3."""
    host = CgroupHost.discover(f"jobworker-test-{os.getpid()}")
    host.prepare()
    group = host.group("a-job")
    try:
        group.create()
        refusal = "io_read_bps: the io controller refuses 4095:1048575 (rbps=)?1000: No such device"
        with pytest.raises(JobError, match=refusal):
            group.limit(ASKED["io"], ["4095:1048575"])
    finally:
        group.remove()
        host.remove_parent()


@pytest.fixture
def places() -> Iterator[tuple[CgroupHost, list[Path]]]:
    """This host, and where its parent groups are."""
    name = f"jobworker-test-{os.getpid()}"
    host = CgroupHost.discover(name)
    yield host, [Path(hierarchy.path, name) for hierarchy in host.hierarchies]
    host.remove_parent()


@needs_root
def test_a_parent_group_that_an_earlier_launcher_removes_meanwhile_is_made_again(
    places: tuple[CgroupHost, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """S10: in the very moment between being found there and being used."""
    host, groups = places
    host.prepare()
    mkdir = os.mkdir
    removed = []

    def mkdir_too_early(path: str, mode: int) -> None:
        try:
            mkdir(path, mode)
        except FileExistsError:
            os.rmdir(path)
            removed.append(Path(path))
            raise

    monkeypatch.setattr(os, "mkdir", mkdir_too_early)
    host.prepare()
    assert removed == groups != []
    assert [Path(hierarchy.path) for hierarchy in host.hierarchies] == [group.parent for group in groups]
    assert all(group.is_dir() for group in groups)


@needs_root
def test_without_parent_groups_there_are_no_names(
    places: tuple[CgroupHost, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """S10: also when they go after one has looked."""
    host, groups = places
    host.prepare()
    host.group("a-job").create()
    assert host.names() == {"a-job"}, "the control"
    scandir = os.scandir

    def scandir_too_late(path: str) -> Any:
        for place in (Path(path, "a-job"), Path(path)):
            place.rmdir()
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scandir_too_late)
    assert host.names() == set()
    assert not any(group.exists() for group in groups)
