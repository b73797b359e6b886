"""The records of unfinished jobs, in memory; how many of them are whose is known without counting."""

from collections import Counter, UserDict

from jobworker.store.jobs import JobRecord


class LiveJobs(UserDict[str, JobRecord]):
    """Records by job id. A job never changes its owner."""

    def __init__(self) -> None:
        self._owned: Counter[str] = Counter()
        super().__init__()

    def __setitem__(self, job_id: str, record: JobRecord) -> None:
        if job_id not in self.data:
            self._owned[record.owner] += 1
        self.data[job_id] = record

    def __delitem__(self, job_id: str) -> None:
        owner = self.data.pop(job_id).owner
        self._owned[owner] -= 1
        if not self._owned[owner]:
            del self._owned[owner]

    def count_of(self, owner: str) -> int:
        """How many of the jobs are the owner's."""
        return self._owned[owner]
