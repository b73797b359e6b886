"""Who is asking is proven, or it is not known at all."""

import dataclasses
import re
from pathlib import Path

import pytest

import jobworker
from jobworker.access.principal import Principal, Role, check_user_name, identified
from jobworker.core.errors import ErrorCode, JobError


@pytest.mark.parametrize("name", ["a", "alice", "build-bot", "ci_2", "a" * 32])
def test_a_plain_name_is_a_user_name(name):
    assert check_user_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "Alice", "aLice", "1a", "-a", "_a", "a" * 33, "..", "a/..", "../a", "a/b", "a\0", "a\n", "a b", "é", "a.b"],
)
def test_a_name_that_would_need_quoting_is_refused(name):
    """A1, A6: `..`, NUL, slashes and upper case never reach a path, a query or a certificate."""
    with pytest.raises(JobError) as refused:
        check_user_name(name)
    assert refused.value.code is ErrorCode.INVALID_ARGUMENT


def test_a_principal_has_no_public_constructor():
    with pytest.raises(TypeError, match="identity module"):
        Principal(name="alice", role=Role.ADMIN, credential="none", source="nowhere")


def test_a_principal_cannot_be_promoted():
    alice = identified(name="alice", role=Role.USER, credential="certificate serial 1", source="127.0.0.1:9")
    with pytest.raises(dataclasses.FrozenInstanceError):
        alice.role = Role.ADMIN
    with pytest.raises(TypeError, match="identity module"):
        dataclasses.replace(alice, role=Role.ADMIN)
    assert alice.role is Role.USER


def test_an_identity_module_cannot_prove_an_impossible_name():
    with pytest.raises(JobError):
        identified(name="../root", role=Role.USER, credential="certificate serial 1", source="127.0.0.1:9")


def test_only_identity_modules_make_principals():
    """A2: a transport proves who is asking in one file, and nothing else can."""
    package = Path(jobworker.__file__).parent
    makers = {path.name for path in package.rglob("*.py") if re.search(r"\bidentified\b", path.read_text("utf-8"))}
    assert "principal.py" in makers  # positive control: the search finds the definition
    assert makers <= {"principal.py", "identity.py"}
