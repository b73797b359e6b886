"""Jobs whose output fills a small disk, which only this process and its children see.

Argument: an empty directory to mount the disk on. Prints what became of everything as one line of JSON.
"""

import asyncio
import contextlib
import json
import sys
from pathlib import Path

from jobworker import JobSpec, Worker
from jobworker.core.errors import JobError
from jobworker.core.outcome import outcome_to_document
from jobworker.runtime import linux


def mount_small_disk(place: str) -> None:
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("disk", place, "tmpfs", 0, "size=1m,mode=0755")


async def main(place: str) -> None:
    mount_small_disk(place)
    async with await Worker.open(f"{place}/state") as worker:
        job = await worker.start(JobSpec(program="seq", args=("1", "1000000")))
        output = b"".join([chunk.data async for chunk in worker.output(job.id)])
        ended = await worker.wait(job.id)
        filler = Path(place, "filler")
        with contextlib.suppress(OSError):
            filler.write_bytes(bytes(1 << 20))
        try:
            await worker.start(JobSpec(program="true"))
            refused = None
        except JobError as error:
            refused = [error.code.value, error.message]
        jobs_while_full = len(worker.list())
        filler.unlink()
        await worker.remove(job.id)
        again = await worker.start(JobSpec(program="echo", args=("again",)))
        recovered = b"".join([chunk.data async for chunk in worker.output(again.id)])
        await worker.remove(again.id, force=True)
    numbers = "".join(f"{number}\n" for number in range(1, 1_000_001)).encode()
    report = {
        "state": ended.state.value,
        "outcome": outcome_to_document(ended.ending.outcome) if ended.ending else None,
        "totals": ended.output.to_document(),
        "written": len(numbers),
        "read": len(output),
        "is_prefix": numbers.startswith(output),
        "refused": refused,
        "jobs_while_full": jobs_while_full,
        "recovered": recovered.decode(),
    }
    print(json.dumps(report))


asyncio.run(main(sys.argv[1]))
