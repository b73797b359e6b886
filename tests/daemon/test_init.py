"""`jobworkerd init` makes a complete state directory that is private, or none at all."""

import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

import jobworker
from jobworker.access.certificates import TrustBundle, read_user
from jobworker.access.key_files import read_key
from jobworker.daemon.config import Config
from jobworker.store import audit, users
from jobworker.store.database import Database

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who alone can give files to another user")


def everything(state):
    return [state, *state.rglob("*")]


def test_a_new_state_is_private_and_whole(state):
    # As root the configuration is root's, and the service, which may never have been root, reads it.
    open_to_service = {state / "jobworker.toml"} if state.lstat().st_uid != os.geteuid() else set()
    for path in everything(state):
        private = 0o640 if path in open_to_service else 0o600
        assert stat.S_IMODE(path.lstat().st_mode) == (0o700 if path.is_dir() else private), path
    assert {str(path.relative_to(state)) for path in everything(state) if path.is_file()} == {
        "jobworker.toml",
        "jobworker.db",
        "pki/bundle.crt",
        "pki/server.crt",
        "pki/server.key",
        "pki/ca/root.crt",
        "pki/ca/root.key",
        "pki/ca/issuing.crt",
        "pki/ca/issuing.key",
        "clients/admin/context.toml",
        "clients/admin/ca.crt",
        "clients/admin/client.crt",
        "clients/admin/client.key",
        "clients/admin/token",
    }
    config = Config.load(state / "jobworker.toml")
    assert config.tls.trust_domain == "jobs.example.org"
    read_key(config.tls.key, "server key")


def test_the_first_admin_is_on_record_and_has_a_certificate_that_proves_it(state):
    with Database.open(state / "jobworker.db") as database:
        admin = database.read(lambda connection: users.get(connection, "admin"))
        assert database.read(audit.verify) is None
        records = database.read(lambda connection: list(audit.export(connection)))
    assert admin.role == "admin"
    assert any('"action":"user.add"' in record and '"target":"admin"' in record for record in records)
    chain = (state / "clients/admin/client.crt").read_bytes()
    leaf, _issuing = x509.load_pem_x509_certificates(chain)
    user = read_user(leaf.public_bytes(Encoding.PEM), "jobs.example.org")
    user.check_time(time.time())
    assert user.name == "admin"
    assert user.issued_at >= admin.valid_from
    TrustBundle.from_pem((state / "pki/bundle.crt").read_bytes()).verify_chain(chain, time.time())


def test_openssl_accepts_the_server_for_its_hosts_and_refuses_it_for_others(state):
    def verifies(*options):
        verify = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", "pki/ca/root.crt"]
        command = [*verify, "-untrusted", "pki/server.crt", *options, "pki/server.crt"]
        return subprocess.run(command, cwd=state, capture_output=True, check=False).returncode == 0

    assert verifies("-verify_hostname", "localhost")
    assert verifies("-verify_ip", "127.0.0.1")
    assert not verifies("-verify_hostname", "jobs.example.net")
    assert not verifies("-verify_ip", "127.0.0.2")


def test_hosts_are_served_and_the_first_is_what_contexts_dial(jobworkerd, place):
    hosts = ["--host", "jobs.example.org", "--host", "192.0.2.7"]
    made = jobworkerd("init", "--dir", place / "state", "--listen", "0.0.0.0:6000", *hosts)
    assert made.returncode == 0, made.stderr
    assert made.stdout == f"{place}/state/clients/admin\n"
    assert 'server = "jobs.example.org:6000"\n' in (place / "state/clients/admin/context.toml").read_text()
    config = Config.load(place / "state/jobworker.toml")
    assert (str(config.server.grpc), str(config.server.dialed)) == ("0.0.0.0:6000", "jobs.example.org:6000")
    names = x509.load_pem_x509_certificate((place / "state/pki/server.crt").read_bytes()).extensions
    served = names.get_extension_for_class(x509.SubjectAlternativeName).value
    assert served.get_values_for_type(x509.DNSName) == ["jobs.example.org", "localhost"]
    assert [str(ip) for ip in served.get_values_for_type(x509.IPAddress)] == ["192.0.2.7", "127.0.0.1", "::1"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--listen", "0.0.0.0:6000"], "--host"),
        (["--host", "no host"], "host"),
        (["--trust-domain", "No Domain"], "trust_domain"),
        (["--user", "nobody-of-this-name"], "nobody-of-this-name"),
    ],
)
def test_a_failure_leaves_nothing_behind(jobworkerd, place, options, reason):
    """R6: one clear line, status 1, no traceback."""
    made = jobworkerd("init", "--dir", place / "state", *options)
    assert (made.returncode, made.stdout) == (1, "")
    assert made.stderr.startswith("jobworkerd: ")
    assert made.stderr.count("\n") == 1
    assert reason in made.stderr
    assert list(place.iterdir()) == []


