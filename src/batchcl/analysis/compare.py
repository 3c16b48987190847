"""Compares two sides of an output root, each a run, a date or a model: shares of labels, top labels, failures, cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

import polars as pl

from batchcl.analysis.counts import NONE
from batchcl.analysis.results import open_results
from batchcl.analysis.sides import Side, choose_sides
from batchcl.errors import ErrorCode, UsageError
from batchcl.extras import require_extra
from batchcl.quantities import pluralize
from batchcl.sources.where import Condition

if TYPE_CHECKING:
    from batchcl.analysis.image_pairs import Origin, PairCounts, SideCounts
    from batchcl.aws.session import Aws
    from batchcl.runs.status import RunState
    from batchcl.thresholds import Thresholds

__all__ = [
    "LABEL_COLUMNS",
    "ComparedImages",
    "ComparedSide",
    "Comparison",
    "compare",
    "fail_condition",
    "label_changes",
]

LABEL_COLUMNS: Final[Mapping[str, pl.DataType]] = {
    "label": pl.String(),
    "presence": pl.String(),
    "images_a": pl.Int64(),
    "share_a": pl.Float64(),
    "low_a": pl.Float64(),
    "high_a": pl.Float64(),
    "images_b": pl.Int64(),
    "share_b": pl.Float64(),
    "low_b": pl.Float64(),
    "high_b": pl.Float64(),
    "change": pl.Float64(),
    "change_low": pl.Float64(),
    "change_high": pl.Float64(),
    "lost": pl.Int64(),
    "gained": pl.Int64(),
    "p_value": pl.Float64(),
    "q_value": pl.Float64(),
    "significant": pl.Boolean(),
    "confidence_a": pl.Float64(),
    "confidence_b": pl.Float64(),
    "confidence_distance": pl.Float64(),
}
"""The columns of `Comparison.labels`."""

Images = Literal["common", "all"]

_MOST: Final = 0.9
"""Share of the smaller side that has to be in both for a comparison in pairs, which leaves out the other images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedSide:
    """What a side is, and the sums over the records of its runs; these are None without records, as in an export.

    Attributes:
        name: such as `run 2026-11-21`.
        root: its output root.
        runs: ids of its runs, the oldest first.
        models: names of the models that scored its images, or their ARNs if they share a name.
        min_confidence: all that its images were scored with; None for the model's own thresholds.
        images: distinct images with a result.
        planned: images on the work lists.
        images_per_second: images called for, divided by `seconds`.
        seconds: from first call to last row of each session.
        cost_usd: minimum cost of the model; None if no session started it.
    """

    name: str
    root: str
    runs: tuple[str, ...]
    models: tuple[str, ...]
    min_confidence: tuple[float | None, ...]
    images: int
    planned: int | None = None
    failed: int | None = None
    skipped: int | None = None
    calls: int | None = None
    throttled: int | None = None
    seconds: float | None = None
    images_per_second: float | None = None
    cost_usd: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedImages:
    """Which images are compared.

    Attributes:
        both: images with a result in both sides.
        only_a: images with a result in A only.
        only_b: images with a result in B only.
        replaced: images in both whose ETag differs; those without ETags, as of local files, are not counted.
        compared: `common` if only the images in both are compared, in pairs; else `all`, as two samples.
        compared_a: number of images of A behind the shares.
        compared_b: likewise of B.
        test: name of the statistical test.
        top_changed: images in both whose top label differs.
    """

    both: int
    only_a: int
    only_b: int
    replaced: int
    compared: Images
    compared_a: int
    compared_b: int
    test: str
    top_changed: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result of `compare`; shares and changes are 0 to 1, confidences 0 to 100.

    Attributes:
        a: side A.
        b: side B.
        images: which images are in the sides.
        labels: one row per label of either side, and `(none)` for images without a label; significant and large changes
            first. `presence` is `appeared` or `disappeared` if one side does not have it, else null. `images_a` images
            have it, which are the share `share_a` with a 95 % interval from `low_a` to `high_a` (Wilson); `change` is
            `share_b` minus `share_a`, with its 95 % interval. Of images in both, `lost` have it in A only and `gained`
            in B only (null if not compared in pairs). `p_value` is of the test `images.test`, `q_value` adjusted for
            the number of labels, and `significant` at a false discovery rate of 5 %. `confidence_a` and `confidence_b`
            are means over detections; `confidence_distance` is the Wasserstein distance between both distributions in
            percentage points: the mean distance by which confidences have moved.
        top_labels: one row per pair of top labels of the images in both, the most frequent first: `top_a`, `top_b`,
            `images`, and a few `examples` (URIs) where both differ.
        notes: what a reader should know, such as that a side has several models.
    """

    a: ComparedSide
    b: ComparedSide
    images: ComparedImages
    labels: pl.DataFrame
    top_labels: pl.DataFrame
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        sides = {"a": asdict(self.a), "b": asdict(self.b), "images": asdict(self.images)}
        tables = {"labels": self.labels.to_dicts(), "top_labels": self.top_labels.to_dicts()}
        return sides | tables | {"notes": list(self.notes)}


def compare(
    root: str,
    a: str | None = None,
    b: str | None = None,
    *,
    baseline: str | None = None,
    root2: str | None = None,
    images: Images | None = None,
    model: str | None = None,
    thresholds: Thresholds | float | None = None,
    examples: int = 3,
    aws: Aws | None = None,
    profile: str | None = None,
    region: str | None = None,
) -> Comparison:
    """Compare side B with side A; without `a` and `b`, the newest run with the previous run of its project. Blocks.

    ```python
    import batchcl

    night = batchcl.compare("out", baseline="7d")
    print(night.labels.filter("significant").select("label", "share_a", "share_b"))
    ```

    Args:
        root: an output root.
        a: a run id, a date (`2026-11-21`) or a model; a prefix `run:`, `date:` or `model:` says which. If only `a` is
            given, it is side B, and side A is the run before it.
        b: likewise; by default the newest run.
        baseline: instead of `a`: all runs of the same project in this time (`7d`) before side B.
        root2: output root of side B.
        images: `common` compares images that are in both sides, in pairs, with McNemar's exact test; `all` compares
            all images as two independent samples, with Fisher's exact test. By default `common` if at least 90 % of
            the images of the smaller side are in both, else `all`.
        model: rows of this model only.
        thresholds: leave out labels with a lower confidence: one number from 0 to 100, or one per label. By default,
            sides that were scored with different `min_confidence` are compared at the higher one.
        examples: maximum number of URIs for each change of the top label.
        aws: for an S3 root; as the AWS CLI would by default.
        profile: for an S3 root without `aws`.
        region: likewise.

    Raises:
        OutputError: a root can't be read.
        UsageError: a side does not exist; both are the same; `images` is `common` and there is none; or only one side
            was scored with the model's own thresholds, and no `thresholds` are given. Or scipy is not installed.
        CredentialsError: there are none for an S3 root.
    """
    require_extra("analysis", "compare")
    if examples < 0:
        raise UsageError(f"can't show {examples} examples; the number must be 0 or more")
    opened = partial(open_results, model=model, thresholds=thresholds, aws=aws, profile=profile, region=region)
    side_a, side_b = choose_sides(opened(root), a, b, baseline=baseline, other=None if root2 is None else opened(root2))
    threshold = _common_threshold(side_a, side_b) if thresholds is None else None
    if threshold is not None:
        side_a, side_b = side_a.above(threshold), side_b.above(threshold)

    from batchcl.analysis.image_pairs import count_pairs

    counts = count_pairs(
        *([each.map_batches for each in side.results] for side in (side_a, side_b)),
        is_paired=partial(_is_paired, images),
        examples=examples,
    )
    return Comparison(
        _described(side_a, counts.a),
        _described(side_b, counts.b),
        _compared_images(counts),
        label_changes(counts),
        top_labels(counts),
        tuple(_notes(side_a, side_b, counts, thresholds, threshold)),
    )


def fail_condition(text: str) -> Condition:
    """`text`, an SQL condition on a row of `Comparison.labels`; see `Condition.matches`. Raises `UsageError`."""
    condition = Condition(text, option="--fail-if", example="significant AND abs(change) > 0.05")
    condition.check(LABEL_COLUMNS)
    return condition


def label_changes(counts: PairCounts) -> pl.DataFrame:
    """`Comparison.labels`."""
    from batchcl.analysis import shares
    from batchcl.analysis.image_pairs import BIN_WIDTH

    in_a, in_b, in_both = counts.a.labels, counts.b.labels, counts.labels
    labels = sorted(in_a.keys() | in_b.keys(), key=lambda label: (label is None, label))
    a, b = [in_a[label] for label in labels], [in_b[label] for label in labels]
    total_a, total_b = counts.a.compared, counts.b.compared
    lost: list[Any] = [None] * len(labels)
    gained = lost
    if counts.paired:
        lost = [has - in_both[label] for label, has in zip(labels, a, strict=True)]
        gained = [has - in_both[label] for label, has in zip(labels, b, strict=True)]
        p_values = shares.mcnemar_p_values(lost, gained)
        change_low, change_high = shares.difference_of_pairs(lost, gained, total_a)
    else:
        p_values = shares.fisher_p_values(a, total_a, b, total_b)
        change_low, change_high = shares.difference_of_samples(a, total_a, b, total_b)
    q_values = shares.adjusted_p_values(p_values)
    low_a, high_a = shares.wilson_intervals(a, total_a)
    low_b, high_b = shares.wilson_intervals(b, total_b)
    values = {
        "label": [NONE if label is None else label for label in labels],
        "presence": ["appeared" if not x else None if y else "disappeared" for x, y in zip(a, b, strict=True)],
        "images_a": a,
        "share_a": [_ratio(images, total_a) for images in a],
        "low_a": low_a,
        "high_a": high_a,
        "images_b": b,
        "share_b": [_ratio(images, total_b) for images in b],
        "low_b": low_b,
        "high_b": high_b,
        "change_low": change_low,
        "change_high": change_high,
        "lost": lost,
        "gained": gained,
        "p_value": p_values,
        "q_value": q_values,
        "significant": q_values <= shares.FALSE_DISCOVERY_RATE,
        "confidence_a": [_mean_confidence(counts.a, label) for label in labels],
        "confidence_b": [_mean_confidence(counts.b, label) for label in labels],
        "confidence_distance": [
            shares.confidence_distance(*histograms, bin_width=BIN_WIDTH)
            for histograms in zip(_histograms(counts.a, labels), _histograms(counts.b, labels), strict=True)
        ],
    }
    dtypes = {name: dtype for name, dtype in LABEL_COLUMNS.items() if name in values}
    return (
        pl.DataFrame(values, schema=dtypes)
        .with_columns((pl.col("share_b") - pl.col("share_a")).alias("change"))
        .select(LABEL_COLUMNS.keys())
        .with_columns(pl.selectors.float().fill_nan(None))
        .sort("significant", pl.col("change").abs(), "label", descending=[True, True, False], nulls_last=True)
    )


def top_labels(counts: PairCounts) -> pl.DataFrame:
    """`Comparison.top_labels`."""
    rows = [(*tops, images, counts.examples.get(tops, [])) for tops, images in counts.tops.items()]
    schema = {"top_a": pl.String(), "top_b": pl.String(), "images": pl.Int64(), "examples": pl.List(pl.String())}
    frame = pl.DataFrame(rows, schema=schema, orient="row").with_columns(pl.col("top_a", "top_b").fill_null(NONE))
    return frame.sort("images", "top_a", "top_b", descending=[True, False, False])


def _is_paired(wanted: Images | None, images_a: int, images_b: int, both: int) -> bool:
    if wanted == "common" and not both:
        raise UsageError(
            f"no image is in both sides ({images_a:,} in A, {images_b:,} in B), so they can't be compared in pairs; "
            "compare all images with --images all",
            code=ErrorCode.NOTHING_TO_COMPARE,
        )
    return wanted == "common" or (wanted is None and 0 < both >= _MOST * min(images_a, images_b))


def _common_threshold(a: Side, b: Side) -> float | None:
    """The threshold that makes the sides comparable, None if they are. Raises `UsageError` if there is none."""
    every = a.min_confidences | b.min_confidences
    known = [each for each in every if each is not None]
    if len(every) < 2:  # noqa: PLR2004 - nothing differs
        return None
    if len(known) < len(every):
        raise UsageError(
            f"the sides were scored with {_described_minima(every)}, so one may have labels that the other lacks; pass "
            "a --min-confidence or --thresholds that is not below the model's own thresholds",
            code=ErrorCode.THRESHOLD_TOO_LOW,
        )
    return max(known)


def _described_minima(min_confidences: Iterable[float | None]) -> str:
    known = sorted({each for each in min_confidences if each is not None})
    own = ["the model's own thresholds"] if None in min_confidences else []
    return " and ".join([*own, *(f"--min-confidence {each:g}" for each in known)])


def _notes(
    a: Side, b: Side, counts: PairCounts, thresholds: Thresholds | float | None, common_threshold: float | None
) -> Iterator[str]:
    for name, side, side_counts in (("A", a, counts.a), ("B", b, counts.b)):
        yield from _side_notes(name, side, side_counts)
    yield from _setting_notes({*counts.a.origins, *counts.b.origins}, thresholds, common_threshold)
    left_out = counts.a.images + counts.b.images - 2 * counts.both
    if counts.paired and left_out:
        yield (
            f"only images in both sides are compared; {pluralize(left_out, 'image')} in one side only "
            f"{'is' if left_out == 1 else 'are'} left out; --images all compares all"
        )
    if not counts.paired and counts.both:
        yield (
            f"all images are compared as two independent samples, although {counts.both:,} of them are in both sides, "
            "so fewer changes may be reported than there are; --images common compares only those, in pairs"
        )
    if counts.replaced:
        yield f"{counts.replaced:,} of the images in both sides have another ETag in B: they were replaced"


def _side_notes(name: str, side: Side, counts: SideCounts) -> Iterator[str]:
    for run in side.runs:
        if run.state == "damaged":
            yield f"side {name}: reading the record of run {run.run_id} failed: {run.reason}"
        elif run.state != "done":
            yield (
                f"side {name}: run {run.run_id} is {run.state}; images without a result or failure so far: "
                f"{run.left or 0:,}"
            )
    if not counts.images:
        yield f"side {name} has no image with a result"
    if len(models := _rows_of_models(counts.origins)) > 1:
        shown = " and ".join(f"{model} ({rows:,} images)" for model, rows in models.items())
        yield f"side {name} has results of {len(models)} models, {shown}; choose one with --model"


def _setting_notes(
    origins: Iterable[Origin], thresholds: Thresholds | float | None, common_threshold: float | None
) -> Iterator[str]:
    """What to know of `min_confidence` and `max_results` of all images."""
    minima, limits = {each.min_confidence for each in origins}, {each.max_results for each in origins}
    if common_threshold is not None:
        yield (
            f"images were scored with {_described_minima(minima)}; labels below {common_threshold:g} are left out of "
            "both sides"
        )
    elif None in minima and thresholds is not None:
        yield (
            "images were scored with the model's own thresholds: labels below those are missing, whatever threshold is "
            "applied"
        )
    elif None in minima and len({each.model_arn for each in origins}) > 1:
        yield "each model applied its own thresholds"
    elif minima == {0.0} and thresholds is None:
        yield (
            "images were scored with --min-confidence 0, so labels of any confidence are counted; apply a threshold "
            "with --min-confidence or --thresholds"
        )
    if len(limits) > 1:
        shown = " and ".join(
            sorted("without --max-results" if each is None else f"with {each}" for each in limits)[::-1]
        )
        yield f"images were scored with different --max-results ({shown}), so shares of labels are not comparable"


def _rows_of_models(origins: Mapping[Origin, int]) -> Counter[str]:
    """For each model, by its name, or by its ARN if models share a name, the rows that it scored."""
    names, arns = {each.model for each in origins}, {each.model_arn for each in origins}
    rows: Counter[str] = Counter()
    for origin, count in sorted(origins.items(), key=lambda each: each[0].model_arn):
        rows[origin.model if len(names) == len(arns) else origin.model_arn] += count
    return rows


def _described(side: Side, counts: SideCounts) -> ComparedSide:
    return ComparedSide(
        name=side.name,
        root=side.root,
        runs=tuple(run.run_id for run in side.runs),
        models=tuple(_rows_of_models(counts.origins)),
        min_confidence=tuple(
            sorted({each.min_confidence for each in counts.origins}, key=lambda value: -1 if value is None else value)
        ),
        images=counts.images,
        **{
            name: _sum(getattr(run, name) for run in side.runs)
            for name in ("planned", "failed", "skipped", "calls", "throttled", "seconds", "cost_usd")
        },
        images_per_second=_pace(side.runs),
    )


def _sum(values: Iterable[Any]) -> Any:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _pace(runs: Sequence[RunState]) -> float | None:
    paces = [(run.images_per_second, run.seconds) for run in runs if run.images_per_second is not None and run.seconds]
    seconds = sum(each for _, each in paces)
    return sum(pace * each for pace, each in paces) / seconds if seconds else None


def _compared_images(counts: PairCounts) -> ComparedImages:
    return ComparedImages(
        both=counts.both,
        only_a=counts.a.images - counts.both,
        only_b=counts.b.images - counts.both,
        replaced=counts.replaced,
        compared="common" if counts.paired else "all",
        compared_a=counts.a.compared,
        compared_b=counts.b.compared,
        test="McNemar's exact test" if counts.paired else "Fisher's exact test",
        top_changed=sum(images for (top_a, top_b), images in counts.tops.items() if top_a != top_b),
    )


def _ratio(images: int, total: int) -> float | None:
    return images / total if total else None


def _histograms(side: SideCounts, labels: Iterable[str | None]) -> Iterator[Any]:
    return (None if label is None else side.histograms.get(label) for label in labels)


def _mean_confidence(side: SideCounts, label: str | None) -> float | None:
    return side.confidences[label] / int(side.histograms[label].sum()) if label in side.histograms else None
