"""What isolates and limits jobs: one list of controls, each found out by trying, for the server and for its operator.

A control that is missing refuses jobs by its name. Some may be done without where the operator
says so: then the sandbox is planned without them, and every job shows it.
"""

import os
import select
import signal
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from jobworker.core.errors import ErrorCode, JobError
from jobworker.core.spec import Limits, MiB
from jobworker.runtime import linux, trial, unprivileged
from jobworker.runtime.sandbox_steps import FilterSystemCalls, NewNamespaces, RaiseLoopback, ReadBack, SetHostname, Step

#: How long a try may take; what hangs for longer does not work.
TRY_SECONDS: Final = 30.0

#: What takes a step's place in a sandbox without the control.
Replacement = Callable[[Step], Iterable[Step]]


class Need(Enum):
    """Who misses a control."""

    ALL = "all jobs"
    DEFAULT = "jobs with the default limits"
    ASKING = "jobs that ask for it"
    NONE = "optional"  # something else takes its place, or it makes a host better


@dataclass(frozen=True, slots=True)
class Control:
    """One thing that isolates or limits jobs.

    `attempt` raises when it does not work here; it is called in a process of its own. Jobs can do
    without a control that all need when `replacement` is given.
    """

    name: str
    need: Need
    lost_without: str
    remedy: str
    attempt: Callable[[], None]
    replacement: Replacement | None = None

    @property
    def can_be_done_without(self) -> bool:
        """Whether an operator may allow jobs to run without it."""
        return self.replacement is not None or self.need is Need.DEFAULT


@dataclass(frozen=True, slots=True)
class Finding:
    """What a try has shown; no reason when the control works."""

    control: Control
    reason: str

    @property
    def works(self) -> bool:
        """Whether the control can be relied on here."""
        return not self.reason


@dataclass(frozen=True, slots=True)
class Verdict:
    """What findings mean for jobs: which controls they run without, and which missing ones refuse them."""

    degraded: tuple[str, ...]
    refused: tuple[str, ...]

    def check(self) -> None:
        """Returns when jobs may run; UNSUPPORTED, naming every control that they must not run without."""
        if self.refused:
            names = ", ".join(self.refused)
            raise JobError(
                ErrorCode.UNSUPPORTED,
                f"this host cannot isolate jobs: {names} missing; its operator runs jobworkerd check",
            )

    def replan(self, steps: Sequence[Step]) -> list[Step]:
        """The steps of a sandbox without the missing controls."""
        for control in CONTROLS:
            if control.name in self.degraded and control.replacement is not None:
                steps = [new for step in steps for new in control.replacement(step)]
        return list(steps)


def describe_isolation(degraded: Sequence[str]) -> str:
    """How complete the isolation of jobs is, in the words that every reply, list, log and audit record shows."""
    return f"degraded({', '.join(degraded)})" if degraded else "full"


def try_all(controls: Iterable[Control]) -> list[Finding]:
    """Tries each control in a child process, which it cannot outlive."""
    return [Finding(control, _try(control)) for control in controls]


def judge(findings: Iterable[Finding], allowed: Collection[str], *, is_root: bool) -> Verdict:
    """What the findings mean where the operator has `allowed` to do without some controls.

    Without root there is one uid for all: who runs it so has decided that by doing it. Limits
    refuse the jobs that ask for them, and nobody else.
    """
    missing = [finding.control for finding in findings if not finding.works]
    if not is_root:
        allowed = {*allowed, SEPARATE_UID}
    degraded = [
        control.name
        for control in missing
        if control.need is Need.DEFAULT or (control.can_be_done_without and control.name in allowed)
    ]
    refused = [control.name for control in missing if control.need is Need.ALL and control.name not in degraded]
    return Verdict(tuple(degraded), tuple(refused))


