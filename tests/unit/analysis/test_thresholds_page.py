"""docs/thresholds.md: its commands and Python are run on a generated root, and their output is compared with the page.

With UPDATE_DOCS=1 in the environment the page is written instead: read what has changed in it.
"""

from __future__ import annotations

import io
import os
import random
import re
import shlex
from contextlib import chdir, redirect_stdout
from math import exp
from pathlib import Path

import orjson
import pytest

from batchcl.outcomes import Label
from unit.analysis.conftest import Root, scored
from unit.analysis.test_evaluate import line

PAGE = Path(__file__).parents[3] / "docs" / "thresholds.md"
_BLOCK = re.compile(r"^```(?P<kind>[a-z]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
_DECIMAL = re.compile(r"\d+\.\d+")
_MASKS = [(re.compile(r"chosen by batchcl \S+, \S+"), "chosen by batchcl VERSION, TIME")]

LABELS = {"cat": (0.3, 2.5, -2.5, 1.0), "dog": (0.3, 1.5, -1.0, 2.5), "rabbit": (0.06, 1.5, -2.0, 1.0)}
"""For each label: its share of the images, the mean logit with and without it, and how overconfident the model is."""


def generate(here: Path) -> None:
    """Scores of 400 images with all labels, as `--min-confidence 0` returns them, and their true labels."""
    rnd = random.Random(11)
    rows, lines = [], []
    for at in range(400):
        true = [label for label, (share, *_) in LABELS.items() if rnd.random() < share]
        logits = {
            label: rnd.gauss(with_it if label in true else without, 1.4) * overconfident
            for label, (_, with_it, without, overconfident) in LABELS.items()
        }
        labels = sorted(
            (Label(label, round(100 / (1 + exp(-logit)), 2)) for label, logit in logits.items()),
            key=lambda each: -each.confidence,
        )
        rows.append(scored(f"s3://bucket/images/{at:04}.jpg", *labels))
        lines.append(orjson.dumps(line(f"s3://bucket/images/{at:04}.jpg", *true)))
    Root(here / "out").results(*rows, min_confidence=0)
    (here / "test.manifest").write_bytes(b"\n".join(lines))


def masked(text: str) -> str:
    for pattern, mask in _MASKS:
        text = pattern.sub(mask, text)
    return text


def assert_alike(found: str, expected: str) -> None:
    """Whether words and integers are equal; random numbers and last digits differ between versions of libraries."""
    assert [_DECIMAL.sub("#", each).split() for each in found.splitlines()] == [
        _DECIMAL.sub("#", each).split() for each in expected.splitlines()
    ]
    for one, other in zip(_DECIMAL.findall(found), _DECIMAL.findall(expected), strict=True):
        assert float(one) == pytest.approx(float(other), rel=0.05, abs=0.02)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_page_shows_real_output(cli, tmp_path: Path) -> None:
    generate(tmp_path)
    page = PAGE.read_text(encoding="utf-8")

    def output(block: re.Match[str]) -> str:
        kind, code = block["kind"], block["code"]
        if kind == "sh":
            return code
        if kind == "toml":
            return (tmp_path / "thresholds.toml").read_text(encoding="utf-8")
        if kind == "python":
            said = io.StringIO()
            with redirect_stdout(said), chdir(tmp_path):
                exec(code, {"__name__": "page"})
            return code
        command = code.splitlines()[0]
        done = cli(*shlex.split(command.removeprefix("$ batchcl ")), cwd=tmp_path)
        assert done.code == 0, done.err
        return f"{command}\n{done.out}{done.err}"

    found = _BLOCK.sub(lambda block: f"```{block['kind']}\n{output(block)}```", page)
    if "UPDATE_DOCS" in os.environ:
        PAGE.write_text(found, encoding="utf-8")
    assert_alike(masked(found), masked(page))
