"""Events reach those who want them, in order, and cost little for those who do not keep up."""

import pytest

from jobworker import events
from jobworker.core.errors import JobError
from jobworker.core.spec import JobSpec
from jobworker.events import JobEvents
from jobworker.store.jobs import JobRecord


def record(owner):
    return JobRecord(id=f"job of {owner}", owner=owner, spec=JobSpec(program="/bin/true"), created_at=0.0, node="here")


async def test_everyone_hears_what_is_wanted_in_order_and_from_then_on():
    told = JobEvents()
    told.tell(record("alice"), 1.0)
    with told.listen(lambda job: job.owner == "alice") as hers, told.listen(lambda _: True) as everyones:
        for owner in ("alice", "bob", "alice"):
            told.tell(record(owner), 2.0)
        assert [(await anext(hers)).number for _ in range(2)] == [2, 4]
        assert [(await anext(everyones)).record.owner for _ in range(3)] == ["alice", "bob", "alice"]


async def test_who_does_not_keep_up_is_told_so_after_what_was_kept(monkeypatch):
    monkeypatch.setattr(events, "_BACKLOG", 3)
    told = JobEvents()
    with told.listen(lambda _: True) as slow, told.listen(lambda _: True) as quick:
        for number in range(10):
            told.tell(record("alice"), float(number))
            assert (await anext(quick)).at == number  # positive control
        assert [(await anext(slow)).at for _ in range(3)] == [0.0, 1.0, 2.0]
        with pytest.raises(JobError, match="faster than they were read"):
            await anext(slow)


async def test_nobody_is_told_after_leaving():
    told = JobEvents()
    with told.listen(lambda _: True):
        assert len(told._listeners) == 1
    assert told._listeners == set()
    told.tell(record("alice"), 1.0)
