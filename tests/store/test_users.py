"""The promises of the users: a name has one life at a time, and what is denied stays denied."""

import pytest

from jobworker.store import users
from jobworker.store.users import User, UserExists


def test_a_user_is_found_with_role_and_time(connection):
    added = users.add(connection, "alice", "admin", 5.0)
    assert added == users.get(connection, "alice") == User("alice", "admin", 5.0, None)
    assert users.get(connection, "bob") is None
    assert users.everyone(connection) == [added]


def test_a_name_in_use_is_not_given_again(connection):
    users.add(connection, "alice", "user", 5.0)
    with pytest.raises(UserExists, match="user alice exists already"):
        users.add(connection, "alice", "admin", 6.0)
    assert users.get(connection, "alice") == User("alice", "user", 5.0)


def test_a_removed_user_stays_on_record_as_removed(connection):
    users.add(connection, "alice", "user", 5.0)
    assert users.remove(connection, "alice", 7.0)
    assert not users.remove(connection, "alice", 8.0)
    assert not users.remove(connection, "bob", 8.0)
    assert users.get(connection, "alice") == User("alice", "user", 5.0, 7.0)


def test_a_name_that_comes_back_is_valid_from_that_moment_only(connection):
    users.add(connection, "alice", "admin", 5.0)
    users.remove(connection, "alice", 7.0)
    users.add(connection, "alice", "user", 9.0)
    back = users.get(connection, "alice")
    assert back == User("alice", "user", 9.0)
    assert back.valid_from == 9.0


@pytest.mark.parametrize("kind", ["serial", "key", "identity"])
def test_a_denied_credential_is_denied_by_its_kind_alone(connection, kind):  # A3
    certificate = {"serial": "x", "key": "x", "identity": "x"}
    assert not users.is_denied(connection, **certificate)
    users.deny(connection, kind, "x", "key lost", 5.0)
    users.deny(connection, kind, "x", "again", 6.0)
    assert users.is_denied(connection, **certificate)
    assert not users.is_denied(connection, **certificate | {kind: "y"})
    assert connection.execute("SELECT reason, at FROM denied_credentials").fetchall() == [("key lost", 5.0)]
