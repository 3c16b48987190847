"""YOLO: a text file per image with a line per box, and `data.yaml` with the names of the classes.

Source: Ultralytics' documentation, "Object Detection Datasets". A line has the class, the centre of the box and its
width and height as ratios. Training reads files with exactly these five columns, so files with the score as a sixth one
are in a folder of their own, as Ultralytics writes predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import yaml

from batchcl.annotations.scored import ScoredImage, UnwritableError

__all__ = ["YoloWriter"]

_MAX_NAME_BYTES: Final = 255
_RESERVED: Final = frozenset({"", ".", ".."})


class YoloWriter:
    """Writes `data.yaml`, `images.txt`, `labels/` and `predictions/` into a directory, without labels of whole images.

    The label file of `a/1.jpg` is `a/1.txt`. Names that are not paths below a folder, or whose label file another image
    has, can't be written.
    """

    def __init__(self, folder: Path, labels: Sequence[str]) -> None:
        self._folder = folder
        self._numbers = {label: number for number, label in enumerate(labels)}
        self._owners: dict[str, str] = {}
        self._list = (folder / "images.txt").open("w", encoding="utf-8", newline="\n")
        for name in ("labels", "predictions"):
            (folder / name).mkdir()
        data = {"path": ".", "train": "images", "val": "images", "names": dict(enumerate(labels))}
        (folder / "data.yaml").write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), encoding="utf-8")

    def add(self, rows: Sequence[ScoredImage]) -> None:
        """See `ImageWriter`."""
        (image,) = rows
        parts = image.name.split("/")
        if any(part in _RESERVED or "\0" in part or len(part.encode()) > _MAX_NAME_BYTES for part in parts):
            raise UnwritableError(f"{image.name[:80]!r} can't be the name of a file")
        stem, dot, _ = parts[-1].rpartition(".")
        path = "/".join([*parts[:-1], f"{stem if dot and stem else parts[-1]}.txt"])
        if (owner := self._owners.setdefault(path, image.name)) != image.name:
            raise UnwritableError(f"its label file {path} is that of {owner}")
        lines = []
        for label in image.labels:
            if label.box is not None:
                left, top, width, height = label.box.scaled((1, 1), decimals=6)
                sides = (left + width / 2, top + height / 2, width, height)
                line = " ".join([str(self._numbers[label.name]), *(f"{side:.6f}" for side in sides)])
                lines.append((line, f" {label.score:.6f}"))
        for name, with_score in (("labels", False), ("predictions", True)):
            file = self._folder / name / path
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text("".join(line + score * with_score + "\n" for line, score in lines), encoding="utf-8")
            except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
                raise UnwritableError(f"its label file {path} is inside that of another image") from error
        self._list.write(f"{image.uri}\n" if image.uri.isprintable() else "\n")

    def close(self) -> None:
        """See `ImageWriter`."""
        self._list.close()
