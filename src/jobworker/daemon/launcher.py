"""`jobworkerd launcher`: the launcher as a service of its own, for a server that has never been root.

It listens on a socket that only the server's user may open, and starts a launcher for each server
that comes. What holds for all jobs it reads from the configuration, which must be root's: a server
has no say in it.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Final

from jobworker.daemon.account import Account
from jobworker.daemon.config import Config
from jobworker.daemon.refusal import ConfigRefused
from jobworker.daemon.service_manager import notify
from jobworker.runtime import linux
from jobworker.runtime.launcher_client import launch_for
from jobworker.runtime.wire import Bootstrap
from jobworker.worker import bootstrap

_log: Final = logging.getLogger("jobworkerd-launcher")


def serve_launchers(config_path: Path, listen_path: Path) -> int:
    """Gives every server of the configured user a launcher, until SIGTERM or SIGINT; jobs run on."""
    if os.geteuid() != 0:
        raise ConfigRefused("a launcher service is for a server without root, and needs root itself; run it as root")
    config = Config.load(config_path)
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s", level=logging.INFO)
    account = Account.find(config.server.user)
    config.check_account(account)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # launchers end with their servers, and nobody waits for them
    with contextlib.ExitStack() as at_end:
        listener = at_end.enter_context(_listen(listen_path, account))
        at_end.callback(listen_path.unlink, missing_ok=True)
        notify("READY=1")
        while True:
            server, _ = listener.accept()
            with server:
                _serve(server, config, account)


def _listen(path: Path, account: Account) -> socket.socket:
    """A socket that the account alone may open; it is in its place when it can be opened, and replaces an older one."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = os.umask(0o022)  # a service's own may keep the account from what is made here
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        os.umask(0o177)
        listener.bind(str(draft))
    finally:
        os.umask(before)
    listener.listen()
    os.chown(draft, account.uid, account.gid)
    draft.rename(path)
    return listener


def _serve(server: socket.socket, config: Config, account: Account) -> None:
    pid, uid = linux.peer_credentials(server)
    if uid not in {0, account.uid}:
        _log.warning("refused process %d: it is not the server's user", pid)
        return
    _log.info("a launcher for process %d", pid)
    launch_for(server, bootstrap_for(config, account))


def bootstrap_for(config: Config, account: Account) -> Bootstrap:
    """What a launcher needs to know to make jobs for the configured server."""
    return bootstrap(
        config.directory,
        service_uid=account.uid,
        service_gid=account.gid,
        uids=(config.jobs.uid_range[0], config.jobs.uid_range[-1]),
        hidden=(config.tls.key.parent,),
        roots=config.isolation.rootfs,
        allow_degraded=config.isolation.allow_degraded,
    )


def _leave(*_: object) -> None:
    sys.exit(0)
