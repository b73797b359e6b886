"""What a running server notices of the commands that change its state beside it."""

from contextlib import closing
from pathlib import Path

from host import eventually

from jobworker.daemon.serve import ChangeWatch


async def test_a_change_is_told_again_when_its_writer_is_done(tmp_path: Path) -> None:
    """A3: what a command takes away is in the database's log before it counts, which a slow disk keeps apart."""
    log = tmp_path / "jobworker.db-wal"
    log.touch()
    told = []
    with closing(ChangeWatch(log, lambda: told.append(log.read_bytes()))):
        with log.open("wb") as writer:
            writer.write(b"revoked")
            writer.flush()
            await eventually(lambda: told == [b"revoked"])
        await eventually(lambda: len(told) == 2)
