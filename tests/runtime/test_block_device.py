"""Which disks an io limit is for: all whole disks behind a partition, a mapper or a path, or a refusal."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from host import needs_root

from jobworker.core.errors import ErrorCode, JobError
from jobworker.runtime.block_device import Place, disks_behind, disks_of, is_stacked, look_up
from jobworker.runtime.cgroup import Cgroup
from jobworker.runtime.cgroup_hierarchy import Hierarchy
from jobworker.runtime.linux import file_system_ids

SATA = "pci0000:00/0000:00:1f.2/ata{}/host0/target0:0:0/0:0:0:0/block/"
NVME = "pci0000:00/0000:00:1d.0/0000:04:00.0/nvme/nvme0/nvme0n1"
#: name → (its device in sysfs, major:minor, what it is made of)
DEVICES: dict[str, tuple[str, str, list[str]]] = {
    "sda": (SATA.format(1) + "sda", "8:0", []),
    "sda3": (SATA.format(1) + "sda/sda3", "8:3", []),
    "sdb": (SATA.format(2) + "sdb", "8:16", []),
    "sdb1": (SATA.format(2) + "sdb/sdb1", "8:17", []),
    "nvme0n1": (NVME, "259:0", []),
    "nvme0n1p2": (f"{NVME}/nvme0n1p2", "259:2", []),
    "vda": ("pci0000:00/0000:00:05.0/virtio2/block/vda", "254:0", []),
    "vda1": ("pci0000:00/0000:00:05.0/virtio2/block/vda/vda1", "254:1", []),
    "dm-0": ("virtual/block/dm-0", "253:0", ["nvme0n1p2"]),  # encrypted
    "dm-1": ("virtual/block/dm-1", "253:1", ["dm-0"]),  # a logical volume on it
    "dm-2": ("virtual/block/dm-2", "253:2", ["sda3", "sdb1"]),  # one that lies on two disks
    "md127": ("virtual/block/md127", "9:127", ["sda", "sdb1"]),
    "md127p1": ("virtual/block/md127/md127p1", "259:7", []),
    "loop3": ("virtual/block/loop3", "7:3", []),
    "mmcblk0": ("platform/mmc/mmc_host/mmc0/mmc0:0001/block/mmcblk0", "179:0", []),
    "mmcblk0p1": ("platform/mmc/mmc_host/mmc0/mmc0:0001/block/mmcblk0/mmcblk0p1", "179:1", []),
}

MOUNTINFO = """\
23 1 0:25 /@root / rw,relatime shared:1 - btrfs {disk} rw,ssd,space_cache,subvolid=257,subvol=/@root
30 23 0:31 / /merged rw - overlay overlay rw,lowerdir={lower}:{odd},upperdir={upper},workdir={upper}
31 23 0:32 / /tmp rw,nosuid - tmpfs tmpfs rw,size=1024k
32 23 0:33 / /data rw - nfs4 10.0.0.1:/export rw,vers=4.2
33 23 0:34 / /gone rw - btrfs /dev/no-such-disk rw
34 23 0:35 / /odd rw - zfs tank/home rw,xattr
35 23 0:36 / /share rw - 9p host0 rw,trans=virtio
36 23 0:37 / /far rw - fuse.sshfs alice@host: rw,user_id=0
37 23 0:38 / /false rw - bcachefs /dev/null rw
38 23 0:39 / /hidden rw - overlay overlay rw,lowerdir=/no/such/lower,upperdir={upper},workdir={upper}
"""


def number(text: str) -> int:
    major, minor = text.split(":")
    return os.makedev(int(major), int(minor))


def place(device: str, mount: int = 0) -> Place:
    return Place(number(DEVICES[device][1] if device in DEVICES else device), mount)


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """A tree as the kernel shows it: links by number, partitions inside of their disks, links to what is below."""
    sysfs = tmp_path / "sys"
    links = sysfs / "dev/block"
    links.mkdir(parents=True)
    for location, device, _ in DEVICES.values():
        entry = sysfs / "devices" / location
        entry.mkdir(parents=True, exist_ok=True)
        (entry / "dev").write_text(device + "\n")
        (links / device).symlink_to(f"../../devices/{location}")
    for name, (location, _, parts) in DEVICES.items():
        entry = sysfs / "devices" / location
        if entry.parent.name in DEVICES:
            (entry / "partition").write_text("1\n")
        else:
            (entry / "slaves").mkdir()
        for part in parts:
            (entry / "slaves" / part).symlink_to(sysfs / "devices" / DEVICES[part][0])
        assert entry.name == name
    return sysfs


@pytest.mark.parametrize(
    ("device", "disks"),
    [
        ("sda", ["sda"]),
        ("sda3", ["sda"]),
        ("nvme0n1", ["nvme0n1"]),
        ("nvme0n1p2", ["nvme0n1"]),
        ("vda", ["vda"]),
        ("vda1", ["vda"]),
        ("mmcblk0p1", ["mmcblk0"]),
        ("dm-0", ["dm-0", "nvme0n1"]),
        ("dm-1", ["dm-1", "dm-0", "nvme0n1"]),
        ("dm-2", ["dm-2", "sda", "sdb"]),
        ("md127", ["md127", "sda", "sdb"]),
        ("md127p1", ["md127", "sda", "sdb"]),
        ("loop3", ["loop3"]),
    ],
)
def test_a_device_stands_for_its_whole_disk_and_for_the_disks_below_it(
    sysfs: Path, device: str, disks: list[str]
) -> None:
    """S4. Otherwise another volume on the same disk would be a way around the limit."""
    assert disks_behind(place(device), "/dev/" + device, sysfs=sysfs) == [DEVICES[name][1] for name in disks]


@pytest.mark.parametrize(("device", "is_made_of_others"), [("vda", False), ("dm-1", True), ("md127", True)])
def test_what_goes_to_a_device_that_is_made_of_others_is_seen_twice(
    sysfs: Path,
    device: str,
    is_made_of_others: bool,  # noqa: FBT001
) -> None:
    assert is_stacked(DEVICES[device][1], sysfs) is is_made_of_others
    assert not is_stacked("65:0", sysfs), "one that is gone"


@needs_root
@pytest.mark.parametrize("device", ["nvme0n1p2", "vda1"])
def test_a_device_node_is_asked_for_its_own_number(tmp_path: Path, device: str) -> None:
    """S4: st_rdev of the node, not the disk that the node lies on; the control is the file beside it."""
    node, file = tmp_path / "node", tmp_path / "file"
    os.mknod(node, 0o060600, number(DEVICES[device][1]))
    file.touch()
    assert look_up(str(node)).device == number(DEVICES[device][1])
    assert look_up(str(file)).device == os.stat(tmp_path).st_dev


def test_a_loop_device_stands_for_the_disk_of_its_file_too(sysfs: Path, tmp_path: Path) -> None:
    """S4."""
    on = os.stat(tmp_path).st_dev
    disk = f"{os.major(on)}:{os.minor(on)}"
    image = tmp_path / "an image"
    image.touch()
    loop = sysfs / "devices/virtual/block/loop3/loop"
    loop.mkdir()
    (loop / "backing_file").write_text(f"{image}\n")
    if os.major(on) == 0:
        pytest.skip("needs a temporary directory on a file system with a disk of its own")
    with contextlib.suppress(FileExistsError):  # as when it is the number of one of the devices above
        (sysfs / "dev/block" / disk).symlink_to(Path("/sys/dev/block", disk).resolve())
    assert disks_behind(place("loop3"), "/dev/loop3", sysfs=sysfs)[:1] == ["7:3"]
    assert len(disks_behind(place("loop3"), "/dev/loop3", sysfs=sysfs)) >= 2
    (loop / "backing_file").write_text(f"{image} (deleted)\n")
    with pytest.raises(JobError, match="'/dev/loop3' is on files that cannot be seen from here") as refused:
        disks_behind(place("loop3"), "/dev/loop3", sysfs=sysfs)
    assert refused.value.code is ErrorCode.UNSUPPORTED
    assert str(tmp_path) not in refused.value.message


@pytest.mark.parametrize(
    ("anonymous", "mount", "kind"),
    [
        ("0:32", 31, "tmpfs"),
        ("0:33", 32, "nfs4"),
        ("0:34", 33, "btrfs"),
        ("0:35", 34, "zfs"),
        ("0:36", 35, "9p"),
        ("0:37", 36, "fuse.sshfs"),
        ("0:38", 37, "bcachefs"),
    ],
)
def test_a_file_system_without_a_disk_is_refused_by_its_name(
    sysfs: Path, anonymous: str, mount: int, kind: str
) -> None:
    """S3, S4."""
    with pytest.raises(JobError, match=rf"'/some/path' is on a file system without a disk.*\({kind}\)") as refused:
        disks_behind(place(anonymous, mount), "/some/path", mountinfo=MOUNTINFO, sysfs=sysfs)
    assert refused.value.code is ErrorCode.UNSUPPORTED
    assert "io_device" in refused.value.message, "it names the way out"


def test_a_mount_that_is_not_listed_is_refused(sysfs: Path) -> None:
    with pytest.raises(JobError, match="does not tell what '/some/path' is mounted from") as refused:
        disks_behind(place("0:99", 99), "/some/path", mountinfo=MOUNTINFO, sysfs=sysfs)
    assert refused.value.code is ErrorCode.UNSUPPORTED


def test_a_device_that_the_kernel_does_not_know_is_refused(sysfs: Path) -> None:
    with pytest.raises(JobError, match="no disk behind '/dev/sdq'") as refused:
        disks_behind(place("65:0"), "/dev/sdq", sysfs=sysfs)
    assert refused.value.code is ErrorCode.UNSUPPORTED


def block_devices() -> list[Path]:
    return [entry for entry in sorted(Path("/dev").iterdir()) if entry.is_block_device()]


needs_block_device = pytest.mark.skipif(not block_devices(), reason="needs a block device in /dev")


@needs_block_device
@pytest.mark.parametrize("members", [[], ["sda3", "sdb"]])
def test_a_btrfs_stands_for_all_of_its_disks(sysfs: Path, members: list[str]) -> None:
    """S4: stat(2) names no device of it, and the list of mounts only one."""
    source = block_devices()[0]
    listed = os.stat(source).st_rdev
    own = f"{os.major(listed)}:{os.minor(listed)}"
    devices = sysfs / "fs/btrfs/0c3a9a5e/devices"
    devices.mkdir(parents=True)
    (sysfs / "dev/block" / own).unlink(missing_ok=True)
    disk = sysfs / "devices/own"
    disk.mkdir()
    (disk / "dev").write_text(own + "\n")
    (sysfs / "dev/block" / own).symlink_to(disk)
    mountinfo = MOUNTINFO.replace("{disk}", str(source))
    with pytest.raises(JobError, match=r"does not tell which disks '/some/path' is on \(btrfs\)"):
        disks_behind(place("0:99", 23), "/some/path", mountinfo=mountinfo, sysfs=sysfs)
    (devices / "own").symlink_to(disk)
    for name in members:
        (devices / name).symlink_to(sysfs / "devices" / DEVICES[name][0])
    found = disks_behind(place("0:99", 23), "/some/path", mountinfo=mountinfo, sysfs=sysfs)
    assert sorted(found) == sorted([own, *(["8:0", "8:16"] if members else [])])


def test_an_overlay_stands_for_the_disks_of_its_layers(tmp_path: Path) -> None:
    """S4, on this host's own sysfs. Layers may have colons, commas and spaces in their names."""
    expected = os.stat(tmp_path).st_dev
    if os.major(expected) == 0:
        pytest.skip("needs a temporary directory on a file system with a disk of its own")
    layers = {"lower": tmp_path / "lower", "odd": tmp_path / "o d,d:1", "upper": tmp_path / "upper"}
    for layer in layers.values():
        layer.mkdir()
    shown = {name: str(path) for name, path in layers.items()}
    shown["odd"] = shown["odd"].replace(" ", "\\040").replace(",", "\\054").replace(":", "\\134:")
    mountinfo = MOUNTINFO.format(disk="/dev/vda", **shown)
    assert disks_behind(place("0:31", 30), "/some/path", mountinfo=mountinfo) == disks_of(str(tmp_path))
    with pytest.raises(JobError, match="'/some/path' is on files that cannot be seen from here") as refused:
        disks_behind(place("0:31", 38), "/some/path", mountinfo=mountinfo)
    assert refused.value.code is ErrorCode.UNSUPPORTED
    assert "lower" not in refused.value.message


