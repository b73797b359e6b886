"""Who may do what, and with which credential: tables of actions, where absent means denied."""

from collections.abc import Mapping
from enum import Enum, auto
from typing import Final

from jobworker.access.principal import Principal, Role, Scope

__all__ = ["POLICY", "SCOPES", "Action", "Reach", "Role", "is_allowed", "is_in_scope"]


class Action(Enum):
    """Everything a caller can ask for; every RPC and route names one."""

    JOB_START = "job.start"
    JOB_STATUS = "job.status"
    JOB_OUTPUT = "job.output"
    JOB_WAIT = "job.wait"
    JOB_LIST = "job.list"
    JOB_EVENTS = "job.events"
    JOB_STOP = "job.stop"
    JOB_SIGNAL = "job.signal"
    JOB_REMOVE = "job.remove"
    NETWORK_HOST = "network.host"
    METRICS_READ = "metrics.read"
    WHO_AM_I = "whoami"


class Reach(Enum):
    """How far a role gets with an action."""

    NOTHING = auto()
    OWN = auto()  # the caller's own jobs
    EVERYTHING = auto()


Row = Mapping[Role, Reach]

_JOB_OWNERS: Final = frozenset({Role.USER, Role.ADMIN})  # the roles that have jobs of their own


def only(*roles: Role) -> Row:
    """A row for `roles`, whoever owns the job; nothing for the others."""
    return {role: Reach.EVERYTHING if role in roles else Reach.NOTHING for role in Role}


def owner_or(*roles: Role) -> Row:
    """A row for the job's owner, and for `roles` whoever owns it."""
    own = {role: Reach.OWN if role in _JOB_OWNERS else Reach.NOTHING for role in Role}
    return own | dict.fromkeys(roles, Reach.EVERYTHING)


POLICY: Final[Mapping[Action, Row]] = {
    Action.JOB_START: only(Role.USER, Role.ADMIN),
    Action.JOB_STATUS: owner_or(Role.ADMIN),
    Action.JOB_OUTPUT: owner_or(Role.ADMIN),
    Action.JOB_WAIT: owner_or(Role.ADMIN),
    Action.JOB_LIST: owner_or(Role.ADMIN),  # the owner asked for; nobody in particular is for admins
    Action.JOB_EVENTS: owner_or(Role.ADMIN),  # asked for each job that changes
    Action.JOB_STOP: owner_or(Role.ADMIN),  # stopping is as powerful as starting
    Action.JOB_SIGNAL: owner_or(Role.ADMIN),
    Action.JOB_REMOVE: owner_or(Role.ADMIN),
    Action.NETWORK_HOST: only(Role.ADMIN),  # it reaches services that trust the host's own address
    Action.METRICS_READ: only(Role.ADMIN),  # what all users do together tells about each
    Action.WHO_AM_I: only(Role.USER, Role.ADMIN),
}


#: The scope that a credential must have for each action; None: every credential is good for it.
SCOPES: Final[Mapping[Action, Scope | None]] = {
    Action.JOB_START: Scope.JOBS_START,
    Action.JOB_STATUS: Scope.JOBS_READ,
    Action.JOB_OUTPUT: Scope.JOBS_OUTPUT,
    Action.JOB_WAIT: Scope.JOBS_READ,
    Action.JOB_LIST: Scope.JOBS_READ,
    Action.JOB_EVENTS: Scope.JOBS_READ,
    Action.JOB_STOP: Scope.JOBS_STOP,
    Action.JOB_SIGNAL: Scope.JOBS_STOP,
    Action.JOB_REMOVE: Scope.JOBS_STOP,
    Action.NETWORK_HOST: Scope.ADMIN,
    Action.METRICS_READ: Scope.METRICS_READ,
    Action.WHO_AM_I: None,  # whoever holds a token may learn what it is good for
}


def is_in_scope(principal: Principal, action: Action) -> bool:
    """Whether the credential that proved `principal` is good for `action` at all."""
    return action in SCOPES and SCOPES[action] in {None, *principal.scopes}


def is_allowed(principal: Principal, action: Action, owner: str | None) -> bool:
    """Whether `principal` may do `action` to what `owner` owns; None: it is nobody's in particular.

    Role, scope and ownership must each allow it.
    """
    if not is_in_scope(principal, action):
        return False
    reach = POLICY.get(action, {}).get(principal.role, Reach.NOTHING)
    if reach is Reach.NOTHING:
        return False
    if reach is Reach.OWN or Scope.ADMIN not in principal.scopes:
        return owner == principal.name
    return True
