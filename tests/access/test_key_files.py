"""Private keys stay private: written so, and read from nothing else."""

import os
import subprocess

import pytest

from jobworker.access.key_files import KeyRefused, read_key, write_private


def test_a_private_file_is_born_private(tmp_path):
    """Whatever the umask, nobody else can open the file at any moment."""
    before = os.umask(0)
    try:
        write_private(tmp_path / "key", b"secret")
    finally:
        os.umask(before)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert read_key(tmp_path / "key", "server key") == b"secret"


def test_a_private_file_replaces_nothing_and_follows_nothing(tmp_path):
    (tmp_path / "there").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("there", "link"):
        with pytest.raises(FileExistsError):
            write_private(tmp_path / name, b"secret")
    assert (tmp_path / "there").read_bytes() == b"old"
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o777])
def test_a_key_that_others_can_open_is_refused_with_the_command_that_mends_it(tmp_path, mode):
    """R6."""
    key = tmp_path / "server key"
    write_private(key, b"secret")
    key.chmod(mode)
    with pytest.raises(KeyRefused) as refused:
        read_key(key, "server key")
    assert str(refused.value).startswith("the server key ")
    subprocess.run(["sh", "-c", str(refused.value).partition("run: ")[2]], check=True)
    read_key(key, "server key")


def test_a_key_behind_a_link_or_in_no_file_is_refused(tmp_path):
    write_private(tmp_path / "key", b"secret")
    (tmp_path / "link").symlink_to("key")
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name, reason in (("link", "symbolic link"), ("pipe", "not a regular file"), ("gone", "No such file")):
        with pytest.raises(KeyRefused, match=reason):
            read_key(tmp_path / name, "server key")