def _try(control: Control) -> str:
    """Why the control does not work here; nothing when it does."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        status = 1
        try:
            control.attempt()
            status = 0
        except JobError as error:
            os.write(writable, error.message.encode())
        except (OSError, ValueError) as error:  # a ValueError is how setrlimit says EPERM
            os.write(writable, (getattr(error, "strerror", None) or str(error)).encode())
        finally:
            os._exit(status)
    os.close(writable)
    with os.fdopen(readable, "rb") as pipe:
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        if not poll.poll(TRY_SECONDS * 1000):  # a file system that does not answer, say
            os.killpg(child, signal.SIGKILL)
        reason = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    return reason or ("the try did not end by itself" if status else "")


@dataclass(frozen=True, slots=True)
class ClearKeyring:
    """No key of an earlier owner of the uid is in reach of a job that no filter keeps from asking."""

    def apply(self) -> None:  # noqa: D102 - a step says in its class docstring what apply does
        linux.clear_user_keyring()


def _without_filter(step: Step) -> Iterable[Step]:
    if isinstance(step, ReadBack):
        return [step.expecting(seccomp=None)]
    return [ClearKeyring()] if isinstance(step, FilterSystemCalls) else [step]


def _without_namespace(flag: int, *dropped: type[Step]) -> Replacement:
    """No namespace of this kind, and none of the steps that would touch the host's own."""

    def replace(step: Step) -> Iterable[Step]:
        if isinstance(step, NewNamespaces):
            return [NewNamespaces(step.flags & ~flag)]
        if isinstance(step, ReadBack):
            return [_expecting_no_namespace(step, flag)]
        return [] if isinstance(step, dropped) else [step]

    return replace


def _expecting_no_namespace(step: ReadBack, flag: int) -> ReadBack:
    name = _NAMES[flag]
    apart = [other for other in step.expected["namespaces"].split(",") if other != name]
    step = step.expecting(namespaces=",".join(apart))
    match name:
        case "net":
            return step.expecting(network="host")
        case "uts":
            return step.expecting(hostname=None)
    return step


_NAMES: Final = {
    linux.CLONE_NEWNET: "net",
    linux.CLONE_NEWIPC: "ipc",
    linux.CLONE_NEWUTS: "uts",
    linux.CLONE_NEWCGROUP: "cgroup",
}
SEPARATE_UID: Final = "separate-uid"
_ADMIN: Final = "CAP_SYS_ADMIN; in a container, run it privileged"

