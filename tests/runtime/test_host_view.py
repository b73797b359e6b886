"""What a job may see of the host: its ordinary file systems, and nothing that should not show."""

from itertools import pairwise
from pathlib import Path

import pytest

from jobworker.runtime.host_view import HostView
from jobworker.runtime.sandbox_steps import Mask

ROOT = "30 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n"
KERNEL = """\
22 30 0:21 / /proc rw,nosuid - proc proc rw
23 30 0:22 / /sys rw,nosuid - sysfs sysfs rw
24 30 0:6 / /dev rw,nosuid - devtmpfs udev rw,size=1k
25 24 0:23 / /dev/shm rw - tmpfs tmpfs rw
26 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw
27 30 0:40 / /run rw - tmpfs tmpfs rw
28 27 0:41 / /run/user/1000 rw - tmpfs tmpfs rw
"""


def seen(mounts: str, *hidden: str) -> tuple[str, ...]:
    return HostView.survey(ROOT + KERNEL + mounts, hidden).file_systems


def test_the_root_and_ordinary_file_systems_are_copied_parents_first() -> None:
    mounts = (
        "41 40 8:3 / /usr/local rw - xfs /dev/sda3 rw\n"
        "40 30 8:2 / /usr rw - ext4 /dev/sda2 ro\n"
        "42 30 8:4 / /opt rw - btrfs /dev/sda4 rw\n"
    )
    assert seen(mounts) == ("/", "/opt", "/usr", "/usr/local")
    paths = seen(mounts)
    assert all(not earlier.startswith(later + "/") for earlier, later in pairwise(paths))


@pytest.mark.parametrize(
    "mount",
    [
        "50 30 0:50 / /srv/export rw - nfs4 10.0.0.1:/export rw",
        "50 30 8:5 / /home rw - ext4 /dev/sda5 rw",
        "50 30 8:5 / /root/data rw - ext4 /dev/sda5 rw",
        "50 30 8:5 / /mnt/usb rw - vfat /dev/sdb1 rw",
        "50 30 0:51 / /tmp rw - tmpfs tmpfs rw",
        "50 30 8:5 / /tmp/build rw - ext4 /dev/sda5 rw",
        "50 30 8:5 / /boot rw - ext4 /dev/sda5 rw",
        "50 30 0:52 / /sys/kernel/debug rw - debugfs debugfs rw",
        "50 30 0:53 / /proc/sys/fs/binfmt_misc rw - autofs systemd-1 rw",
        "50 30 0:54 net:[4026532000] /run/netns/a rw - nsfs nsfs rw",
        "50 30 0:55 / /usr/kernel/trace rw - tracefs tracefs rw",
    ],
)
def test_what_a_job_must_not_see_is_not_copied(mount: str) -> None:
    assert seen(mount + "\n") == ("/",)
    control = (
        mount.replace(mount.split()[4], "/data", 1)
        .replace("debugfs debugfs", "ext4 x")
        .replace("tracefs tracefs", "ext4 x")
    )
    control = control.replace("nsfs nsfs", "ext4 x").replace("autofs systemd-1", "ext4 x")
    assert seen(control + "\n") == ("/", "/data"), "elsewhere it is"


def test_paths_with_spaces_backslashes_and_letters_beyond_ascii_are_understood() -> None:
    mounts = (
        "50 30 8:5 / /my\\040disk rw - ext4 /dev/sda5 rw\n"
        "51 30 8:6 / /tab\\011and\\134slash rw - ext4 /dev/sda6 rw\n"
        "52 30 8:7 / /données rw - ext4 /dev/sda7 rw\n"
        "53 30 8:8 / /caf\udce9 rw - ext4 /dev/sda8 rw\n"
    )
    assert seen(mounts) == ("/", "/caf\udce9", "/données", "/my disk", "/tab\tand\\slash")


def test_the_state_directory_is_masked_and_nothing_below_it_is_copied(tmp_path_factory: pytest.TempPathFactory) -> None:
    """O12."""
    state = "/var/lib"  # any directory that is there
    view = HostView.survey(ROOT + "50 30 8:5 / /var/lib/jobs rw - ext4 /dev/sda5 rw\n", [state])
    assert Mask(state, is_directory=True) in view.masks
    assert view.file_systems == ("/",)
    assert HostView.survey(ROOT + "50 30 8:5 / /var/lib/jobs rw - ext4 /dev/sda5 rw\n", []).file_systems == (
        "/",
        "/var/lib/jobs",
    )


def test_a_hidden_link_masks_what_it_leads_to(tmp_path: Path) -> None:
    link = Path("/var/run")
    if not link.is_symlink():
        pytest.skip("needs /var/run to be a link")
    paths = {mask.path for mask in HostView.survey(ROOT, []).masks}
    assert "/run" in paths
    assert "/var/run" not in paths


def test_masks_are_of_existing_paths_and_of_the_right_kind() -> None:
    for mask in HostView.survey(ROOT, []).masks:
        assert Path(mask.path).exists()
        assert Path(mask.path).is_dir() == mask.is_directory


def test_a_path_below_a_masked_directory_needs_no_mask_of_its_own() -> None:
    view = HostView.survey(ROOT, ["/root/secret", "/etc"])
    paths = [mask.path for mask in view.masks]
    assert "/etc" in paths
    assert not [path for path in paths if path.startswith("/etc/")]
