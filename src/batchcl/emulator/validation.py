"""Validates the manifests of a training, and writes the three files with the errors.

Formats, codes and messages: Custom Labels guide, "Understanding the manifest summary", "Understanding training and
testing validation result manifests" and "Terminal manifest content errors".
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import orjson

from batchcl.emulator.learning.training import MIN_LABELS
from batchcl.emulator.manifest import (
    BAD_SHARE,
    INVALID_IMAGE,
    MAX_ENTRIES,
    MAX_LABELS,
    VALIDATION,
    Problem,
    validate_line,
    with_errors,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from batchcl.emulator.learning.training import Task
    from batchcl.emulator.manifest import ManifestEntry
    from batchcl.groundtruth import GroundTruth

__all__ = ["CheckedDataset", "Findings", "check_manifests", "use_case"]

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
    """The lines of a manifest, their validation, and the indices of lines whose image can't be used."""

    lines: list[bytes]
    entries: list[ManifestEntry]
    unreadable: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, lines: Sequence[bytes]) -> CheckedDataset:
        """Validate all lines. Blocking."""
        return cls(list(lines), [validate_line(line) for line in lines])

    def truths(self, task: Task | None = None) -> dict[int, GroundTruth]:
        """The usable ground truth by line index; only for `task` if given."""
        return {
            index: entry.truth
            for index, entry in enumerate(self.entries)
            if entry.truth is not None and index not in self.unreadable and task in {None, entry.truth.task}
        }

    def labels(self, task: Task | None = None) -> set[str]:
        """All labels in `truths`."""
        return {label for truth in self.truths(task).values() for label in truth.labels}

    def manifest(self, indices: Iterable[int]) -> bytes:
        """A validation result manifest: the lines at `indices` with their errors and warnings."""
        rows = (
            with_errors(self.lines[index], VALIDATION, more=(INVALID_IMAGE,) if index in self.unreadable else ())
            for index in indices
        )
        return b"".join(row + b"\n" for row in rows)

    def invalid(self, indices: Iterable[int]) -> list[int]:
        """The indices of invalid lines; lines with warnings only are not invalid."""
        return [
            p for p in indices if p in self.unreadable or (self.entries[p].truth is None and not self.entries[p].warned)
        ]

    def statistics(self, indices: Sequence[int], task: Task | None, errors: Sequence[Problem]) -> dict[str, Any]:
        """A section of the manifest summary; line numbers refer to the validation manifest and start at 1."""
        invalid = self.invalid(indices)
        marks = {n for n, p in enumerate(indices, start=1) if self.entries[p].errors or p in self.unreadable}
        usable = self.truths(task)
        return {
            "use_case": _USE_CASES.get(str(task), "NOT_DETERMINED"),
            "total_json_lines": len(indices),
            "valid_json_lines": sum(index in usable for index in indices),
            "invalid_json_lines": len(invalid),
            "ignored_json_lines": sum(self.entries[p].warned for p in indices),
            "error_json_line_indices": sorted(marks),
            "errors": [error._asdict() for error in errors],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Terminal errors without duplicates, and the contents of the three validation files."""

    errors: tuple[Problem, ...]
    training: bytes
    testing: bytes
    summary: bytes

    @property
    def message(self) -> str:
        """The version's StatusMessage; empty without errors."""
        return " ".join(dict.fromkeys(error.message for error in self.errors))


def use_case(train: CheckedDataset) -> Task | None:
    """The use case of most usable lines; None if there are no usable lines."""
    counts = Counter(truth.task for truth in train.truths().values() if truth.labels)
    return max(counts, key=lambda task: (counts[task], str(task))) if counts else None


def check_manifests(
    train: CheckedDataset, test: CheckedDataset | None, *, task: Task | None, held_out: frozenset[int]
) -> Findings:
    """Check the manifests of a training after their images were read.

    Args:
        train: the training manifest.
        test: the test manifest; None if a part of the training manifest is used for testing.
        task: the use case.
        held_out: line indices of that part.
    """
    rest = [index for index in range(len(train.lines)) if index not in held_out]
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


def _errors(checked: CheckedDataset, indices: Sequence[int], task: Task | None) -> list[Problem]:
    problems = []
    if len(indices) > MAX_ENTRIES:
        problems.append(_TOO_MANY_ROWS)
    if len(checked.invalid(indices)) > BAD_SHARE * len(indices):
        problems.append(_TOO_MANY_INVALID)
    if len({str(e.source_ref).split("/")[2] for e in checked.entries if e.source_ref is not None}) > 1:
        problems.append(_BUCKETS)
    min_labels = MIN_LABELS[task or "classification"]
    labels, usable = checked.labels(), checked.labels(task)
    if len(labels) < min_labels:
        problems.append(_FEW_LABELS)
    elif len(usable) < min_labels:
        problems.append(_FEW_USABLE)
    if len(usable) > MAX_LABELS:
        problems.append(_MANY_LABELS)
    return problems


def _overlap(train: CheckedDataset, test: CheckedDataset, task: Task | None) -> list[Problem]:
    """The overlap is (common labels) / (training labels)."""
    for problem, chosen in ((_LITTLE_OVERLAP, None), (_LITTLE_USABLE_OVERLAP, task)):
        labels = train.labels(chosen)
        if labels and len(labels & test.labels(chosen)) < _OVERLAP * len(labels):
            return [problem]
    return []
