"""The README's example of a client does what it says, over each transport."""

import re
from pathlib import Path

import pytest

from jobworker.client.context import Transport

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.parametrize("transport", [None, *Transport])
async def test_the_client_example_runs_as_written(daemon, transport):
    (example,) = [
        code for code in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if "JobClient" in code
    ]
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    assert re.search(rb"\d\d:\d\d:\d\d", await names["run_date"](daemon.context().directory, transport))
