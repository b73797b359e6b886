"""Which disk an io limit is for: the whole disk behind a partition, a mapper or a path, or a refusal."""

import os
from pathlib import Path

import pytest
from host import needs_root

from jobworker.core.errors import ErrorCode, JobError
from jobworker.runtime.block_device import disk_behind, disk_of

#: name → (its device in sysfs, major:minor, is it a partition)
DEVICES = {
    "sda": ("pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0/block/sda", "8:0", False),
    "sda3": ("pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0/block/sda/sda3", "8:3", True),
    "nvme0n1": ("pci0000:00/0000:00:1d.0/0000:04:00.0/nvme/nvme0/nvme0n1", "259:0", False),
    "nvme0n1p2": ("pci0000:00/0000:00:1d.0/0000:04:00.0/nvme/nvme0/nvme0n1/nvme0n1p2", "259:2", True),
    "vda": ("pci0000:00/0000:00:05.0/virtio2/block/vda", "254:0", False),
    "vda1": ("pci0000:00/0000:00:05.0/virtio2/block/vda/vda1", "254:1", True),
    "dm-1": ("virtual/block/dm-1", "253:1", False),
    "md127": ("virtual/block/md127", "9:127", False),
    "md127p1": ("virtual/block/md127/md127p1", "259:7", True),
    "loop3": ("virtual/block/loop3", "7:3", False),
    "mmcblk0p1": ("platform/mmc/mmc_host/mmc0/mmc0:0001/block/mmcblk0/mmcblk0p1", "179:1", True),
    "mmcblk0": ("platform/mmc/mmc_host/mmc0/mmc0:0001/block/mmcblk0", "179:0", False),
}

MOUNTINFO = """\
23 1 0:25 /@root / rw,relatime shared:1 - btrfs {source} rw,ssd,space_cache,subvolid=257,subvol=/@root
30 23 0:31 / /var/lib/docker/merged rw - overlay overlay rw,lowerdir=/l,upperdir=/u,workdir=/w
31 23 0:32 / /tmp rw,nosuid - tmpfs tmpfs rw,size=1024k
32 23 0:33 / /data rw - nfs4 10.0.0.1:/export rw,vers=4.2
33 23 0:34 / /gone rw - btrfs /dev/no-such-disk rw
34 23 0:35 / /odd rw - zfs /dev/null rw
"""


def number(text: str) -> int:
    major, minor = text.split(":")
    return os.makedev(int(major), int(minor))


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """A tree as the kernel shows it: links by number to the devices, partitions inside of their disks."""
    links = tmp_path / "dev" / "block"
    links.mkdir(parents=True)
    for place, device, is_partition in DEVICES.values():
        entry = tmp_path / "devices" / place
        entry.mkdir(parents=True, exist_ok=True)
        (entry / "dev").write_text(device + "\n")
        if is_partition:
            (entry / "partition").write_text("1\n")
        (links / device).symlink_to(f"../../devices/{place}")
    return links


@pytest.mark.parametrize(
    ("device", "disk"),
    [
        ("sda", "sda"),
        ("sda3", "sda"),
        ("nvme0n1", "nvme0n1"),
        ("nvme0n1p2", "nvme0n1"),
        ("vda", "vda"),
        ("vda1", "vda"),
        ("dm-1", "dm-1"),
        ("md127", "md127"),
        ("md127p1", "md127"),
        ("loop3", "loop3"),
        ("mmcblk0p1", "mmcblk0"),
    ],
)
def test_a_device_stands_for_the_whole_disk_it_is_on(sysfs: Path, device: str, disk: str) -> None:
    """S4."""
    assert disk_behind(number(DEVICES[device][1]), "/dev/" + device, "", sysfs) == DEVICES[disk][1]


@needs_root
@pytest.mark.parametrize("device", ["nvme0n1p2", "vda1"])
def test_a_device_node_is_asked_for_its_own_number(sysfs: Path, tmp_path: Path, device: str) -> None:
    """S4: st_rdev of the node, not the disk that the node lies on."""
    node = tmp_path / "node"
    os.mknod(node, 0o060600, number(DEVICES[device][1]))
    assert disk_of(str(node), "", sysfs) == DEVICES[device.rstrip("12").removesuffix("p")][1]


@pytest.mark.parametrize(
    ("anonymous", "kind"),
    [("0:31", "overlay"), ("0:32", "tmpfs"), ("0:33", "nfs4"), ("0:34", "btrfs"), ("0:35", "zfs")],
)
def test_a_file_system_without_a_disk_is_refused_by_its_name(sysfs: Path, anonymous: str, kind: str) -> None:
    """S3, S4."""
    with pytest.raises(JobError, match=rf"'/some/path' is on a file system without a disk.*\({kind}\)") as refused:
        disk_behind(number(anonymous), "/some/path", MOUNTINFO, sysfs)
    assert refused.value.code is ErrorCode.UNSUPPORTED
    assert "io_device" in refused.value.message, "it names the way out"


def test_a_file_system_that_is_not_mounted_here_is_refused(sysfs: Path) -> None:
    with pytest.raises(JobError, match="unknown") as refused:
        disk_behind(number("0:99"), "/some/path", MOUNTINFO, sysfs)
    assert refused.value.code is ErrorCode.UNSUPPORTED


def test_a_device_that_the_kernel_does_not_know_is_refused(sysfs: Path) -> None:
    with pytest.raises(JobError, match="no disk behind '/dev/sdq'") as refused:
        disk_behind(number("65:0"), "/dev/sdq", "", sysfs)
    assert refused.value.code is ErrorCode.UNSUPPORTED


def block_devices() -> list[Path]:
    return [entry for entry in sorted(Path("/dev").iterdir()) if entry.is_block_device()]


@pytest.mark.skipif(not block_devices(), reason="needs a block device in /dev")
def test_a_file_system_with_numbers_of_its_own_is_on_the_disk_it_is_mounted_from(sysfs: Path) -> None:
    """S4: as btrfs, whose stat(2) names no device."""
    source = block_devices()[0]
    expected = disk_of(str(source), "")
    assert disk_behind(number("0:25"), "/some/path", MOUNTINFO.format(source=source)) == expected


@pytest.mark.skipif(os.major(os.stat("/").st_dev) == 0, reason="needs / on a file system with a disk of its own")
def test_the_disk_under_the_root_of_this_host_is_found() -> None:
    """S4."""
    disk = disk_of("/", Path("/proc/self/mountinfo").read_text())
    entry = Path("/sys/dev/block") / disk
    assert (entry / "dev").read_text().strip() == disk
    assert not (entry / "partition").exists()


@pytest.mark.parametrize("path", ["/no/such/path", "/dev/null"])
def test_what_is_no_disk_and_no_path_is_an_invalid_argument(path: str) -> None:
    """S3."""
    with pytest.raises(JobError, match="io_device") as refused:
        disk_of(path, "")
    assert refused.value.code is ErrorCode.INVALID_ARGUMENT


def test_a_path_of_any_length_is_cut_short_in_the_answer() -> None:
    with pytest.raises(JobError) as refused:
        disk_of("/" + "a" * 100_000, "")
    assert len(refused.value.message) < 200
