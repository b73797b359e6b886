"""A job's isolation as data: every step is there, in order, and nothing of the host shows that should not."""

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobworker.core.spec import JobSpec, Limits, MiB, Network
from jobworker.runtime import linux, sandbox
from jobworker.runtime.isolation import Outside
from jobworker.runtime.sandbox import Confinement, HostView, Mask, Step, plan

JOB_ID = "01234567-89ab-4def-8123-456789abcdef"
HOST = HostView(
    file_systems=("/", "/usr", "/var"),
    masks=(
        Mask("/etc/shadow", is_directory=False),
        Mask("/root", is_directory=True),
        Mask("/proc/kcore", is_directory=False),
    ),
    proc_read_only=("/proc/sys", "/proc/irq"),
    landlock=2,
    outside=Outside({"pid": 1, "mount": 2, "net": 3, "ipc": 4, "uts": 5, "cgroup": 6}, (254, 2)),
)
JOB = Confinement(job_id=JOB_ID, uid=200_007, gid=200_007, entry_files=("/groups/cpu/tasks", "/groups/memory/tasks"))


def steps_for(spec: JobSpec) -> list[Step]:
    return plan(spec, HOST, JOB)


def kinds(steps: list[Step]) -> list[str]:
    return [type(step).__name__ for step in steps]


def the(steps: list[Step], kind: type[Any]) -> Any:
    (step,) = (step for step in steps if isinstance(step, kind))
    return step


def all_steps() -> set[str]:
    """Every class of a step that the module has."""
    return {
        name
        for name, value in vars(sandbox).items()
        if isinstance(value, type) and hasattr(value, "apply") and value is not Step
    }


def test_no_step_of_the_profile_is_missing() -> None:
    """E25."""
    hosts, own = (set(kinds(steps_for(JobSpec(program="true", rootfs=root)))) for root in (None, "/srv/roots/a"))
    assert hosts | own == all_steps()
    assert (hosts - own, own - hosts) == ({"BuildRoot"}, {"BindRoot"})


def test_what_is_hidden_below_a_root_is_hidden_in_it() -> None:
    """E9, O12."""
    hidden = (Mask("/srv/a/b/secret", is_directory=True), Mask("/srv/other", is_directory=True))
    steps = plan(JobSpec(program="true", rootfs="/srv/./a//"), replace(HOST, masks=hidden + HOST.masks), JOB)
    assert [step.path for step in steps if isinstance(step, Mask)] == ["/b/secret", "/proc/kcore"]


#: What must come before what, with the reason.
ORDER = [
    ("JoinCgroup", "NewNamespaces", "the job is limited before it does anything"),
    ("NewNamespaces", "CutPropagation", "the host's own mounts must not change"),
    ("CutPropagation", "BuildRoot", "no mount of the job reaches the host"),
    ("BuildRoot", "EnterRoot", "there is nothing to enter before"),
    ("EnterRoot", "PrepareMasks", "masks are laid inside of the job's root"),
    ("PrepareMasks", "Mask", "a mask needs something to lay over"),
    ("MountProc", "MakeReadOnly", "below the new /proc"),
    ("Mask", "MountScratch", "the masks' sources stand where /tmp comes"),
    ("MountDev", "MountScratch", "/dev/shm is below /dev"),
    ("MountScratch", "MakeWorkdir", "the work directory is in /tmp"),
    ("NewNamespaces", "SetHostname", "the host keeps its name"),
    ("NewNamespaces", "RaiseLoopback", "of the job's own network"),
    ("MakeWorkdir", "SetUmask", "modes of the root are meant as written"),
    ("SetRlimits", "BecomeUser", "hard limits are raised with privilege only"),
    ("DropBoundingSet", "BecomeUser", "it needs the capability that it takes"),
    ("MakeWorkdir", "BecomeUser", "chown needs privilege"),
    ("BecomeUser", "DropCapabilities", "changing users needs them"),
    ("DropCapabilities", "ForbidNewPrivileges", "what is dropped stays dropped"),
    ("ForbidNewPrivileges", "CloseDescriptors", "the last look at the host is closed at the end"),
    ("ForbidNewPrivileges", "FilterSystemCalls", "without it the kernel takes no filter from an ordinary user"),
    ("ForbidNewPrivileges", "RestrictWriting", "without it the kernel takes no rules from an ordinary user"),
    ("MountScratch", "RestrictWriting", "what is allowed must be there"),
    ("CloseDescriptors", "FilterSystemCalls", "the filter is the last step that confines"),
    ("BecomeUser", "EnterWorkdir", "with the job's own rights"),
    ("EnterWorkdir", "ReadBack", "what comes after it could undo what it saw"),
    ("FilterSystemCalls", "ReadBack", "it is asked for as well"),
    ("ReadBack", "Exec", "the program comes last"),
]


