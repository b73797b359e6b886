"""Who may do what, compared with a matrix written down by hand."""

import itertools

import pytest

from jobworker.access.policy import POLICY, Action, Role, is_allowed
from jobworker.access.principal import identified

_OWNERS = ("own", "foreign", "nobody's")

# A4: for each action and role, the owners for whom it is allowed.
_ALL = set(_OWNERS)
EXPECTED = {
    (Action.JOB_START, Role.USER): _ALL,
    (Action.JOB_START, Role.ADMIN): _ALL,
    (Action.JOB_STATUS, Role.USER): {"own"},
    (Action.JOB_STATUS, Role.ADMIN): _ALL,
    (Action.JOB_OUTPUT, Role.USER): {"own"},
    (Action.JOB_OUTPUT, Role.ADMIN): _ALL,
    (Action.JOB_WAIT, Role.USER): {"own"},
    (Action.JOB_WAIT, Role.ADMIN): _ALL,
    (Action.JOB_LIST, Role.USER): {"own"},
    (Action.JOB_LIST, Role.ADMIN): _ALL,
    (Action.JOB_STOP, Role.USER): {"own"},
    (Action.JOB_STOP, Role.ADMIN): _ALL,
    (Action.JOB_SIGNAL, Role.USER): {"own"},
    (Action.JOB_SIGNAL, Role.ADMIN): _ALL,
    (Action.JOB_REMOVE, Role.USER): {"own"},
    (Action.JOB_REMOVE, Role.ADMIN): _ALL,
    (Action.NETWORK_HOST, Role.USER): set(),
    (Action.NETWORK_HOST, Role.ADMIN): _ALL,
}


def test_the_matrix_has_a_line_for_every_action_and_role():
    assert set(EXPECTED) == set(itertools.product(Action, Role))


def test_every_action_has_a_row_for_every_role():
    assert {action: set(row) for action, row in POLICY.items()} == {action: set(Role) for action in Action}


@pytest.mark.parametrize("owner", _OWNERS)
@pytest.mark.parametrize(("action", "role"), sorted(EXPECTED, key=str), ids=lambda value: value.value)
def test_the_policy_allows_what_the_matrix_allows_and_nothing_else(action, role, owner):
    alice = identified(name="alice", role=role, credential="certificate serial 1", source="127.0.0.1:9")
    name = {"own": "alice", "foreign": "bob", "nobody's": None}[owner]
    assert is_allowed(alice, action, name) == (owner in EXPECTED[action, role])


@pytest.mark.parametrize("owner", ["Alice", "alic", "alice ", "", None])
def test_ownership_is_the_exact_name(owner):
    alice = identified(name="alice", role=Role.USER, credential="certificate serial 1", source="127.0.0.1:9")
    assert is_allowed(alice, Action.JOB_STOP, "alice")  # positive control
    assert not is_allowed(alice, Action.JOB_STOP, owner)


def test_an_action_without_a_row_is_denied_to_everybody():
    admin = identified(name="root", role=Role.ADMIN, credential="certificate serial 1", source="127.0.0.1:9")
    assert not is_allowed(admin, "job.unheard-of", "root")
