"""What is written about the project is true of it."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from host import needs_root

import jobworker

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def test_the_architecture_shows_the_life_cycle_that_the_code_has() -> None:
    command = [sys.executable, str(ROOT / "scripts/state_diagram.py")]
    diagram = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"```mermaid\n{diagram}```" in (ROOT / "ARCHITECTURE.md").read_text()


@each_page
def test_every_link_inside_the_project_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@each_page
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    named = re.findall(r"`((?:src|proto|scripts|tests|docs|bench|demo)/[\w./-]*)", page.read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []


@each_page
def test_every_recipe_that_a_page_names_is_in_the_makefile(page: Path) -> None:
    recipes = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.MULTILINE)
    assert set(named) <= set(recipes)


def test_the_version_is_the_same_everywhere() -> None:
    assert PROJECT["version"] == jobworker.__version__


def test_a_release_is_in_the_changelog_or_still_to_come() -> None:
    headings = re.findall(r"^## \[([^]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"


def test_every_requirement_is_locked_to_files_of_known_content() -> None:
    locked = {}
    text = (ROOT / "requirements.txt").read_text().replace("\\\n", " ")
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            match = re.fullmatch(r"([a-z0-9-]+)==([\w.]+)((?:\s+--hash=sha256:[0-9a-f]{64})+)\s*", line)
            assert match is not None, line
            locked[match[1]] = match[2]
    wanted = {
        re.split(r"[<>=]", requirement)[0]
        for requirements in PROJECT["optional-dependencies"].values()
        for requirement in requirements
    }
    assert wanted <= locked.keys()


def test_the_lock_names_no_index() -> None:
    assert re.findall(r"https?:|index-url|find-links|trusted-host", (ROOT / "requirements.txt").read_text()) == []


def _python_examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@needs_root
def test_the_library_example_of_the_readme_runs_as_written(tmp_path: Path) -> None:
    example = _python_examples()[0].replace("/var/lib/jobworker-example", str(tmp_path / "state"))
    ran = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("STDOUT hello\n")
    assert "Exited(code=3)" in ran.stdout
