"""A worker of its own whose followers have nothing to read: who wakes up then, is seen from outside.

Arguments: state directory, number of followers. Prints the job's id when all of them wait; ends with stdin.
"""

import asyncio
import sys

from jobworker import JobSpec, Worker


async def follow(worker: Worker, job_id: str, seen: asyncio.Semaphore) -> None:
    async for _ in worker.output(job_id):
        seen.release()


async def main(state: str, count: int) -> None:
    async with await Worker.open(state) as worker:
        script = "trap 'echo woken' HUP; echo ready; while :; do sleep 1000 & wait; done"
        job = await worker.start(JobSpec(program="sh", args=("-c", script)))
        seen = asyncio.Semaphore(0)
        followers = [asyncio.create_task(follow(worker, job.id, seen)) for _ in range(count)]
        for _ in followers:
            await seen.acquire()
        print(job.id, flush=True)
        end = asyncio.Event()
        asyncio.get_running_loop().add_reader(sys.stdin, end.set)
        await end.wait()
        asyncio.get_running_loop().remove_reader(sys.stdin)
        await worker.remove(job.id, force=True)
        await asyncio.gather(*followers)


asyncio.run(main(sys.argv[1], int(sys.argv[2])))
