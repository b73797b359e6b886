"""jobctl whoami: shows whom the server takes the caller for."""

import time

from jobworker.cli.options import ContextOption, Format, FormatOption, TransportOption
from jobworker.cli.render import print_facts, print_json
from jobworker.cli.session import Target, talk
from jobworker.client.job_client import JobClient
from jobworker.client.model import Identity
from jobworker.core.times import rfc3339
from jobworker.core.units import format_duration


def whoami(
    *, output: FormatOption = Format.TABLE, context: ContextOption = None, transport: TransportOption = None
) -> None:
    """Show whom the server takes you for, by what, and until when.

    A certificate proves you over gRPC and a token over HTTPS, and each expires by itself.

    Examples:
      jobctl whoami
      jobctl --transport https whoami
      jobctl whoami -o json | jq -r .expires_at
    """

    async def ask(client: JobClient) -> Identity:
        return await client.who_am_i()

    identity = talk(Target(context, transport), ask)
    if output is Format.TABLE:
        print_facts(_facts(identity, time.time()))
    else:
        print_json(identity.to_document(), is_compact=output is Format.JSONL)


def _facts(identity: Identity, now: float) -> dict[str, str]:
    expires_at = identity.expires_at
    return {
        "USER": identity.user,
        "ROLE": identity.role,
        "SCOPES": ", ".join(identity.scopes),
        "CREDENTIAL": identity.credential,
        "EXPIRES": "" if expires_at is None else _until(expires_at, now),
    }


def _until(moment: float, now: float) -> str:
    return f"{rfc3339(moment)} (in {format_duration(max(0.0, moment - now))})"
