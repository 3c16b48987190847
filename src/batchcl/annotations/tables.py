"""Manifests of Ground Truth, and CSV with a row per label."""

from __future__ import annotations

import csv
import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from batchcl.annotations.scored import ScoredImage, ScoredLabel, json_text
from batchcl.groundtruth import METADATA, SINGLE_LABEL, TruthBox, detection_attribute

__all__ = ["CSV_COLUMNS", "CsvWriter", "ManifestWriter"]

CSV_COLUMNS: Final = (
    "image",
    "label",
    "confidence",
    "left",
    "top",
    "width",
    "height",
    "model",
    "date",
    "run_id",
    "scored_at",
    "uri",
    "version_id",
    "model_arn",
)

_BOXES: Final = "bounding-box"


class CsvWriter:
    """Writes one row per label; an image without labels has one row with an empty label. Boxes are ratios."""

    def __init__(self, path: Path, labels: Sequence[str]) -> None:
        self._file = path.open("w", encoding="utf-8", newline="")
        self._rows = csv.writer(self._file, lineterminator="\n")
        self._rows.writerow(CSV_COLUMNS)

    def add(self, rows: Sequence[ScoredImage]) -> None:
        """See `ImageWriter`."""
        for image in rows:
            at = _timestamp(image.scored_at)
            end = (image.model, image.date, image.run_id, at, image.uri, image.version_id, image.model_arn)
            self._rows.writerows((image.name, *_csv_label(label), *end) for label in image.labels)
            if not image.labels:
                self._rows.writerow((image.name, *[None] * 6, *end))

    def close(self) -> None:
        """See `ImageWriter`."""
        self._file.close()


def _csv_label(label: ScoredLabel) -> tuple[object, ...]:
    box = label.box
    sides = (None,) * 4 if box is None else tuple(f"{side:.6g}" for side in (box.left, box.top, box.width, box.height))
    return (label.name, f"{label.confidence:.6g}", *sides)


class ManifestWriter:
    """Writes a manifest that Custom Labels and batchcl read: with boxes if the image has any, else with its labels.

    Boxes are in whole pixels. Beside boxes, labels of the whole image are omitted.
    """

    def __init__(self, path: Path, labels: Sequence[str]) -> None:
        self._file = path.open("w", encoding="utf-8", newline="\n")

    def add(self, rows: Sequence[ScoredImage]) -> None:
        """See `ImageWriter`."""
        (image,) = rows
        origin = {
            "human-annotated": "no",
            "creation-date": image.scored_at.astimezone(dt.UTC).replace(tzinfo=None).isoformat(timespec="milliseconds"),
            "job-name": f"batchcl/{image.model}",
            "model-arn": image.model_arn,
        }
        line: dict[str, Any] = {"source-ref": image.name}
        located = [(label, label.box) for label in image.labels if label.box is not None]
        if located:
            assert image.size is not None
            boxes = [TruthBox(label.name, *box.scaled(image.size)) for label, box in located]
            confidences = [label.score for label, _ in located]
            line |= detection_attribute(_BOXES, boxes, image.size, confidences=confidences, more=origin)
        else:
            for number, label in enumerate(image.labels):
                name = f"label-{number}"
                metadata = {"confidence": label.score, "class-name": label.name, "type": SINGLE_LABEL, **origin}
                line |= {name: 1, name + METADATA: metadata}
        self._file.write(json_text(line) + "\n")

    def close(self) -> None:
        """See `ImageWriter`."""
        self._file.close()


def _timestamp(at: dt.datetime) -> str:
    return at.astimezone(dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
