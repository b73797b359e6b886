"""Who may do what: one table of actions and roles, where absent means denied."""

from collections.abc import Mapping
from enum import Enum, auto
from typing import Final

from jobworker.access.principal import Principal, Role

__all__ = ["POLICY", "Action", "Reach", "Role", "is_allowed"]


class Action(Enum):
    """Everything a caller can ask for; every RPC and route names one."""

    JOB_START = "job.start"
    JOB_STATUS = "job.status"
    JOB_OUTPUT = "job.output"
    JOB_WAIT = "job.wait"
    JOB_LIST = "job.list"
    JOB_STOP = "job.stop"
    JOB_SIGNAL = "job.signal"
    JOB_REMOVE = "job.remove"
    NETWORK_HOST = "network.host"


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
    Action.JOB_STOP: owner_or(Role.ADMIN),  # stopping is as powerful as starting
    Action.JOB_SIGNAL: owner_or(Role.ADMIN),
    Action.JOB_REMOVE: owner_or(Role.ADMIN),
    Action.NETWORK_HOST: only(Role.ADMIN),  # it reaches services that trust the host's own address
}


def is_allowed(principal: Principal, action: Action, owner: str | None) -> bool:
    """Whether `principal` may do `action` to what `owner` owns; None: it is nobody's in particular."""
    reach = POLICY.get(action, {}).get(principal.role, Reach.NOTHING)
    if reach is Reach.NOTHING:
        return False
    if reach is Reach.OWN:
        return owner == principal.name
    return True
