"""jobctl completion: prints what a shell needs to complete our commands."""

from enum import Enum
from typing import Annotated

import typer
from typer._completion_shared import get_completion_script


class Shell(Enum):
    """The shells we know."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(
    shell: Annotated[Shell, typer.Argument(metavar="bash|zsh|fish", help="The shell to complete in.")],
) -> None:
    """Print a script that completes commands and options.

    Examples:
      source <(jobctl completion bash)
      jobctl completion zsh > ~/.zfunc/_jobctl
      jobctl completion fish > ~/.config/fish/completions/jobctl.fish
    """
    script = get_completion_script(prog_name="jobctl", complete_var="_JOBCTL_COMPLETE", shell=shell.value)
    print(script)  # noqa: T201 - the data
