"""A job's isolation as data: every step is there, and in an order that holds."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobworker.core.spec import JobSpec, Limits, MiB, Network
from jobworker.runtime import linux, sandbox, sandbox_steps
from jobworker.runtime.host_view import HostView
from jobworker.runtime.isolation import Outside
from jobworker.runtime.sandbox import Confinement, plan
from jobworker.runtime.sandbox_steps import (
    BecomeUser,
    Exec,
    MakeWorkdir,
    Mask,
    MountScratch,
    NewNamespaces,
    RaiseLoopback,
    ReadBack,
    Step,
)

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
        for name, value in vars(sandbox_steps).items()
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
    assert the(steps, NewNamespaces).flags == (
        linux.CLONE_NEWNS | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS | linux.CLONE_NEWCGROUP | linux.CLONE_NEWNET
    )
    assert "RaiseLoopback" in kinds(steps)


def test_network_host_leaves_the_network_alone_and_nothing_else() -> None:
    usual = steps_for(JobSpec(program="true"))
    steps = steps_for(JobSpec(program="true", network=Network.HOST))
    assert not the(steps, NewNamespaces).flags & linux.CLONE_NEWNET
    assert [name for name in kinds(usual) if name != "RaiseLoopback"] == kinds(steps)
    kept = [step for step in usual if not isinstance(step, RaiseLoopback)]
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
    assert the(steps, BecomeUser).uid == the(steps, MakeWorkdir).uid == uid != 0
    for first, second, _ in ORDER:
        if first != "PrepareMasks" and first in names and second in names:
            assert max(n for n, name in enumerate(names) if name == first) < names.index(second)


@given(SPECS)
def test_program_arguments_and_environment_arrive_as_asked(spec: JobSpec) -> None:
    """S8, S9."""
    last = steps_for(spec)[-1]
    assert isinstance(last, Exec)
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
        sizes = {step.path: step.size for step in steps if isinstance(step, MountScratch)}
        assert sizes == {"/dev/shm": 64 * MiB, "/tmp": size}


def test_the_kernel_is_asked_for_all_that_was_planned() -> None:
    """E25."""
    usual, host = JobSpec(program="true"), JobSpec(program="true", network=Network.HOST)
    asked = the(steps_for(usual), ReadBack)
    expected = asked.expected
    assert expected["namespaces"].split(",") == list(HOST.outside.namespaces)
    assert (expected["network"], expected["uid"], expected["seccomp"]) == ("loopback only", "200007", "filter")
    assert asked.masked == ("/etc/shadow", "/root", "/proc/kcore")
    assert asked.read_only == ("/", "/dev", "/proc/sys", "/proc/irq")
    expected_with_network = the(steps_for(host), ReadBack).expected
    assert {name for name in expected if expected[name] != expected_with_network[name]} == {"namespaces", "network"}
