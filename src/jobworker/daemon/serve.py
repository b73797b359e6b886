"""`jobworkerd serve`: puts launcher, service and doors together, in the one order that is safe.

1  read the configuration, as whoever started us
2  start the launcher, while we are root and before grpc is loaded
3  give up root for good
4  load grpc, open the state, adopt what runs, open the doors, say that we are ready
5  on SIGTERM: no new jobs, end the streams, leave; the jobs run on
"""

import asyncio
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from jobworker.core.errors import ErrorCode, JobError
from jobworker.daemon.account import Account
from jobworker.daemon.config import LIMITS, Config
from jobworker.daemon.launcher import bootstrap_for
from jobworker.daemon.refusal import ConfigRefused
from jobworker.daemon.service_manager import is_managed, notify
from jobworker.daemon.state import DATABASE
from jobworker.runtime import linux, seccomp
from jobworker.runtime.controls import describe_isolation
from jobworker.runtime.inotify import Inotify
from jobworker.runtime.launcher_client import LauncherClient

if TYPE_CHECKING:
    from jobworker.api.grpc.identity import CertificateIdentity
    from jobworker.api.held_calls import HeldCalls
    from jobworker.api.tls import ServerCertificate
    from jobworker.metrics import Metrics
    from jobworker.service import Service

_log: Final = logging.getLogger("jobworkerd")
_RECHECK_SECONDS: Final = 1.0
#: The certificate key's type decides which suites leave TLS 1.2 without a shared cipher.
_NO_TLS_1_2: Final = {"ec": "ECDHE-RSA-AES256-GCM-SHA384", "rsa": "ECDHE-ECDSA-AES256-GCM-SHA384"}


class Door(Protocol):
    """A way in that is open: the port it listens on, and how to close it within some seconds."""

    port: int

    async def stop(self, grace: float) -> None:
        """No new calls; the short ones may finish."""


def serve(config_path: Path, launcher_path: Path | None = None) -> int:
    """Runs the server until SIGTERM or SIGINT; returns the exit status.

    With `launcher_path` the launcher is one of the launcher service that listens there.
    """
    config = Config.load(config_path)
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s", level=logging.INFO)
    os.umask(0o077)
    _raise_descriptor_limit()
    account = _service_account(config)
    if launcher_path is not None:
        launcher = LauncherClient.connect(launcher_path)
    else:
        launcher = LauncherClient.start(bootstrap_for(config, account))
    try:
        config = _fit_to_host(config, launcher)
        _become(account)
        return _run(config, launcher)
    finally:
        launcher.close()


def _fit_to_host(config: Config, launcher: LauncherClient) -> Config:
    """The configuration without the limits that this host lacks and may lack; says what else it lacks."""
    if launcher.refused:
        _log.error("no job can run here: %s missing; see jobworkerd check", ", ".join(launcher.refused))
    if launcher.degraded:
        _log.warning("isolation of every job: %s; see jobworkerd check", describe_isolation(launcher.degraded))
    allowed = config.isolation.allow_degraded & set(launcher.degraded)
    if unlimited := [name for name in launcher.degraded if name in LIMITS and name not in allowed]:
        _log.warning(
            "jobs with default limits are refused: %s missing; to let them run without, list it in allow_degraded",
            ", ".join(unlimited),
        )
    return replace(config, jobs=config.jobs.without(allowed))


def _service_account(config: Config) -> Account:
    """Who to be once the launcher runs."""
    account = Account.find(config.server.user)
    if os.geteuid() != 0:
        return _check_own_account(account)
    config.check_account(account)
    if not _can_read(account, config.directory):
        raise ConfigRefused(
            f"user {account.name} cannot read {config.directory}; give it to that user (chown -R), move it to a place "
            'that is open to that user, or set user = "root" in [server]'
        )
    if account.uid == 0:
        _log.warning("keeping root: [server] user is root; another user would limit the harm of a fault in the server")
    elif not all(_can_read(account, place) for place in _OUR_PROGRAM):
        _log.warning(
            "keeping root: user %s cannot read this Python installation; install jobworker under /opt to give root up",
            account.name,
        )
        return Account.current()
    return account


def _check_own_account(account: Account) -> Account:
    """Without root there is nobody else to be."""
    if account.uid != os.geteuid():
        raise ConfigRefused(
            f"the server is to run as user {account.name}, says [server] user; start it as root or as that user"
        )
    return Account.current()