@pytest.mark.parametrize(("first", "second", "reason"), ORDER)
def test_the_steps_are_in_an_order_that_holds(first: str, second: str, reason: str) -> None:
    names = kinds(steps_for(JobSpec(program="true")))
    last = max(place for place, name in enumerate(names) if name == first)
    if (first, second) == ("PrepareMasks", "Mask"):
        last = names.index(first)
    assert last < names.index(second), reason


#: The groups of steps in the module's docstring, each with the step that it ends with.
DOCUMENTED = [
    ("join the control groups", "JoinCgroup"),
    ("new namespaces", "NewNamespaces"),
    ("cut mount propagation", "CutPropagation"),
    ("a read-only root beside the old", "BuildRoot"),
    ("pivot into it, drop the old", "EnterRoot"),
    ("masks, /proc, /dev, /tmp", "MountScratch"),
    ("host name, loopback", "RaiseLoopback"),
    ("session, umask, rlimits", "SetRlimits"),
    ("groups, uid, capabilities, no_new_privs", "ForbidNewPrivileges"),
    ("Landlock", "RestrictWriting"),
    ("close descriptors, seccomp", "FilterSystemCalls"),
    ("working directory, read back, exec", "Exec"),
]


def test_the_documented_order_is_the_planned_one() -> None:
    document = sandbox.__doc__ or ""
    numbered = {int(number): words for number, words in re.findall(r"(\d+)  (\S.*?)(?=  |$)", document, re.MULTILINE)}
    assert numbered == {number: words for number, (words, _) in enumerate(DOCUMENTED, 1)}
    names = kinds(steps_for(JobSpec(program="true")))
    places = [max(n for n, name in enumerate(names) if name == step) for _, step in DOCUMENTED if step]
    assert places == sorted(places)


def test_the_default_job_has_every_namespace_and_loopback_only() -> None:
    steps = steps_for(JobSpec(program="true"))
    assert the(steps, sandbox.NewNamespaces).flags == (
        linux.CLONE_NEWNS | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS | linux.CLONE_NEWCGROUP | linux.CLONE_NEWNET
    )
    assert "RaiseLoopback" in kinds(steps)


def test_network_host_leaves_the_network_alone_and_nothing_else() -> None:
    usual = steps_for(JobSpec(program="true"))
    steps = steps_for(JobSpec(program="true", network=Network.HOST))
    assert not the(steps, sandbox.NewNamespaces).flags & linux.CLONE_NEWNET
    assert [name for name in kinds(usual) if name != "RaiseLoopback"] == kinds(steps)
    kept = [step for step in usual if not isinstance(step, sandbox.RaiseLoopback)]
    different = [type(a).__name__ for a, b in zip(kept, steps, strict=True) if a != b]
    assert different == ["NewNamespaces", "ReadBack"]


SPECS = st.builds(
    JobSpec,
    program=st.sampled_from(["/bin/true", "true", "/opt/a b"]),
    args=st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=9), max_size=4),
    env=st.dictionaries(st.from_regex(r"[A-Z_]{1,9}", fullmatch=True), st.just("x"), max_size=3),
    workdir=st.sampled_from([None, "/usr", "/tmp"]),
    rootfs=st.sampled_from([None, "/srv/roots/a"]),
    network=st.sampled_from(Network),
    limits=st.builds(Limits, memory=st.none() | st.integers(4 * MiB, 1 << 40), pids=st.none() | st.integers(1, 9999)),
)


