"""Streams that fail, hang or are closed: a run keeps its exit code, other commands report it in one sentence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import batchcl
from servers import aws_env, run_process

BATCHCL = f"{sys.executable} -m batchcl"


@pytest.fixture(scope="module")
def env(service, clean_env):
    return clean_env | aws_env(service)


def shell(command: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `command`; `@pipe@` in it is replaced by the descriptor of a pipe without a reader."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return _shell(command.replace("@pipe@", f"&{writer}"), env, writer)
    finally:
        os.close(writer)


def _shell(command: str, env: dict[str, str], writer: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command], env=env, pass_fds=[writer], capture_output=True, text=True, check=False
    )


@pytest.fixture
def run(demo, tmp_path):
    out = tmp_path / "out"
    command = f"{BATCHCL} run {demo.data.images} --model {demo.arn} --out {out} --run-id night --limit 5 --json"
    return command, out


def rows(out: Path) -> int:
    return batchcl.open_results(str(out)).images().collect().height


@pytest.mark.parametrize("stderr", ["2>/dev/full", "2>&-", "2>@pipe@"])
def test_a_failing_stderr_changes_nothing(run, env, stderr):
    command, out = run
    done = shell(f"{command} {stderr}", env)
    assert done.returncode == 0
    assert json.loads(done.stdout)["scored"] == rows(out) == 5


@pytest.mark.parametrize("stdout", [">/dev/full", ">&-", ">@pipe@"])
def test_a_run_with_a_failing_stdout_keeps_its_exit_code(run, env, stdout):
    command, out = run
    done = shell(f"{command} {stdout}", env)
    assert done.returncode == 0, done.stderr
    assert rows(out) == 5
    assert "Traceback" not in done.stderr
    assert "writing to stdout failed: " in done.stderr
    assert f"the summary is in {out}/runs/night/summary.json" in done.stderr


def test_closed_streams_are_not_confused_with_new_files(run, env):
    command, out = run
    assert shell(f"{command} <&- >&- 2>&-", env).returncode == 0
    assert rows(out) == 5


@pytest.mark.parametrize(
    ("reader", "stdout"),
    [
        ("labels", ">/dev/full"),
        ("labels", ">&-"),
        ("status", ">/dev/full"),
        ("runs --json", ">&-"),
        ("failures --csv", ">/dev/full"),
        ("query 'SELECT 1' --json", ">/dev/full"),
    ],
)
def test_a_failing_stdout_is_reported_in_one_sentence(scored, env, reader, stdout):
    name, _, rest = reader.partition(" ")
    done = shell(f"{BATCHCL} {name} {scored} {rest} {stdout}", env)
    assert done.returncode == 1
    assert done.stderr.startswith("batchcl: writing to stdout failed: ")
    assert done.stderr.count("\n") == 1


def test_a_broken_pipe_is_reported_in_one_sentence(scored, env):
    done = shell(f"{BATCHCL} labels {scored} >@pipe@", env)
    assert done.returncode == 1
    assert done.stderr == "batchcl: writing to stdout failed: Broken pipe; check its destination\n"


def test_an_unencodable_character_is_reported_in_one_sentence(scored, env):
    done = shell(f"{BATCHCL} confidence {scored}", env | {"PYTHONIOENCODING": "latin-1"})
    assert done.returncode == 1
    assert done.stderr.startswith("batchcl: writing to stdout failed: its encoding ")
    assert done.stderr.count("\n") == 1
    assert shell(f"{BATCHCL} confidence {scored}", env | {"LC_ALL": "C"}).returncode == 0


@pytest.fixture(scope="module")
def scored(demo, env, tmp_path_factory):
    """The output of a run, for commands that only read it."""
    out = tmp_path_factory.mktemp("scored") / "out"
    words = ("run", demo.data.images, "--model", demo.arn, "--out", out, "--limit", 5)
    assert run_process(*words, env=env).code == 0
    return out


def test_a_hanging_stderr_reader_does_not_block_a_run(demo, env, tmp_path):
    """The pipe holds 64 KB; more than that is written, and nothing is read until the process has ended."""
    folder = tmp_path.joinpath(*["x" * 200] * 5)
    folder.mkdir(parents=True)
    keys = folder / "keys.txt"
    keys.write_text("https://example.com/a.png\n" * 99 + str(demo.data.images / "00000.png"), encoding="utf-8")
    words = f"run {keys} --source-kind keys --skip-bad-lines --model {demo.arn} --out {tmp_path}/out --json"
    with subprocess.Popen(f"{BATCHCL} {words}".split(), env=env, stdout=-1, stderr=-1) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        summary = json.loads(process.stdout.read())
        assert process.wait() == 0
        assert process.stderr.read().count(b"bad line skipped: ") < 99, "the pipe was full"
    assert summary["scored"] == 1


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("words", "exit_code", "code"),
    [
        ("run --no-such-flag --out out", 2, "InvalidArgument"),
        ("run", 2, "InvalidArgument"),
        ("run x --out s3:/b/p --emulator", 2, "InvalidTarget"),
        ("retry out night", 5, "NotAnOutputRoot"),
    ],
)
def test_refusals_are_json_on_both_streams(cli, words, exit_code, code, tmp_path):
    for log_format in (["--log-format", "json"], ["--log-format=json"]):
        done = cli(*words.split(), *log_format, "--json", cwd=tmp_path)
        assert done.code == exit_code
        events = lines_of(done.err)
        assert (events[-1]["event"], events[-1]["code"]) == ("error", code)
        assert events[-1]["page"] == f"docs/troubleshooting.md#{code.lower()}"
        assert all(line.keys() >= {"time", "level", "event", "message"} for line in events)
        reason = events[-1]["message"]
        assert done.json == {"status": "refused", "reason": reason, "code": code, "exit_code": exit_code}


def test_every_log_line_of_a_run_is_json(cli, run, env):
    command, _ = run
    words = command.removeprefix(BATCHCL).removesuffix("--json").split()
    done = cli(*words, "--log-format", "json", env=env)
    events = lines_of(done.err)
    assert all(line.keys() >= {"time", "level", "event", "message"} for line in events)
    assert (events[-1]["event"], events[-1]["scored"]) == ("summary", 5)
    assert done.out == ""


def test_the_error_after_a_signal_is_json(run, env):
    command, _ = run
    slow = command.replace("--limit 5 --json", "--max-tps 0.2 --log-format json")
    with subprocess.Popen(slow.split(), env=env, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        events = []
        for line in process.stderr:
            events.append(json.loads(line))
            if events[-1]["event"] == "pace":
                os.kill(process.pid, signal.SIGTERM)
        assert process.wait() == 4
    assert "summary" in [line["event"] for line in events]
    assert events[-1] | {"event": "error", "level": "error", "message": "ended by SIGTERM"} == events[-1]
