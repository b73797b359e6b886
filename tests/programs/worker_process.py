"""A worker in a process of its own, to be killed: STATE and places for roots as arguments, a JSON spec a line on stdin.

Answers each with one JSON line: the job's id and how whole its isolation is, or the error. {"output": id} is answered
at the job's end, {"status": id} and {"stop": id} with its state and what confines it.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from jobworker import JobError, JobSpec, Worker
from jobworker.runtime.launcher_client import LauncherClient
from jobworker.worker import bootstrap


async def _answer(worker: Worker, request: dict[str, Any]) -> dict[str, Any]:
    try:
        if "output" in request:
            output = b"".join([chunk.data async for chunk in worker.output(request["output"])])
            return {"output": output.decode()}
        if "status" in request or "stop" in request:
            job = await (worker.status(request["status"]) if "status" in request else worker.stop(request["stop"]))
            return {"state": job.state.value, "sandbox": dict(job.sandbox), "limits": dict(job.effective_limits)}
        job = await worker.start(JobSpec.from_document(request))
        return {"id": job.id, "isolation": job.sandbox["isolation"]}
    except JobError as error:
        return {"error": error.message, "code": error.code.value}


async def main() -> None:
    state, *roots = map(Path, sys.argv[1:])
    (state / "jobs").mkdir(mode=0o700, parents=True, exist_ok=True)  # the launcher hides what it finds
    launcher = await asyncio.to_thread(LauncherClient.start, bootstrap(state, roots=roots))
    async with await Worker.open(state, launcher=launcher) as worker:
        print(json.dumps({"launcher": worker._launcher.pid}), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(await _answer(worker, json.loads(line))), flush=True)


asyncio.run(main())
