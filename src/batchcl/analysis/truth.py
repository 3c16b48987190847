"""Ground truth for `batchcl evaluate`: from a file, a directory, or the manifest that the images were scored from."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import polars as pl

from batchcl.annotations import (
    FORMATS,
    AnnotatedImage,
    BadEntry,
    Matches,
    annotation_format,
    match_references,
    read_annotations,
)
from batchcl.annotations.folders import read_folders
from batchcl.annotations.references import file_name, resolve_references
from batchcl.errors import ErrorCode, SourceError, UsageError
from batchcl.groundtruth import GroundTruth, parse_extra, parse_line
from batchcl.images import escape_name
from batchcl.quantities import pluralize
from batchcl.sources.files import open_list, spool_pipe
from batchcl.sources.text_lists import check_length, numbered_lines, skip_mark

__all__ = ["Truth", "carried_truth", "read_truth"]

_IMAGE_SCHEMA: Final = {"uri": pl.String(), "detection": pl.Boolean(), "labels": pl.List(pl.String())}
_BOX_SCHEMA: Final = {
    "uri": pl.String(),
    "label": pl.String(),
    "left": pl.Float64(),
    "top": pl.Float64(),
    "width": pl.Float64(),
    "height": pl.Float64(),
}


@dataclass(frozen=True, slots=True)
class Truth:
    """The ground truth of a set of images.

    Attributes:
        images: one row per image: `uri`, `detection` (whether it has bounding boxes), `labels` (list of distinct).
        boxes: `uri`, `label`, `left`, `top`, `width`, `height` as ratios of the image size. Identical boxes in one line
            are several objects; identical boxes in several lines about an image are one.
        unsized: images whose boxes can't be converted to ratios, because their line has no image size.
        unlabelled: number of lines without labels, which are ignored.
        repeated: number of lines about an image of an earlier line; their labels are merged.
        bad: the number and error of each skipped line.
        bad_labels: the error of each skipped label; an image without any other label is ignored.
        matches: how the names of images were found among the results' URIs; None for a manifest, which has URIs.
    """

    images: pl.DataFrame
    boxes: pl.DataFrame
    unsized: frozenset[str] = frozenset()
    unlabelled: int = 0
    repeated: int = 0
    bad: tuple[str, ...] = ()
    bad_labels: tuple[str, ...] = ()
    matches: Matches | None = None


def read_truth(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    attribute: str | None = None,
    skip_bad_lines: bool = False,
    images: pl.LazyFrame | None = None,
    relative_to: str | None = None,
) -> Truth:
    """Read true labels: a Ground Truth manifest, COCO, Label Studio, CVAT, or a directory with a folder per label.

    The format is detected by the content; a file may be compressed with gzip or zstd. A source-ref of a manifest that
    is not an `s3://` URI is a path relative to the manifest's directory. The other formats name images in their own
    ways: `annotations.references` has the rules by which they are found in `images`.

    Args:
        path: a local file or directory.
        name: the file's name in messages, if `path` is a copy.
        attribute: the label attribute of a manifest to read; by default chosen by `groundtruth.parse_line`.
        skip_bad_lines: skip lines that can't be read and report them in `Truth.bad`, instead of raising.
        images: results, with the column `uri`; None if all names are URIs or paths relative to the file.
        relative_to: directory or `s3://bucket/prefix` that the names are relative to. Then they are only compared with
            whole URIs.

    Raises:
        SourceError: the file or a line can't be read, no image has labels, or a name fits several images.
        UsageError: `attribute` or `relative_to` does not apply to the format.
    """
    manifest, name = Path(path), name or str(path)
    if manifest.is_fifo():  # such as the shell's <(…), which can be read only once
        with ExitStack() as stack:
            return read_truth(
                spool_pipe(manifest, stack),
                name=name,
                attribute=attribute,
                skip_bad_lines=skip_bad_lines,
                images=images,
                relative_to=relative_to,
            )
    if manifest.is_dir():
        named = read_folders(manifest)
        return _foreign_truth(
            named, f"the directory {name}", str(manifest), attribute=attribute, images=images, relative_to=relative_to
        )
    if (form := annotation_format(manifest, f"the truth {name}")) is not None:
        folder = name.rpartition("/")[0] if name.startswith("s3://") else str(manifest.absolute().parent)
        bad_entries: list[str] | None = [] if skip_bad_lines else None
        entries = read_annotations(manifest, f"the truth {name}", form)
        where = f"the {FORMATS[form]} file {name}"
        return _foreign_truth(
            entries, where, folder, attribute=attribute, images=images, relative_to=relative_to, bad=bad_entries
        )
    if relative_to is not None:
        raise UsageError(
            f"--relative-to does not apply to the manifest {name}, which names its images by URI or relative to itself",
            code=ErrorCode.CONFLICTING_OPTIONS,
        )
    bad: list[str] = []
    with open_list(manifest, f"the truth {name}") as file:
        skip_mark(file, name)
        truths = _parse_lines(numbered_lines(file), name, attribute=attribute, bad=bad if skip_bad_lines else None)
        truth = _collect(truths, manifest.absolute().parent, bad)
    if truth.images.is_empty():
        skipped = f": {pluralize(truth.unlabelled, 'line')} without labels" if truth.unlabelled else ""
        skipped += f", {len(bad)} lines could not be read, the first: {bad[0]}" if bad else ""
        skipped += _describe_bad_labels(truth)
        raise SourceError(
            f"the truth {name} has no image with labels{skipped}; use a Ground Truth manifest with a label attribute",
            code=ErrorCode.NO_TRUTH,
        )
    return truth


def _foreign_truth(
    entries: Iterable[AnnotatedImage | BadEntry],
    name: str,
    folder: str,
    *,
    attribute: str | None,
    images: pl.LazyFrame | None,
    relative_to: str | None,
    bad: list[str] | None = None,
) -> Truth:
    """The truth in another format than a manifest; bad entries are added to `bad`, or raised if it is None."""
    if attribute is not None:
        raise UsageError(
            f"--attribute selects an attribute of a manifest, and {name} has none; omit it",
            code=ErrorCode.CONFLICTING_OPTIONS,
        )
    annotated: list[AnnotatedImage] = []
    for entry in entries:
        if isinstance(entry, AnnotatedImage):
            annotated.append(entry)
        elif bad is None:
            raise SourceError(
                f"{name}, {entry.location}: {entry.reason}; skip such entries with --skip-bad-lines",
                code=ErrorCode.INVALID_ANNOTATIONS,
            )
        else:
            bad.append(f"{entry.location}: {entry.reason}")
    references = [each.references for each in annotated]
    base = relative_to or folder
    matches = match_references(
        references,
        set() if images is None else _uris_named_like(images, references),
        folder=base,
        only_exact=relative_to is not None,
        by_name=True,
    )
    truths = (
        replace(each.truth, source_ref=uri or resolve_references(each.references[:1], base)[0])
        for each, uri in zip(annotated, matches.uris, strict=True)
    )
    truth = replace(_collect(truths, Path("/"), bad or []), matches=None if images is None else matches)
    if truth.images.is_empty():
        unlabelled = f": {pluralize(truth.unlabelled, 'image')} without labels" if truth.unlabelled else ""
        raise SourceError(
            f"{name} has no image with labels{unlabelled}{_describe_bad_labels(truth)}; check the path, or label "
            "images",
            code=ErrorCode.NO_TRUTH,
        )
    return truth


def _uris_named_like(images: pl.LazyFrame, references: Iterable[Iterable[str]]) -> set[str]:
    """The URIs whose file name is that of a reference."""
    names = {file_name(each) for group in references for each in group}
    is_wanted = pl.col("uri").str.extract(r"([^/#]*)$").is_in(list(names))
    return set(images.select("uri").filter(is_wanted).collect(engine="in-memory")["uri"])


def carried_truth(images: pl.LazyFrame, *, attribute: str | None = None, skip_bad_lines: bool = False) -> Truth:
    """The ground truth in the column `extra` of results, which stores the manifest's line of each image.

    Args:
        images: as from `Results.images()`.
        attribute: the label attribute to read; required if lines have several chained ones.
        skip_bad_lines: skip images whose labels can't be read and report them in `Truth.bad`, instead of raising.

    Raises:
        SourceError: a label attribute can't be read, or no result has any.
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
                    raise SourceError(
                        f"{error}; skip such lines with --skip-bad-lines", code=ErrorCode.MALFORMED_MANIFEST
                    ) from error
                bad.append(f"{uri}: {error}")

    truth = _collect(read(), Path("/"), bad)
    if truth.images.is_empty():
        raise SourceError(
            f"none of the {latest.height} results has usable labels from a manifest{_describe_bad_labels(truth)}; name "
            "a manifest with --truth",
            code=ErrorCode.NO_TRUTH,
        )
    return truth


