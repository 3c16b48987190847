"""docs/exchange.md: its commands are run, and their output is compared with the page.

With UPDATE_DOCS=1 in the environment the page is written instead.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from batchcl.outcomes import Label
from commands import run_command
from unit.analysis.conftest import Root
from unit.analysis.test_export_annotations import CAT, DOG, picture, scored

PAGE = Path(__file__).parents[3] / "docs" / "exchange.md"
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_page_shows_real_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos = tmp_path / "photos"
    Root(tmp_path / "out").results(
        scored(picture(photos / "a" / "1.png"), CAT, DOG),
        scored(picture(photos / "a" / "2.jpg", orientation=6), CAT),
        scored(picture(photos / "b" / "3.png"), Label("dog", 71, (0.1, 0.1, 0.5, 0.5))),
        scored(picture(photos / "b" / "4.png")),
    )
    page = PAGE.read_text()
    for block in _BLOCK.findall(page):
        shown = ""
        for command in re.findall(r"^\$ batchcl (.*)\n", block, re.MULTILINE):
            done = run_command(command)
            assert done.code == 0, done.both
            shown += f"$ batchcl {command}\n" + done.both.replace(f"{tmp_path}/", "")
        if os.environ.get("UPDATE_DOCS"):
            page = page.replace(block, shown, 1)
        else:
            assert block == shown
    if os.environ.get("UPDATE_DOCS"):
        PAGE.write_text(page)
