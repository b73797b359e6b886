"""Who may do what, compared with a matrix written down by hand."""

import itertools

import pytest

from jobworker.access.policy import POLICY, SCOPES, Action, Role, is_allowed
from jobworker.access.principal import EVERY_SCOPE, Scope, identified

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
    (Action.JOB_EVENTS, Role.USER): {"own"},
    (Action.JOB_EVENTS, Role.ADMIN): _ALL,
    (Action.JOB_STOP, Role.USER): {"own"},
    (Action.JOB_STOP, Role.ADMIN): _ALL,
    (Action.JOB_SIGNAL, Role.USER): {"own"},
    (Action.JOB_SIGNAL, Role.ADMIN): _ALL,
    (Action.JOB_REMOVE, Role.USER): {"own"},
    (Action.JOB_REMOVE, Role.ADMIN): _ALL,
    (Action.NETWORK_HOST, Role.USER): set(),
    (Action.NETWORK_HOST, Role.ADMIN): _ALL,
    (Action.METRICS_READ, Role.USER): set(),
    (Action.METRICS_READ, Role.ADMIN): _ALL,
    (Action.WHO_AM_I, Role.USER): _ALL,
    (Action.WHO_AM_I, Role.ADMIN): _ALL,
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


def holder(role, scopes):
    return identified(name="alice", role=role, credential="token abc", source="127.0.0.1:9", scopes=frozenset(scopes))


def test_every_action_needs_a_scope():
    """A4: an action without a scope is denied to everybody, and this says so first."""
    assert set(SCOPES) == set(Action)
    assert [action for action, scope in SCOPES.items() if scope is None] == [Action.WHO_AM_I]


@pytest.mark.parametrize("role", Role, ids=lambda value: value.value)
def test_every_credential_may_learn_what_it_is_good_for(role):
    assert is_allowed(holder(role, ()), Action.WHO_AM_I, "alice")
    assert not is_allowed(holder(role, ()), Action.WHO_AM_I, "bob")


@pytest.mark.parametrize("action", [action for action, scope in SCOPES.items() if scope], ids=lambda value: value.value)
@pytest.mark.parametrize("role", Role, ids=lambda value: value.value)
def test_a_credential_without_the_scope_of_an_action_cannot_do_it(role, action):
    """A4: whatever the role; with every scope it is the matrix above."""
    assert not is_allowed(holder(role, EVERY_SCOPE - {SCOPES[action]}), action, "alice")
    assert not is_allowed(holder(role, ()), action, "alice")
    assert is_allowed(holder(role, EVERY_SCOPE), action, "alice") == ("own" in EXPECTED[action, role])


@pytest.mark.parametrize("action", Action, ids=lambda value: value.value)
def test_a_token_of_an_admin_without_the_scope_admin_reaches_the_admins_own_jobs_only(action):
    """A4: effective right = role and scope and ownership."""
    limited = holder(Role.ADMIN, EVERY_SCOPE - {Scope.ADMIN})
    assert not is_allowed(limited, action, "bob")
    assert not is_allowed(limited, action, None)
    assert is_allowed(holder(Role.ADMIN, EVERY_SCOPE), action, "bob")  # positive control
