"""The system calls that Python has no function for, by the numbers of every machine that we know."""

import importlib.util
import platform
from types import ModuleType

import pytest
from kernel_headers import MACHINES, call_numbers

from jobworker.runtime import linux

_PREFIX = "_NR_"


def _as_on(machine: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module as it would be there."""
    monkeypatch.setattr(platform, "machine", lambda: machine)
    spec = importlib.util.spec_from_file_location("linux_elsewhere", linux.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _ours(module: ModuleType) -> dict[str, int]:
    return {
        name.removeprefix(_PREFIX).lower(): number for name, number in vars(module).items() if name.startswith(_PREFIX)
    }


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_are_made_by_the_numbers_of_the_kernels_header(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = call_numbers(machine)
    ours = _ours(_as_on(machine, monkeypatch))
    assert {"pivot_root", "clone3"} <= ours.keys()
    assert ours == {name: known[name] for name in ours}


def test_on_a_machine_that_we_do_not_know_no_call_is_made_by_the_number_of_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """-1 is ENOSYS everywhere; what has the same number on both, it has on every machine that came after them."""
    ours = _ours(_as_on("riscv64", monkeypatch))
    x86_64, aarch64 = (call_numbers(machine) for machine in MACHINES)
    assert ours == {name: x86_64[name] if x86_64[name] == aarch64[name] else -1 for name in ours}