def _describe_bad_labels(truth: Truth) -> str:
    bad = truth.bad_labels
    return f", {len(bad)} labels are unusable, the first: {bad[0]}" if bad else ""


def _parse_lines(
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
                raise SourceError(
                    f"{name}, line {number}: {error}; skip such lines with --skip-bad-lines",
                    code=ErrorCode.MALFORMED_MANIFEST,
                ) from error
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
        boxes[uri] = boxes.get(uri, Counter()) | Counter(_relative_boxes(uri, truth))
    return Truth(
        images=pl.DataFrame(
            {
                "uri": list(labels),
                "detection": list(located.values()),
                "labels": [list(each) for each in labels.values()],
            },
            schema=_IMAGE_SCHEMA,
        ),
        boxes=pl.DataFrame(
            [box for each in boxes.values() for box in each.elements()], schema=_BOX_SCHEMA, orient="row"
        ),
        unsized=frozenset(unsized),
        unlabelled=unlabelled,
        repeated=repeated,
        bad=tuple(bad),
        bad_labels=tuple(bad_labels),
    )


def _uri(source_ref: str, folder: Path) -> str:
    """The column `uri` of results: S3 URIs unchanged, local files by absolute path."""
    if source_ref.startswith("s3://"):
        return source_ref
    return escape_name(os.path.abspath(folder / source_ref))


def _relative_boxes(uri: str, truth: GroundTruth) -> Iterator[tuple[str, str, float, float, float, float]]:
    if truth.image_size is None:
        return
    image_width, image_height = truth.image_size
    for box in truth.boxes:
        yield (
            uri,
            box.label,
            box.left / image_width,
            box.top / image_height,
            box.width / image_width,
            box.height / image_height,
        )
