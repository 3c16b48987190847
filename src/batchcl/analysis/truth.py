"""The truth to hold results against: a manifest file, or what the results' own manifest said."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import polars as pl

from batchcl.errors import SourceError
from batchcl.groundtruth import GroundTruth, parse_extra, parse_line
from batchcl.images import escaped
from batchcl.sources.files import open_list
from batchcl.sources.text_lists import check_length, numbered_lines, skip_mark

__all__ = ["Truth", "carried_truth", "read_truth"]

_IMAGES: Final = {"uri": pl.String(), "detection": pl.Boolean(), "labels": pl.List(pl.String())}
_BOX: Final = {
    "uri": pl.String(),
    "label": pl.String(),
    "left": pl.Float64(),
    "top": pl.Float64(),
    "width": pl.Float64(),
    "height": pl.Float64(),
}


@dataclass(frozen=True, slots=True)
class Truth:
    """What a manifest says of its images, one row an image.

    Attributes:
        images: `uri`, `detection` (whether the objects are located), `labels` (list, each once).
        boxes: `uri`, `label`, `left`, `top`, `width`, `height` as ratios of the image. Identical boxes of one line are
            several objects; lines about one image share theirs.
        unsized: images whose boxes can't be made ratios, as their line gives no image size.
        unlabelled: lines without labels, which are no truth.
        repeated: lines about an image that an earlier line was about already; their labels are joined.
        bad: what was wrong with each line that was left out, with its number.
        bad_labels: what was wrong with each label that was left out; an image without any other label is no truth.
    """

    images: pl.DataFrame
    boxes: pl.DataFrame
    unsized: frozenset[str] = frozenset()
    unlabelled: int = 0
    repeated: int = 0
    bad: tuple[str, ...] = ()
    bad_labels: tuple[str, ...] = ()


def read_truth(
    path: str | os.PathLike[str], *, name: str | None = None, attribute: str | None = None, skip_bad_lines: bool = False
) -> Truth:
    """Read the manifest at `path`, JSON Lines of the Ground Truth format, which may be compressed with gzip or zstd.

    A source-ref that is no `s3://` URI is a path relative to the manifest's directory.

    Args:
        path: a local file.
        name: as messages call it, where the file is a copy.
        attribute: the label attribute to read; by default as `groundtruth.parse_line` chooses.
        skip_bad_lines: leave out lines that can't be read and say which, rather than raise.

    Raises:
        SourceError: the file can't be read, a line can't be, or no line has labels.
    """
    manifest, name = Path(path), name or str(path)
    bad: list[str] = []
    with open_list(manifest, f"the truth {name}") as file:
        skip_mark(file, name)
        truths = _truths(numbered_lines(file), name, attribute=attribute, bad=bad if skip_bad_lines else None)
        truth = _collect(truths, manifest.absolute().parent, bad)
    if truth.images.is_empty():
        left_out = f", {len(bad)} lines could not be read, the first: {bad[0]}" if bad else ""
        left_out += _without(truth)
        raise SourceError(
            f"the truth {name} has no image with labels: {truth.unlabelled} lines have none{left_out}; "
            "evaluate needs a Ground Truth manifest with a label attribute"
        )
    return truth


def carried_truth(images: pl.LazyFrame, *, attribute: str | None = None, skip_bad_lines: bool = False) -> Truth:
    """What the manifest said that the images were scored from, as their column `extra` carries it.

    Args:
        images: as from `Results.images()`.
        attribute: the label attribute to read; needed where lines have several that are chained.
        skip_bad_lines: leave out what can't be read and say what, rather than raise.

    Raises:
        SourceError: a label attribute can't be read, or no result carries any.
    """
    rows = images.select("uri", "extra", "scored_at").collect(engine="in-memory")
    latest = rows.sort("scored_at").unique("uri", keep="last", maintain_order=True)
    bad: list[str] = []

    def read() -> Iterator[GroundTruth]:
        for uri, extra in latest.select("uri", "extra").iter_rows():
            try:
                yield GroundTruth(source_ref=uri) if extra is None else parse_extra(extra, uri, attribute=attribute)
            except SourceError as error:
                if not skip_bad_lines:
                    raise SourceError(f"{error}; --skip-bad-lines leaves it out") from error
                bad.append(f"{uri}: {error}")

    truth = _collect(read(), Path("/"), bad)
    if truth.images.is_empty():
        raise SourceError(
            f"none of the {latest.height} results carries labels that can be used{_without(truth)}; only results of "
            "manifests carry labels: name one with --truth"
        )
    return truth


def _without(truth: Truth) -> str:
    bad = truth.bad_labels
    return f", {len(bad)} labels can't be used, the first: {bad[0]}" if bad else ""


def _truths(
    lines: Iterable[tuple[int, bytes]], name: str, *, attribute: str | None, bad: list[str] | None
) -> Iterator[GroundTruth]:
    for number, line in lines:
        if not line.strip():
            continue
        try:
            check_length(line)
            yield parse_line(line, attribute=attribute, strict=True)
        except SourceError as error:
            if bad is None:
                raise SourceError(f"{name}, line {number}: {error}; --skip-bad-lines leaves it out") from error
            bad.append(f"line {number}: {error}")


def _collect(truths: Iterable[GroundTruth], folder: Path, bad: list[str]) -> Truth:
    labels: dict[str, dict[str, None]] = {}
    located: dict[str, bool] = {}
    boxes: dict[str, Counter[tuple[str, str, float, float, float, float]]] = {}
    unsized: set[str] = set()
    bad_labels: list[str] = []
    unlabelled = repeated = 0
    for truth in truths:
        bad_labels += truth.bad_labels
        if truth.task is None:
            unlabelled += not truth.bad_labels
            continue
        uri = _uri(truth.source_ref, folder)
        repeated += uri in labels
        labels.setdefault(uri, {}).update(dict.fromkeys(truth.labels))
        located[uri] = located.get(uri, False) or truth.task == "detection"
        if truth.boxes and truth.image_size is None:
            unsized.add(uri)
        boxes[uri] = boxes.get(uri, Counter()) | Counter(_ratios(uri, truth))
    return Truth(
        images=pl.DataFrame(
            {
                "uri": list(labels),
                "detection": list(located.values()),
                "labels": [list(each) for each in labels.values()],
            },
            schema=_IMAGES,
        ),
        boxes=pl.DataFrame([box for each in boxes.values() for box in each.elements()], schema=_BOX, orient="row"),
        unsized=frozenset(unsized),
        unlabelled=unlabelled,
        repeated=repeated,
        bad=tuple(bad),
        bad_labels=tuple(bad_labels),
    )


def _uri(source_ref: str, folder: Path) -> str:
    """As `uri` stands in results: S3 URIs exactly, local files by absolute path."""
    if source_ref.startswith("s3://"):
        return source_ref
    return escaped(os.path.abspath(folder / source_ref))


def _ratios(uri: str, truth: GroundTruth) -> Iterator[tuple[str, str, float, float, float, float]]:
    if truth.image_size is None:
        return
    wide, high = truth.image_size
    for box in truth.boxes:
        yield uri, box.label, box.left / wide, box.top / high, box.width / wide, box.height / high
