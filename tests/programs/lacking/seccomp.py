"""A launcher on a host without the control of this name."""

from jobworker.runtime import launcher
from lacking import refuse


def main() -> None:
    """Serves as the real launcher does."""
    refuse("seccomp")
    launcher.main()