#: What is loaded while the server runs, long after it has given up root.
_OUR_PROGRAM: Final = (Path(__file__).parent, Path(os.__file__).parent)


def _can_read(account: Account, directory: Path) -> bool:
    """Whether the account can list a directory, found out by trying in a child."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _become(account)
            os.scandir(directory).close()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _become(account: Account) -> None:
    """Gives up every right of root for good, where there is one, and the calls that no server makes."""
    if os.geteuid() == 0 and account.uid != 0:
        linux.drop_bounding_set()
        os.setgroups(())
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)
    if account.uid != 0:
        linux.clear_capabilities()
    linux.set_no_new_privs()
    if seccomp.PROGRAM:
        linux.filter_system_calls(seccomp.PROGRAM)  # a server has no more use for those calls than a job has


def _raise_descriptor_limit() -> None:
    """One descriptor for each running job, and some for each stream."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _run(config: Config, launcher: LauncherClient) -> int:
    from jobworker.access.key_files import server_key_type  # noqa: PLC0415 - after the launcher

    key_type = server_key_type(config.tls.key, config.tls.certificate, config.tls.ca)
    os.environ["GRPC_SSL_CIPHER_SUITES"] = _NO_TLS_1_2[key_type]
    # The transport's own log would only repeat, in its words, what our messages say.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    import uvloop  # noqa: PLC0415 - after the launcher

    try:
        return uvloop.run(_serve(config, launcher))
    except asyncio.CancelledError:
        _log.error("the server did not stop in time and was ended")
    return 0


async def _serve(config: Config, launcher: LauncherClient) -> int:
    # grpc reads the cipher suites when it is loaded.
    from jobworker.api.grpc.identity import CertificateIdentity  # noqa: PLC0415
    from jobworker.api.grpc.server import GrpcServer  # noqa: PLC0415
    from jobworker.api.held_calls import HeldCalls  # noqa: PLC0415
    from jobworker.api.http.app import make_app  # noqa: PLC0415
    from jobworker.api.http.identity import BearerIdentity  # noqa: PLC0415
    from jobworker.api.http.server import HttpServer  # noqa: PLC0415
    from jobworker.api.tls import ServerCertificate, TlsFiles  # noqa: PLC0415
    from jobworker.credentials import Credentials  # noqa: PLC0415
    from jobworker.service import Quotas, Service  # noqa: PLC0415
    from jobworker.store.database import Database  # noqa: PLC0415

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if not (config.directory / DATABASE).exists():
        raise ConfigRefused(
            f"{config.directory / DATABASE} is missing; restore a backup, or make a new state with init"
        )
    database = Database.open(config.directory / DATABASE)
    try:
        service = await Service.open(
            config.directory,
            database,
            launcher,
            node=config.server.node,
            quotas=Quotas(
                max_jobs=config.jobs.max_jobs,
                max_jobs_per_user=config.jobs.max_jobs_per_user,
                max_streams_per_user=config.jobs.max_streams_per_user,
                ceilings=config.jobs.ceilings,
                programs=config.jobs.programs,
                retention=config.retention,
            ),
        )
        _show_setting(service.metrics, config, launcher)
        held = HeldCalls()
        certificate = ServerCertificate(
            TlsFiles(key=config.tls.key, certificate=config.tls.certificate, ca=config.tls.ca)
        )
        identity = CertificateIdentity(database, certificate.bundle, config.tls.trust_domain, held)
        try:
            with ExitStack() as watches:
                launchers = LauncherWatch(launcher, stop, service.metrics)
                watches.callback(launchers.close)
                _watch(watches, config.directory / f"{DATABASE}-wal", held.recheck)
                for place in {path.parent for path in (config.tls.key, config.tls.certificate, config.tls.ca)}:
                    _watch(watches, place, partial(_reload, certificate, identity, held))
                doors: dict[str, Door] = {}
                async with AsyncExitStack() as on_failure:
                    doors["grpc"] = await GrpcServer.start(
                        service, identity, config.jobs.default, str(config.server.grpc), certificate
                    )
                    on_failure.push_async_callback(doors["grpc"].stop, 0)
                    if config.server.https is not None:
                        credentials = Credentials(database, on_revoke=held.recheck)
                        app = make_app(service, credentials, BearerIdentity(credentials, held), config.jobs.default)
                        address = config.server.https
                        doors["https"] = await HttpServer.start(app, address.host, address.port, certificate)
                    on_failure.pop_all()
                _tell_ready(config, doors)
                await stop.wait()
                status = int(launchers.is_gone)
                await _leave(config, service, held, doors, status)
                return status
        finally:
            await service.close()
    finally:
        await database.close()