@needs_root
def test_a_real_overlay_and_a_real_tmpfs_are_told_apart(tmp_path: Path) -> None:
    """S4. In a mount namespace of its own; files of an overlay may have numbers that no mount has."""
    for name in ("lower", "upper", "work", "merged", "memory"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower/file").touch()
    look = (
        "import sys; from jobworker.core.errors import JobError; from jobworker.runtime.block_device import disks_of\n"
        "for path in sys.argv[1:]:\n"
        "    try: print(*disks_of(path))\n"
        "    except JobError as error: print(error.message)\n"
    )
    script = f"""
        mount -t overlay overlay -o lowerdir=$PWD/lower,upperdir=$PWD/upper,workdir=$PWD/work merged &&
        mount -t tmpfs tmpfs memory && exec {sys.executable} -c "$0" . merged merged/file memory
    """
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, look], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    if "unknown filesystem type" in done.stderr:
        pytest.skip("needs a kernel with overlayfs")
    below, merged, file, memory = done.stdout.splitlines()
    assert "(tmpfs)" in memory
    assert merged == file
    assert merged.replace("'merged'", "'.'") == below


@pytest.fixture
def loop_devices(tmp_path: Path) -> Iterator[list[str]]:
    """Two real loop devices that may have partitions, on files in `tmp_path`."""
    devices: list[str] = []
    try:
        for name in ("first", "second"):
            image = tmp_path / name
            image.touch()
            os.truncate(image, 128 << 20)
            command = ["losetup", "--find", "--show", "--partscan", image]
            made = subprocess.run(command, capture_output=True, text=True, check=False)
            if made.returncode:
                pytest.skip("needs free loop devices")
            devices.append(made.stdout.strip())
        yield devices
    finally:
        for device in devices:
            subprocess.run(["losetup", "--detach", device], check=True)


