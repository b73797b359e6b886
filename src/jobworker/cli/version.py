"""jobctl version: tells which client this is."""

import platform

import jobworker


def version() -> None:
    """Print the versions of jobctl and its protocol.

    Examples:
      jobctl version
      jobctl --version
      jobctl version | head -1
    """
    print(f"jobctl {jobworker.__version__}")  # noqa: T201 - the data
    print(f"protocol jobworker.v1, Python {platform.python_version()}")  # noqa: T201
