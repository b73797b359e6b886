"""A launcher on a host without the control of this name."""

from jobworker.runtime import launcher, linux
from lacking import refuse


def main() -> None:
    """Serves as the real launcher does."""
    refuse("unshare", linux.CLONE_NEWNET)
    launcher.main()
