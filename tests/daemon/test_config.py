"""The configuration is what its operator meant, or it is refused in one line."""

import os
from datetime import timedelta
from pathlib import Path

import pytest
from host import needs_root

from jobworker.access.ceiling import Ceiling
from jobworker.access.policy import Role
from jobworker.core.errors import JobError
from jobworker.core.spec import Limits, MiB
from jobworker.daemon.account import Account
from jobworker.daemon.address import Address
from jobworker.daemon.config import Config, Isolation, Jobs, Server, initial_text
from jobworker.daemon.refusal import ConfigRefused
from jobworker.store.jobs import Retention

TLS = '[tls]\nca = "ca"\ncertificate = "cert"\nkey = "/keys/key"\ntrust_domain = "jobs.example.org"\n'


@pytest.fixture
def load(tmp_path):
    def load(text):
        path = tmp_path / "jobworker.toml"
        path.write_text(text)
        return Config.load(path)

    return load


def test_what_init_writes_are_the_defaults(load):
    server = Server(grpc=Address("127.0.0.1", 50051), node="builder-1")
    config = load(initial_text(server, "jobs.example.org"))
    assert config.server == server
    assert config.jobs == Jobs()
    assert config.retention == Retention()
    assert config.isolation == Isolation()


def test_every_value_arrives_in_its_unit_and_paths_start_at_the_file(load, tmp_path):
    config = load(
        TLS
        + """
[server]
grpc = "[::1]:0"
advertise = "jobs.example.org:443"
user = 1234
shutdown_grace = "1m30s"
node = "n1"
[jobs]
uid_range = "300000-300009"
max_jobs = 3
max_jobs_per_user = 2
max_streams_per_user = 1
[jobs.default]
cpu = 0.5
memory = "64M"
pids = "unlimited"
timeout = "1h"
output = 1000
[jobs.ceiling.admin]
cpu = "2500m"
output = "unlimited"
memory = "1G"
[jobs.programs]
user = ["/usr/bin/python3", "/usr/bin/true"]
[retention]
max_age = "30d"
max_jobs = 1000
max_output = "unlimited"
[isolation]
allow_degraded = ["seccomp"]
rootfs = ["/srv/roots", "/opt/images/"]
"""
    )
    assert config.directory == tmp_path
    assert (config.tls.ca, config.tls.key) == (tmp_path / "ca", Path("/keys/key"))
    assert config.server == Server(
        grpc=Address("::1", 0),
        advertise=Address("jobs.example.org", 443),
        user=1234,
        shutdown_grace=timedelta(seconds=90),
        node="n1",
    )
    assert str(config.server.dialed) == "jobs.example.org:443"
    assert (config.jobs.uid_range[0], config.jobs.uid_range[-1], len(config.jobs.uid_range)) == (300000, 300009, 10)
    assert config.jobs.default == Limits(cpu=0.5, memory=64 * MiB, pids=None, timeout=3600.0, output_bytes=1000)
    assert config.jobs.ceilings[Role.ADMIN] == Ceiling(cpu=2.5, memory=1024 * MiB)
    assert config.jobs.ceilings[Role.USER] == Jobs().ceilings[Role.USER]
    assert config.jobs.programs == {Role.USER: ("/usr/bin/python3", "/usr/bin/true")}
    assert config.retention == Retention(age=30 * 86_400.0, jobs=1000)
    assert config.isolation == Isolation(
        allow_degraded=frozenset({"seccomp"}), rootfs=(Path("/srv/roots"), Path("/opt/images"))
    )


