"""The map of the code holds: layers, standard library only, and nothing loaded before its time."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

import jobworker

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"
PACKAGE = SOURCE / "jobworker"


def check_layers(root: Path) -> subprocess.CompletedProcess[str]:
    """Runs the import contracts of `root` over the package below it."""
    program = "import sys; sys.path.insert(0, 'src'); from importlinter.cli import lint_imports_command as run; run()"
    command = [sys.executable, "-c", program, "--no-cache", "--no-logo"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def modules_of(*names: str) -> list[str]:
    """Every module in the packages `names`, and those of `names` that are modules themselves."""
    files = [file for name in names for file in ((PACKAGE / name).rglob("*.py"), [PACKAGE / f"{name}.py"])]
    found = [file for group in files for file in group if file.is_file()]
    return sorted(".".join(file.relative_to(SOURCE).with_suffix("").parts) for file in found)


def loaded_by(modules: Iterable[str]) -> set[str]:
    """What is in sys.modules when a bare Python, without site-packages, has imported `modules`."""
    program = (
        f"import sys; sys.path.insert(0, {str(SOURCE)!r})\n"
        f"import {', '.join(modules)}\n"
        "print(*sys.modules, sep='\\n')"
    )  # fmt: skip
    command = [sys.executable, "-I", "-S", "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_imports_point_down_and_siblings_do_not_know_each_other() -> None:
    result = check_layers(ROOT)
    assert result.returncode == 0, result.stdout


def test_an_import_that_points_up_is_found(tmp_path: Path) -> None:
    # The control of the test above.
    shutil.copytree(PACKAGE, tmp_path / "src/jobworker", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "src/jobworker/core/units.py").open("a") as file:
        file.write("import jobworker.runtime.linux\n")
    result = check_layers(tmp_path)
    assert result.returncode != 0
    assert "jobworker.core.units -> jobworker.runtime.linux" in result.stdout


def test_what_runs_jobs_needs_the_standard_library_only() -> None:
    modules = modules_of("core", "runtime", "worker", "recovery", "endings", "lost", "chores", "rotation", "turnstile")
    assert "jobworker.core.spec" in modules
    assert "jobworker.runtime.launcher" in modules
    loaded_by(modules)


def test_a_bare_python_has_nothing_but_the_standard_library() -> None:
    # The control of the test above.
    with pytest.raises(AssertionError, match=r"No module named 'grpc'"):
        loaded_by(["grpc"])


def test_importing_the_package_loads_nothing_else_of_it() -> None:
    assert {name for name in loaded_by(["jobworker"]) if name.startswith("jobworker")} == {"jobworker"}


@pytest.mark.parametrize("heavy", ["asyncio", "ssl", "sqlite3", "logging", "tomllib"])
def test_the_privileged_processes_load_nothing_that_they_do_not_need(heavy: str) -> None:
    assert heavy not in loaded_by(["jobworker", *modules_of("core"), "jobworker.runtime.launcher"])


def test_every_public_name_is_there_on_first_use_and_no_other_is() -> None:
    assert {name for name in jobworker.__all__ if getattr(jobworker, name).__name__ == name} == set(jobworker.__all__)
    with pytest.raises(AttributeError, match="module 'jobworker' has no attribute 'Manager'"):
        _ = jobworker.Manager


def test_only_one_file_makes_system_calls_by_number() -> None:
    using = re.compile(r"^\s*(?:import|from) ctypes", re.MULTILINE)
    assert [file.name for file in PACKAGE.rglob("*.py") if using.search(file.read_text())] == ["linux.py"]
