"""Why a job that an earlier server left is lost, when neither a monitor nor a record of its end is there."""

from typing import Final

from jobworker.core.outcome import Lost

#: Nothing of it has ever run, so that it may be started again under the same key.
NEVER_STARTED: Final = Lost("the server stopped before the job was started")
#: It has run, and what became of it was in its files.
DELETED: Final = Lost("its directory was deleted")
#: Its files are there and cannot be read: what became of it nobody can tell any more.
DAMAGED: Final = Lost("the job's files are damaged")


def why_lost(*, has_directory: bool, is_same_boot: bool) -> Lost:
    """What became of the job, from what disk and kernel tell."""
    # A reset may also have cost the host a directory that nobody had synced.
    if not is_same_boot:
        return Lost("host rebooted")
    return Lost("its monitor was killed") if has_directory else NEVER_STARTED
