"""The same verdicts on pure v2, hybrid and v1, and what only a machine of one's own can show: on Debian's kernel."""

import subprocess
import sys
from pathlib import Path

import pytest
from machine import LAYOUTS, missing

_MACHINE = Path(__file__).parent.parent.parent / "vm" / "machine.py"
#: Every plugin costs a second to load in there; these are the ones that the tests use.
_PYTEST = (
    *("env", "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1", sys.executable, "-m", "pytest", "-p", "pytest_asyncio.plugin"),
    *("-p", "pytest_timeout", "-p", "no:cacheprovider", "--color=no", "-v", "--timeout=300"),
    "--basetemp=/var/tmp/pytest",  # on a disk, as it is on most hosts
)

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"a virtual machine needs: {', '.join(missing())}")


def _run_in_guest(pytestconfig: pytest.Config, layout: str, seconds: float, *arguments: str) -> None:
    """Passes when pytest in the guest does, shows what it says, and has its closing line seen in any case."""
    machine = [sys.executable, _MACHINE, "--layout", layout, "--timeout", str(seconds), "--", *_PYTEST, *arguments]
    lines = []
    with subprocess.Popen(machine, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        try:
            assert running.stdout is not None
            for line in running.stdout:
                print(line, end="", flush=True)
                lines.append(line.strip())
        finally:
            running.terminate()
    reporter = pytestconfig.pluginmanager.get_plugin("terminalreporter")
    reporter.write_line("")
    for line in [*(line for line in lines if line.startswith("SKIPPED")), *lines[-1:]]:
        reporter.write_line(f"{layout}, in the machine: {line.strip('= ')}")
    assert running.returncode == 0, f"{layout}: pytest in the machine ended with {running.returncode}"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_rests_on_control_groups_holds_on_every_layout(pytestconfig: pytest.Config, layout: str) -> None:
    """S1 to S6, P1, P6, P9, R1, as far as the layout can make a difference."""
    chosen = "(layout or machine) and not soak" if layout == "v2" else "layout and not soak"
    _run_in_guest(pytestconfig, layout, 800, "-m", chosen, "tests/kernel", "tests/hostile", "tests/guest")


@pytest.mark.soak
@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_that_the_kernel_decides_holds_on_every_layout(pytestconfig: pytest.Config, layout: str) -> None:
    """E, O, P, R1, S: the whole of the suites that speak to the kernel."""
    _run_in_guest(pytestconfig, layout, 7200, "tests/kernel", "tests/hostile", "tests/runtime", "tests/guest")


@pytest.mark.soak
def test_jobs_outlive_what_a_real_systemd_does_to_the_units(pytestconfig: pytest.Config) -> None:
    """S5, C2."""
    _run_in_guest(pytestconfig, "v2", 1800, "-m", "soak", "tests/guest/test_systemd.py")
