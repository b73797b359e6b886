"""jobworkerd on the directory STATE, and one user who starts jobs without end or looks at them all.

Arguments: STATE start|list. `start` prints "acknowledged ID PROGRAM" as soon as the server has answered, and writes the
same to the file STATE.unsynced without ever syncing it. `list` prints every job, then what that file holds.
"""

import asyncio
import itertools
import subprocess
import sys
from pathlib import Path

from jobworker import JobSpec
from jobworker.client.context import Context
from jobworker.client.job_client import JobClient
from jobworker.core.outcome import outcome_to_document
from jobworker.daemon.address import Address
from jobworker.daemon.init import init
from jobworker.daemon.users import add

_PORT = 50_051
_PROGRAMS = (JobSpec(program="/bin/true"), JobSpec(program="/bin/sleep", args=("100000",)))


async def _keep_starting(client: JobClient, unsynced: Path) -> None:
    with unsynced.open("a", buffering=1) as file:
        for spec in itertools.cycle(_PROGRAMS):
            started = await client.start(spec)
            line = f"acknowledged {started.job.id} {spec.program}"
            file.write(f"{line}\n")
            print(line, flush=True)


async def _list(client: JobClient, unsynced: Path) -> None:
    async for page in client.list():
        for job in page:
            outcome = outcome_to_document(job.outcome) if job.outcome else {}
            print("job", job.id, job.state.value, outcome.get("kind"), outcome.get("reason"), flush=True)
    for line in unsynced.read_text().splitlines() if unsynced.exists() else ():
        print("unsynced", line, flush=True)


async def main(state: Path, act: str) -> None:
    if not state.exists():
        init(state, [], None, "jobworker.internal", Address.parse(f"127.0.0.1:{_PORT}"))
        add(state, "alice")
    serve = ("-m", "jobworker.daemon.main", "serve", "--config", str(state / "jobworker.toml"))
    server = await asyncio.create_subprocess_exec(sys.executable, *serve, stdout=subprocess.PIPE)
    assert server.stdout is not None
    print((await server.stdout.readline()).decode(), end="", flush=True)
    unsynced = Path(f"{state}.unsynced")
    async with JobClient.connect(Context.load(state / "clients" / "alice")) as client:
        if act == "list":
            await _list(client, unsynced)
        else:
            await asyncio.gather(*(_keep_starting(client, unsynced) for _ in range(8)))
    server.terminate()
    await server.wait()


asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
