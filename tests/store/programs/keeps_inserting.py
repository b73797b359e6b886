"""Insert jobs as fast as they are acknowledged, printing each id when it is; runs until killed."""

import asyncio
import os
import sys
from functools import partial
from pathlib import Path

from jobworker.core.job_id import new_job_id
from jobworker.core.spec import JobSpec
from jobworker.store import jobs
from jobworker.store.database import Database


async def insert_for_ever(database: Database) -> None:
    spec = JobSpec(program="/bin/true")
    while True:
        record = jobs.JobRecord(id=new_job_id(), owner="alice", spec=spec, created_at=1.0, node="here")
        await database.write(partial(jobs.insert, record=record))
        os.write(1, record.id.encode() + b"\n")


async def main() -> None:
    database = Database.open(Path(sys.argv[1]))
    async with asyncio.TaskGroup() as tasks:
        for _ in range(8):
            tasks.create_task(insert_for_ever(database))


asyncio.run(main())
