"""Starting: what a caller may rely on when start returns, and when it does not."""

from host import needs_root

from jobworker import JobSpec, State, Worker

pytestmark = needs_root


async def test_a_simple_job_completes(worker: Worker) -> None:
    """Smoke."""
    job = await worker.start(JobSpec(program="/bin/true"))
    assert (await worker.wait(job.id)).state is State.COMPLETED
