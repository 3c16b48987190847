"""Chooses a confidence threshold for each label with the help of ground truth, and writes `thresholds.toml`."""

from __future__ import annotations

import datetime as dt
import os
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from batchcl.__about__ import __version__
from batchcl.analysis.evaluate import check_one_model, no_common_image, truth_counts
from batchcl.analysis.results import Results
from batchcl.analysis.truth import Truth
from batchcl.errors import ErrorCode, OutputError, UsageError
from batchcl.extras import require_extra
from batchcl.quantities import pluralize
from batchcl.runs.layout import check_outside_root

if TYPE_CHECKING:
    from batchcl.analysis.precision_recall import Criterion, LabelScores

__all__ = [
    "NO_THRESHOLD",
    "ThresholdChoice",
    "ThresholdStatus",
    "check_thresholds_arguments",
    "check_thresholds_path",
    "choose_thresholds",
    "write_thresholds",
]

_FEW_IMAGES: Final = 30
"""With fewer images, the 95 % interval of a precision or recall of 0.9 is wider than ±0.1."""

_MAX_BINS: Final = 1000
_MAX_EXAMPLES: Final = 3
_METRICS: Final = ("precision", "recall", "f1")


class ThresholdStatus(StrEnum):
    """Whether a label has a threshold, or why not."""

    REACHED = "reached"
    """The threshold meets the criterion."""
    NOT_REACHED = "not_reached"
    """No threshold meets the criterion; this one has the highest precision or recall."""
    NO_TRUE_LABEL = "no_true_label"
    """No image of the truth has the label."""
    NO_SCORE = "no_score"
    """No detection of the label, or none that can be judged."""
    NONE_CORRECT = "none_correct"
    """No detection of the label is right."""
    UNKNOWN_CUT = "unknown_cut"
    """Some images were scored with the model's own threshold for the label, which none of them shows."""


@dataclass(frozen=True, slots=True)
class ThresholdChoice:
    """The thresholds of all labels, and what they were chosen from. Ratios are 0 to 1, confidences 0 to 100.

    Attributes:
        summary: counts and settings, by name: `model`, `model_arn`, `criterion`, `unit` (what is judged: `image` or
            `box`), the counts of `evaluate`, `min_confidence` (the distinct values that the images were scored with;
            null for the model's own thresholds) and `max_results_reached` (images whose further labels are unknown).
        labels: one row per label of the truth or the results, sorted: `label`, `threshold` (null without one),
            `status` (a `ThresholdStatus`), `precision`, `recall` and `f1` at the threshold, and the 95 % interval of
            each of the four as `…_low` and `…_high` (null if unbounded); `positives` (true labels or boxes), `scored`
            (detections that can be judged), `predicted` (those from the threshold on), `judged_from` (the lowest
            threshold that can be judged), `at_cut` (a lower threshold may be better, but lower scores were cut
            off), `negatives` (images without the label; null for boxes), `few_images` (fewer than 30 images have the
            label, don't have it, or are detected at the threshold), `expected_calibration_error`, `brier_score`.
        curves: `label`, `threshold`, `precision`, `recall`, `f1`, `predicted`, `true_positives`; thresholds descending.
        calibration: `label`, `from`, `to`, `detections`, `mean_confidence` and `share_correct`; a bin includes its
            lower edge, the last one also 100; means are null in empty bins.
    """

    summary: dict[str, Any]
    labels: pl.DataFrame
    curves: pl.DataFrame
    calibration: pl.DataFrame


