"""A launcher on a host that has mounted a file system on /etc of the root /opt/roots/small, as chroots have it.

All of it is in its own mount namespace.
"""

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

from jobworker.runtime import launcher, linux

_ROOT = Path("/opt/roots/small")


def main() -> None:
    """Serves as the real launcher does."""
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("tmpfs", "/opt", "tmpfs", 0, "mode=0755")  # a place to make directories in that the host does not see
    for name in ("bin", "dev", "proc", "tmp", "etc"):
        (_ROOT / name).mkdir(mode=0o755, parents=True)
    _ROOT.parent.chmod(0o755)
    _ROOT.chmod(0o755)
    shutil.copy("/bin/busybox", _ROOT / "bin/ls")
    (_ROOT / "etc/below").touch()
    linux.mount("tmpfs", str(_ROOT / "etc"), "tmpfs", 0, "mode=0755")
    (_ROOT / "etc/mounted").touch()
    launcher.main()