def _show_setting(metrics: "Metrics", config: Config, launcher: LauncherClient) -> None:
    """What operators see of the host and of the configuration."""
    metrics.show_controls(degraded=launcher.degraded, missing=launcher.refused)
    metrics.show_capacity(
        jobs=config.jobs.max_jobs,
        jobs_of_a_user=config.jobs.max_jobs_per_user,
        held_calls_of_a_user=config.jobs.max_streams_per_user,
        uids=len(config.jobs.uid_range),
    )


def _reload(certificate: "ServerCertificate", identity: "CertificateIdentity", held: "HeldCalls") -> None:
    """Takes what the files of keys and certificates hold now."""
    certificate.reload()
    identity.believe(certificate.bundle)
    held.recheck()


def _tell_ready(config: Config, doors: Mapping[str, Door]) -> None:
    addresses = {name: replace(getattr(config.server, name), port=door.port) for name, door in doors.items()}
    sys.stdout.write("ready " + " ".join(f"{name}={address}" for name, address in addresses.items()) + "\n")
    sys.stdout.flush()
    notify("READY=1")


async def _leave(config: Config, service: "Service", held: "HeldCalls", doors: Mapping[str, Door], status: int) -> None:
    """Bounded by the configured grace, whatever clients do; one that never reads is cut off with exit `status`."""
    notify("STOPPING=1")
    service.refuse_new_jobs()
    grace = config.server.shutdown_grace.total_seconds()
    watchdog = asyncio.get_running_loop().call_later(grace * 0.95, os._exit, status)
    held.end_all(JobError(ErrorCode.UNAVAILABLE, "the server is shutting down; jobs run on"))
    await asyncio.gather(*(door.stop(grace * 0.6) for door in doors.values()))
    watchdog.cancel()


class LauncherWatch:
    """Notices that launcher and keeper are both gone, after which no job can be started here.

    Under a service manager the server then ends, and is started again with a new launcher, which
    only root can give it; without one it goes on for the jobs that there are.
    """

    def __init__(self, launcher: LauncherClient, stop: asyncio.Event, metrics: "Metrics") -> None:
        self.is_gone = False
        self._stop = stop
        self._metrics = metrics
        self._fd = launcher.fileno()
        asyncio.get_running_loop().add_reader(self._fd, self._on_gone)

    def _on_gone(self) -> None:
        self.close()
        self._metrics.lost_launcher()
        if is_managed():
            self.is_gone = True
            _log.error("the launcher is gone: ending with an error, to be started again; jobs run on")
            self._stop.set()
        else:
            _log.error("the launcher is gone: no new jobs until jobworkerd is restarted; jobs run on")

    def close(self) -> None:
        """Looks no more."""
        asyncio.get_running_loop().remove_reader(self._fd)


def _watch(watches: ExitStack, path: Path, act: Callable[[], None]) -> None:
    try:
        watches.callback(ChangeWatch(path, act).close)
    except PermissionError:
        _log.warning("%s cannot be watched: what changes there is seen after a restart", path)


class ChangeWatch:
    """Calls `act` soon after a file or a directory's files changed in any way.

    Told by the kernel, at most once a second, so that an idle server does nothing at all. A writer's close
    counts as well: a command's change is in the database's log before it is on disk, and seen only behind that.
    """

    def __init__(self, path: Path, act: Callable[[], None]) -> None:
        self._act = act
        self._due: asyncio.TimerHandle | None = None
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._inotify = Inotify.open()
        self._watch = self._inotify.watch(self._file, self._on_change, linux.IN_CHANGED)

    def _on_change(self) -> None:
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(_RECHECK_SECONDS, self._run)

    def _run(self) -> None:
        self._due = None
        self._act()

    def close(self) -> None:
        """No more calls."""
        if self._due is not None:
            self._due.cancel()
        self._watch.close()
        self._inotify.close()
        os.close(self._file)