@given(SPECS, st.integers(200_000, 265_535))
def test_whatever_is_asked_for_the_job_is_never_privileged(spec: JobSpec, uid: int) -> None:
    """E3, E25."""
    steps = plan(spec, HOST, Confinement(job_id=JOB_ID, uid=uid, gid=uid, entry_files=()))
    names = kinds(steps)
    assert all_steps() - set(names) <= {"RaiseLoopback", "BuildRoot", "BindRoot"}
    assert ("BuildRoot" in names) == (spec.rootfs is None) != ("BindRoot" in names)
    assert the(steps, sandbox.BecomeUser).uid == the(steps, sandbox.MakeWorkdir).uid == uid != 0
    for first, second, _ in ORDER:
        if first != "PrepareMasks" and first in names and second in names:
            assert max(n for n, name in enumerate(names) if name == first) < names.index(second)


@given(SPECS)
def test_program_arguments_and_environment_arrive_as_asked(spec: JobSpec) -> None:
    """S8, S9."""
    last = steps_for(spec)[-1]
    assert isinstance(last, sandbox.Exec)
    assert last.argv == (spec.program, *spec.args)
    environment = dict(last.env)
    assert spec.env.items() <= environment.items()
    assert environment.keys() == {"PATH", "HOME", "LANG", "JOBWORKER_JOB_ID"} | spec.env.keys()
    if spec.program.startswith("/"):
        assert last.candidates == (spec.program,)
    else:
        assert [Path(path).parent.as_posix() for path in last.candidates] == sandbox.SEARCH_PATH.split(":")


def test_scratch_memory_is_bounded_by_the_jobs_memory() -> None:
    """R1."""
    for memory, size in ((64 * MiB, 64 * MiB), (None, 512 * MiB)):
        steps = steps_for(JobSpec(program="true", limits=Limits(memory=memory)))
        sizes = {step.path: step.size for step in steps if isinstance(step, sandbox.MountScratch)}
        assert sizes == {"/dev/shm": 64 * MiB, "/tmp": size}


def test_the_kernel_is_asked_for_all_that_was_planned() -> None:
    """E25."""
    usual, host = JobSpec(program="true"), JobSpec(program="true", network=Network.HOST)
    asked = the(steps_for(usual), sandbox.ReadBack)
    expected = asked.expected
    assert expected["namespaces"].split(",") == list(HOST.outside.namespaces)
    assert (expected["network"], expected["uid"], expected["seccomp"]) == ("loopback only", "200007", "filter")
    assert asked.masked == ("/etc/shadow", "/root", "/proc/kcore")
    assert asked.read_only == ("/", "/dev", "/proc/sys", "/proc/irq")
    expected_with_network = the(steps_for(host), sandbox.ReadBack).expected
    assert {name for name in expected if expected[name] != expected_with_network[name]} == {"namespaces", "network"}


# What a job may see of the host.

ROOT = "30 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n"
KERNEL = """\
22 30 0:21 / /proc rw,nosuid - proc proc rw
23 30 0:22 / /sys rw,nosuid - sysfs sysfs rw
24 30 0:6 / /dev rw,nosuid - devtmpfs udev rw,size=1k
25 24 0:23 / /dev/shm rw - tmpfs tmpfs rw
26 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw
27 30 0:40 / /run rw - tmpfs tmpfs rw
28 27 0:41 / /run/user/1000 rw - tmpfs tmpfs rw
"""


def seen(mounts: str, *hidden: str) -> tuple[str, ...]:
    return HostView.survey(ROOT + KERNEL + mounts, hidden).file_systems


def test_the_root_and_ordinary_file_systems_are_copied_parents_first() -> None:
    mounts = (
        "41 40 8:3 / /usr/local rw - xfs /dev/sda3 rw\n"
        "40 30 8:2 / /usr rw - ext4 /dev/sda2 ro\n"
        "42 30 8:4 / /opt rw - btrfs /dev/sda4 rw\n"
    )
    assert seen(mounts) == ("/", "/opt", "/usr", "/usr/local")
    paths = seen(mounts)
    assert all(not earlier.startswith(later + "/") for earlier, later in pairwise(paths))


