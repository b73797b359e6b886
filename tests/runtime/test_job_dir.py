"""A job's directory: private, written whole or not at all, and removed without a rest."""

import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from host import needs_root

from jobworker.core.errors import JobError
from jobworker.core.job_id import new_job_id
from jobworker.core.spec import JobSpec, Limits, Network
from jobworker.runtime import job_dir
from jobworker.runtime.output_log import INDEX, OUTPUT

SPEC = JobSpec(
    program="/bin/e\udcffcho", args=("a\nb", ""), env={"A": "\udcfe"}, network=Network.HOST, limits=Limits(cpu=1.5)
)
REQUEST = job_dir.Request(SPEC, 1_700_000_000.25, "boot-1")


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def job_id() -> str:
    return new_job_id()


@pytest.fixture
def directory(jobs: Path, job_id: str) -> Iterator[int]:
    opened = job_dir.create(jobs, job_id, REQUEST)
    yield opened
    os.close(opened)


def test_a_request_comes_back_as_it_was(directory: int) -> None:
    """S9."""
    assert job_dir.read_request(directory) == REQUEST


def test_everything_in_it_is_private(jobs: Path, job_id: str, directory: int) -> None:
    """O12."""
    files = job_dir.open_output(directory)
    lock = job_dir.take_lock(directory)
    job_dir.reserve_outcome(directory)
    assert (jobs / job_id).stat().st_mode & 0o777 == 0o700
    modes = {entry.name: entry.stat().st_mode & 0o777 for entry in (jobs / job_id).iterdir()}
    assert modes == dict.fromkeys(["spec.json", OUTPUT, INDEX, "lock", "outcome.json.new"], 0o600)
    for file in (*files, lock):
        assert not os.get_inheritable(file)
        os.close(file)


def test_one_id_has_one_directory(jobs: Path, job_id: str, directory: int) -> None:
    with pytest.raises(FileExistsError):
        job_dir.create(jobs, job_id, REQUEST)
    assert job_dir.read_request(directory) == REQUEST, "the first one is untouched"


def test_output_is_never_written_twice(directory: int) -> None:
    files = job_dir.open_output(directory)
    with pytest.raises(FileExistsError):
        job_dir.open_output(directory)
    for file in files:
        assert fcntl.fcntl(file, fcntl.F_GETFL) & os.O_APPEND
        os.close(file)


@pytest.mark.parametrize("size", [0, 10, 5000])
def test_an_outcome_is_there_whole_or_not_at_all(jobs: Path, job_id: str, directory: int, size: int) -> None:
    """C3: whatever was reserved or half written before."""
    document: dict[str, Any] = {"outcome": {"kind": "exited", "code": 0}, "filler": "x" * size}
    assert job_dir.read_outcome(directory) is None
    job_dir.reserve_outcome(directory)
    (jobs / job_id / "outcome.json.new").write_bytes(b'{"torn": ' + b"y" * 2000)
    assert job_dir.read_outcome(directory) is None
    job_dir.write_outcome(directory, document)
    assert job_dir.read_outcome(directory) == document
    assert not (jobs / job_id / "outcome.json.new").exists()
    assert json.loads((jobs / job_id / "outcome.json").read_text()) == document


def test_the_space_for_the_outcome_is_taken_beforehand(jobs: Path, job_id: str, directory: int) -> None:
    """O10."""
    job_dir.reserve_outcome(directory)
    status = (jobs / job_id / "outcome.json.new").stat()
    assert status.st_blocks * 512 >= 4096


def test_a_job_is_supervised_as_long_as_its_monitor_lives(directory: int) -> None:
    """P7: a lock, no remembered number; the kernel takes it back from a killed process."""
    assert not job_dir.is_supervised(directory)
    program = (
        "import sys; from jobworker.runtime import job_dir; "
        "job_dir.take_lock(int(sys.argv[1])); print(1, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[directory],
    ) as monitor:
        assert monitor.stdout is not None
        monitor.stdout.readline()
        assert job_dir.is_supervised(directory)
        with pytest.raises(BlockingIOError):
            job_dir.take_lock(directory)
        monitor.send_signal(signal.SIGKILL)
        monitor.wait()
        assert not job_dir.is_supervised(directory)


