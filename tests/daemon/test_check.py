"""`jobworkerd check` tells what this host can enforce, to people and to programs."""

import json

from host import needs_root

from jobworker.runtime.controls import CONTROLS


def test_the_table_has_a_line_for_every_control_with_what_is_lost_without_it(jobworkerd):
    shown = jobworkerd("check").stdout.splitlines()
    assert shown[0].split("   ")[0] == "CONTROL"
    lines = {line.split()[0]: line for line in shown if line and not line.startswith(" ")}
    for control in CONTROLS:
        assert lines[control.name].endswith(control.lost_without)


def test_what_does_not_work_is_shown_with_its_reason_and_its_remedy(jobworkerd):
    found = json.loads(jobworkerd("check", "-o", "json").stdout)
    shown = jobworkerd("check").stdout
    assert [line["control"] for line in found] == [control.name for control in CONTROLS]
    for line in found:
        assert bool(line["reason"]) == (not line["works"])
        if not line["works"]:
            assert f"    why: {line['reason']}\n    how to get it: {line['remedy']}\n" in shown


def test_the_exit_status_says_whether_something_required_is_missing(jobworkerd):
    done = jobworkerd("check", "-o", "json")
    missing = [line["control"] for line in json.loads(done.stdout) if line["required"] and not line["works"]]
    assert done.returncode == int(bool(missing))
    assert ("isolation: full" in jobworkerd("check").stdout) == (not missing)


@needs_root
def test_on_a_host_that_lacks_something_required_the_exit_status_is_1(jobworkerd):
    """The control of the test above: in a mount namespace without cgroup trees no limit works."""
    hide = 'mount -t tmpfs none /sys/fs/cgroup 2>/dev/null; exec "$@"'
    done = jobworkerd("check", "-o", "json", through=["unshare", "--mount", "sh", "-c", hide, "sh"])
    works = {line["control"]: line["works"] for line in json.loads(done.stdout)}
    assert (done.returncode, works["memory-limit"]) == (1, False)
