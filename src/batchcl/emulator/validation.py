"""Whether a training can be done with its manifests, and the three files that say what is wrong with them.

Formats, codes and messages: Custom Labels guide, "Understanding the manifest summary", "Understanding training and
testing validation result manifests" and "Terminal manifest content errors".
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import orjson

from batchcl.emulator.learning.training import FEWEST_LABELS
from batchcl.emulator.manifest import (
    BAD_SHARE,
    INVALID_IMAGE,
    MAX_ENTRIES,
    MAX_LABELS,
    VALIDATION,
    Problem,
    marked,
    review,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from batchcl.emulator.learning.training import Task
    from batchcl.emulator.manifest import ManifestEntry
    from batchcl.groundtruth import GroundTruth

__all__ = ["CheckedDataset", "Findings", "examine", "use_case"]

_OVERLAP: Final = 0.5
_USE_CASES: Final = {"classification": "IMAGE_LEVEL_LABELS", "detection": "OBJECT_LOCALIZATION"}

_TOO_MANY_ROWS: Final = Problem("ERROR_MANIFEST_ROWS_EXCEEDS_MAXIMUM", "The manifest file has too many rows.")
_TOO_MANY_INVALID: Final = Problem(
    "ERROR_TOO_MANY_INVALID_ROWS_IN_MANIFEST", "The manifest file contains too many invalid rows."
)
_BUCKETS: Final = Problem(
    "ERROR_IMAGES_IN_MULTIPLE_S3_BUCKETS", "The manifest file contains images from multiple S3 buckets."
)
_NO_SPLIT: Final = Problem(
    "ERROR_INSUFFICIENT_IMAGES_PER_LABEL_FOR_AUTOSPLIT",
    "The manifest file contains insufficient labeled images per label to perform auto-split.",
)
_FEW_LABELS: Final = Problem("ERROR_MANIFEST_TOO_FEW_LABELS", "The manifest file has too few labels.")
_FEW_USABLE: Final = Problem("ERROR_MANIFEST_TOO_FEW_USABLE_LABELS", "The manifest file has too few usable labels.")
_MANY_LABELS: Final = Problem("ERROR_MANIFEST_TOO_MANY_LABELS", "The manifest file has too many labels.")
_LITTLE_OVERLAP: Final = Problem(
    "ERROR_INSUFFICIENT_LABEL_OVERLAP",
    "Less than 50% label overlap between the training and testing manifest files.",
)
_LITTLE_USABLE_OVERLAP: Final = Problem(
    "ERROR_INSUFFICIENT_USABLE_LABEL_OVERLAP",
    "Less than 50% usable label overlap between the training and testing manifest files.",
)


@dataclass(slots=True)
class CheckedDataset:
    """A manifest's lines, what was made of each, and the places of those whose image can't be used."""

    lines: list[bytes]
    entries: list[ManifestEntry]
    unreadable: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, lines: Sequence[bytes]) -> CheckedDataset:
        """Review every line. Blocking."""
        return cls(list(lines), [review(line) for line in lines])

    def truths(self, task: Task | None = None) -> dict[int, GroundTruth]:
        """What can be used, by its place; `task` leaves out what is for another use case."""
        return {
            place: entry.truth
            for place, entry in enumerate(self.entries)
            if entry.truth is not None and place not in self.unreadable and task in {None, entry.truth.task}
        }

    def labels(self, task: Task | None = None) -> set[str]:
        """Labels of what can be used."""
        return {label for truth in self.truths(task).values() for label in truth.labels}

    def manifest(self, places: Iterable[int]) -> bytes:
        """The lines at `places` with their errors and warnings: a validation result manifest."""
        rows = (
            marked(self.lines[place], VALIDATION, more=(INVALID_IMAGE,) if place in self.unreadable else ())
            for place in places
        )
        return b"".join(row + b"\n" for row in rows)

    def invalid(self, places: Iterable[int]) -> list[int]:
        """Places of the lines that can't be used and ought to be."""
        return [
            p for p in places if p in self.unreadable or (self.entries[p].truth is None and not self.entries[p].warned)
        ]

    def statistics(self, places: Sequence[int], task: Task | None, errors: Sequence[Problem]) -> dict[str, Any]:
        """A section of the manifest summary; line numbers are those of the validation manifest, from 1."""
        invalid = self.invalid(places)
        marks = {n for n, p in enumerate(places, start=1) if self.entries[p].errors or p in self.unreadable}
        usable = self.truths(task)
        return {
            "use_case": _USE_CASES.get(str(task), "NOT_DETERMINED"),
            "total_json_lines": len(places),
            "valid_json_lines": sum(place in usable for place in places),
            "invalid_json_lines": len(invalid),
            "ignored_json_lines": sum(self.entries[p].warned for p in places),
            "error_json_line_indices": sorted(marks),
            "errors": [error._asdict() for error in errors],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Terminal errors, each once, and the validation results as bytes."""

    errors: tuple[Problem, ...]
    training: bytes
    testing: bytes
    summary: bytes

    @property
    def message(self) -> str:
        """The version's StatusMessage; empty if nothing is in the way."""
        return " ".join(dict.fromkeys(error.message for error in self.errors))


def use_case(train: CheckedDataset) -> Task | None:
    """What most of the usable lines are for; None if there are none."""
    counts = Counter(truth.task for truth in train.truths().values() if truth.labels)
    return max(counts, key=lambda task: (counts[task], str(task))) if counts else None


def examine(
    train: CheckedDataset, test: CheckedDataset | None, *, task: Task | None, held_out: frozenset[int]
) -> Findings:
    """What there is to say of a training's manifests, once their images were read.

    Args:
        train: the training manifest.
        test: the test manifest; None if a part of the training manifest stands for it.
        task: what is to be learnt.
        held_out: the places of that part.
    """
    rest = [place for place in range(len(train.lines)) if place not in held_out]
    of_test, testing = (train, sorted(held_out)) if test is None else (test, list(range(len(test.lines))))
    training_errors = _errors(train, range(len(train.lines)), task)
    if test is None and task is not None and not held_out:
        training_errors.append(_NO_SPLIT)
    testing_errors = [] if test is None else _errors(test, range(len(test.lines)), task)
    both = [] if test is None else _overlap(train, test, task)
    summary = {
        "statistics": {
            "training": train.statistics(rest, task, training_errors),
            "testing": of_test.statistics(testing, task, testing_errors),
        },
        "errors": [error._asdict() for error in both],
    }
    return Findings(
        errors=(*training_errors, *testing_errors, *both),
        training=train.manifest(rest),
        testing=of_test.manifest(testing),
        summary=orjson.dumps(summary, option=orjson.OPT_INDENT_2),
    )


def _errors(checked: CheckedDataset, places: Sequence[int], task: Task | None) -> list[Problem]:
    found = []
    if len(places) > MAX_ENTRIES:
        found.append(_TOO_MANY_ROWS)
    if len(checked.invalid(places)) > BAD_SHARE * len(places):
        found.append(_TOO_MANY_INVALID)
    if len({str(e.source_ref).split("/")[2] for e in checked.entries if e.source_ref is not None}) > 1:
        found.append(_BUCKETS)
    fewest = FEWEST_LABELS[task or "classification"]
    labels, usable = checked.labels(), checked.labels(task)
    if len(labels) < fewest:
        found.append(_FEW_LABELS)
    elif len(usable) < fewest:
        found.append(_FEW_USABLE)
    if len(usable) > MAX_LABELS:
        found.append(_MANY_LABELS)
    return found


def _overlap(train: CheckedDataset, test: CheckedDataset, task: Task | None) -> list[Problem]:
    """Overlap is (common labels) / (training labels)."""
    for problem, chosen in ((_LITTLE_OVERLAP, None), (_LITTLE_USABLE_OVERLAP, task)):
        wanted = train.labels(chosen)
        if wanted and len(wanted & test.labels(chosen)) < _OVERLAP * len(wanted):
            return [problem]
    return []
