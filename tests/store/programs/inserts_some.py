"""Insert the given number of jobs, one durable write each, as a second process on a database."""

import sys
from functools import partial
from pathlib import Path

from jobworker.core.job_id import new_job_id
from jobworker.core.spec import JobSpec
from jobworker.store import jobs
from jobworker.store.database import Database

with Database.open(Path(sys.argv[1])) as database:
    for _ in range(int(sys.argv[2])):
        record = jobs.JobRecord(
            id=new_job_id(), owner="bob", spec=JobSpec(program="/bin/true"), created_at=1.0, node="here"
        )
        database.write_now(partial(jobs.insert, record=record))
