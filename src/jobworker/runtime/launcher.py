"""The one privileged process: creates jobs for the server, and does nothing else.

Single thread, standard library only, no network. It hears one socket, from the process that
started it, and decides by its own rules what it launches: whatever the server asks for, a job
never runs as root, never outside of its control groups and never without the sandbox. Started by
anybody but root it makes jobs with the rights of user namespaces.
"""

import contextlib
import gc
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Final, NoReturn

from jobworker.core.errors import ErrorCode, JobError, quoted
from jobworker.core.job_id import is_job_id
from jobworker.core.spec import JobSpec
from jobworker.runtime import block_device, controls, job_dir, kernel_file, linux, sandbox, unprivileged, wire
from jobworker.runtime.cgroup import Cgroup
from jobworker.runtime.cgroup_host import CgroupHost
from jobworker.runtime.host_view import HostView, is_below, kernel_mounts
from jobworker.runtime.monitor import Assignment, Monitor
from jobworker.runtime.sandbox_steps import Step
from jobworker.runtime.uid_range import OnlyUid, UidLease, UidRange

Plan = Callable[[JobSpec, HostView, sandbox.Confinement], list[Step]]

#: What a launcher that runs as root keeps of root's rights, each for the reason beside it.
CAPABILITIES: Final = frozenset(
    {
        linux.CAP_SYS_ADMIN,  # namespaces, mounts, the filter of system calls
        linux.CAP_SETUID,  # the job's uid; files made as the server's user
        linux.CAP_SETGID,
        linux.CAP_SETPCAP,  # to empty the job's bounding set
        linux.CAP_CHOWN,  # the job's pipes and its working directory
        linux.CAP_MKNOD,  # the job's /dev
        linux.CAP_NET_ADMIN,  # to raise the job's loopback
        linux.CAP_KILL,  # to end processes of the job's uid
        linux.CAP_DAC_OVERRIDE,  # groups below tops that not even their owner may write to; private directories
        linux.CAP_SYS_RESOURCE,  # hard limits above the server's own; bigger pipes
    }
)
_LOOK_UP_SECONDS: Final = 2.0
_RETRY_SECONDS: Final = 0.1
_MOST_NAMES: Final = 1000  # of groups, what a packet holds with room to spare
_LOWEST_UID: Final = 1000  # no job may share a uid with the system's own accounts


def main(plan: Plan = sandbox.plan) -> NoReturn:
    """Serves orders until the server is gone; the first argument names the socket to whoever started us.

    That is the server itself, or jobworkerd's launcher service, which then names the server's
    socket in the second one: what holds for all jobs is never told by an unprivileged server.

    Two processes: the launcher, and its parent, which holds the socket and starts a new launcher
    when one is killed. Neither exec's, so all of them and all monitors share their pages.
    """
    parent = socket.socket(fileno=int(sys.argv[1]))
    check_peer(parent)
    bootstrap, _ = wire.receive(parent)
    if not isinstance(bootstrap, wire.Bootstrap) or bootstrap.version != wire.PROTOCOL_VERSION:
        sys.exit("jobworker launcher: the server speaks another version; restart it")
    control = parent
    if len(sys.argv) > 2:
        parent.close()
        control = socket.socket(fileno=int(sys.argv[2]))
    _prepare_process()
    _give_up_privileges()
    launcher = Launcher(control, bootstrap, plan)
    wire.send(control, launcher.readiness())
    while True:
        child = _fork_patiently()
        if child == 0:
            linux.set_process_title("jobworker-launcher")
            linux.set_parent_death_signal(0)
            launcher.serve()
            os._exit(0)
        linux.set_process_title("jobworker-keeper")
        if _wait_for(child) == 0:
            sys.exit(0)


def _fork_patiently() -> int:
    """As os.fork; a host that has no room for a process just now is asked again, since no other keeper comes."""
    while True:
        try:
            return os.fork()
        except OSError:
            time.sleep(_RETRY_SECONDS)


def check_peer(control: socket.socket) -> None:
    """Refuses a socket whose other end was not made by the parent process or by root."""
    pid, uid = linux.peer_credentials(control)
    if pid != os.getppid() or uid not in {0, os.geteuid()}:
        sys.exit("jobworker launcher: the socket is not my parent's")


def _prepare_process() -> None:
    """A blank process: nothing inherited that a job could see, nothing that makes forks slow."""
    os.umask(0o077)
    os.chdir("/")
    os.setsid()
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    for hidden in linux.LIBC_SIGNALS:
        linux.restore_default_signal(hidden)  # posix_spawn, and so make, leaves one of them ignored
    # The server decides when the launcher ends, by closing the socket; a terminal does not.
    # Handlers that do nothing, since exec resets a handler and keeps an ignored signal ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    linux.become_subreaper()
    # Here and not for each job: when a keyring goes, the kernel looks at every key of the host for more to go.
    linux.seal_session_keyring()
    # Monitors share these pages; a collection would write to every object in them.
    gc.collect()
    gc.freeze()
    gc.disable()


