"""Every error code has one status on each transport, and no other table says so."""

from pathlib import Path

import pytest
from grpc import StatusCode

import jobworker
from jobworker.api.error_map import ERROR_MAP, WireStatus
from jobworker.core.errors import ErrorCode

SOURCES = Path(jobworker.__file__).parent

# As the contract has it: design §9 and proto/ name them for clients.
EXPECTED = {
    "invalid_argument": ("INVALID_ARGUMENT", 400),
    "unauthenticated": ("UNAUTHENTICATED", 401),
    "permission_denied": ("PERMISSION_DENIED", 403),
    "job_not_found": ("NOT_FOUND", 404),
    "program_not_found": ("NOT_FOUND", 404),
    "program_not_executable": ("FAILED_PRECONDITION", 422),
    "job_not_running": ("FAILED_PRECONDITION", 409),
    "job_running": ("FAILED_PRECONDITION", 409),
    "unsupported": ("FAILED_PRECONDITION", 422),
    "exhausted": ("RESOURCE_EXHAUSTED", 429),
    "unavailable": ("UNAVAILABLE", 503),
    "internal": ("INTERNAL", 500),
}


def test_every_code_is_in_the_table() -> None:
    assert set(ERROR_MAP) == set(ErrorCode)


@pytest.mark.parametrize("code", ErrorCode, ids=lambda code: code.value)
def test_a_code_has_the_status_that_clients_rely_on(code: ErrorCode) -> None:
    grpc, http = EXPECTED[code.value]
    assert ERROR_MAP[code] == WireStatus(StatusCode[grpc], http)


def test_no_failure_is_called_ok_on_any_transport() -> None:
    assert not [status for status in ERROR_MAP.values() if status.grpc is StatusCode.OK or status.http < 400]


def test_the_servers_side_has_no_second_table() -> None:
    """Every status that a transport sends goes through ERROR_MAP."""
    naming = [
        path.relative_to(SOURCES).as_posix()
        for folder in ("api", "service.py", "worker.py", "job.py", "core", "runtime", "store", "access")
        for path in ([SOURCES / folder] if folder.endswith(".py") else (SOURCES / folder).rglob("*.py"))
        if "StatusCode." in path.read_text() and "_generated" not in path.parts
    ]
    assert naming == ["api/error_map.py"]