def choose_thresholds(
    results: Results,
    truth: Truth,
    *,
    precision: float | None = None,
    recall: float | None = None,
    image_level: bool = False,
    bins: int = 10,
    curve_points: int = 200,
    resamples: int = 1000,
    seed: int = 0,
) -> ThresholdChoice:
    """Choose a threshold for each label: the one with the best F1, or one with enough precision or recall.

    What is judged is an image having a label, with the highest confidence of the label on the image. If the truth and
    the results have boxes, each box is judged instead: it is right if it matches a true box, as in `evaluate`. Blocks.
    Needs 9 bytes per detection of an image with truth, and about 100 per detection of the most frequent label.

    Args:
        results: of one model; thresholds that they were opened with are ignored.
        truth: as from `read_truth`.
        precision: the lowest threshold with at least this precision, above 0 to 1.
        recall: the highest threshold with at least this recall, above 0 to 1.
        image_level: judge images although there are boxes.
        bins: of the calibration, 1 to 1000.
        curve_points: the most points of a curve, at least 1; of more, evenly spaced ones and the chosen one are kept.
        resamples: of the bootstrap, at least 1.
        seed: of the bootstrap's random numbers.

    Raises:
        UsageError: `precision`, `recall` or `bins` is out of range, numpy is missing, the results are from several
            models, or none of their images is in the truth.
    """
    check_thresholds_arguments(precision=precision, recall=recall, bins=bins)
    from batchcl.analysis.judged import read_judged
    from batchcl.analysis.precision_recall import Criterion

    criterion = (
        Criterion("precision", precision)
        if precision is not None
        else Criterion("recall", recall)
        if recall is not None
        else Criterion()
    )
    judged = read_judged(results.with_all_labels(), truth, image_level=image_level)
    models = check_one_model(judged.models)
    if not judged.images:
        raise UsageError(no_common_image(truth, results), code=ErrorCode.NO_TRUTH)
    ((model, model_arn),) = models
    rows, curves, calibration = [], [], []
    for label, scores, judged_from in judged.labels():
        row, known = _choose(label, scores, judged_from, criterion, resamples=resamples, seed=seed)
        row["negatives"] = scores.negative_images if judged.unit == "image" else None
        row["few_images"] = known is not None and "threshold" in row and _is_few(known, row)
        rows.append(row)
        if known is not None and known.confidence.size:
            curves.append(_curve(label, known, row.get("threshold"), curve_points))
            table, errors = _calibration(label, known, bins)
            calibration.append(table)
            row |= errors
    return ThresholdChoice(
        summary={
            "model": model,
            "model_arn": model_arn,
            "criterion": str(criterion),
            "unit": judged.unit,
            "images": judged.images,
            "missing": judged.missing.len(),
            "missing_examples": judged.missing.head(_MAX_EXAMPLES).to_list(),
            "extra": judged.extra,
            "extra_examples": judged.extra_examples,
            **truth_counts(truth),
            "min_confidence": [_shortest(each) for each in judged.min_confidences],
            "max_results_reached": judged.full_images,
        },
        labels=pl.DataFrame(rows, schema=_LABELS),
        curves=pl.concat([pl.DataFrame(schema=_CURVES), *curves]),
        calibration=pl.concat([pl.DataFrame(schema=_CALIBRATION), *calibration]),
    )


def check_thresholds_arguments(*, precision: float | None, recall: float | None, bins: int) -> None:
    """Raise `UsageError` as `choose_thresholds` does, before anything is read."""
    if precision is not None and recall is not None:
        raise UsageError("--precision and --recall exclude each other; choose one", code=ErrorCode.CONFLICTING_OPTIONS)
    for flag, value in (("--precision", precision), ("--recall", recall)):
        if value is not None and not 0 < value <= 1:
            is_percent = 1 < value <= 100  # noqa: PLR2004 - per cent
            meant = f"did you mean {value / 100:g}?" if is_percent else "use a share such as 0.95"
            raise UsageError(f"{flag} {value:g} is not above 0 and at most 1; {meant}")
    if not 1 <= bins <= _MAX_BINS:
        raise UsageError(f"a calibration can't have {bins} bins; the number must be 1 to {_MAX_BINS}")
    require_extra("analysis", "choosing thresholds")


_INTERVALS: Final = tuple(f"{name}_{end}" for name in ("threshold", *_METRICS) for end in ("low", "high"))

_LABELS: Final[dict[str, Any]] = {
    "label": pl.String,
    "threshold": pl.Float64,
    "status": pl.String,
    **dict.fromkeys(_METRICS, pl.Float64),
    **dict.fromkeys(_INTERVALS, pl.Float64),
    **dict.fromkeys(("positives", "scored", "predicted"), pl.Int64),
    "judged_from": pl.Float64,
    "at_cut": pl.Boolean,
    "negatives": pl.Int64,
    "few_images": pl.Boolean,
    "expected_calibration_error": pl.Float64,
    "brier_score": pl.Float64,
}
_CURVES: Final[dict[str, Any]] = {
    "label": pl.String,
    "threshold": pl.Float64,
    **dict.fromkeys(_METRICS, pl.Float64),
    "predicted": pl.Int64,
    "true_positives": pl.Int64,
}
_CALIBRATION: Final[dict[str, Any]] = {
    "label": pl.String,
    "from": pl.Float64,
    "to": pl.Float64,
    "detections": pl.Int64,
    "mean_confidence": pl.Float64,
    "share_correct": pl.Float64,
}