def test_the_shortest_file_takes_every_default(load):
    config = load(TLS)
    assert config.server == Server()
    assert config.server.dialed == Address("127.0.0.1", 50051)
    assert config.jobs == Jobs()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('[server]\ngrcp = "127.0.0.1:1"\n', ["server.grcp", "did you mean server.grpc?"]),
        ("[jobs]\nmaxjobs = 1\n", ["jobs.maxjobs", "did you mean jobs.max_jobs?"]),
        ("[jobs.default]\nmem = 1\n", ["jobs.default.mem", "did you mean jobs.default.memory?"]),
        ("[jobs.ceiling.root]\n", ["jobs.ceiling.root", "jobs.ceiling.admin", "jobs.ceiling.user"]),
        ("[jobs.programs]\nroot = []\n", ["jobs.programs.root", "jobs.programs.admin", "jobs.programs.user"]),
        ("[isolation]\nzzz = 1\n", ["isolation.zzz", "known are isolation.allow_degraded, isolation.rootfs"]),
        ("[servers]\n", ["there is no key servers", "did you mean server?"]),
        ("zzz = 1\n", ["there is no key zzz", "known are server, tls, jobs, retention, isolation"]),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(load, text, parts):
    """R6."""
    load(TLS)  # positive control
    with pytest.raises(ConfigRefused) as refused:
        load(text + TLS if "=" in text.split("\n")[0] else TLS + text)
    for part in parts:
        assert part in str(refused.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("server.grpc", "50051"),
        ("server.grpc", '"localhost"'),
        ("server.grpc", '":50051"'),
        ("server.grpc", '"::1:50051"'),
        ("server.grpc", '"localhost:65536"'),
        ("server.user", "0"),
        ("server.user", "true"),
        ("server.user", "4294967295"),
        ("server.shutdown_grace", '"soon"'),
        ("server.shutdown_grace", '"2h"'),
        ("server.shutdown_grace", "true"),
        ("server.node", '"a b"'),
        ("jobs.uid_range", "200000"),
        ("jobs.uid_range", '"0-10"'),
        ("jobs.uid_range", '"300000-200000"'),
        ("jobs.max_jobs", '"many"'),
        ("jobs.max_jobs", "0"),
        ("jobs.max_jobs", "true"),
        ("jobs.default", "1"),
        ("jobs.default.cpu", '"half"'),
        ("jobs.default.cpu", "0"),
        ("jobs.default.memory", '"12 parsecs"'),
        ("jobs.default.memory", "[]"),
        ("jobs.default.pids", "-1"),
        ("jobs.default.output", '"unlimited"'),
        ("jobs.ceiling.user.timeout", '"never"'),
        ("jobs.programs.user", '"/bin/true"'),
        ("jobs.programs.user", '["true"]'),
        ("jobs.programs.user", "[1]"),
        ("isolation.allow_degraded", '"seccomp"'),
        ("isolation.allow_degraded", "[1]"),
        ("isolation.rootfs", '"/srv/roots"'),
        ("isolation.rootfs", '["roots"]'),
        ("isolation.rootfs", '["/srv/../etc"]'),
    ],
)
def test_a_wrong_value_is_refused_with_its_key_and_what_is_allowed(load, key, value):
    """R6."""
    section, _, name = key.rpartition(".")
    with pytest.raises(ConfigRefused) as refused:
        load(f"{TLS}[{section}]\n{name} = {value}\n")
    message = str(refused.value)
    assert "jobworker.toml: " in message
    assert key in message
    assert "allowed: " in message
    assert "\n" not in message


@pytest.mark.parametrize("key", ["ca", "certificate", "key", "trust_domain"])
def test_what_tls_needs_is_named_when_it_is_missing(load, key):
    lines = [line for line in TLS.splitlines(keepends=True) if not line.startswith(f"{key} ")]
    with pytest.raises(ConfigRefused, match=f"tls.{key} is missing"):
        load("".join(lines))


@pytest.mark.parametrize(
    "value", ["Jobs.example.org", "jobs.example.org/", "jobs example", "jobs.example.org:443", "."]
)
def test_a_trust_domain_that_no_certificate_can_name_is_refused(load, value):
    """R6."""
    with pytest.raises(ConfigRefused, match=r"tls\.trust_domain: .* is not valid; allowed: "):
        load(TLS.replace("jobs.example.org", value))


