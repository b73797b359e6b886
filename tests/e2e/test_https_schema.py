"""What the OpenAPI document says and what the server does, compared by a program that no one here wrote."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from host import needs_root

from jobworker.api.http.app import document

pytestmark = needs_root

HOOKS = Path(__file__).with_name("schemathesis_hooks.py")
DEPTHS = [pytest.param(2, id="short"), pytest.param(100, id="long", marks=pytest.mark.soak)]


def compare(daemon, place, *options, token=None, hooks=HOOKS):
    """Every check of schemathesis against the served document, for the requests that `hooks` let through."""
    served = place / "openapi.json"
    served.write_bytes(daemon.https_as(None).get("/openapi.json").body)
    program = [Path(sys.executable).with_name("schemathesis"), "run", served, "--url", f"https://{daemon.https}"]
    shown = ["-H", f"Authorization: Bearer {token}"] if token else []
    return subprocess.run(
        [*program, "--checks", "all", "--seed", "1", "--no-color", "--request-timeout", "30", *shown, *options],
        env={
            **os.environ,
            **({"SCHEMATHESIS_HOOKS": str(hooks)} if hooks else {}),
            "REQUESTS_CA_BUNDLE": str(daemon.directory / "pki/bundle.crt"),
        },
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.timeout(0)
@pytest.mark.parametrize("examples", DEPTHS)
def test_the_server_does_what_its_document_says(own_daemon, tmp_path, examples):
    """R3: all checks, none fails; and no request gets a 5xx."""
    config = own_daemon.directory / "jobworker.toml"
    # Jobs that schemathesis starts and waits for are to end by themselves.
    config.write_text(config.read_text().replace('timeout = "unlimited"', 'timeout = "1s"', 1))
    own_daemon.start()
    token = own_daemon.https_as("admin").token
    depth = ["--max-examples", str(examples)]
    jobs = compare(own_daemon, tmp_path, *depth, "--exclude-path-regex", "^/(events|oauth)", token=token)
    assert jobs.returncode == 0, jobs.stdout
    # What the hooks keep back as no request for this host may be refused: as the document says, and in no other way.
    options = ["--include-path", "/jobs/start", "--exclude-checks", "positive_data_acceptance,unsupported_method"]
    starts = compare(own_daemon, tmp_path, *depth, *options, token=token, hooks=None)
    assert starts.returncode == 0, starts.stdout
    logins = compare(own_daemon, tmp_path, *depth, "--include-path-regex", "^/(oauth|healthz)")
    assert logins.returncode == 0, logins.stdout
    assert "internal error" not in own_daemon.log.read_text()


def test_the_served_document_is_the_one_that_is_checked_in(daemon):
    served = daemon.https_as(None).get("/openapi.json")
    checked_in = json.loads((Path(__file__).parents[2] / "docs/openapi.json").read_text())
    assert served.json == document()
    assert {name: value for name, value in checked_in.items() if name != "x-generated"} == document()


def test_the_page_needs_no_other_site(daemon):
    """Issue 3: /docs from the package's own files, and allowed to load nothing else."""
    nobody = daemon.https_as(None)
    page = nobody.get("/docs")
    assert page.status == 200
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    text = page.body.decode()
    assert "//" not in text
    sources = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert len(sources) == 3
    for source in sources:
        assert nobody.get(source).status == 200
    assert b"SwaggerUIBundle" in nobody.get("/docs/swagger-ui-bundle.js").body
    assert nobody.get("/docs/../jobworker.toml").status == 401
