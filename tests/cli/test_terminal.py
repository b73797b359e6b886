"""jobctl on terminals, on pipes that close, and when it is told to leave."""

import os
import re
import signal
from pathlib import Path

import pytest
from client.scripted_server import STDERR, STDOUT, Script, Wire

LONG = Script([(STDOUT, b"x" * 65536)] * 64, outcome=None)


def read_to_end(near, far):
    """Everything that was written to the terminal, once its writers have gone."""
    os.close(far)
    data = b""
    while True:
        try:
            piece = os.read(near, 65536)
        except OSError:  # EIO: the other end is closed
            return data
        if not piece:
            return data
        data += piece


def test_a_terminal_sees_control_sequences_escaped(server, jobctl, terminal):  # O13
    smiley = "☺".encode()
    server.jobs.scripts[b"p"] = Script([(STDOUT, b"\x1b[31m" + smiley[:1]), (STDERR, b"e\r\n"), (STDOUT, smiley[1:])])
    near, far = terminal
    process = jobctl.begin("run", "--", "p", stdout=far, stderr=far)
    assert process.wait(30) == 0
    assert read_to_end(near, far) == b"^[[31me\r\n" + smiley


def test_raw_lets_them_pass(server, jobctl, terminal):  # O13
    server.jobs.scripts[b"p"] = Script([(STDOUT, b"\x1b[31m\xff")])
    near, far = terminal
    process = jobctl.begin("logs", "--raw", server.add(b"p"), stdout=far, stderr=far)
    assert process.wait(30) == 0
    assert read_to_end(near, far) == b"\x1b[31m\xff"


def test_each_stream_is_judged_by_where_it_goes(server, jobctl, terminal):  # O13
    server.jobs.scripts[b"p"] = Script([(STDOUT, b"\x1bout"), (STDERR, b"\x1berr")])
    near, far = terminal
    process = jobctl.begin("run", "--", "p", stderr=far)
    stdout, _ = process.communicate(timeout=30)
    assert stdout == b"\x1bout"
    assert read_to_end(near, far) == b"^[err"


def test_a_table_on_a_terminal_has_short_ids_and_no_commands_for_it(server, jobctl, terminal):
    job_id = server.add(b"echo", [b"\x1b[2J[red]"])
    near, far = terminal
    jobctl.environment |= {"NO_COLOR": "1", "COLUMNS": "200"}
    process = jobctl.begin("list", stdout=far, stderr=far)
    assert process.wait(30) == 0
    table = read_to_end(near, far)
    assert job_id[:12].encode() in table
    assert job_id.encode() not in table
    assert b"'^[[2J[red]'" in table


def test_a_narrow_terminal_goes_without_the_command_and_cuts_no_id(server, jobctl, terminal):
    job_id = server.add(b"echo", [b"word"] * 20, name="a-name-of-some-length")
    near, far = terminal
    jobctl.environment |= {"NO_COLOR": "1", "COLUMNS": "60"}
    process = jobctl.begin("list", stdout=far, stderr=far)
    assert process.wait(30) == 0
    head, row = re.sub(r"\x1b\[[0-9;]*m", "", read_to_end(near, far).decode()).splitlines()
    assert row.startswith(f"{job_id[:12]}   a-name-of-some-length   alice   COMPLETED   ")
    assert len(head) <= 60
    assert len(row) <= 60
    assert "word" not in row


def test_a_reader_that_goes_away_ends_it_quietly(server, jobctl):  # Q3
    server.jobs.scripts[b"p"] = LONG
    process = jobctl.begin("logs", server.add(b"p"))
    assert process.stdout.read(3) == b"xxx"
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(30) == 128 + signal.SIGPIPE


def test_a_list_into_a_closed_pipe_is_quiet(server, jobctl):  # Q3
    server.add(b"echo")
    reading, writing = os.pipe()
    os.close(reading)
    process = jobctl.begin("list", stdout=writing)
    os.close(writing)
    assert process.stderr.read() == b""
    assert process.wait(30) == 128 + signal.SIGPIPE


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("verb", ["logs", "run"])
def test_a_signal_leaves_the_output_and_not_the_job(server, jobctl, verb, sent, code):  # Q3
    server.jobs.scripts[b"p"] = Script([(STDOUT, b"one\n")], outcome=None)
    process = jobctl.begin("run", "--", "p") if verb == "run" else jobctl.begin("logs", server.add(b"p"))
    assert process.stdout.readline() == b"one\n"
    process.send_signal(sent)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == code
    (job_id,) = server.jobs.jobs
    assert not server.jobs.jobs[job_id].HasField("outcome")
    assert f"jobctl logs --offset 4 {job_id}\n".encode() in stderr
    assert f"jobctl stop {job_id}\n".encode() in stderr
    assert b"Traceback" not in stderr


def test_a_signal_frees_it_from_a_pipe_that_nobody_empties(server, jobctl):  # Q3
    server.jobs.scripts[b"p"] = LONG
    process = jobctl.begin("logs", server.add(b"p"))
    _wait_until_blocked(process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    process.communicate()


def test_ctrl_c_while_waiting_is_130(server, jobctl):
    server.jobs.scripts[b"p"] = Script([], outcome=None)
    process = jobctl.begin("wait", server.add(b"p"))
    assert server.jobs.called.wait(30)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (130, b"")


def test_a_non_blocking_stdout_gets_every_byte(server, jobctl):
    server.jobs.scripts[b"p"] = Script([(STDOUT, bytes([n]) * 65536) for n in range(32)])
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    process = jobctl.begin("logs", server.add(b"p"), stdout=writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == b"".join(bytes([n]) * 65536 for n in range(32))
    assert process.wait(30) == 0
    process.communicate()


def test_a_lost_connection_is_never_0(server, transport, authority, jobctl, tmp_path):  # Q5
    server.jobs.scripts[b"p"] = Script([(STDOUT, b"one\n")], outcome=None)
    job_id = server.add(b"p")

    async def open_wire():
        wire = Wire(server.ports[transport])
        await wire.__aenter__()
        return wire

    async def close_wire():
        wire.close()

    wire = server.run(open_wire)
    cut = authority.context(tmp_path / "clients/cut", "alice", f"127.0.0.1:{wire.port}", transport)
    process = jobctl.begin("-u", str(cut), "logs", job_id, patience=0.3)
    assert process.stdout.readline() == b"one\n"
    server.run(close_wire)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 125
    assert b"cannot reach 127.0.0.1" in stderr
    assert f"jobctl --context {cut} logs --offset 4 {job_id}\n".encode() in stderr


def _wait_until_blocked(process):
    """Returns when the process sleeps in a write to its stdout, as the kernel tells."""
    while "pipe_write" not in Path(f"/proc/{process.pid}/wchan").read_text():
        if process.poll() is not None:
            pytest.fail("it ended before it was blocked")
