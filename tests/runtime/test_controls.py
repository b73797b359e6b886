"""One list of controls: what is missing refuses jobs by name, or is shown; nothing in between."""

import os
import signal

import pytest
from host import eventually

from jobworker import ErrorCode, JobError
from jobworker.runtime import controls, linux
from jobworker.runtime.controls import (
    CONTROLS,
    DECISIVE,
    DISPENSABLE,
    Control,
    Finding,
    Need,
    Verdict,
    describe_isolation,
    judge,
    try_all,
)
from jobworker.runtime.sandbox_steps import (
    BecomeUser,
    BuildRoot,
    FilterSystemCalls,
    MountDev,
    NewNamespaces,
    PrepareMasks,
    RaiseLoopback,
    SetHostname,
)

_BY_NAME = {control.name: control for control in CONTROLS}
_STEPS = [
    NewNamespaces(linux.CLONE_NEWNET | linux.CLONE_NEWUTS),
    BuildRoot(("/", "/var")),
    PrepareMasks(),
    MountDev(),
    SetHostname("job"),
    RaiseLoopback(),
    BecomeUser(200_001, 200_001),
    FilterSystemCalls(b""),
]


def _findings(*missing: str) -> list[Finding]:
    """What a host that lacks these shows."""
    return [Finding(control, "it is not there" if control.name in missing else "") for control in DECISIVE]


def test_every_control_says_what_is_lost_and_how_to_get_it():
    assert len(_BY_NAME) == len(CONTROLS)
    for control in CONTROLS:
        assert control.lost_without, control.name
        assert control.remedy, control.name


def test_what_every_job_needs_is_tried_before_the_first_job():
    assert {control.name for control in DECISIVE} >= {
        control.name for control in CONTROLS if control.need in {Need.ALL, Need.DEFAULT}
    }


async def test_trying_everything_leaves_nothing_behind():
    def groups() -> set[str]:
        # os.walk passes over groups of others that go away meanwhile.
        walked = os.walk("/sys/fs/cgroup")
        return {name for _, names, _ in walked for name in names if name.startswith("jobworker-check-")}

    before = groups()
    descriptors = os.listdir("/proc/self/fd")
    findings = try_all(CONTROLS)
    assert [finding.control for finding in findings] == list(CONTROLS)
    assert os.listdir("/proc/self/fd") == descriptors
    await eventually(lambda: groups() <= before)  # others may try as well


@pytest.mark.parametrize(
    ("attempt", "reason"),
    [
        (lambda: None, ""),
        (lambda: os.open("/nowhere", os.O_RDONLY), "No such file or directory"),
        (lambda: os.kill(os.getpid(), 9), "the try did not end by itself"),
        (lambda: os.setgroups(["x"]), "the try did not end by itself"),
    ],
)
def test_a_try_that_fails_or_dies_is_a_control_that_does_not_work(attempt, reason, capfd):
    """The first is the control."""
    [finding] = try_all([Control("it", Need.ALL, "something", "somehow", attempt)])
    assert (finding.works, finding.reason) == (not reason, reason)
    capfd.readouterr()


def test_a_try_that_hangs_is_a_control_that_does_not_work(monkeypatch):
    """With all that it has started; the control is that it hangs."""
    monkeypatch.setattr(controls, "TRY_SECONDS", 0.2)

    def hang():
        os.fork()
        signal.pause()

    [finding] = try_all([Control("it", Need.ALL, "something", "somehow", hang)])
    assert finding.reason == "the try did not end by itself"


def test_a_host_that_has_everything_isolates_in_full():
    verdict = judge(_findings(), (), is_root=True)
    assert verdict == Verdict((), ())
    verdict.check()
    assert describe_isolation(verdict.degraded) == "full"


@pytest.mark.parametrize("name", [control.name for control in CONTROLS if control.need is Need.ALL])
def test_what_all_jobs_need_refuses_them_by_name(name):
    verdict = judge(_findings(name), (), is_root=True)
    assert verdict == Verdict((), (name,))
    with pytest.raises(JobError, match=name) as caught:
        verdict.check()
    assert caught.value.code is ErrorCode.UNSUPPORTED


@pytest.mark.parametrize("name", DISPENSABLE)
def test_what_is_missing_and_allowed_is_shown_and_refuses_nobody(name):
    verdict = judge(_findings(name), {name}, is_root=True)
    verdict.check()
    assert describe_isolation(verdict.degraded) == f"degraded({name})"


def test_what_is_allowed_and_works_is_no_loss():
    assert judge(_findings(), set(DISPENSABLE), is_root=True) == Verdict((), ())


def test_allowing_what_no_job_can_do_without_changes_nothing():
    verdict = judge(_findings("pid-namespace", "masks"), {"pid-namespace", "masks"}, is_root=True)
    assert verdict.refused == ("pid-namespace", "masks")


def test_without_root_one_uid_is_for_all_and_shown():
    assert judge(_findings("separate-uid"), (), is_root=False) == Verdict(("separate-uid",), ())
    assert judge(_findings("separate-uid"), (), is_root=True) == Verdict((), ("separate-uid",))


def test_a_missing_limit_is_shown_and_refuses_only_who_asks_for_it():
    """The groups refuse the job that asks, when it asks."""
    assert judge(_findings("memory-limit", "pids-limit"), (), is_root=True) == Verdict(
        ("memory-limit", "pids-limit"), ()
    )


def test_the_steps_without_a_namespace_touch_nothing_of_the_host_s():
    replanned = Verdict(("net-namespace", "uts-namespace"), ()).replan(_STEPS)
    assert replanned[0] == NewNamespaces(0)
    assert not any(isinstance(step, (SetHostname, RaiseLoopback)) for step in replanned)
    assert len(replanned) == len(_STEPS) - 2


def test_the_steps_without_root_copy_all_mounts_and_take_no_uid():
    names = [type(step).__name__ for step in Verdict(("separate-uid",), ()).replan(_STEPS)]
    assert {"BuildRoot", "MountDev", "BecomeUser"}.isdisjoint(names)
    assert names.index("Mask") == names.index("PrepareMasks") + 1, "/sys came along with the copy"
    assert {"CopyRoot", "BindDev", "FilterSystemCalls"} <= set(names)


def test_the_steps_of_a_whole_sandbox_stay_as_they_are():
    assert Verdict((), ()).replan(_STEPS) == _STEPS
    assert Verdict(("memory-limit",), ()).replan(_STEPS) == _STEPS
