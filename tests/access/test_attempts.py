"""Wrong attempts are counted, and bounded in number and memory."""

import pytest

from jobworker.access import attempts
from jobworker.access.attempts import Attempts

HERE, THERE = "192.0.2.1", "192.0.2.2"


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def tried(clock):
    return Attempts(clock)


def test_a_few_wrong_attempts_cost_nothing(tried):
    assert [tried.note_failure("id", HERE) for _ in range(10)] == [0] * 10
    assert tried.seconds_to_wait("id", HERE) == 0


def test_more_of_one_address_at_one_id_have_to_wait_for_the_rest_of_the_minute(tried, clock):
    for _ in range(10):
        tried.note_failure("id", HERE)
    clock.now += 20
    assert tried.note_failure("id", HERE) == 40
    assert tried.seconds_to_wait("id", HERE) == 40
    clock.now += 40
    assert tried.seconds_to_wait("id", HERE) == 0


def test_nobody_else_has_to_wait(tried):
    for _ in range(20):
        tried.note_failure("id", HERE)
    assert tried.seconds_to_wait("id", HERE) > 0  # positive control
    assert tried.seconds_to_wait("other id", HERE) == 0
    assert tried.seconds_to_wait("id", THERE) == 0


def test_an_address_that_tries_many_ids_is_told_to_wait_with_each_further_failure(tried):
    told = [tried.note_failure(f"id {number}", HERE) for number in range(61)]
    assert told == [0] * 60 + [60]
    assert tried.note_failure("id 1", THERE) == 0


def test_memory_is_bounded(tried, monkeypatch):
    monkeypatch.setattr(attempts, "_REMEMBERED", 100)
    for number in range(1000):
        tried.note_failure(f"id {number}", f"address {number}")
    assert len(tried._windows) == 100
