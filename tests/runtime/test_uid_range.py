"""One uid for each live job on the host, given back by the kernel and by nobody else."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobworker.core.errors import ErrorCode, JobError
from jobworker.runtime.uid_range import UidLease, UidRange

FIRST = 300_000
#: Another process that leases as many uids as it is told, names them, and holds them until it is ended.
HOLDER = """
import sys
from pathlib import Path
from jobworker.runtime.uid_range import UidRange
uids = UidRange.open(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
leases = [uids.lease() for _ in range(int(sys.argv[4]))]
print(*(lease.uid for lease in leases), flush=True)
sys.stdin.read()
"""


@contextmanager
def held_elsewhere(lock_dir: Path, last: int, count: int) -> Iterator[tuple["subprocess.Popen[str]", set[int]]]:
    arguments = [str(lock_dir), str(FIRST), str(last), str(count)]
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process, {int(uid) for uid in process.stdout.readline().split()}
        finally:
            process.kill()


def lease_all(uids: UidRange, count: int) -> list[UidLease]:
    return [uids.lease() for _ in range(count)]


def give_back(leases: list[UidLease]) -> None:
    for lease in leases:
        os.close(lease.lock)


def test_no_uid_is_given_to_two_processes(tmp_path: Path) -> None:
    """E3."""
    last = FIRST + 29
    with held_elsewhere(tmp_path, last, 10) as (_, first), held_elsewhere(tmp_path, last, 10) as (_, second):
        leases = lease_all(UidRange.open(tmp_path, FIRST, last), 10)
        give_back(leases)
        own = {lease.uid for lease in leases}
        assert first | second | own == set(range(FIRST, last + 1))


def test_ranges_that_overlap_share_their_uids_and_others_keep_theirs(tmp_path: Path) -> None:
    """E3: what is in use is a uid, not the place of a uid in somebody's range."""
    with held_elsewhere(tmp_path, FIRST + 9, 10):
        with pytest.raises(JobError, match="all 1 job uids"):
            UidRange.open(tmp_path, FIRST + 5, FIRST + 5).lease()
        give_back(lease_all(UidRange.open(tmp_path, FIRST + 10, FIRST + 19), 10))


def test_a_range_that_is_used_up_says_so(tmp_path: Path) -> None:
    uids = UidRange.open(tmp_path, FIRST, FIRST + 2)
    leases = lease_all(uids, 3)
    descriptors = os.listdir("/proc/self/fd")
    with pytest.raises(JobError, match="all 3 job uids are in use") as refused:
        uids.lease()
    assert refused.value.code is ErrorCode.EXHAUSTED
    assert os.listdir("/proc/self/fd") == descriptors, "a refused lease holds no descriptor"
    os.close(leases[1].lock)
    again = uids.lease()
    assert again.uid == leases[1].uid
    give_back([leases[0], leases[2], again])


def test_the_uids_of_a_killed_process_are_free_again(tmp_path: Path) -> None:
    """S10."""
    uids = UidRange.open(tmp_path, FIRST, FIRST + 4)
    with held_elsewhere(tmp_path, FIRST + 4, 5) as (holder, held):
        assert len(held) == 5
        with pytest.raises(JobError):
            uids.lease()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        leases = lease_all(uids, 5)
        assert {lease.uid for lease in leases} == held
        give_back(leases)


def test_a_uid_is_held_until_the_last_process_with_the_lock_is_gone(tmp_path: Path) -> None:
    """As the launcher closes its copy and the monitor keeps one."""
    uids = UidRange.open(tmp_path, FIRST, FIRST)
    lease = uids.lease()
    with subprocess.Popen(["sleep", "100"], pass_fds=[lease.lock]) as heir:
        os.close(lease.lock)
        with pytest.raises(JobError):
            uids.lease()
        heir.kill()
    give_back([uids.lease()])


def test_a_uid_rests_before_it_is_used_again(tmp_path: Path) -> None:
    uids = UidRange.open(tmp_path, FIRST, FIRST + 3)
    seen = []
    for _ in range(4):
        lease = uids.lease()
        seen.append(lease.uid)
        os.close(lease.lock)
    assert sorted(seen) == [FIRST, FIRST + 1, FIRST + 2, FIRST + 3]


def test_the_lock_file_is_private_and_its_descriptors_are_not_inherited(tmp_path: Path) -> None:
    place = tmp_path / "locks"
    lease = UidRange.open(place, FIRST, FIRST).lease()
    try:
        assert place.stat().st_mode & 0o777 == 0o700
        assert (place / "uids").stat().st_mode & 0o777 == 0o600
        assert not os.get_inheritable(lease.lock)
    finally:
        os.close(lease.lock)


def test_a_link_in_place_of_the_lock_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").touch()
    (tmp_path / "uids").symlink_to("elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        UidRange.open(tmp_path, FIRST, FIRST).lease()
