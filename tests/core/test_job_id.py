"""Job ids have one spelling, and nothing else passes for one."""

import uuid

import pytest

from jobworker.core.errors import ErrorCode, JobError
from jobworker.core.job_id import check_job_id, is_job_id, new_job_id

AN_ID = "3f2a9c4e-1b7d-4e8a-9c3f-5d6e7f8a9b0c"


def test_a_new_id_is_a_canonical_uuid4_and_never_seen_before() -> None:
    ids = {new_job_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(is_job_id(text) and uuid.UUID(text).version == 4 and str(uuid.UUID(text)) == text for text in ids)


def test_a_job_id_passes_the_check_unchanged() -> None:
    assert check_job_id(AN_ID) == AN_ID


@pytest.mark.parametrize(
    "text",
    [
        "",
        AN_ID[:8],
        AN_ID[:-1],
        AN_ID + "0",
        AN_ID.upper(),
        AN_ID.replace("-", ""),
        AN_ID + "\n",
        " " + AN_ID,
        AN_ID + "\0",
        "../" + AN_ID,
        AN_ID + "/../x",
        "{" + AN_ID + "}",
        "urn:uuid:" + AN_ID,
        AN_ID[:14] + "1" + AN_ID[15:],
        AN_ID[:19] + "c" + AN_ID[20:],
        AN_ID.replace("3", "٣"),
        "a" * 1_000_000,
    ],
)
def test_anything_else_is_a_job_that_cannot_exist(text: str) -> None:  # A6
    assert not is_job_id(text)
    with pytest.raises(JobError) as refusal:
        check_job_id(text)
    assert refusal.value.code is ErrorCode.JOB_NOT_FOUND
    assert len(refusal.value.message) < 100