def _choose(
    label: str, scores: LabelScores, judged_from: float | None, criterion: Criterion, *, resamples: int, seed: int
) -> tuple[dict[str, Any], LabelScores | None]:
    """The row of one label, and its scores that can be judged; None if which these are is unknown."""
    import numpy as np

    from batchcl.analysis.precision_recall import Curve, bootstrap, choose

    judged = None if judged_from is None else scores.from_confidence(judged_from)
    row: dict[str, Any] = {
        "label": label,
        "positives": scores.positive_image.size,
        "scored": 0 if judged is None else judged.confidence.size,
        "judged_from": _shortest(judged_from),
    }
    if not scores.positive_image.size:
        return row | {"status": ThresholdStatus.NO_TRUE_LABEL}, judged
    if judged is None and scores.confidence.size:
        return row | {"status": ThresholdStatus.UNKNOWN_CUT}, judged
    if judged is None or not judged.confidence.size:
        return row | {"status": ThresholdStatus.NO_SCORE}, judged
    if not judged.correct.any():
        return row | {"status": ThresholdStatus.NONE_CORRECT}, judged
    curve = Curve.of(judged)
    (at,), (reached,) = (np.atleast_1d(each) for each in choose(curve, criterion))
    intervals = bootstrap(judged, curve, criterion, resamples=resamples, seed=seed)
    predicted = int(curve.predicted[at])
    ends = [_shortest(end) for end in intervals.threshold]
    ends += [*intervals.precision, *intervals.recall, *intervals.f1]
    return row | {
        "threshold": _shortest(curve.thresholds[at]),
        "status": ThresholdStatus.REACHED if reached else ThresholdStatus.NOT_REACHED,
        "precision": curve.precision[at],
        "recall": curve.recall[at],
        "f1": curve.f1[at],
        **dict(zip(_INTERVALS, ends, strict=True)),
        "predicted": predicted,
        "at_cut": bool(judged_from)
        and not (reached if criterion.metric == "recall" else at + 1 < curve.thresholds.size),
    }, judged


def _is_few(judged: LabelScores, row: dict[str, Any]) -> bool:
    """Whether the row is based on few images."""
    images = judged.from_confidence(row["threshold"]).images_behind
    return min(images, images if row["negatives"] is None else row["negatives"]) < _FEW_IMAGES


def _curve(label: str, judged: LabelScores, threshold: float | None, most: int) -> pl.DataFrame:
    import numpy as np

    from batchcl.analysis.precision_recall import Curve, evenly

    curve = Curve.of(judged)
    kept = evenly(curve.thresholds.size, most)
    if threshold is not None:
        kept = np.union1d(kept, np.flatnonzero(curve.thresholds == np.float32(threshold)))
    columns = {
        "label": [label] * kept.size,
        "threshold": [_shortest(each) for each in curve.thresholds[kept]],
        **{name: getattr(curve, name)[kept] for name in (*_METRICS, "predicted", "true_positives")},
    }
    return pl.DataFrame(columns, schema_overrides=_CURVES).with_columns(pl.col(_METRICS).fill_nan(None))


def _calibration(label: str, judged: LabelScores, bins: int) -> tuple[pl.DataFrame, dict[str, float]]:
    from batchcl.analysis.precision_recall import reliability

    found = reliability(judged.confidence, judged.correct, bins=bins)
    columns = {
        "label": [label] * bins,
        "from": [number * 100 / bins for number in range(bins)],
        "to": [(number + 1) * 100 / bins for number in range(bins)],
        "detections": found.detections,
        "mean_confidence": found.mean_confidence,
        "share_correct": found.share_correct,
    }
    table = pl.DataFrame(columns, schema_overrides=_CALIBRATION)
    return table.with_columns(pl.col("mean_confidence", "share_correct").fill_nan(None)), {
        "expected_calibration_error": found.expected_calibration_error,
        "brier_score": found.brier_score,
    }


def _shortest(confidence: Any) -> float | None:
    """A confidence, which has 32 bits, as people write it: 70.1, not 70.0999985."""
    import numpy as np

    return None if confidence is None else float(str(np.float32(confidence)))


