"""The units for systemd: what they open to attack is measured, and stays as it is written down."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from jobworker.runtime import launcher, linux

_UNITS = Path(__file__).parents[1] / "packaging"
_README = _UNITS / "README.md"


def _exposure(unit: str) -> float:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze: it measures what a unit leaves open")
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(_UNITS / unit)]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"exposure level for \S+: ([0-9.]+)", shown.stdout)
    if found is None:
        pytest.skip(f"needs a systemd-analyze that knows security --offline: {shown.stderr.strip()}")
    return float(found[1])


def test_what_talks_to_the_network_leaves_little_open():
    """The control: the launcher's unit, which needs root's rights, leaves much more."""
    assert _exposure("jobworkerd.service") < 3.0
    assert _exposure("jobworkerd-launcher.service") > 3.0


@pytest.mark.parametrize("unit", ["jobworkerd.service", "jobworkerd-launcher.service"])
def test_the_exposure_of_a_unit_is_the_one_on_record(unit):
    """Other releases of systemd weigh a little differently."""
    [recorded] = re.findall(rf"\| `{re.escape(unit)}` \| ([0-9.]+) \|", _README.read_text())
    assert abs(_exposure(unit) - float(recorded)) <= 0.5


def test_the_launchers_unit_grants_what_the_launcher_keeps():
    text = (_UNITS / "jobworkerd-launcher.service").read_text()
    [granted] = re.findall(r"^CapabilityBoundingSet=(.*)$", text, re.MULTILINE)
    assert {getattr(linux, name) for name in granted.split()} == launcher.CAPABILITIES


def test_jobs_outlive_what_the_units_stop():
    text = (_UNITS / "jobworkerd-launcher.service").read_text()
    assert "KillMode=process" in text
    assert "Delegate=yes" in text
