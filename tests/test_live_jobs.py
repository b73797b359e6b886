"""Who has how many unfinished jobs is known at all times."""

from jobworker.core.spec import JobSpec
from jobworker.live_jobs import LiveJobs
from jobworker.store.jobs import JobRecord


def record(job_id, owner):
    return JobRecord(id=job_id, owner=owner, spec=JobSpec(program="/bin/true"), created_at=0.0, node="here")


def test_the_jobs_of_each_owner_are_counted_as_they_come_change_and_go():
    live = LiveJobs()
    live["1"] = record("1", "alice")
    live["2"] = record("2", "alice")
    live["3"] = record("3", "bob")
    live["1"] = record("1", "alice")  # it runs now
    assert (live.count_of("alice"), live.count_of("bob"), live.count_of("carol"), len(live)) == (2, 1, 0, 3)
    del live["1"]
    assert live.pop("3").owner == "bob"
    assert live.pop("3", None) is None
    assert (live.count_of("alice"), live.count_of("bob"), len(live)) == (1, 0, 1)