def check_thresholds_path(path: str | os.PathLike[str], *, root: str, overwrite: bool = False) -> str:
    """The absolute path of the file to write, `~` expanded and links resolved.

    Args:
        path: a local file.
        root: the output root that the thresholds are chosen from.
        overwrite: whether the file may exist.

    Raises:
        UsageError: the path is in S3, in the output root, in no directory, a directory, or exists.
    """
    name = os.fspath(path)
    if name.startswith("s3://"):
        raise UsageError(
            f"--out {name} is in S3; name a local file, and copy it with: aws s3 cp", code=ErrorCode.INVALID_TARGET
        )
    file = os.path.realpath(os.path.expanduser(name))
    check_outside_root(name, root, what="--out")
    if os.path.isdir(file):
        raise UsageError(
            f"--out {name} is a directory; name a file in it, such as {os.path.join(name, 'thresholds.toml')}",
            code=ErrorCode.INVALID_TARGET,
        )
    if not os.path.isdir(os.path.dirname(file)):
        raise UsageError(
            f"--out {name} is in a directory that does not exist; create it first", code=ErrorCode.INVALID_TARGET
        )
    if os.path.lexists(file) and not overwrite:
        raise UsageError(
            f"--out {name} exists; replace it with --overwrite, or name another file", code=ErrorCode.TARGET_EXISTS
        )
    return file


def write_thresholds(
    choice: ThresholdChoice,
    path: str | os.PathLike[str],
    *,
    root: str,
    truth: str | None = None,
    overwrite: bool = False,
    now: dt.datetime | None = None,
) -> None:
    """Write `thresholds.toml`, whole or not at all.

    Labels without a threshold are comments. A label whose criterion is not reached has the nearest threshold, and a
    comment that says so.

    Args:
        choice: as from `choose_thresholds`.
        path: a local file.
        root: the output root that the thresholds are chosen from.
        truth: the name of the truth, for the comments; None for the labels in the results.
        overwrite: replace an existing file.
        now: for the comments; by default the present.

    Raises:
        UsageError: as `check_thresholds_path`.
        OutputError: the file can't be written.
    """
    file = check_thresholds_path(path, root=root, overwrite=overwrite)
    text = _toml(choice, root=root, truth=truth, now=now or dt.datetime.now(dt.UTC))
    staged = f"{file}.{os.getpid()}.tmp"
    try:
        with open(staged, "x", encoding="utf-8") as staging:
            staging.write(text)
            staging.flush()
            os.fsync(staging.fileno())
        os.replace(staged, file)
    except OSError as error:
        with suppress(OSError):
            os.unlink(staged)
        raise OutputError(
            f"writing {os.fspath(path)} failed: {error.strerror}; name another file with --out",
            code=ErrorCode.WRITE_FAILED,
        ) from error


def _toml(choice: ThresholdChoice, *, root: str, truth: str | None, now: dt.datetime) -> str:
    summary = choice.summary
    lines = [
        f"# Thresholds chosen by batchcl {__version__}, {now.isoformat(timespec='seconds').replace('+00:00', 'Z')}",
        f"# criterion: {summary['criterion']}",
        f"# results: {_quoted(root)}, {pluralize(summary['images'], 'image')} with true labels",
        f"# truth: {'the labels in the results' if truth is None else _quoted(truth)}",
        "# metrics are those of these images, with a 95 % interval for new ones",
        "",
        f"model = {_quoted(summary['model_arn'])}",
        "",
        "[labels]",
    ]
    for row in choice.labels.iter_rows(named=True):
        if row["threshold"] is None:
            lines.append(f"# {_quoted(row['label'])} has no threshold: {NO_THRESHOLD[row['status']]}")
            continue
        if row["status"] == ThresholdStatus.NOT_REACHED:
            lines.append(f"# NOT REACHED: {summary['criterion']}; this is the nearest threshold")
        metrics = ", ".join(f"{name} {row[name]:.4f} ({_range(row, name)})" for name in _METRICS)
        few = " FEW IMAGES:" if row["few_images"] else ""
        lines.append(f"#{few} {metrics}; {row['positives']:,} true, {row['scored']:,} scored")
        lines.append(f"{_quoted(row['label'])} = {row['threshold']!r}")
    return "\n".join(lines) + "\n"


NO_THRESHOLD: Final = {
    ThresholdStatus.NO_TRUE_LABEL: "no image of the truth has it",
    ThresholdStatus.NO_SCORE: "no result has it",
    ThresholdStatus.NONE_CORRECT: "no detection of it is right",
    ThresholdStatus.UNKNOWN_CUT: "some images were scored without --min-confidence, and none of them has it",
}
"""Why a label has no threshold, in words."""


def _range(row: dict[str, Any], name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{'-' if low is None else f'{low:.4f}'} to {'-' if high is None else f'{high:.4f}'}"


def _quoted(text: str) -> str:
    """`text` as a basic string of TOML, on one line and with visible characters only."""
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    return character if character.isprintable() else f"\\U{ord(character):08x}"