@pytest.mark.parametrize(
    "mount",
    [
        "50 30 0:50 / /srv/export rw - nfs4 10.0.0.1:/export rw",
        "50 30 8:5 / /home rw - ext4 /dev/sda5 rw",
        "50 30 8:5 / /root/data rw - ext4 /dev/sda5 rw",
        "50 30 8:5 / /mnt/usb rw - vfat /dev/sdb1 rw",
        "50 30 0:51 / /tmp rw - tmpfs tmpfs rw",
        "50 30 8:5 / /tmp/build rw - ext4 /dev/sda5 rw",
        "50 30 8:5 / /boot rw - ext4 /dev/sda5 rw",
        "50 30 0:52 / /sys/kernel/debug rw - debugfs debugfs rw",
        "50 30 0:53 / /proc/sys/fs/binfmt_misc rw - autofs systemd-1 rw",
        "50 30 0:54 net:[4026532000] /run/netns/a rw - nsfs nsfs rw",
        "50 30 0:55 / /usr/kernel/trace rw - tracefs tracefs rw",
    ],
)
def test_what_a_job_must_not_see_is_not_copied(mount: str) -> None:
    assert seen(mount + "\n") == ("/",)
    control = (
        mount.replace(mount.split()[4], "/data", 1)
        .replace("debugfs debugfs", "ext4 x")
        .replace("tracefs tracefs", "ext4 x")
    )
    control = control.replace("nsfs nsfs", "ext4 x").replace("autofs systemd-1", "ext4 x")
    assert seen(control + "\n") == ("/", "/data"), "elsewhere it is"


def test_paths_with_spaces_backslashes_and_letters_beyond_ascii_are_understood() -> None:
    mounts = (
        "50 30 8:5 / /my\\040disk rw - ext4 /dev/sda5 rw\n"
        "51 30 8:6 / /tab\\011and\\134slash rw - ext4 /dev/sda6 rw\n"
        "52 30 8:7 / /données rw - ext4 /dev/sda7 rw\n"
        "53 30 8:8 / /caf\udce9 rw - ext4 /dev/sda8 rw\n"
    )
    assert seen(mounts) == ("/", "/caf\udce9", "/données", "/my disk", "/tab\tand\\slash")


def test_the_state_directory_is_masked_and_nothing_below_it_is_copied(tmp_path_factory: pytest.TempPathFactory) -> None:
    """O12."""
    state = "/var/lib"  # any directory that is there
    view = HostView.survey(ROOT + "50 30 8:5 / /var/lib/jobs rw - ext4 /dev/sda5 rw\n", [state])
    assert Mask(state, is_directory=True) in view.masks
    assert view.file_systems == ("/",)
    assert HostView.survey(ROOT + "50 30 8:5 / /var/lib/jobs rw - ext4 /dev/sda5 rw\n", []).file_systems == (
        "/",
        "/var/lib/jobs",
    )


def test_a_hidden_link_masks_what_it_leads_to(tmp_path: Path) -> None:
    link = Path("/var/run")
    if not link.is_symlink():
        pytest.skip("needs /var/run to be a link")
    paths = {mask.path for mask in HostView.survey(ROOT, []).masks}
    assert "/run" in paths
    assert "/var/run" not in paths


def test_masks_are_of_existing_paths_and_of_the_right_kind() -> None:
    for mask in HostView.survey(ROOT, []).masks:
        assert Path(mask.path).exists()
        assert Path(mask.path).is_dir() == mask.is_directory


def test_a_path_below_a_masked_directory_needs_no_mask_of_its_own() -> None:
    view = HostView.survey(ROOT, ["/root/secret", "/etc"])
    paths = [mask.path for mask in view.masks]
    assert "/etc" in paths
    assert not [path for path in paths if path.startswith("/etc/")]
