"""An output root whose names, labels and messages try to break the page of its report."""

from __future__ import annotations

import datetime as dt
import os
from dataclasses import dataclass
from pathlib import Path

import orjson
from PIL import Image

import batchcl
from batchcl.outcomes import Label, Scored
from batchcl.sources.base import local_image
from unit.analysis.conftest import NOON, Root, failed

SCRIPT = "<script>window.attacked = true</script>"
ATTRIBUTE = "\" onerror=window.attacked=true x='"
STYLE = "</style></script></title><b>bold</b>"
TURNED = "\u202egpj.exe"
HEBREW = "שלום עולם"
CONTROL = "line\nbreak\x1b[31m"
TEMPLATE = "{{ 7 * 7 }}"
LONG = "L" * 1000
LABELS = (SCRIPT, ATTRIBUTE, STYLE, TURNED, HEBREW, CONTROL, TEMPLATE, LONG, "dog", "cat")
NIGHTS = 3
IMAGES = 30
"""Of each night."""
PICTURES = 24

_NAMES = (
    "<img src=x onerror=window.attacked=true>",
    ATTRIBUTE,
    f"{TURNED}",
    HEBREW,
    "$(touch x)`x`",
    "k" * 200,
    "plain",
)


@dataclass(frozen=True)
class HostileReport:
    """A root of `hostile_root`, its report, and what was returned."""

    root: Root
    path: Path
    written: batchcl.Report


def hostile_report(folder: Path) -> HostileReport:
    """Write the report of the third night compared with the first."""
    root = hostile_root(folder)
    path, truth = folder / "report.html", truth_of(root, folder / "truth.manifest")
    written = batchcl.write_report_sync(str(root), path, baseline="2026-11-21", truth=truth, gallery=PICTURES)
    return HostileReport(root, path, written)


def hostile_root(folder: Path) -> Root:
    """A root with three nights of 30 images: of classes and boxes, some without labels, and one that is missing."""
    pictures = folder / "pictures"
    pictures.mkdir()
    root = Root(folder / "out")
    root.path.mkdir()
    drawn = folder / "picture.jpg"
    Image.effect_noise((320, 200), 60).convert("RGB").save(drawn, quality=80)
    for night in range(NIGHTS):
        rows = []
        for number in range(IMAGES):
            path = pictures / f"{night}-{number}-{_NAMES[number % len(_NAMES)]}.jpg"
            os.link(drawn, path)
            rows.append(_scored(path, night, number))
        root.results(*rows, run_id=f"night-{night}", date=f"2026-11-{21 + night}")
    (pictures / f"2-1-{ATTRIBUTE}.jpg").unlink()
    root.failures([failed(f"s3://bucket/{STYLE}/{LONG}.jpg"), failed(f"s3://bucket/{TURNED}", code=SCRIPT)])
    return root


def _scored(path: Path, night: int, number: int) -> Scored:
    shift = number + night
    labels = [] if number % 10 == 9 else [LABELS[(shift * step) % len(LABELS)] for step in range(1, 1 + number % 3 + 1)]
    found = tuple(
        Label(name, 95 - 7 * place - number, None if number % 2 else (0.1 * place, 0.2, 0.3, 0.4))
        for place, name in enumerate(dict.fromkeys(labels))
    )
    at = NOON + dt.timedelta(days=night, seconds=2 * number)
    return Scored(image=local_image(str(path)), labels=found, attempts=1, latency_ms=80, request_id="r", scored_at=at)


def truth_of(root: Root, path: Path) -> Path:
    """A manifest in which every second image is a dog, and the others what the attacker says."""
    kind = "groundtruth/image-classification"
    lines = [
        {
            "source-ref": str(image),
            "A": 0,
            "A-metadata": {"class-name": ("dog", SCRIPT)[number % 2], "type": kind},
        }
        for number, image in enumerate(sorted((root.path.parent / "pictures").iterdir()))
    ]
    path.write_bytes(b"\n".join(map(orjson.dumps, lines)))
    return path
