"""A job that may be started with some programs only is started with the very files, whatever they are called."""

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from host import needs_root, output_of, run_job

from jobworker import ErrorCode, JobError, JobSpec, State, Worker

pytestmark = needs_root

_ECHO = "/usr/bin/echo"
_BASENAME = "/usr/bin/basename"  # says something else of the same argument
_ARGS = ("/a/b",)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that jobs see, on the file system of the programs, for names that lead to them."""
    path = Path("/var/tmp") / f"jobworker-names-{os.getpid()}"
    path.mkdir(mode=0o755)
    yield path
    shutil.rmtree(path)


async def _says(worker: Worker, program: object, approved: Sequence[str] | None = (_ECHO,)) -> bytes:
    """What the program says of the argument, or the word denied."""
    try:
        job = await worker.start(JobSpec(program=str(program), args=_ARGS), programs=approved)
    except JobError as error:
        if error.code is not ErrorCode.PERMISSION_DENIED:
            raise
        return b"denied"
    said = await output_of(worker, job.id)
    await worker.remove(job.id, force=True)
    return said


def _script(path: Path, interpreter: str, *lines: str) -> Path:
    path.write_text("\n".join([f"#!{interpreter}", *lines, ""]))
    path.chmod(0o755)
    return path


async def test_an_approved_program_runs_by_any_name_that_leads_to_it(worker: Worker, place: Path) -> None:
    """A8. The positive control of the refusals below."""
    (place / "link").symlink_to(_ECHO)
    (place / "far").symlink_to("link")
    for program in (_ECHO, "echo", place / "link", place / "far"):
        assert await _says(worker, program) == b"/a/b\n"
    with contextlib.suppress(OSError):  # another file system
        os.link(_ECHO, place / "hard")
        assert await _says(worker, place / "hard") == b"/a/b\n"


async def test_no_name_makes_another_file_an_approved_one(worker: Worker, place: Path) -> None:
    """A8. Copies, links, scripts, the interpreter of a script, and the program that a process itself is."""
    shutil.copy(_ECHO, place / "copy")
    (place / "echo").symlink_to(_BASENAME)
    script = _script(place / "script", _ECHO)
    for program in (_BASENAME, "basename", place / "copy", place / "echo", script, "/proc/self/exe"):
        assert await _says(worker, program) == b"denied", program
        assert await _says(worker, program, []) == b"denied", program
    for program in (_BASENAME, place / "copy", place / "echo", script):  # the control: without a list all of them run
        assert (await _says(worker, program, None)).endswith(b"b\n"), program


@pytest.mark.parametrize("program", ["./echo", "bin/echo", "/usr/bin/../bin/echo", "../echo"])
def test_a_relative_name_is_no_program(program: str) -> None:
    """A8."""
    with pytest.raises(JobError) as caught:
        JobSpec(program=program)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT


async def test_a_program_that_is_not_there_is_not_found_and_not_denied(worker: Worker, place: Path) -> None:
    """S7."""
    for program in (place / "none", "no-such-program"):
        with pytest.raises(JobError) as caught:
            await worker.start(JobSpec(program=str(program)), programs=[_ECHO])
        assert caught.value.code is ErrorCode.PROGRAM_NOT_FOUND


async def test_an_approved_script_runs_with_no_descriptor_more(worker: Worker, place: Path) -> None:
    """A8, S8."""
    script = _script(place / "script", "/bin/sh", 'echo "$0 $1"', "ls /proc/$$/fd")
    job, output = await run_job(worker, JobSpec(program="/bin/sh", args=(str(script), "x")))
    assert job.state is State.COMPLETED
    ordinary = output
    started = await worker.start(JobSpec(program=str(script), args=("x",)), programs=[str(script)])
    assert await output_of(worker, started.id) == ordinary
    assert await _says(worker, "/bin/sh", [str(script)]) == b"denied"


async def test_a_name_that_changes_all_the_time_never_leads_to_another_program(worker: Worker, place: Path) -> None:
    """A8. A loop swaps the name between an approved program and another, also between check and exec."""
    name = place / "program"
    name.symlink_to(_ECHO)
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            for target in (_BASENAME, _ECHO):
                (place / "next").symlink_to(target)
                os.replace(place / "next", name)

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        said = {await _says(worker, name) for _ in range(60)}
        control: set[bytes] = set()
        while control != {b"/a/b\n", b"b\n"}:
            control.add(await _says(worker, name, None))
    finally:
        over.set()
        swapper.join()
    assert said <= {b"/a/b\n", b"denied"}
