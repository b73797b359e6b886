"""A launcher on a host without the control of this name."""

from jobworker.runtime import launcher, linux


def main() -> None:
    """Serves as the real launcher does."""
    linux.keep_capabilities(frozenset(range(64)) - {linux.CAP_SYS_ADMIN})
    launcher.main()
