"""A directory of the operator's as a job's root: the job sees it and nothing else, and nothing in it is trusted."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from host import a_faulty_worker, job_processes, needs_root, output_of, process_status, run_job

from jobworker import ErrorCode, JobError, JobSpec, State, Worker
from jobworker.runtime.launcher_client import LauncherClient
from jobworker.runtime.mountinfo import parse_mountinfo
from jobworker.worker import bootstrap

_BUSYBOX = Path("/bin/busybox")

pytestmark = [
    needs_root,
    pytest.mark.skipif(not _BUSYBOX.exists(), reason="needs busybox: a program without libraries (busybox-static)"),
]


def make_root(place: Path) -> Path:
    """A root as small as there can be."""
    for name in ("bin", "dev", "proc", "tmp", "etc"):
        (place / name).mkdir(parents=True)
    shutil.copy(_BUSYBOX, place / "bin")
    for name in ("sh", "cat", "ls", "id", "touch", "sleep"):
        (place / "bin" / name).symlink_to("busybox")
    (place / "etc/release").write_text("a root of its own\n")
    return place


@pytest.fixture
def root(state: Path) -> Path:
    return make_root(state.parent / "roots" / "small")


@pytest.fixture
async def rooted(state: Path, root: Path) -> AsyncIterator[Worker]:
    """A worker whose jobs may have roots below the directory of `root`."""
    launcher = await asyncio.to_thread(LauncherClient.start, bootstrap(state, roots=(root.parent,)))
    async with await Worker.open(state, launcher=launcher) as worker:
        yield worker
        for job in worker.list():
            await worker.remove(job.id, force=True)


def shell(root: Path, script: str) -> JobSpec:
    return JobSpec(program="sh", args=("-c", script), rootfs=str(root))


async def refusal(worker: Worker, rootfs: Path | str) -> tuple[ErrorCode, str]:
    with pytest.raises(JobError) as caught:
        await worker.start(JobSpec(program="/bin/true", rootfs=str(rootfs)))
    assert worker.list() == []
    return caught.value.code, caught.value.message


async def test_a_job_sees_its_root_and_nothing_of_the_host(rooted: Worker, root: Path) -> None:
    """E23. The control: without a root the same place is the host's."""
    look = "cat /etc/release; ls /; ls /usr /etc/passwd 2>&1; pwd"
    job, output = await run_job(rooted, shell(root, look))
    assert job.state is State.COMPLETED
    lines = output.decode().splitlines()
    assert lines[:6] == ["a root of its own", "bin", "dev", "etc", "proc", "tmp"]
    assert [line.rpartition(": ")[2] for line in lines[6:8]] == ["No such file or directory"] * 2
    assert lines[8:] == ["/tmp/work"]
    _, seen = await run_job(rooted, JobSpec(program="/bin/ls", args=("-d", "/usr")))
    assert seen == b"/usr\n"


async def test_the_root_that_is_shown_is_the_one_that_proc_shows(rooted: Worker, root: Path, state: Path) -> None:
    """E25. By device and inode, and by the mount table; the control is a job on the host's tree."""
    own = await rooted.start(JobSpec(program="sleep", args=("1000",), rootfs=str(root)))
    hosts = await rooted.start(JobSpec(program="sleep", args=("1000",)))
    assert (own.sandbox["root"], hosts.sandbox["root"]) == ("read-only, of its own", "read-only")
    for job, place in ((own, root), (hosts, Path("/"))):
        [pid] = job_processes(state, job.id)
        assert os.path.samestat(os.stat(f"/proc/{pid}/root"), place.stat())
        mounts = {mount.path: mount for mount in parse_mountinfo(Path(f"/proc/{pid}/mountinfo").read_text())}
        assert {"ro", "nosuid", "nodev"} <= set(mounts["/"].options.split(","))
        assert process_status(pid)["Uid"].split() == [job.sandbox["uid"]] * 4
    [pid] = job_processes(state, own.id)
    mounted = {mount.path for mount in parse_mountinfo(Path(f"/proc/{pid}/mountinfo").read_text())}
    assert {path.split("/")[1] for path in mounted} == {"", "proc", "dev", "tmp"}