def test_removing_leaves_nothing_and_may_be_repeated(jobs: Path, job_id: str, directory: int) -> None:
    for file in job_dir.open_output(directory):
        os.close(file)
    os.close(job_dir.take_lock(directory))
    job_dir.reserve_outcome(directory)
    job_dir.write_crash(directory, "report")
    job_dir.write_outcome(directory, {})
    job_dir.remove(jobs, job_id)
    job_dir.remove(jobs, job_id)
    assert list(jobs.iterdir()) == []


def test_removing_touches_nothing_that_a_link_leads_to(jobs: Path, job_id: str, directory: int) -> None:
    """O12."""
    (jobs / "precious").write_text("kept")
    (jobs / job_id / OUTPUT).symlink_to(jobs / "precious")
    job_dir.remove(jobs, job_id)
    assert (jobs / "precious").read_text() == "kept"


def test_a_start_taken_back_leaves_the_request_alone(jobs: Path, job_id: str, directory: int) -> None:
    for file in job_dir.open_output(directory):
        os.close(file)
    os.close(job_dir.take_lock(directory))
    job_dir.reserve_outcome(directory)
    job_dir.remove_files(directory)
    assert [entry.name for entry in (jobs / job_id).iterdir()] == ["spec.json"]


@needs_root
def test_the_launcher_writes_into_no_other_kind_of_directory(tmp_path: Path) -> None:
    """§1: the server holds descriptors of whatever it can read."""
    service = 54_321
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    os.chown(private, service, service)

    def check(path: Path) -> None:
        opened = os.open(path, os.O_RDONLY)
        try:
            job_dir.check_directory(opened, service)
        finally:
            os.close(opened)

    check(private)
    for mode in (0o750, 0o701, 0o777):
        private.chmod(mode)
        with pytest.raises(PermissionError):
            check(private)
    private.chmod(0o700)
    os.chown(private, 0, 0)
    with pytest.raises(PermissionError):
        check(private)
    file = tmp_path / "file"
    file.touch(0o600)
    os.chown(file, service, service)
    with pytest.raises(PermissionError):
        check(file)


def test_the_control_socket_is_private_however_long_the_path_is(tmp_path: Path, job_id: str) -> None:
    """E13: a socket's own path may have 107 bytes."""
    jobs = tmp_path / ("d" * 100) / ("e" * 100)
    jobs.mkdir(parents=True)
    directory = job_dir.create(jobs, job_id, REQUEST)
    here = os.getcwd()
    listener = job_dir.listen(directory)
    try:
        with job_dir.connect(directory):
            status = (jobs / job_id / "control").stat()
            assert stat.S_ISSOCK(status.st_mode)
            assert status.st_mode & 0o777 == 0o600
            job_dir.accept(listener).close()
        with pytest.raises(BlockingIOError):
            job_dir.accept(listener)
        os.close(listener)
        with pytest.raises(ConnectionRefusedError):
            job_dir.connect(directory)
    finally:
        os.chdir(here)
        os.close(directory)


def test_a_request_is_checked_again_when_it_is_read(jobs: Path, job_id: str, directory: int) -> None:
    """A7: the launcher believes no file."""
    document = json.loads((jobs / job_id / "spec.json").read_text())
    document["spec"]["uid"] = 0
    (jobs / job_id / "spec.json").write_text(json.dumps(document))
    with pytest.raises(JobError, match="uid"):
        job_dir.read_request(directory)


def test_a_request_that_is_no_file_keeps_nobody_waiting(jobs: Path, job_id: str, directory: int) -> None:
    (jobs / job_id / job_dir.SPEC).unlink()
    os.mkfifo(jobs / job_id / job_dir.SPEC)
    with pytest.raises(PermissionError, match="not a regular file"):
        job_dir.read_request(directory)
