"""The options that describe a job, and the spec they make."""

import inspect
import math
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from jobworker.cli.options import ContextOption, TransportOption, parse_label
from jobworker.cli.session import Target
from jobworker.core.errors import ErrorCode, JobError, invalid
from jobworker.core.requests import check_idempotency_key
from jobworker.core.spec import JobSpec, Limits, Network, OnOutputLimit
from jobworker.core.units import parse_count, parse_cpu, parse_duration, parse_rate, parse_size

_UNLIMITED: Final = "unlimited"


@dataclass(frozen=True, slots=True)
class Order:
    """What the user wants started, where, and which of its limits were asked for."""

    spec: JobSpec
    asked_limits: Collection[str]
    idempotency_key: str | None
    target: Target


def read_order(  # noqa: PLR0913 - one parameter an option
    *,
    program: Annotated[str, typer.Argument(metavar="PROGRAM", help="A path, or a name in the server's PATH.")],
    args: Annotated[list[str] | None, typer.Argument(metavar="[ARGS]...", help="Its arguments.")] = None,
    cpu: Annotated[
        str | None,
        typer.Option(
            "--cpu",
            "--cpus",
            metavar="CORES",
            help="As in 0.5 or 500m. This and the limits below also take: unlimited.",
        ),
    ] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", "-m", metavar="SIZE", help="Memory with swap, as in 64M.")
    ] = None,
    pids: Annotated[
        str | None, typer.Option("--pids", "--pids-limit", metavar="N", help="Processes and threads.")
    ] = None,
    io: Annotated[str | None, typer.Option("--io", metavar="RATE", help="Bytes a second each way, as in 10M.")] = None,
    io_read: Annotated[str | None, typer.Option("--io-read", metavar="RATE", help="Bytes read a second.")] = None,
    io_write: Annotated[str | None, typer.Option("--io-write", metavar="RATE", help="Bytes written a second.")] = None,
    io_read_iops: Annotated[str | None, typer.Option("--io-read-iops", metavar="N", help="Reads a second.")] = None,
    io_write_iops: Annotated[str | None, typer.Option("--io-write-iops", metavar="N", help="Writes a second.")] = None,
    io_device: Annotated[
        str | None,
        typer.Option("--io-device", metavar="PATH", help="The device for io limits, or a path on it. Default: of /."),
    ] = None,
    timeout: Annotated[
        str | None, typer.Option("--timeout", metavar="TIME", help="How long it may run, as in 90s or 1h30m.")
    ] = None,
    output_limit: Annotated[
        str | None, typer.Option("--output-limit", metavar="SIZE", help="How much output is kept.")
    ] = None,
    on_output_limit: Annotated[
        OnOutputLimit | None, typer.Option("--on-output-limit", help="Beyond it, drop output or kill the job.")
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", "-e", metavar="K=V", help="A variable for the program; K alone takes yours."),
    ] = None,
    env_file: Annotated[
        list[Path] | None, typer.Option("--env-file", metavar="FILE", help="Variables, one K=V a line.")
    ] = None,
    workdir: Annotated[
        str | None,
        typer.Option("--workdir", "-w", metavar="DIR", help="Where the program starts; read-only unless below /tmp."),
    ] = None,
    rootfs: Annotated[
        str | None,
        typer.Option("--rootfs", metavar="DIR", help="A directory of the server's that the job has as its root."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="A name for people.")] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", "-l", metavar="K=V", help="A label to find the job by.")
    ] = None,
    network: Annotated[Network, typer.Option("--network", help="The network that the job sees.")] = Network.NONE,
    idempotency_key: Annotated[
        str | None,
        typer.Option("--idempotency-key", metavar="KEY", help="The same key starts no second job."),
    ] = None,
    context: ContextOption = None,
    transport: TransportOption = None,
) -> Order:
    """What these options ask for; INVALID_ARGUMENT names the option that is wrong. `unlimited` lifts a limit."""
    if idempotency_key is not None:
        check_idempotency_key(idempotency_key, "--idempotency-key")
    io_each_way = _limit("--io", io, parse_rate)
    asked: dict[str, Any] = {
        "cpu": _limit("--cpu", cpu, parse_cpu),
        "memory": _limit("--memory", memory, parse_size),
        "pids": _limit("--pids", pids, parse_count),
        "io_read_bps": io_each_way if io_read is None else _limit("--io-read", io_read, parse_rate),
        "io_write_bps": io_each_way if io_write is None else _limit("--io-write", io_write, parse_rate),
        "io_read_iops": _limit("--io-read-iops", io_read_iops, parse_count),
        "io_write_iops": _limit("--io-write-iops", io_write_iops, parse_count),
        "io_device": io_device,
        "timeout": _limit("--timeout", timeout, parse_duration),
        "output_bytes": None if output_limit is None else parse_size(output_limit, "--output-limit"),
        "on_output_limit": on_output_limit,
    }
    asked = {limit: value for limit, value in asked.items() if value is not None}
    lifted: dict[str, Any] = {limit: None for limit, value in asked.items() if value == math.inf}
    spec = JobSpec(
        program=program,
        args=tuple(args or ()),
        env=_environment(env_file or [], env or []),
        workdir=workdir,
        rootfs=rootfs,
        name=name,
        labels=dict(map(parse_label, label or [])),
        network=network,
        limits=Limits(**(asked | lifted)),
    )
    return Order(spec, asked.keys(), idempotency_key, Target(context, transport))


def takes_job_options(act: Callable[..., int | None]) -> Callable[..., int | None]:
    """`act` as a verb with the options of `read_order` around its own: those for the server end every verb's."""
    describing = inspect.signature(read_order).parameters
    *about_the_job, context, transport = describing.values()
    own = list(inspect.signature(act).parameters.values())[1:]

    def verb(**given: Any) -> int | None:
        described = {name: given.pop(name) for name in describing}
        return act(read_order(**described), **given)

    verb.__doc__ = act.__doc__
    options = (*about_the_job, *own, context, transport)
    parameters = [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in options]
    # Typer reads both.
    verb.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    verb.__annotations__ = {item.name: item.annotation for item in parameters}
    return verb


def _limit(option: str, text: str | None, parse: Callable[[str, str], float]) -> float | None:
    """The limit that `text` says; infinity for what lifts it, which 0 does not."""
    if text is None:
        return None
    if text == _UNLIMITED:
        return math.inf
    if (limit := parse(text, option)) == 0:
        raise invalid(option, text, f"more than 0, or {_UNLIMITED}")
    return limit


def _environment(files: list[Path], variables: list[str]) -> dict[str, str]:
    """The variables of `files`, with those given one by one on top."""
    lines = [line for file in files for line in _lines(file)]
    return dict(_variable(text) for text in (*lines, *variables))


def _lines(file: Path) -> list[str]:
    try:
        text = os.fsdecode(file.read_bytes())
    except OSError as error:
        raise JobError(ErrorCode.INVALID_ARGUMENT, f"--env-file: cannot read {file}: {error.strerror}") from error
    return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def _variable(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if separator:
        return name, value
    if name not in os.environ:
        raise invalid("--env", name, "K=V, or the name of a variable that is set here")
    return name, os.environ[name]