@pytest.mark.parametrize("content", [b"[server", b"\xff\xfe", b"a = 1\na = 2\n"])
def test_what_is_no_toml_is_refused(tmp_path, content):
    (tmp_path / "jobworker.toml").write_bytes(content)
    with pytest.raises(ConfigRefused, match=r"jobworker\.toml"):
        Config.load(tmp_path / "jobworker.toml")


def test_a_missing_file_is_named_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(ConfigRefused, match=r"nowhere\.toml.*jobworkerd init"):
        Config.load(tmp_path / "nowhere.toml")


def test_the_service_cannot_share_a_uid_with_jobs(load):
    config = load(TLS)
    config.check_account(Account("199999", 199_999, 199_999))  # positive control
    for uid in (200_000, 265_535):
        with pytest.raises(ConfigRefused, match=r"jobs\.uid_range"):
            config.check_account(Account("someone", uid, uid))


def test_an_account_is_found_by_name_and_a_number_needs_no_account():
    assert Account.find("root") == Account("root", 0, 0)
    assert Account.find(199_999) == Account("199999", 199_999, 199_999)
    assert Account.find(199_999).configured == 199_999
    assert Account.current().uid == os.geteuid()
    with pytest.raises(ConfigRefused, match="useradd"):
        Account.find("nobody-of-this-name")


@pytest.mark.parametrize("text", ["127.0.0.1:50051", "[::1]:0", "jobs.example.org:443"])
def test_an_address_reads_as_it_is_written(text):
    assert str(Address.parse(text)) == text


@pytest.mark.parametrize("text", ["", "a", ":1", "a:", "a:b", "a:-1", "a:99999", "::1:5", "[::1]", "a:\u0661"])
def test_an_address_needs_a_host_and_a_port(text):
    with pytest.raises(JobError, match="address"):
        Address.parse(text)


@pytest.mark.parametrize(
    ("control", "words"),
    [
        ("secomp", "did you mean seccomp?"),
        ("nonsense", "known are "),
        ("pid-namespace", "no job can run without pid-namespace"),
        ("cpu-limit", "cpu-limit is not needed by all jobs"),
    ],
)
def test_only_controls_that_jobs_can_do_without_may_be_allowed_to_be_missing(load, control, words):
    """R6."""
    with pytest.raises(ConfigRefused, match=r"isolation\.allow_degraded") as refused:
        load(TLS + f'[isolation]\nallow_degraded = ["{control}"]\n')
    assert words in str(refused.value)


def test_limits_that_the_host_lacks_are_neither_given_by_default_nor_demanded():
    jobs = Jobs().without({"memory-limit"})
    assert (jobs.default.memory, jobs.default.pids) == (None, Jobs().default.pids)
    assert jobs.ceilings[Role.USER].memory is None
    jobs.ceilings[Role.USER].check(jobs.default)
    with pytest.raises(JobError, match="memory"):  # the control
        Jobs().ceilings[Role.USER].check(jobs.default)
    assert Jobs().without(()) == Jobs()


@needs_root
@pytest.mark.parametrize(("owner", "mode"), [(1234, 0o640), (0, 0o660), (0, 0o646)])
def test_root_acts_on_no_configuration_that_others_could_change(load, tmp_path, owner, mode):
    """security.md §1: a server that was taken over does not become root at its next start."""
    load(TLS)  # the control
    path = tmp_path / "jobworker.toml"
    path.chmod(mode)
    os.chown(path, owner, -1)
    with pytest.raises(ConfigRefused, match="chown root and chmod 640"):
        Config.load(path)


@pytest.mark.parametrize("place", ["/", "..", ".", "jobs", "pki/old", "/keys"])
def test_no_root_for_jobs_shows_them_the_servers_own_files(load, tmp_path, place):
    """O12. The control: a directory beside is taken."""
    with pytest.raises(ConfigRefused, match=r"isolation\.rootfs: .* own files"):
        load(TLS + f'[isolation]\nrootfs = ["{(tmp_path / place).resolve()}"]\n')
    beside = tmp_path.with_name(tmp_path.name + "-beside")
    assert load(TLS + f'[isolation]\nrootfs = ["{beside}"]\n').isolation.rootfs == (beside,)
