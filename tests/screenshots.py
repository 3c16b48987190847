"""Write the pictures of docs/images: `make screenshots`. They show the demo's data, the real commands and chromium."""

from __future__ import annotations

import html
import io
import os
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Final

import pyte
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from terminals import on_terminal

_COLUMNS: Final = 100
_ROWS: Final = 12
IMAGES: Final = Path(__file__).parents[1] / "docs" / "images"
_COLORS: Final = {"default": "#e0e0e0", "green": "#8bc34a", "red": "#ef5350", "brown": "#ffb74d", "cyan": "#4dd0e1"}
_PAGE: Final = """<body style="margin:0"><pre style="margin:0;padding:14px 18px;background:#1e1e1e;color:#e0e0e0;
font:14px/1.35 'DejaVu Sans Mono',monospace;width:max-content">{}</pre>"""


def main() -> None:
    """Write all pictures."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        root = Path(folder)
        _batchcl(root, "demo", "demo")
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        panel = _PAGE.format(_live_panel(root))
        _write("panel", _screenshot(browser, panel, 1000, 200, selector="pre"))
        report = next(root.glob("demo/**/*.html")).as_uri()
        _write("report", _screenshot(browser, report, 1100, 1000))
        browser.close()


def _batchcl(root: Path, *words: str) -> None:
    subprocess.run([sys.executable, "-m", "batchcl", *words], cwd=root, check=True, stdout=sys.stderr)


def _live_panel(root: Path) -> str:
    """The screen of a run in the middle, as HTML."""
    words = (
        "run demo/images --model digits@v1 --out photos --run-id 2026-11-29 --emulator --emulator-state demo/emulator"
    )
    start = partial(subprocess.Popen, [sys.executable, "-m", "batchcl", *words.split(), "--max-tps", "20"], cwd=root)
    with on_terminal(start, os.environ, columns=_COLUMNS, rows=_ROWS) as (
        terminal,
        _process,
    ):
        terminal.await_(lambda text: any(f" {n}/300 images" in text for n in range(140, 200)))
        rows = [_row(terminal.screen.buffer[n]) for n in range(_ROWS)]
    return "\n".join([row for row in rows if row][-5:])  # two lines of the log, and the panel


def _row(row: dict[int, pyte.screens.Char]) -> str:
    return "".join(
        f'<span style="color:{_COLORS.get(each.fg, "#e0e0e0")};{"font-weight:bold" if each.bold else ""}">'
        f"{html.escape(each.data)}</span>"
        if each.fg != "default" or each.bold
        else html.escape(each.data)
        for each in (row[n] for n in range(_COLUMNS))
    ).rstrip()


def _screenshot(browser: Browser, page_or_html: str, width: int, height: int, selector: str | None = None) -> bytes:
    page = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=1.5)
    if selector is None:
        page.goto(page_or_html)
        page.wait_for_function("[...document.images].every(image => image.complete)")
        return page.screenshot()
    page.set_content(page_or_html)
    return page.locator(selector).screenshot()


def _write(name: str, png: bytes) -> None:
    """Write a PNG with 64 colours, which is a fifth of the size."""
    with Image.open(io.BytesIO(png)) as picture:
        picture.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(IMAGES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
