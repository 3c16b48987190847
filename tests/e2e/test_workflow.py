"""Pages that are real sessions: their commands and scripts are run, and their output is compared.

Times, ids, speeds, costs and states on the way differ from day to day and are masked on both sides; nothing else is.
With UPDATE_DOCS=1 in the environment the page is written instead: read what has changed in it.
"""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest

from commands import run_command
from servers import aws_env, client, serving
from unit.emulator.harness import serving_here

DOCS = Path(__file__).parents[2] / "docs"
_DECIMAL = re.compile(r"\d+\.\d+")
_BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
_MASKS = [
    (re.compile(pattern), mask)
    for pattern, mask in (
        (r"\d{4}-\d\d-\d\dT[\d:.]+(Z|\+00:00)?", "TIME"),
        (r"/\d{13}\b", "/STAMP"),
        (r", at least \$[\d.]+ for the model", ""),
        (r"(?m)^batchcl: model: .*\n", ""),
        (r"in [\d.]+ s \([\d.]+ images/s, \d+ of \d+ calls throttled\)", "in SPEED"),
        (r"billed for [\d.]+ minutes of training: \$[\d.]+", "BILL"),
        (r"(training_seconds +)\d+", r"\1N"),
        (r"TIME [\d,]+/[\d,]+ images .*\n", ""),  # the progress line, every ten seconds
        (r"TIME \S+ is [A-Z_]+\n", ""),
        (r"(?m)^(seconds|images_per_second|cost_usd) .*\n", ""),
        (r"(?m)^(2026-11-2\d .* -  +\d+) .*$", r"\1"),  # seconds, speed and cost of `runs`
        (r"(?m)^\d{4}-\d\d  .*$", "MONTH"),  # dollars of `costs`
        (r"total: \$[\d.]+", "TOTAL"),
        (r"not billed: .*|(?m:^[1-5]  .* (?:assumed|measured) .*$)", "ESTIMATE"),  # of `plan`
        (r"(?m)^\d{3}-\S+ .*\n", ""),  # rows of `show`, whose confidences are rounded to one decimal
        (r"TIME learned rate: .*\n", ""),  # only reported by runs of some seconds
        (r"TIME calls start at .*", "PACE"),
        # which states a wait happens to see depends on the machine's speed
        (r"(?m)^batchcl: \S+ is (?:\w+_IN_PROGRESS|STARTING|STOPPING|DELETING)\n", ""),
    )
]


class Step(NamedTuple):
    """A command or script of the page, and its output."""

    command: str
    script: str
    said: str


def session(page: Path) -> Iterator[Step]:
    for kind, code, output in _BLOCK.findall(page.read_text()):
        if kind == "python":
            yield Step("", code, output)
            continue
        for part in code.split("$ batchcl ")[1:]:
            command, _, said = part.partition("\n")
            yield Step(command, "", said)


def masked(text: str, here: Path) -> str:
    text = text.replace(f"{here}/", "")
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


def executed(script: str) -> str:
    said = io.StringIO()
    with redirect_stdout(said):
        exec(script, {"__name__": "page"})
    return said.getvalue()


@pytest.fixture
def here(tmp_path, monkeypatch, clean_env, seaweed) -> Iterator[Path]:
    """An empty directory, with the emulator and a local S3 as AWS."""
    env = clean_env | aws_env(s3=seaweed)
    flags = ("--s3-endpoint-url", seaweed, "--control-tps", 100, "--tps-per-unit", 100, "--train-seconds", 0)
    with serving(env, *flags, "--state", tmp_path / "models") as endpoint:
        for name, value in (env | aws_env(endpoint, seaweed)).items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)
        yield tmp_path


@pytest.fixture
def demo_here(tmp_path, monkeypatch, clean_env, demo) -> Iterator[Path]:
    """A directory with the demo's images, two that are broken, and an emulator with its model as AWS."""
    images = tmp_path / "demo" / "images"
    shutil.copytree(demo.data.images, images)
    shutil.copy(demo.data.truth, tmp_path / "demo")
    (images / "00150-cut-off.png").write_bytes((images / "00150.png").read_bytes()[:100])
    (images / "00150-empty.jpg").touch()
    with serving_here(demo.state, tps_per_unit=100, account_tps=100) as endpoint:
        for name, value in (clean_env | aws_env(endpoint)).items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)
        yield tmp_path


def arn_of(model: str, endpoint: str) -> str:
    project, _, version = model.partition("@")
    rekognition = client("rekognition", endpoint)
    found = rekognition.describe_projects(ProjectNames=[project])["ProjectDescriptions"][0]["ProjectArn"]
    versions = rekognition.describe_project_versions(ProjectArn=found, VersionNames=[version])
    return str(versions["ProjectVersionDescriptions"][0]["ProjectVersionArn"])


@pytest.mark.parametrize(
    ("name", "directory"), [("workflow.md", "here"), ("improving.md", "here"), ("cookbook.md", "demo_here")]
)
def test_the_page_is_a_real_session(request, name, directory):
    here: Path = request.getfixturevalue(directory)
    endpoint = os.environ["AWS_ENDPOINT_URL_REKOGNITION"]
    page = (DOCS / name).read_text()
    for command, script, expected in session(DOCS / name):
        if script:
            before, said = f"{script}```\n\n```text\n", executed(script)
        else:
            before = f"$ batchcl {command}\n"
            line = command.replace("$ARN", arn_of("digits@v1", endpoint)) if "$ARN" in command else command
            ended = run_command(line)
            said = ended.both
            assert ended.code == 0, before + said
        if os.environ.get("UPDATE_DOCS"):
            page = page.replace(before + expected, before + said.replace(f"{here}/", ""), 1)
        else:
            assert_alike(masked(said, here), masked(expected, here), before)
    if os.environ.get("UPDATE_DOCS"):
        (DOCS / name).write_text(page)
