"""The Unix users that a server may run as."""

import os
import pwd
from dataclasses import dataclass
from typing import Self

from jobworker.daemon.refusal import ConfigRefused


@dataclass(frozen=True, slots=True)
class Account:
    """The Unix user that the service runs as."""

    name: str
    uid: int
    gid: int

    @classmethod
    def find(cls, user: str | int) -> Self:
        """The account called `user`, or the bare number, which needs no entry; ConfigRefused when there is none."""
        if isinstance(user, int):
            return cls(str(user), user, user)
        try:
            entry = pwd.getpwnam(user)
        except KeyError:
            raise ConfigRefused(
                f"there is no user {user!r} on this host; create it (useradd --system {user}) or name another"
            ) from None
        return cls(entry.pw_name, entry.pw_uid, entry.pw_gid)

    @property
    def configured(self) -> str | int:
        """How the configuration names the account: by its number when it has nothing else."""
        return self.uid if self.name == str(self.uid) else self.name

    @classmethod
    def current(cls) -> Self:
        """The account of this process."""
        uid = os.geteuid()
        try:
            return cls(pwd.getpwuid(uid).pw_name, uid, os.getegid())
        except KeyError:
            return cls(str(uid), uid, os.getegid())