def _give_up_privileges() -> None:
    """Keeps what making jobs takes, for itself and all that it forks; without root there is nothing to give up."""
    if os.geteuid() == 0:
        # Where that is not permitted every job is refused, for want of bounded capabilities.
        with contextlib.suppress(PermissionError):
            linux.keep_capabilities(CAPABILITIES)


def _wait_for(launcher: int) -> int:
    """The launcher's exit status; other children are monitors that an earlier launcher left."""
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == launcher:
            return status


class Launcher:
    """Creates jobs by its own rules."""

    def __init__(self, control: socket.socket, bootstrap: wire.Bootstrap, plan: Plan) -> None:
        self._is_root = os.geteuid() == 0
        self._control = control
        self._bootstrap = bootstrap
        self._plan = plan
        self._check_roots()
        self._uids = self._find_uids()
        self._cgroups = CgroupHost.discover(bootstrap.cgroup_parent)
        self._cgroups.prepare()
        mountinfo = kernel_file.read("/proc/self/mountinfo")
        self._host = HostView.survey(mountinfo, self._hidden(mountinfo))
        findings = controls.try_all(controls.DECISIVE)
        self._verdict = controls.judge(findings, bootstrap.allow_degraded, is_root=self._is_root)
        self._own_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)

    def _find_uids(self) -> UidRange | OnlyUid:
        if not self._is_root:
            return OnlyUid()
        job = self._bootstrap
        if job.first_uid < _LOWEST_UID or job.first_uid <= job.service_uid <= job.last_uid:
            sys.exit("jobworker launcher: the uid range for jobs holds system accounts or the server's own uid")
        return UidRange.open(Path(job.lock_dir), job.first_uid, job.last_uid)

    def _check_roots(self) -> None:
        own = [os.path.realpath(path) for path in self._bootstrap.hidden]
        for root in map(os.path.realpath, self._bootstrap.roots):
            if any(os.path.commonpath((root, path)) in {root, path} for path in own):
                sys.exit("jobworker launcher: the roots for jobs would show them the server's own files")

    def _hidden(self, mountinfo: str) -> list[str]:
        """What no job sees; without root the kernel's own file systems are among it, since they can be left in only."""
        return self._bootstrap.hidden + ([] if self._is_root else kernel_mounts(mountinfo))

    def readiness(self) -> wire.Ready:
        """What the server is told once the launcher can take orders."""
        groups = sorted(name for name in self._cgroups.names() if self._cgroups.group(name).is_empty())
        return wire.Ready(list(self._verdict.degraded), list(self._verdict.refused), groups[:_MOST_NAMES])

    def serve(self) -> None:
        """Launches what the server asks for until it hangs up."""
        # Monitors put their own end on record, and take this back before they fork.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            order, fds = wire.receive(self._control, max_fds=2)
            match order, fds:
                case None, _:
                    self._cgroups.remove_parent()
                    return
                case wire.Launch(job_id), [directory, channel_fd]:
                    with socket.socket(fileno=channel_fd) as channel:
                        self._answer(channel, lambda: self._launch(job_id, directory, channel))
                    os.close(directory)
                case wire.CleanUp(job_id), [channel_fd]:
                    with socket.socket(fileno=channel_fd) as channel:
                        self._answer(channel, lambda: self._clean_up(job_id, channel))
                case _:
                    sys.exit("jobworker launcher: the server sent something that is not an order")

    def _answer(self, channel: socket.socket, act: Callable[[], None]) -> None:
        """Does `act`; whatever goes wrong is told on the channel and stops nothing else."""
        try:
            act()
        except JobError as error:
            _tell(channel, wire.StartFailed(error.code.value, error.message))
        except (OSError, ValueError, TypeError) as error:
            reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else type(error).__name__
            _tell(
                channel, wire.StartFailed(ErrorCode.UNAVAILABLE.value, f"the server cannot launch jobs now: {reason}")
            )

    def _launch(self, job_id: str, directory: int, channel: socket.socket) -> None:
        """Makes the job's groups with their limits, then its monitor, which takes over from here."""
        if not is_job_id(job_id):
            raise JobError(ErrorCode.INVALID_ARGUMENT, "not a job id")
        self._verdict.check()
        job_dir.check_directory(directory, self._bootstrap.service_uid)
        request = job_dir.read_request(directory)
        spec = request.spec
        self._check_rootfs(spec.rootfs)
        disks = self._disks_of(spec.limits.io_device or "/") if spec.limits.limits_io() else []
        group = self._cgroups.group(job_id)
        lease = self._uids.lease()
        try:
            self._create(group)
            effective_limits = group.limit(spec.limits, disks)
            self._check_floor(lease)
            confinement = sandbox.Confinement(
                job_id=job_id,
                uid=lease.uid,
                gid=lease.gid,
                entry_files=tuple(group.entry_files()),
                programs=request.programs,
            )
            monitor = Monitor(
                Assignment(
                    job_id=job_id,
                    spec=spec,
                    directory=directory,
                    channel=channel,
                    cgroup=group,
                    effective_limits=effective_limits,
                    wholeness=controls.describe_isolation(self._verdict.degraded),
                    ids=lease,
                    steps=self._verdict.replan(self._plan(spec, self._host, confinement)),
                    service_uid=self._bootstrap.service_uid,
                    service_gid=self._bootstrap.service_gid,
                )
            )
            monitor.prepare()
            self._fork(monitor)
        except BaseException:
            group.remove()
            raise
        finally:
            lease.release()

    def _check_rootfs(self, path: str | None) -> None:
        if path is not None and not is_below(path, self._bootstrap.roots):
            raise JobError(
                ErrorCode.PERMISSION_DENIED,
                f"rootfs: {quoted(path)} is not at or below a directory that the operator lists in isolation.rootfs",
            )

    def _create(self, group: Cgroup) -> None:
        try:
            group.create()
        except FileNotFoundError:
            # The launcher of an earlier server has removed the parent groups on its way out.
            self._cgroups.prepare()
            group.create()

    def _disks_of(self, path: str) -> list[str]:
        """The disks behind a path that a user has named."""
        return block_device.disks_behind(self._look_up(path), path)

    def _look_up(self, path: str) -> block_device.Place:
        """Looked up with the server's rights and not with root's, by a child: a file server may never answer."""
        readable, writable = os.pipe2(os.O_CLOEXEC)
        with open(readable, "rb") as answer:
            try:
                child = os.fork()
                if child == 0:
                    self._answer_place(path, writable)
            finally:
                os.close(writable)
            poll = select.poll()
            poll.register(readable, select.POLLIN)
            if not poll.poll(_LOOK_UP_SECONDS * 1000):
                os.kill(child, signal.SIGKILL)  # it has not ended, or the pipe would have
                raise JobError(
                    ErrorCode.UNAVAILABLE, f"io_device: {quoted(path)} is on a file system that does not answer"
                )
            words = json.loads(answer.read())
        if "message" in words:
            raise JobError(ErrorCode.INVALID_ARGUMENT, words["message"])
        return block_device.Place(**words)

    def _answer_place(self, path: str, pipe: int) -> NoReturn:
        try:
            try:
                with linux.file_system_ids(self._bootstrap.service_uid, self._bootstrap.service_gid):
                    words: dict[str, object] = asdict(block_device.look_up(path))
            except JobError as error:
                words = {"message": error.message}
            os.write(pipe, json.dumps(words).encode())
        finally:
            os._exit(0)

    def _check_floor(self, lease: UidLease) -> None:
        """The uid for a job, checked once more where it is given out: never root's, and as root never the server's."""
        if lease.uid == 0 or (self._is_root and (lease.uid < _LOWEST_UID or lease.uid == self._bootstrap.service_uid)):
            raise JobError(ErrorCode.INTERNAL, "no safe uid for the job")

    def _fork(self, monitor: Monitor) -> None:
        """Gives the monitor a process, the first one of a new PID namespace."""
        try:
            if self._is_root:
                self._fork_as_root(monitor)
            else:
                self._fork_in_user_namespace(monitor)
        finally:
            monitor.release()

    def _fork_as_root(self, monitor: Monitor) -> None:
        linux.unshare(linux.CLONE_NEWPID)
        try:
            if os.fork() == 0:
                self._become(monitor)
        finally:
            # unshare is possible again only after a return to our own namespace; pid_namespaces(7).
            linux.setns(self._own_namespace, linux.CLONE_NEWPID)

    def _fork_in_user_namespace(self, monitor: Monitor) -> None:
        """A process in between makes the namespaces, since there is no way back out of one of users."""
        told, tell = os.pipe2(os.O_CLOEXEC)
        with open(told, "rb") as answer:
            try:
                if os.fork() == 0:
                    self._fork_in_between(monitor, tell)
            finally:
                os.close(tell)
            if reason := answer.read():
                raise OSError(int(reason), "no user namespace for the job")

    def _fork_in_between(self, monitor: Monitor, tell: int) -> NoReturn:
        try:
            unprivileged.enter_user_namespace()
            linux.unshare(linux.CLONE_NEWPID)
            if os.fork() == 0:
                os.close(tell)
                self._become(monitor)
        except OSError as error:
            os.write(tell, str(error.errno).encode())
        finally:
            os._exit(0)

    def _become(self, monitor: Monitor) -> NoReturn:
        self._control.close()
        os.close(self._own_namespace)
        monitor.supervise()

    def _clean_up(self, job_id: str, channel: socket.socket) -> None:
        """Ends and removes what is left of a job whose monitor is gone."""
        if not is_job_id(job_id):
            raise JobError(ErrorCode.INVALID_ARGUMENT, "not a job id")
        self._cgroups.group(job_id).remove()
        _tell(channel, wire.Cleaned())


def _tell(channel: socket.socket, message: wire.Message) -> None:
    try:
        wire.send(channel, message)
    except OSError:
        return  # whoever asked is gone, and finds out by itself when it is back


if __name__ == "__main__":
    main()
