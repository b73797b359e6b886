"""What was acknowledged is there after the power was cut under load, in a virtual machine."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import Machine, fresh_machine, missing

_PROGRAM = Path(__file__).parent / "programs" / "serves_and_tells.py"
_ENOUGH = 40  # acknowledged starts, half of them of programs that run on

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"a virtual machine needs: {', '.join(missing())}")


@pytest.fixture
def machine() -> Iterator[Machine]:
    with fresh_machine("v2") as machine:
        yield machine


def _lines(machine: Machine, act: str) -> Iterator[list[str]]:
    """The words of each line that the guest prints; closed, it cuts the power."""
    command = ["env", "PYTHONUNBUFFERED=1", sys.executable, str(_PROGRAM), "/var/tmp/state", act]
    qemu = machine.start(command, stdout=subprocess.PIPE)
    assert qemu.stdout is not None
    try:
        for line in qemu.stdout:
            print(line.decode(errors="replace"), end="")
            yield line.decode(errors="replace").split()
    finally:
        qemu.kill()
        qemu.wait()
        qemu.stdout.close()


@pytest.mark.timeout(600)
def test_every_acknowledged_job_is_on_record_after_a_power_cut(machine: Machine) -> None:
    """C4. The control is a file that had the same lines and was not synced: the cut has cost it some."""
    acknowledged = {}
    starts = _lines(machine, "start")
    for words in starts:
        if words[:1] == ["acknowledged"]:
            acknowledged[words[1]] = words[2]
        if len(acknowledged) == _ENOUGH:
            break
    starts.close()
    assert len(acknowledged) == _ENOUGH, machine.last_words()

    lines = list(_lines(machine, "list"))
    assert machine.status() == 0, machine.last_words()
    jobs = {words[1]: words[2:] for words in lines if words[:1] == ["job"]}
    assert acknowledged.keys() <= jobs.keys(), "an acknowledged job is lost"
    for job_id, program in acknowledged.items():
        if program == "/bin/sleep":
            assert jobs[job_id] == ["FAILED", "lost", "host", "rebooted"]
        else:
            assert jobs[job_id][0] in ("COMPLETED", "FAILED")
    unsynced = {words[2] for words in lines if words[:2] == ["unsynced", "acknowledged"]}
    assert not acknowledged.keys() <= unsynced, "the control: the machine has forgotten nothing at all"
