"""The pages with a session (tutorial, workflow, improving, migrating, cookbook): they are run, their output compared.

Times, ids, speeds, costs and states on the way differ from day to day and are masked on both sides; nothing else is.
With UPDATE_DOCS=1 in the environment the page is written instead, at the speed that a reader sees: read what has
changed in it.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import redirect_stdout
from glob import glob
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import boto3
import pytest

from commands import run_command
from processes import Batchcl
from servers import REGION, aws_env, client, make_bucket, serving, wait_for
from unit.emulator.harness import serving_here

DOCS = Path(__file__).parents[2] / "docs"
_DECIMAL = re.compile(r"\d+\.\d+")
_BLOCK = re.compile(
    r"(?:as `(?P<file>[\w.]+)`:\n\n)?^```(?P<kind>console|python)\n(?P<code>.*?)^```$"
    r"(?:\n\n```text\n(?P<output>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
_CALLS_BEFORE_INTERRUPT = 8
_MASKS = [
    (re.compile(pattern), mask)
    for pattern, mask in (
        (r"\d{4}-\d\d-\d\dT[\d:.]+(Z|\+00:00)?", "TIME"),
        (r"/\d{13}\b", "/STAMP"),
        (r", at least \$[\d.]+ for the model", ""),
        (r"(?m)^batchcl: model: .*\n", ""),
        (r"in [\d.]+ s (of 2 sessions )?\([\d.]+ images/s, \d+ of \d+ calls throttled\)", r"in SPEED \1"),
        (r"billed for [\d.]+ minutes of training: \$[\d.]+", "BILL"),
        (r"(training_seconds +)\d+", r"\1N"),
        (r"TIME [\d,]+/[\d,]+ images .*\n", ""),  # the progress line, every ten seconds
        (r"TIME \S+ is [A-Z_]+\n", ""),
        (r"(?m)^(seconds|images_per_second|cost_usd) .*\n", ""),
        (r"(?m)^(2026-11-2\d .* -  +\d+) .*$", r"\1"),  # seconds, speed and cost of `runs`
        (r"not billed: .*|(?m:^[1-5]  .* (?:assumed|measured) .*$)", "ESTIMATE"),  # of `plan`
        (r"(?m)^\d{3}-\S+ .*\n", ""),  # rows of `show`, whose confidences are rounded to one decimal
        (r"TIME learned rate: .*\n", ""),  # only reported by runs of some seconds
        (r"TIME calls start at .*", "PACE"),
        (r"(?m)^\d{4}-\d\d +(\d+) .*", r"MONTH \1 COSTS"),
        (r"total: \$[\d.]+", "TOTAL"),
        (r"html, [\d.]+ MB", "html, SIZE"),
        # which states a wait happens to see depends on the machine's speed
        (r"(?m)^batchcl: \S+ is (?:\w+_IN_PROGRESS|STARTING|STOPPING|DELETING)\n", ""),
    )
]


class Step(NamedTuple):
    """A command or script of a page, and its output; with `file`, the script is saved under this name and not run."""

    command: str
    script: str
    said: str
    file: str = ""


def session(page: Path) -> Iterator[Step]:
    for block in _BLOCK.finditer(page.read_text()):
        if block["kind"] == "python":
            yield Step("", block["code"], block["output"] or "", block["file"] or "")
            continue
        for part in re.split(r"^\$ ", block["code"], flags=re.MULTILINE)[1:]:
            command, _, said = part.partition("\n")
            yield Step(command, "", said)


def masked(text: str) -> str:
    for pattern, mask in _MASKS:
        text = pattern.sub(mask, text)
    return text


def assert_alike(said: str, expected: str, step: str) -> None:
    """Whether words and integers are equal; the last digits of decimals differ between processors."""
    assert [_DECIMAL.sub("#", line).split() for line in said.splitlines()] == [
        _DECIMAL.sub("#", line).split() for line in expected.splitlines()
    ], step
    for found, wanted in zip(_DECIMAL.findall(said), _DECIMAL.findall(expected), strict=True):
        assert float(found) == pytest.approx(float(wanted), rel=0.01, abs=0.005), step


def executed(script: str, *arguments: str) -> str:
    """What a script prints. It runs in the test's own process, which has everything imported already."""
    said = io.StringIO()
    with (
        redirect_stdout(said),
        patch.object(sys, "argv", ["script", *arguments]),
        patch.object(boto3, "DEFAULT_SESSION", None),
    ):
        exec(script, {"__name__": "page"})
    return said.getvalue()