def number_of(device: str) -> str:
    own = os.stat(device).st_rdev
    return f"{os.major(own)}:{os.minor(own)}"


@needs_root
def test_a_real_loop_device_stands_for_the_disk_below(loop_devices: list[str], tmp_path: Path) -> None:
    """S4."""
    device, other = loop_devices
    assert disks_of(device) == [number_of(device), *disks_of(str(tmp_path))]
    assert number_of(other) not in disks_of(device)
    assert is_stacked(number_of(device))


@needs_root
def test_a_real_partition_stands_for_its_whole_disk(loop_devices: list[str], tmp_path: Path) -> None:
    """S4. The kernel takes no limit on a partition."""
    device, _ = loop_devices
    subprocess.run(["addpart", device, "1", "2048", "2048"], check=True)
    try:
        shown = Path("/sys/class/block", os.path.basename(device) + "p1", "dev").read_text().strip()
        node = tmp_path / "partition"
        os.mknod(node, 0o060600, number(shown))
        assert shown != number_of(device)
        assert disks_of(str(node)) == disks_of(device)
    finally:
        subprocess.run(["delpart", device, "1"], check=True)


@needs_root
def test_a_real_btrfs_stands_for_every_disk_that_it_is_on(loop_devices: list[str], tmp_path: Path) -> None:
    """S4. In a subvolume, whose device number is in no list of mounts; in a mount namespace of its own."""
    if shutil.which("mkfs.btrfs") is None:
        pytest.skip("needs mkfs.btrfs, of the package btrfs-progs")
    subprocess.run(["mkfs.btrfs", "--quiet", "--force", *loop_devices], check=True, capture_output=True)
    place = tmp_path / "btrfs"
    place.mkdir()
    script = """
        mount -t btrfs "$1" "$2" && btrfs -q subvolume create "$2/volume" && : >"$2/volume/file" &&
        exec "$3" -c "$4" "$2" "$2/volume" "$2/volume/file"
    """
    look = (
        "import sys; from jobworker.runtime.block_device import disks_of; print(*map(disks_of, sys.argv[1:]), sep=';')"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", loop_devices[0], place, sys.executable, look],
        capture_output=True,
        text=True,
        check=False,
    )
    if "unknown filesystem type" in done.stderr:
        pytest.skip("needs a kernel with btrfs")
    below = disks_of(str(tmp_path))
    expected = [number_of(loop_devices[0]), *below, number_of(loop_devices[1])]
    for found in done.stdout.strip().split(";"):
        assert found == str(list(dict.fromkeys(expected))), done.stderr


