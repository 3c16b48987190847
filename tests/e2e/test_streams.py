"""Streams that fail, hang or are closed: a run keeps its exit code, other commands report it in one sentence."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import batchcl
from processes import Batchcl
from servers import CommandResult, aws_env, run_process


@pytest.fixture(scope="module")
def env(service, clean_env):
    return clean_env | aws_env(service)


def redirected(command: str, redirection: str, env: dict[str, str]) -> CommandResult:
    """Run `batchcl COMMAND` with the redirections of a shell; `@pipe@` is a pipe without a reader."""
    stream, _, target = redirection.partition(">")
    if target == "@pipe@":
        reader, writer = os.pipe()
        os.close(reader)
    elif target == "/dev/full":
        writer = os.open(target, os.O_WRONLY)
    else:  # a stream that is closed when the interpreter starts
        script = f"exec {sys.executable} -m batchcl {command} {redirection}"
        done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, check=False)
        return CommandResult(done.returncode, done.stdout, done.stderr)
    streams: dict[str, Any] = {"stderr" if stream == "2" else "stdout": writer}
    try:
        return run_process(*shlex.split(command), env=env, **streams)
    finally:
        os.close(writer)


@pytest.fixture
def run(demo, tmp_path):
    out = tmp_path / "out"
    command = f"run {demo.data.images} --model {demo.arn} --out {out} --run-id night --limit 5 --json"
    return command, out


def rows(out: Path) -> int:
    return batchcl.open_results(str(out)).images().collect().height


@pytest.mark.parametrize("stderr", ["2>/dev/full", "2>&-", "2>@pipe@"])
def test_a_failing_stderr_changes_nothing(run, env, stderr):
    command, out = run
    done = redirected(command, stderr, env)
    assert done.code == 0
    assert done.json["scored"] == rows(out) == 5


@pytest.mark.parametrize("stdout", [">/dev/full", ">&-", ">@pipe@"])
def test_a_run_with_a_failing_stdout_keeps_its_exit_code(run, env, stdout):
    command, out = run
    done = redirected(command, stdout, env)
    assert done.code == 0, done.err
    assert rows(out) == 5
    assert "Traceback" not in done.err
    assert "writing to stdout failed: " in done.err
    assert f"the summary is in {out}/runs/night/summary.json" in done.err


def test_closed_streams_are_not_confused_with_new_files(run, env):
    command, out = run
    assert redirected(command, "<&- >&- 2>&-", env).code == 0
    assert rows(out) == 5


@pytest.mark.parametrize(
    ("reader", "stdout"),
    [
        ("labels", ">/dev/full"),
        ("labels", ">&-"),
        ("status", ">/dev/full"),
        ("runs --json", ">/dev/full"),
        ("failures --csv", ">/dev/full"),
        ("query 'SELECT 1' --json", ">/dev/full"),
    ],
)
def test_a_failing_stdout_is_reported_in_one_sentence(scored, env, reader, stdout):
    name, _, rest = reader.partition(" ")
    done = redirected(f"{name} {scored} {rest}", stdout, env)
    assert done.code == 1
    assert done.err.startswith("batchcl: writing to stdout failed: ")
    assert done.err.count("\n") == 1


def test_a_broken_pipe_is_reported_in_one_sentence(scored, env):
    done = redirected(f"labels {scored}", ">@pipe@", env)
    assert done.code == 1
    assert done.err == "batchcl: writing to stdout failed: Broken pipe; check its destination\n"


def test_an_unencodable_character_is_reported_in_one_sentence(scored, env):
    done = run_process("confidence", scored, env=env | {"PYTHONIOENCODING": "latin-1"})
    assert done.code == 1
    assert done.err.startswith("batchcl: writing to stdout failed: its encoding ")
    assert done.err.count("\n") == 1
    assert run_process("confidence", scored, env=env | {"LC_ALL": "C"}).code == 0


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
    words = f"run {keys} --source-kind keys --skip-bad-lines --model {demo.arn} --out {tmp_path}/out --json".split()
    with Batchcl(*words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
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
    done = cli(*command.removesuffix("--json").split(), "--log-format", "json", env=env)
    events = lines_of(done.err)
    assert all(line.keys() >= {"time", "level", "event", "message"} for line in events)
    assert (events[-1]["event"], events[-1]["scored"]) == ("summary", 5)
    assert done.out == ""


def test_the_error_after_a_signal_is_json(run, env):
    command, _ = run
    slow = command.replace("--limit 5 --json", "--max-tps 0.2 --log-format json")
    with Batchcl(*slow.split(), env=env, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        events = []
        for line in process.stderr:
            events.append(json.loads(line))
            if events[-1]["event"] == "pace":
                os.kill(process.pid, signal.SIGTERM)
        assert process.wait() == 4
    assert "summary" in [line["event"] for line in events]
    assert events[-1] | {"event": "error", "level": "error", "message": "ended by SIGTERM"} == events[-1]