class Shell:
    """Runs the commands of a page in a directory, with the emulator at `endpoint`."""

    def __init__(self, directory: Path, endpoint: str) -> None:
        self.code = 0
        self._directory = directory
        self._endpoint = endpoint

    def run(self, command: str, *, is_interrupted: bool) -> str:
        """What the command writes to both streams."""
        if command == "echo $?":
            said, self.code = f"{self.code}\n", 0
            return said
        assert self.code == 0, f"the exit code before {command}"
        if is_interrupted:
            said = self._interrupted(shlex.split(command)[1:])
        elif command.startswith("batchcl "):
            ended = run_command(os.path.expandvars(command.removeprefix("batchcl ")))
            self.code, said = ended.code, ended.both
        elif command.startswith("python "):
            said = self._in_python(os.path.expandvars(command))
        else:
            done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
            said, self.code = done.stdout + done.stderr, done.returncode
        return said.replace(f"{self._directory}/", "")

    def _in_python(self, command: str) -> str:
        """Run `python FILE WORDS > FILE`; words may be globs."""
        before, _, output = command.partition(" > ")
        _, file, *words = shlex.split(before)
        said = executed(Path(file).read_text(), *(name for word in words for name in sorted(glob(word)) or [word]))
        if output:
            Path(output).write_text(said)
        return "" if output else said

    def _interrupted(self, words: list[str]) -> str:
        """Press ^C when the model has accepted some calls; until then, the others are throttled."""
        rule = {"kind": "throttle", "operation": "DetectCustomLabels", "skip": _CALLS_BEFORE_INTERRUPT}
        self._faults("PUT", {"faults": [rule]})
        process = Batchcl(*words, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        with process:
            try:
                wait_for(lambda: process.poll() is not None or self._faults("GET")["faults"][0]["struck"] > 0, 120)
                process.send_signal(signal.SIGINT)
                said, _ = process.communicate(timeout=60)
            finally:
                process.kill()
        self._faults("DELETE")
        self.code = process.returncode
        return re.sub(r"(?m)^(?=\S+Z interrupted by)", "^C\n", said.decode())

    def _faults(self, method: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self._endpoint}/_emulator/faults", data=data, method=method)
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)


@pytest.fixture
def shell(tmp_path, monkeypatch, clean_env, seaweed) -> Iterator[Shell]:
    """A shell in an empty directory, with the emulator and a local S3 as AWS."""
    env = clean_env | aws_env(s3=seaweed)
    fast = ("--control-tps", 100, "--tps-per-unit", 100, "--train-seconds", 0)
    flags = ("--s3-endpoint-url", seaweed, *(() if "UPDATE_DOCS" in os.environ else fast))
    with serving(env, *flags, "--state", tmp_path / "models") as endpoint:
        for name, value in (env | aws_env(endpoint, seaweed)).items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)
        yield Shell(tmp_path, endpoint)


@pytest.fixture
def demo_shell(tmp_path, monkeypatch, clean_env, demo) -> Iterator[Shell]:
    """A shell in a directory with the demo's images, two that are broken, and an emulator with its model as AWS."""
    images = tmp_path / "demo" / "images"
    shutil.copytree(demo.data.images, images)
    shutil.copy(demo.data.truth, tmp_path / "demo")
    (images / "00150-cut-off.png").write_bytes((images / "00150.png").read_bytes()[:100])
    (images / "00150-empty.jpg").touch()
    with serving_here(demo.state, tps_per_unit=100, account_tps=100) as endpoint:
        for name, value in (clean_env | aws_env(endpoint)).items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)
        yield Shell(tmp_path, endpoint)


def test_the_cookbook_is_a_real_session(demo_shell):
    follow(DOCS / "cookbook.md", demo_shell)


@pytest.mark.parametrize("names", [("tutorial.md", "workflow.md"), ("improving.md",)], ids="+".join)
def test_the_pages_are_real_sessions(shell, names):
    for name in names:
        follow(DOCS / name, shell)


def test_the_migrated_script_has_the_same_results(service, seaweed, demo, clean_env, tmp_path, monkeypatch):
    s3 = client("s3", seaweed)
    make_bucket(s3, "acme-photos")
    for picture in sorted(demo.data.images.iterdir())[:6]:
        s3.put_object(Bucket="acme-photos", Key=f"2025/{picture.name}", Body=picture.read_bytes())
    s3.put_object(Bucket="acme-photos", Key="2025/broken.png", Body=b"not a picture")
    for name, value in (
        clean_env | aws_env(service, seaweed) | {"ARN": demo.arn, "AWS_DEFAULT_REGION": REGION}
    ).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    follow(DOCS / "migrating.md", Shell(tmp_path, service))
    old, new = (
        {row["uri"]: {label["Name"]: label["Confidence"] for label in row["labels"]} for row in rows if "labels" in row}
        for rows in (
            [json.loads(line) for line in Path(name).read_text().splitlines()] for name in ("old.jsonl", "new.jsonl")
        )
    )
    assert len(old) == 6
    assert old == new


def follow(page: Path, shell: Shell) -> None:
    """Do each step of the page."""
    text, done = page.read_text(), ""
    for command, script, expected, file in session(page):
        if file:
            Path(file).write_text(script)
        elif script:
            said = executed(script)
            if "UPDATE_DOCS" in os.environ:
                before, _, text = text.partition(f"{script}```\n\n```text\n{expected}")
                done += f"{before}{script}```\n\n```text\n{said}"
            else:
                assert_alike(said, expected, script)
        else:
            step = f"$ {command}\n"
            said = shell.run(command, is_interrupted="\n^C\n" in expected)
            if "UPDATE_DOCS" in os.environ:
                before, _, text = text.partition(step + expected)
                done += before + step + said
            else:
                assert_alike(masked(said), masked(expected), step)
    assert shell.code == 0
    if "UPDATE_DOCS" in os.environ:
        page.write_text(done + text)