async def test_nothing_in_a_root_can_be_written_and_nothing_in_it_gives_rights(rooted: Worker, root: Path) -> None:
    """E4, E9, E11. A set-uid program, a device node and a file open to all, made by root on the host."""
    (root / "bin/busybox").chmod(0o4755)
    os.mknod(root / "etc/zero", 0o020666, os.makedev(1, 5))
    (root / "etc/zero").chmod(0o666)
    (root / "etc/open").touch()
    (root / "etc/open").chmod(0o666)
    script = "id -u; cat /etc/zero; echo x > /etc/open; touch /x /etc/x /bin/x; touch /tmp/x /dev/shm/x && echo wrote"
    job, output = await run_job(rooted, shell(root, f"exec 2>&1; {script}"))
    lines = output.decode().splitlines()
    assert lines[0] == job.sandbox["uid"] != "0"
    assert lines[-1] == "wrote"
    assert "Permission denied" in next(line for line in lines if "zero" in line)
    assert len([line for line in lines if "Read-only file system" in line or "Permission denied" in line]) == 5
    assert (root / "etc/open").read_bytes() == b""
    control = os.open(root / "etc/zero", os.O_RDONLY)
    assert os.read(control, 1) == b"\0"
    os.close(control)


async def test_only_what_the_operator_lists_can_be_a_root(rooted: Worker, root: Path, worker_without: Worker) -> None:
    """The control: the same directory is refused where it is not listed, and neighbours by name always are."""
    beside = make_root(root.parent.parent / f"{root.parent.name}-beside")
    for worker, path in ((worker_without, root), (rooted, beside), (rooted, "/"), (rooted, "/usr"), (rooted, "/proc")):
        code, message = await refusal(worker, path)
        assert code is ErrorCode.PERMISSION_DENIED
        assert message.startswith(f"rootfs: '{path}' is not at or below a directory")
    assert (await run_job(rooted, shell(root, "true")))[0].state is State.COMPLETED
    assert (await run_job(rooted, JobSpec(program="/bin/true")))[0].state is State.COMPLETED


@pytest.fixture
async def worker_without(tmp_path: Path) -> AsyncIterator[Worker]:
    """A worker of which no operator has listed any directory."""
    async with await Worker.open(tmp_path / "state") as worker:
        yield worker


async def test_a_directory_that_is_no_root_is_refused_by_what_it_lacks(rooted: Worker, root: Path) -> None:
    """S6. A link on the way could lead anywhere, and would lead elsewhere by the time that it is followed."""
    roots = root.parent
    (roots / "link").symlink_to(root)
    (roots / "away").symlink_to("/")
    (roots / "file").touch()
    for name in ("dev", "proc", "tmp"):
        (make_root(roots / f"no-{name}") / name).rmdir()
        linked = make_root(roots / f"linked-{name}")
        (linked / name).rmdir()
        (linked / name).symlink_to("etc")
    by_link = "is reached by a symbolic link; name the directory itself"
    expected = {
        "link": by_link,
        "away": by_link,
        "away/usr": by_link,
        "file": "cannot be a root: Not a directory",
        "none": "cannot be a root: No such file or directory",
        ".": "lacks the directory proc, for the job's own /proc; make it",
    }
    for name in ("dev", "proc", "tmp"):
        lack = f"lacks the directory {name}, for the job's own /{name}; make it"
        expected |= {f"no-{name}": lack, f"linked-{name}": lack}
    for name, why in expected.items():
        path = f"{roots}/{name}"
        assert await refusal(rooted, path) == (ErrorCode.INVALID_ARGUMENT, f"rootfs: '{path}' {why}")


async def test_a_program_that_the_root_does_not_have_is_not_found(rooted: Worker, root: Path) -> None:
    """S7. That the host has it makes no difference."""
    for program in ("python3", "/usr/bin/env"):
        with pytest.raises(JobError) as caught:
            await rooted.start(JobSpec(program=program, rootfs=str(root)))
        assert (caught.value.code, caught.value.message) == (
            ErrorCode.PROGRAM_NOT_FOUND,
            f"program not found: '{program}'",
        )
    with pytest.raises(JobError, match="workdir: the job cannot enter '/usr'"):
        await rooted.start(JobSpec(program="sh", workdir="/usr", rootfs=str(root)))


