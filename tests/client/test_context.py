"""Which server and identity a command uses."""

import pytest

from jobworker.client.context import Context, current_context, find_context, named_contexts, use_context
from jobworker.core.errors import ErrorCode, JobError


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("JOBCTL_CONTEXT", raising=False)
    return tmp_path / "config/jobctl/contexts"


@pytest.fixture
def clients(authority, tmp_path):
    for user in ("alice", "bob"):
        authority.context(tmp_path / "clients" / user, user, "127.0.0.1:1")
    return tmp_path / "clients"


def test_paths_in_a_context_are_relative_to_its_file(clients, home):
    assert Context.load(clients / "alice").key == clients / "alice/client.key"


def test_the_option_goes_before_the_environment_and_that_before_the_current_context(
    authority, home, clients, monkeypatch
):
    for name in ("flag", "variable", "current"):
        authority.context(home / name, name, "127.0.0.1:1")
    use_context("current")
    assert find_context().user == "current"
    monkeypatch.setenv("JOBCTL_CONTEXT", "variable")
    assert find_context().user == "variable"
    assert find_context("flag").user == "flag"
    assert find_context(str(clients / "bob")).user == "bob"


def test_a_name_means_the_sibling_of_the_directory_in_the_environment(clients, home, monkeypatch):
    monkeypatch.setenv("JOBCTL_CONTEXT", str(clients / "bob"))
    assert find_context("alice").user == "alice"


def test_a_name_means_the_sibling_of_a_current_directory_too(clients, home):
    use_context(str(clients / "bob"))
    assert find_context("alice").user == "alice"


def test_a_saved_context_goes_before_a_sibling(authority, clients, home, monkeypatch):
    authority.context(home / "alice", "other-alice", "127.0.0.1:1")
    monkeypatch.setenv("JOBCTL_CONTEXT", str(clients / "bob"))
    assert find_context("alice").user == "other-alice"


def test_use_records_a_name_as_a_name_and_a_directory_as_absolute(authority, clients, home, monkeypatch):
    authority.context(home / "work", "alice", "127.0.0.1:1")
    use_context("work")
    assert current_context() == "work"
    assert named_contexts() == ["work"]
    monkeypatch.chdir(clients)
    use_context("./bob")
    assert current_context() == str(clients / "bob")


def test_without_any_context_the_message_says_how_to_choose_one(home):
    with pytest.raises(JobError, match=r"--context NAME.*JOBCTL_CONTEXT.*jobctl context use"):
        find_context()


def test_an_unknown_name_lists_the_known_ones(authority, home):
    authority.context(home / "work", "alice", "127.0.0.1:1")
    with pytest.raises(JobError, match="no context 'wrk'; known: work"):
        find_context("wrk")


@pytest.mark.parametrize("name", ["context.toml", "ca.crt", "client.crt", "client.key"])
def test_a_missing_file_is_named(clients, home, name):  # Q4
    (clients / "alice" / name).unlink()
    with pytest.raises(JobError, match=rf"missing file: .*/alice/{name}"):
        _read_everything(Context.load(clients / "alice"))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_private_key_that_others_can_reach_is_refused_with_the_remedy(clients, home, mode):  # R6
    key = clients / "alice/client.key"
    _read_everything(Context.load(clients / "alice"))
    key.chmod(mode)
    with pytest.raises(JobError, match=rf"run: chmod 600 {key}") as refused:
        _read_everything(Context.load(clients / "alice"))
    assert refused.value.code is ErrorCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("server = 'x'", "lacks user, ca, certificate, key"),
        ("server = 1\nuser='a'\nca='a'\ncertificate='a'\nkey='a'", "no text for server"),
        ("server", "not valid TOML"),
        ("server='h:1'\nuser='a'\nca='a'\ncertificate='a'\nkey='a'\nport='2'", "unknown keys: port"),
        ("server='host'\nuser='a'\nca='a'\ncertificate='a'\nkey='a'", "HOST:PORT"),
    ],
)
def test_a_broken_context_file_says_what_is_wrong(clients, home, text, complaint):
    (clients / "alice/context.toml").write_text(text)
    with pytest.raises(JobError, match=complaint):
        Context.load(clients / "alice")


def test_a_saved_context_reads_back_unchanged(clients, home):
    saved = Context(
        directory=home / "copy",
        server="[::1]:50051",
        user='al"ice',
        ca=clients / "alice/ca.crt",
        certificate=clients / "alice/client.crt",
        key=clients / "alice/client.key",
    )
    saved.save()
    assert find_context("copy") == saved
    assert (home / "copy/context.toml").stat().st_mode & 0o777 == 0o600


def _read_everything(context):
    context.read("ca")
    context.read("certificate")
    context.read_key()