def test_a_directory_with_a_state_is_refused_and_untouched(jobworkerd, state):
    before = {path: path.lstat().st_mtime_ns for path in everything(state)}
    again = jobworkerd("init", "--dir", state)
    assert again.returncode == 1
    assert "already" in again.stderr
    assert {path: path.lstat().st_mtime_ns for path in everything(state)} == before


def test_a_directory_with_anything_in_it_is_refused_and_an_empty_one_is_taken(jobworkerd, place):
    (place / "full").mkdir()
    (place / "full" / "letter").write_text("dear")
    (place / "empty").mkdir()
    assert "not an empty directory" in jobworkerd("init", "--dir", place / "full").stderr
    assert (place / "full" / "letter").read_text() == "dear"
    assert jobworkerd("init", "--dir", place / "empty").returncode == 0
    assert (place / "empty" / "jobworker.toml").is_file()


def test_a_missing_parent_is_named(jobworkerd, place):
    made = jobworkerd("init", "--dir", place / "a" / "state")
    assert made.returncode == 1
    assert f"{place}/a is not a directory" in made.stderr


@needs_root
def test_as_root_the_service_gets_what_it_opens_and_the_ca_keys_stay_with_root(jobworkerd, place):
    """Nothing the API process can open lets it make certificates."""
    made = jobworkerd("init", "--dir", place / "state", "--user", "199998")
    assert "the service will run as user 199998\n" in made.stderr
    state = place / "state"
    owners = {str(path.relative_to(state)): path.lstat().st_uid for path in everything(state)}
    of_the_service = {name for name, uid in owners.items() if uid == 199_998}
    assert of_the_service == {
        ".",
        "jobworker.db",
        "jobs",
        "pki",
        "pki/bundle.crt",
        "pki/server.crt",
        "pki/server.key",
    }
    assert set(owners.values()) == {0, 199_998}
    assert Config.load(state / "jobworker.toml").server.user == 199_998


@needs_root
@pytest.mark.parametrize("user", ["0", "200000", "265535", "4294967295"])
def test_as_root_a_number_that_jobs_or_root_have_is_refused(jobworkerd, place, user):
    made = jobworkerd("init", "--dir", place / "state", "--user", user)
    assert (made.returncode, list(place.iterdir())) == (1, [])
    assert "server.user" in made.stderr


@needs_root
def test_as_root_a_place_the_service_cannot_reach_is_refused(jobworkerd, place):
    (place / "closed").mkdir(mode=0o700)
    refused = jobworkerd("init", "--dir", place / "closed" / "state", "--user", "199998")
    assert refused.returncode == 1
    assert f"cannot get into {place}/closed" in refused.stderr
    (place / "closed").chmod(0o711)  # positive control
    assert jobworkerd("init", "--dir", place / "closed" / "state", "--user", "199998").returncode == 0


@needs_root
def test_without_root_everything_is_the_callers(place):
    """An ordinary user runs a copy it can read, on a Python that is loaded while root still may read it."""
    package = Path(jobworker.__file__).parent
    shutil.copytree(package, place / "code/jobworker", ignore=shutil.ignore_patterns("__pycache__"))
    (place / "home").mkdir()
    os.chown(place / "home", 199_998, 199_998)
    state = place / "home/state"
    program = """if True:
        import os, shutil, sys
        from jobworker.daemon.main import main
        for command in (["init"], ["user", "add", "first"]):  # loads all that this user may not read
            main([*command, "--dir", "warm"])
        shutil.rmtree("warm")
        os.setgroups([]), os.setgid(199998), os.setuid(199998)
        sys.exit(main(sys.argv[1:]))
    """

    def jobworkerd(*arguments):
        command = [sys.executable, "-c", program, *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": str(place / "code")}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=place)

    refused = jobworkerd("init", "--dir", state, "--user", "root")
    assert (refused.returncode, "only root" in refused.stderr, state.exists()) == (1, True, False)
    assert jobworkerd("init", "--dir", state).returncode == 0
    added = jobworkerd("user", "add", "alice", "--dir", state)
    assert added.returncode == 0, added.stderr
    assert {path.lstat().st_uid for path in everything(state)} == {199_998}
    assert added.stdout.endswith(f"{state}/clients/alice\n")