@needs_root
def test_io_through_a_real_loop_device_is_counted_once(loop_devices: list[str], tmp_path: Path) -> None:
    """As the kernel shows it: for the loop device and for the disk below."""
    loop, *below = disks_of(loop_devices[0])
    shown = "".join(f"{disk} rbytes=4096 wbytes=0 rios=1 wios=0\n" for disk in (loop, *below))
    (tmp_path / "io.stat").write_text(shown)
    group = Cgroup([(Hierarchy(str(tmp_path), ("io",), is_v2=True), str(tmp_path))])
    assert group.usage().io_read_bytes == 4096 * len([disk for disk in below if not is_stacked(disk)])


@pytest.mark.skipif(os.major(os.stat("/").st_dev) == 0, reason="needs / on a file system with a disk of its own")
def test_the_disk_under_the_root_of_this_host_is_found() -> None:
    """S4."""
    for disk in disks_of("/"):
        entry = Path("/sys/dev/block") / disk
        assert (entry / "dev").read_text().strip() == disk
        assert not (entry / "partition").exists()


@needs_root
def test_a_path_is_looked_up_with_the_rights_of_the_server(tmp_path: Path) -> None:
    """S4: the launcher is root, and its answers must not tell the server's users what only root can see."""
    tmp_path.chmod(0o700)
    assert look_up(str(tmp_path / ".")).device == os.stat(tmp_path).st_dev
    with file_system_ids(65534, 65534):
        assert look_up("/").device == os.stat("/").st_dev
        with pytest.raises(JobError, match="no path"):
            look_up(str(tmp_path / "."))


@pytest.mark.parametrize(("path", "why"), [("/no/such/path", "no path"), ("/dev/null", "character device")])
def test_what_is_no_disk_and_no_path_is_an_invalid_argument(path: str, why: str) -> None:
    """S3."""
    with pytest.raises(JobError, match=f"io_device: .*{why}") as refused:
        disks_of(path)
    assert refused.value.code is ErrorCode.INVALID_ARGUMENT


def test_a_path_of_any_length_is_cut_short_in_the_answer() -> None:
    with pytest.raises(JobError) as refused:
        disks_of("/" + "a" * 100_000)
    assert len(refused.value.message) < 200