#: In the order in which a job meets them.
CONTROLS: Final = (
    Control(
        "user-namespace",
        Need.NONE,
        "only root can isolate jobs",
        "a kernel with CONFIG_USER_NS, and a host that lets ordinary users use it",
        unprivileged.enter_user_namespace,
    ),
    Control(
        "pid-namespace",
        Need.ALL,
        "jobs would see and signal the host's processes, and outlive their stop",
        _ADMIN,
        trial.new_namespace(linux.CLONE_NEWPID),
    ),
    Control(
        "mount-namespace",
        Need.ALL,
        "jobs would write to the host's files",
        _ADMIN,
        trial.in_namespace(trial.private_mounts),
    ),
    Control(
        "net-namespace",
        Need.ALL,
        "jobs would reach the host's network",
        f"{_ADMIN}; a kernel with CONFIG_NET_NS",
        trial.new_namespace(linux.CLONE_NEWNET),
        _without_namespace(linux.CLONE_NEWNET, RaiseLoopback),
    ),
    Control(
        "ipc-namespace",
        Need.ALL,
        "jobs would share memory and queues with others",
        f"{_ADMIN}; a kernel with CONFIG_IPC_NS",
        trial.new_namespace(linux.CLONE_NEWIPC),
        _without_namespace(linux.CLONE_NEWIPC),
    ),
    Control(
        "uts-namespace",
        Need.ALL,
        "jobs would see the host's name",
        f"{_ADMIN}; a kernel with CONFIG_UTS_NS",
        trial.new_namespace(linux.CLONE_NEWUTS),
        _without_namespace(linux.CLONE_NEWUTS, SetHostname),
    ),
    Control(
        "cgroup-namespace",
        Need.ALL,
        "jobs would see the names of the host's control groups",
        f"{_ADMIN}; a kernel with CONFIG_CGROUPS",
        trial.new_namespace(linux.CLONE_NEWCGROUP),
        _without_namespace(linux.CLONE_NEWCGROUP),
    ),
    Control(
        "mount-api",
        Need.ALL,
        "the host's files could not be shown read-only",
        f"{_ADMIN}; Linux 5.12 or later (open_tree, mount_setattr, move_mount)",
        trial.in_namespace(trial.read_only_root),
    ),
    Control("masks", Need.ALL, "jobs would see the host's secrets", _ADMIN, trial.in_namespace(trial.masks)),
    Control(
        "hidden-proc",
        Need.ALL,
        "jobs would see their monitor",
        f"{_ADMIN}; a host /proc that is not masked",
        trial.in_namespace(trial.hidden_processes),
    ),
    Control(
        "devices", Need.ALL, "jobs would have no /dev/null", f"{_ADMIN}; CAP_MKNOD", trial.in_namespace(trial.devices)
    ),
    Control(
        SEPARATE_UID,
        Need.ALL,
        "jobs share one uid, with each other and with the server",
        "start jobworkerd as the host's root; it gives root up itself",
        trial.separate_uid,
        unprivileged.do_without_root,
    ),
    Control(
        "bounded-capabilities",
        Need.ALL,
        "jobs could be given capabilities back",
        "CAP_SETPCAP; in a container, run it privileged",
        trial.in_namespace(trial.bounded_capabilities),
    ),
    Control(
        "no-new-privileges", Need.ALL, "jobs could use set-uid programs", "Linux 3.5 or later", trial.no_new_privileges
    ),
    Control(
        "seccomp",
        Need.ALL,
        "jobs would reach all of the kernel",
        "a kernel with CONFIG_SECCOMP_FILTER, on x86_64 or aarch64",
        trial.in_namespace(trial.filter_system_calls),
        _without_filter,
    ),
    Control("pidfd", Need.ALL, "signals could hit a stranger", "Linux 5.3 or later", trial.pidfd),
    Control(
        "memory-limit",
        Need.DEFAULT,
        "a job can use up the host's memory",
        "the memory controller; boot with cgroup_enable=memory",
        trial.limit(Limits(memory=64 * MiB, pids=None)),
    ),
    Control(
        "pids-limit",
        Need.DEFAULT,
        "a job can use up the host's processes",
        "the pids controller; a kernel with CONFIG_CGROUP_PIDS",
        trial.limit(Limits(memory=None, pids=64)),
    ),
    Control(
        "cpu-limit",
        Need.ASKING,
        "jobs with --cpu are refused",
        "the cpu controller; a kernel with CONFIG_CFS_BANDWIDTH",
        trial.limit(Limits(memory=None, pids=None, cpu=0.5)),
    ),
    Control(
        "io-limit",
        Need.ASKING,
        "jobs with --io are refused, unless they name a disk",
        "the io (blkio) controller, and / on a disk",
        trial.limit(Limits(memory=None, pids=None, io_write_bps=MiB)),
    ),
    Control(
        "swap-accounting",
        Need.NONE,
        "on a host with swap, jobs with a memory limit are refused",
        "boot with swapaccount=1",
        trial.swap_accounting,
    ),
    Control(
        "cgroup-kill",
        Need.NONE,
        "jobs are killed by their PID namespace alone",
        "mount a cgroup v2 tree; Linux 5.14 or later",
        trial.atomic_kill,
    ),
    Control(
        "landlock",
        Need.NONE,
        "jobs can write to FIFOs of the host that are open to all",
        "Linux 5.19 or later, with landlock among lsm= on its command line",
        trial.restrict_writing,
    ),
    Control(
        "close-range",
        Need.NONE,
        "descriptors are closed one by one, which is slower",
        "Linux 5.9 or later",
        trial.close_range,
    ),
    Control(
        "resource-capability",
        Need.NONE,
        "jobs get no more descriptors and stack than the server has",
        "CAP_SYS_RESOURCE",
        trial.raise_rlimits,
    ),
    Control(
        "no-core-pipe",
        Need.NONE,
        "a crashing job makes the host run its crash handler, outside of the job's limits",
        "a kernel.core_pattern without |",
        trial.no_core_pipe,
    ),
    Control(
        "no-terminal-input",
        Need.NONE,
        "seccomp alone keeps jobs from typing into a terminal",
        "dev.tty.legacy_tiocsti=0, Linux 6.2 or later",
        trial.no_terminal_input,
    ),
)

#: What decides whether, and how, jobs run here.
DECISIVE: Final = tuple(control for control in CONTROLS if control.need in {Need.ALL, Need.DEFAULT})
DISPENSABLE: Final = tuple(control.name for control in CONTROLS if control.can_be_done_without)