async def test_links_in_a_root_lead_to_places_in_it(rooted: Worker, root: Path) -> None:
    """O12. Absolute ones as well, and however many steps up."""
    (root / "etc/absolute").symlink_to("/etc/release")
    (root / "etc/up").symlink_to("../" * 40 + "etc/release")
    (root / "etc/host").symlink_to("/../../../usr/bin/env")
    _, output = await run_job(rooted, shell(root, "cat /etc/absolute /etc/up; ls -L /etc/host && echo leads out"))
    assert output.decode().splitlines()[:2] == ["a root of its own"] * 2
    assert "leads out" not in output.decode()


async def test_what_is_mounted_below_a_root_stays_behind(state: Path) -> None:
    """E9. The control: a job on the host's tree sees it."""
    launcher = await asyncio.to_thread(
        LauncherClient.start,
        bootstrap(state, roots=(Path("/opt/roots"),)),
        module="launcher_with_mounted_root",
        search_path=Path(__file__).parent.parent / "programs",
    )
    async with await Worker.open(state, launcher=launcher) as worker:
        _, output = await run_job(worker, JobSpec(program="ls", args=("/etc",), rootfs="/opt/roots/small"))
        assert output == b"below\n"
        _, control = await run_job(worker, JobSpec(program="/bin/ls", args=("/opt/roots/small/etc",)))
        assert control == b"mounted\n"
        for job in worker.list():
            await worker.remove(job.id)


async def test_a_job_whose_root_is_not_the_one_asked_for_is_refused(state: Path, root: Path) -> None:
    """E25. The step that takes the root fails, or builds the host's tree instead."""
    async with a_faulty_worker(state, roots=(root.parent,)) as worker:
        good = await worker.start(shell(root, "exit 0"))
        await worker.wait(good.id)
        await worker.remove(good.id)
        for label, found in (
            ("fail_at", "step BindRoot failed"),
            ("with_host_root", "the kernel says root: read-only"),
        ):
            spec = JobSpec(program="/bin/sh", rootfs=str(root), labels={label: "4"})
            with pytest.raises(JobError) as caught:
                await worker.start(spec)
            assert caught.value.code is ErrorCode.UNSUPPORTED
            assert found in caught.value.message
        assert worker.list() == []


@pytest.mark.parametrize("place", ["/", ".", "state", "state/jobs"])
async def test_a_server_whose_own_files_could_be_seen_does_not_start(state: Path, place: str) -> None:
    """O12. The floor is the launcher's, whoever tells it what may be a root."""
    with pytest.raises(JobError) as caught:
        await asyncio.to_thread(LauncherClient.start, bootstrap(state, roots=(state.parent / place,)))
    assert caught.value.code is ErrorCode.UNAVAILABLE
    launcher = await asyncio.to_thread(LauncherClient.start, bootstrap(state, roots=(state.parent / "beside",)))
    launcher.close()


@pytest.mark.parametrize("by_link", ["key", "root"])
async def test_links_do_not_hide_that_the_servers_own_files_could_be_seen(state: Path, by_link: str) -> None:
    """O12. The control: beside the key a root may be."""
    keys, roots = state.parent / "places/keys", state.parent / "places/roots"
    keys.mkdir(parents=True)
    roots.mkdir()
    link = state.parent / "link"
    link.symlink_to(keys)
    key, root = (link, keys.parent) if by_link == "key" else (keys, link)
    with pytest.raises(JobError) as caught:
        await asyncio.to_thread(LauncherClient.start, bootstrap(state, hidden=(key,), roots=(root,)))
    assert caught.value.code is ErrorCode.UNAVAILABLE
    launcher = await asyncio.to_thread(LauncherClient.start, bootstrap(state, hidden=(key,), roots=(roots,)))
    launcher.close()


async def test_output_is_kept_where_a_job_with_a_root_of_its_own_cannot_see_it(rooted: Worker, root: Path) -> None:
    """O12."""
    job = await rooted.start(shell(root, "ls -d /var 2>&1; echo end"))
    assert (await output_of(rooted, job.id)).endswith(b"No such file or directory\nend\n")
