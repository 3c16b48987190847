"""Renders the report: one HTML page that loads nothing.

Keys, labels and messages are hostile input. Jinja2 escapes them; control characters, which could change how the text
around them is read, are shown as escapes first; and a Content-Security-Policy allows the page's own style and script
only, by their hashes.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import shlex
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from batchcl.__about__ import __version__
from batchcl.analysis.compare import ComparedSide, Comparison
from batchcl.analysis.counts import NONE
from batchcl.analysis.evaluate import Evaluation
from batchcl.analysis.thresholds import ThresholdChoice
from batchcl.quantities import pluralize
from batchcl.report import charts
from batchcl.report.contents import CHARTED_LABELS, Contents, lowest_confidence
from batchcl.report.gallery import GalleryPicture, categories
from batchcl.summary import BILLED_USES

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["Charts", "Request", "draw_charts", "render"]

_DASH: Final = "\N{EN DASH}"
"""For a value that is undefined or unknown."""

_MOST_RUNS: Final = 20
_MOST_EXAMPLES: Final = 3
_WIDEST_MATRIX: Final = 16
_LEVELS: Final = 4
_WIDE, _NARROW = 960, 320
_MOST_TAGS: Final = 5
_CATEGORY_NOTES: Final = {
    "Changed since the baseline": "The most confident label is another one.",
    "Wrong according to the truth": "The most confident label is not a true one; the most confident mistakes first.",
    "Most uncertain": "A small change of a confidence would change the result.",
}
_INVISIBLE: Final = frozenset({"Cc", "Cs", "Co", "Cn", "Zl", "Zp"})
_BIDI_CONTROLS: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the report is about, for its title and its commands.

    Attributes:
        root: the output root.
        filters: the flags of the reading commands that select the same rows.
        thresholds: those that select the same labels.
        selection: these in words; empty for all rows.
        truth: the flags of `evaluate`.
        compared: the arguments of `compare`.
        command: the command that writes this report.
        written_at: the current time.
    """

    root: str
    filters: Sequence[str] = ()
    thresholds: Sequence[str] = ()
    selection: str = ""
    truth: Sequence[str] = ()
    compared: Sequence[str] = ()
    command: Sequence[str] = ()
    written_at: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Charts:
    """SVGs by what they show."""

    nights: Mapping[tuple[str, str], str]
    histograms: Mapping[tuple[str, str], str]
    histogram: Mapping[str, str]
    throughput: tuple[str, str] | None
    curves: Mapping[str, str]


def draw_charts(contents: Contents) -> Charts:
    """Draw all charts, which takes about 50 ms each."""
    cut_offs = {model: lowest_confidence(contents.models, model) for model in contents.models["model"].unique()}

    def histogram(frame: pl.DataFrame) -> str:
        model = frame["model"].first() if "model" in frame.columns else contents.models["model"].first()
        return charts.confidence_chart(frame, cut_off=cut_offs.get(str(model)))

    by_label = {
        (str(model), str(label)): frame
        for (model, label), frame in contents.nights.group_by("model", "label", maintain_order=True)
    }
    throughput = contents.throughput
    return Charts(
        nights={key: charts.share_chart(frame) for key, frame in by_label.items() if frame.height > 1},
        histograms={
            (str(model), str(label)): histogram(frame)
            for (model, label), frame in contents.histograms.group_by("model", "label", maintain_order=True)
            if (model, label) in contents.charted
        },
        histogram={} if contents.histogram["detections"].sum() == 0 else _overall(contents, histogram),
        throughput=None
        if throughput is None
        else (
            charts.throughput_chart(throughput.intervals, width=_WIDE),
            charts.throughput_chart(throughput.intervals, width=_NARROW),
        ),
        curves={} if contents.thresholds is None else dict(_draw_curves(contents.thresholds)),
    )


def _draw_curves(choice: ThresholdChoice) -> Iterator[tuple[str, str]]:
    """The curves of the labels with the most true images."""
    drawn = choice.labels.filter(pl.col("label").is_in(choice.curves["label"].unique().implode()))
    for row in drawn.sort("positives", "label", descending=[True, False]).head(CHARTED_LABELS).iter_rows(named=True):
        curve = choice.curves.filter(pl.col("label") == row["label"]).drop_nulls(["precision", "recall"])
        if curve.height:
            has_point = None not in (row["threshold"], row["precision"], row["recall"])
            yield (
                row["label"],
                charts.curve_chart(curve, chosen=(row["recall"], row["precision"]) if has_point else None),
            )


def _overall(contents: Contents, draw: Any) -> dict[str, str]:
    frame = contents.histogram
    if "model" not in frame.columns:
        return {"": draw(frame)}
    return {str(model): draw(part) for (model,), part in frame.group_by("model", maintain_order=True)}


def render(
    contents: Contents, drawn: Charts, request: Request, *, rows: int, pictures: Sequence[GalleryPicture] = ()
) -> str:
    """The page.

    Args:
        contents: what it shows.
        drawn: its charts.
        request: what it is about.
        rows: the largest number of rows in a table.
        pictures: the gallery.
    """
    page = _View(contents, drawn, request, rows).page()
    page["gallery"] = _gallery(pictures, request) if pictures else None
    page["sections"] = _sections(page)
    return _environment().get_template("report.html").render(page)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    loader = PackageLoader("batchcl.report")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown
    )
    folder = files("batchcl.report") / "templates"
    for name, file in (("style", "report.css"), ("script", "report.js")):
        text = (folder / file).read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        environment.globals |= {name: Markup(text), f"{name}_hash": f"sha256-{digest}"}  # noqa: S704 - our own files
    environment.globals["version"] = __version__
    return environment


def _shown(value: Any) -> Any:
    """What the page shows for a value of a template: text without characters that are invisible or change direction."""
    from markupsafe import Markup

    if value is None:
        return _DASH
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return visible(value)


def visible(text: str) -> str:
    r"""`text` with control characters as escapes such as `\x1b`, and those that change its direction likewise."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        repr(each)[1:-1]
        if each in _BIDI_CONTROLS
        else each.encode("unicode_escape").decode()
        if unicodedata.category(each) in _INVISIBLE
        else each
        for each in text
    )


def _sections(page: Mapping[str, Any]) -> list[dict[str, str]]:
    titles = {
        "changes": "Changes",
        "runs": "What ran",
        "labels": "Labels",
        "histograms": "Confidence",
        "throughput": "Throughput",
        "failures": "Failures",
        "evaluation": "Evaluation",
        "gallery": "Pictures",
    }
    always = {"runs", "labels", "failures"}
    ids = {"histograms": "confidence"}
    missing = {"evaluation": "evaluation", "changes": "comparison"}
    return [
        {"id": ids.get(name, name), "title": title}
        for name, title in titles.items()
        if name in always or page.get(name) or page.get(f"no_{missing.get(name)}")
    ]


@dataclass(frozen=True, slots=True)
class _View:
    """The values of the template, formatted."""

    contents: Contents
    drawn: Charts
    request: Request
    rows: int

    def page(self) -> dict[str, Any]:
        contents, request = self.contents, self.request
        several = contents.models["model"].n_unique() > 1
        return {
            "title": self._title(),
            "root": request.root,
            "selection": request.selection,
            "period": _period(contents.totals.first_at, contents.totals.last_at),
            "figures": self._figures(),
            "changes": None if contents.comparison is None else self._changes(contents.comparison),
            "no_comparison": contents.no_comparison,
            "commands": self._commands(),
            "written_at": _time(request.written_at),
            "several_models": several,
            "notes": contents.notes,
            **self._runs(),
            **self._labels(),
            **self._histograms(several=several),
            "throughput": self._throughput(),
            "sessions": self._sessions(),
            **self._failures(),
            "evaluation": None if contents.evaluation is None else self._evaluation(contents.evaluation),
            "no_evaluation": contents.no_evaluation,
        }

    def _title(self) -> str:
        models = self.contents.models["model"].unique(maintain_order=True).to_list()
        if not models:
            return "No results"
        more = f" and {pluralize(len(models) - 1, 'other model')}" if len(models) > 1 else ""
        return f"{models[0]}{more}"

    def _figures(self) -> list[dict[str, Any]]:
        totals, runs = self.contents.totals, self.contents.runs
        seconds = float(runs["seconds"].sum() or 0)
        called = runs.select((pl.col("images_per_second") * pl.col("seconds")).sum()).item() or 0.0
        costs = runs["cost_usd"].drop_nulls()
        unlabelled = _percent(totals.unlabelled / totals.scored) if totals.scored else ""
        figures = [
            _figure("Images scored", f"{totals.scored:,}"),
            _figure("Without a label", f"{totals.unlabelled:,}", unlabelled),
            _figure("Failed", f"{totals.failed:,}", is_alert=totals.failed > 0),
            _figure("Skipped", f"{totals.skipped:,}"),
        ]
        if seconds and called:
            figures.append(_figure("Images per second", _pace(called / seconds), f"in {_duration(seconds)}"))
        if costs.len():
            figures.append(_figure("Model cost", _cost(float(costs.sum())), "at least"))
        return figures

    def _commands(self) -> dict[str, str]:
        request = self.request

        def line(name: str, *more: str) -> str:
            return shlex.join(["batchcl", name, request.root, *request.filters, *request.thresholds, *more])

        return {
            "runs": shlex.join(["batchcl", "runs", request.root]),
            "labels": line("labels"),
            "confidence": line("confidence", "--per-label"),
            "failures": line("failures"),
            "evaluate": line("evaluate", *request.truth),
            "thresholds": shlex.join(
                ["batchcl", "thresholds", request.root, *request.filters, *request.truth, "--out", "thresholds.toml"]
            ),
            "compare": shlex.join(["batchcl", "compare", request.root, *request.compared, *request.thresholds]),
            "report": shlex.join(request.command),
        }

    def _runs(self) -> dict[str, Any]:
        runs = self.contents.runs
        shown = min(_MOST_RUNS, self.rows)
        return {
            "runs": [_run(run) for run in runs.head(shown).iter_rows(named=True)],
            "uses": [use.capitalize() for use in BILLED_USES],
            "bills": [_bill(run) for run in runs.head(shown).iter_rows(named=True) if run["cost_usd"]],
            "more_runs": _number(runs.height - shown) if runs.height > shown else "",
            "facts": self._facts(),
        }

    def _facts(self) -> list[dict[str, Any]]:
        """Names and values of what applied to the runs: models, thresholds, sources."""
        contents = self.contents
        newest = next((run for run in contents.runs["run_id"].to_list() if run in contents.records), None)
        facts: list[dict[str, Any]] = [
            {
                "name": "Model" if contents.models["model_arn"].n_unique() == 1 else "Models",
                "values": contents.models["model_arn"].unique(maintain_order=True).head(self.rows).to_list(),
            },
            {"name": "Threshold", "values": self._threshold_texts()},
        ]
        if newest is not None:
            record, summary = contents.records[newest], contents.summaries.get(newest)
            sources = record.scored_as.get("sources") or [record.scored_as.get("from_results")]
            name = "Sources" if contents.runs.height == 1 else "Sources of the newest run"
            facts.append({"name": name, "values": [str(each) for each in sources[: self.rows]]})
            if summary is not None and (summary.lines is not None or summary.excluded):
                facts.append({"name": "Its lists", "values": [summary.describe_sources()]})
        if contents.totals.latency_ms is not None:
            median, high = contents.totals.latency_ms
            facts.append(
                {"name": "Time per call", "values": [f"{median:,.0f} ms median, {high:,.0f} ms 95th percentile"]}
            )
        return [fact for fact in facts if fact["values"]]

    def _threshold_texts(self) -> list[str]:
        models = self.contents.models
        several = models["model"].n_unique() > 1
        texts = []
        for model, threshold, images in models.select("model", "min_confidence", "images").head(self.rows).iter_rows():
            what = "the model's own, for each label" if threshold is None else f"confidence {threshold:g} and above"
            of = f"{model}: " if several else ""
            count = f" ({_number(images)} images)" if models.height > 1 else ""
            texts.append(f"{of}{what}{count}")
        return texts

    def _labels(self) -> dict[str, Any]:
        contents = self.contents
        labels = contents.labels
        named = labels.filter(pl.col("label") != NONE)
        largest = float(named.select(pl.col("share").max().fill_null(1)).item())
        totals = contents.totals
        with_label = totals.scored - totals.unlabelled
        summary = (
            f"{pluralize(with_label, 'image')} of {_number(totals.scored)} "
            f"{'has' if with_label == 1 else 'have'} at least one of {pluralize(named.height, 'label')}; "
            f"{_number(totals.unlabelled)} {'has' if totals.unlabelled == 1 else 'have'} none."
        )
        return {
            "labels": [_label(row, largest) for row in labels.head(self.rows).iter_rows(named=True)],
            "labels_summary": summary,
            "more_labels": _number(labels.height - self.rows) if labels.height > self.rows else "",
            "nights": self._nights(),
            "nights_period": _nights_period(contents.nights),
        }

    def _nights(self) -> list[dict[str, Any]]:
        views = []
        for (model, label), svg in self.drawn.nights.items():
            frame = self.contents.nights.filter((pl.col("model") == model) & (pl.col("label") == label))
            shares = frame["share"]
            first, last = shares.first(), shares.last()
            views.append(
                {
                    "model": model,
                    "label": label,
                    "note": f"{_percent(last)} last",
                    "description": f"Share of images with the label {visible(label)} over {frame.height} nights: "
                    f"{_percent(first)} at first, {_percent(last)} at last, "
                    f"{_percent(shares.min())} to {_percent(shares.max())}",
                    "svg": _markup(svg),
                }
            )
        order = {key: number for number, key in enumerate(self.contents.charted)}
        return sorted(views, key=lambda view: order.get((view["model"], view["label"]), len(order)))

    def _histograms(self, *, several: bool) -> dict[str, Any]:
        contents = self.contents
        views = []
        for model, svg in self.drawn.histogram.items():
            frame = contents.histogram if not model else contents.histogram.filter(pl.col("model") == model)
            views.append(_histogram("All labels", model, frame, svg))
        for model, label in contents.charted:
            if (model, label) in self.drawn.histograms:
                frame = contents.histograms.filter((pl.col("model") == model) & (pl.col("label") == label))
                svg = self.drawn.histograms[model, label]
                views.append(_histogram(label, model if several else "", frame, svg))
        thresholds = contents.models["min_confidence"]
        if thresholds.null_count():
            note = "Labels below the model's own threshold were not returned, so the histograms are cut off from below."
        elif (thresholds.max() or 0) > 0:  # type: ignore[operator]
            note = "Labels below the dashed line were not requested."
        else:
            note = ""
        return {"histograms": views, "cut_off_note": note}

    def _throughput(self) -> dict[str, Any] | None:
        throughput, svgs = self.contents.throughput, self.drawn.throughput
        if throughput is None or svgs is None:
            return None
        rates = throughput.intervals["images_per_second"]
        every = _duration(throughput.interval_s)
        run = self.contents.runs.filter(pl.col("run_id") == throughput.run_id).row(0, named=True)
        throttled = (
            f" {_percent(run['throttled'] / run['calls'])} of its {_number(run['calls'])} calls were throttled."
            if run["calls"]
            else ""
        )
        return {
            "summary": f"Scored images per second of run {throughput.run_id}, averaged over {every} each.{throttled}",
            "description": f"Images per second from {_time(throughput.intervals['from'].first())} to "
            f"{_time(throughput.intervals['to'].last())}: median {_pace(rates.median())}, "
            f"{_pace(rates.min())} to {_pace(rates.max())}",
            "wide": _markup(svgs[0]),
            "narrow": _markup(svgs[1]),
        }

    def _sessions(self) -> list[dict[str, str]]:
        throughput = self.contents.throughput
        summary = None if throughput is None else self.contents.summaries.get(throughput.run_id)
        if summary is None or len(summary.sessions) < 2:
            return []
        return [
            {
                "number": str(each.number + 1) + (f", retry {each.round}" if each.round else ""),
                "images": _number(each.images),
                "calls": _number(each.calls),
                "throttled": _number(each.throttled),
                "share": _percent(each.throttled / each.calls) if each.calls else _DASH,
                "pace": _pace(each.images_per_second) if each.seconds else _DASH,
                "time": _duration(each.seconds),
                "cost": _cost(each.cost_usd),
            }
            for each in summary.sessions[-self.rows :]
        ]

    def _failures(self) -> dict[str, Any]:
        failures = self.contents.failures
        total = int(failures["count"].sum())
        views = [
            {
                "images": _number(row["count"]),
                "status": row["status"],
                "code": row["error_code"],
                "message": row["message"],
                "remedy": row.get("remedy"),
                "examples": row["examples"][:_MOST_EXAMPLES],
            }
            for row in failures.head(self.rows).iter_rows(named=True)
        ]
        reasons = pluralize(failures.height, "reason")
        return {
            "failures": views,
            "failures_summary": f"{pluralize(total, 'image')} without a result, for {reasons}.",
            "more_failures": _number(failures.height - self.rows) if failures.height > self.rows else "",
        }

    def _changes(self, comparison: Comparison) -> dict[str, Any]:
        a, b, images = comparison.a, comparison.b, comparison.images
        compared = {
            "common": "The images in both are compared, in pairs.",
            "all": "All images are compared, as two samples.",
        }
        differ = comparison.top_labels.filter(pl.col("top_a") != pl.col("top_b"))
        shown = min(_MOST_RUNS, self.rows)
        labels = comparison.labels
        significant = int(labels["significant"].sum())
        differing = f"The most confident label differs in {pluralize(images.top_changed, 'image')}. "
        found = f"{pluralize(significant, 'change')} of a share {'is' if significant == 1 else 'are'} significant."
        return {
            "summary": f"{b.name[:1].upper()}{b.name[1:]} compared with {a.name}: {pluralize(images.both, 'image')} in "
            f"both, {_number(images.only_b)} only now, {_number(images.only_a)} only in the baseline. "
            f"{compared[images.compared]} {differing if images.both else ''}"
            f"{found if significant else 'No change of a share is significant.'}",
            "notes": [note for note in comparison.notes if f"the {note}" not in self.contents.notes],
            "sides": [row for row in _sides(a, b) if row["a"] != _DASH or row["b"] != _DASH],
            "labels": [_label_change(row) for row in labels.head(shown).iter_rows(named=True)],
            "has_findings": bool(significant) or labels["presence"].is_not_null().any(),
            "more_labels": _number(labels.height - shown) if labels.height > shown else "",
            "test": f"Significant: by {images.test}, at a false discovery rate of 5% over all labels.",
            "top": [
                {"a": top_a, "b": top_b, "images": _number(count)}
                for top_a, top_b, count in differ.select("top_a", "top_b", "images").head(shown).iter_rows()
            ],
        }

    def _curves(self) -> list[dict[str, Any]]:
        choice = self.contents.thresholds
        if choice is None:
            return []
        rows = {row["label"]: row for row in choice.labels.iter_rows(named=True)}
        return [_curve(rows[label], svg) for label, svg in self.drawn.curves.items()]

    def _evaluation(self, evaluation: Evaluation) -> dict[str, Any]:
        summary = evaluation.summary
        figures = {
            "Top label correct": summary["top_label_accuracy"],
            "Macro F1": summary["macro_f1"],
            "Micro F1": summary["micro_f1"],
            "Mean average precision": summary.get("mean_average_precision"),
        }
        images = summary["images"]
        whose = "its" if images == 1 else "their"
        text = f"{pluralize(images, 'image')} with a result, compared with {whose} true labels."
        notes = []
        if summary["missing"]:
            failed = f", {_number(summary['missing_failed'])} of them failed" if summary["missing_failed"] else ""
            notes.append(f"{pluralize(summary['missing'], 'image')} of the truth without a result{failed}.")
        if summary["extra"]:
            notes.append(f"{pluralize(summary['extra'], 'result')} without truth.")
        if summary["bad_lines"] or summary["bad_labels"]:
            bad = f"{pluralize(summary['bad_lines'], 'line')} and {pluralize(summary['bad_labels'], 'label')}"
            notes.append(f"{bad} of the truth can't be used.")
        rows = evaluation.labels.sort("support", "label", descending=[True, False]).head(self.rows)
        confusion = evaluation.confusion
        matrix = None if confusion is None else _matrix(confusion)
        mistakes = [] if confusion is None or matrix is not None else self._mistakes(confusion)
        return {
            "summary": text,
            "figures": [_figure(name, _ratio(value)) for name, value in figures.items() if value is not None],
            "notes": notes,
            "has_boxes": "average_precision" in rows.columns,
            "labels": [_evaluated(row) for row in rows.iter_rows(named=True)],
            "matrix": matrix,
            "mistakes": mistakes,
            "curves": self._curves(),
            "has_cut": self.contents.thresholds is not None and bool(self.contents.thresholds.labels["at_cut"].any()),
        }

    def _mistakes(self, confusion: pl.DataFrame) -> list[dict[str, str]]:
        wrong = confusion.filter(pl.col("truth") != pl.col("predicted"))
        most = wrong.sort("images", "truth", "predicted", descending=[True, False, False]).head(self.rows)
        return [{**row, "images": _number(row["images"])} for row in most.iter_rows(named=True)]


def _gallery(pictures: Sequence[GalleryPicture], request: Request) -> dict[str, Any]:
    names = sorted({label["name"] for each in pictures for label in each.chosen.row["labels"]})
    numbers = {name: number for number, name in enumerate(names)}
    errors = [each.picture.error for each in pictures if not each.picture.jpeg]
    common = errors[0] if len(set(errors)) == 1 and len(errors) > 1 else ""
    why = f"{common}." if common else "the reason is in its place."
    notes = [f"{pluralize(len(errors), 'picture')} can't be shown: {why}"] if errors else []
    images = pluralize(len(pictures), "image")
    return {
        "summary": f"{images}, by why they were chosen; each is shown once, with the boxes and labels of its result.",
        "notes": notes,
        "labels": names,
        "has_unlabelled": any(not each.chosen.row["labels"] for each in pictures),
        "categories": [
            {
                "title": title,
                "note": _CATEGORY_NOTES.get(title, ""),
                "cards": [_card(each, numbers, request, known=common) for each in of_category],
            }
            for title, of_category in categories(pictures)
        ],
    }


def _card(each: GalleryPicture, numbers: Mapping[str, int], request: Request, *, known: str) -> dict[str, Any]:
    """What is shown of one image; its error only if it is not the `known` one of all."""
    row, picture = each.chosen.row, each.picture
    labels = sorted(row["labels"], key=lambda label: (-label["confidence"], label["name"]))
    boxes = sum(label["left"] is not None for label in labels)
    texts = [
        each.chosen.reason,
        picture.note,
        f"Also: {', '.join(each.chosen.also).lower()}" if each.chosen.also else "",
    ]
    return {
        "filter": " ".join(f"{numbers[label['name']]}:{label['confidence']:.2f}" for label in labels),
        "src": f"data:image/jpeg;base64,{base64.b64encode(picture.jpeg).decode()}" if picture.jpeg else "",
        "width": picture.width,
        "height": picture.height,
        "alt": f"Picture with {boxes:,} {'box' if boxes == 1 else 'boxes'}" if boxes else "Picture",
        "error": "" if picture.error == known else f": {picture.error}",
        "key": row["uri"],
        "tags": [{"label": label["name"], "confidence": f"{label['confidence']:.1f}"} for label in labels[:_MOST_TAGS]],
        "more_tags": _number(len(labels) - _MOST_TAGS) if len(labels) > _MOST_TAGS else "",
        "texts": [text for text in texts if text],
        "command": shlex.join(
            ["batchcl", "show", request.root, row["uri"], *request.filters, *request.thresholds, "--out", "pictures"]
        ),
    }


def _figure(name: str, value: str, note: str = "", *, is_alert: bool = False) -> dict[str, Any]:
    return {"name": name, "value": value, "note": note, "is_alert": is_alert}


def _run(run: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `runs`; what a damaged record doesn't have is a dash."""
    counts = {name: _number(run[name]) for name in ("planned", "scored", "failed", "skipped", "left")}
    return {
        "run_id": run["run_id"],
        "started": _time(run["started_at"]).removesuffix(" UTC"),
        "state": run["state"],
        "reason": run["reason"],
        **counts,
        "pace": _pace(run["images_per_second"]),
        "throttled": _percent(run["throttled"] / run["calls"]) if run["calls"] else _DASH,
        "time": _duration(run["seconds"]),
        "cost": _cost(run["cost_usd"]),
    }


def _bill(run: Mapping[str, Any]) -> dict[str, Any]:
    """What the time of a run's model was used for."""
    seconds = {use: run[f"billed_{use}_s"] or 0.0 for use in BILLED_USES}
    total = sum(seconds.values())
    return {
        "run_id": run["run_id"],
        "cost": _cost(run["cost_usd"]),
        "time": _duration(total),
        "shares": [_percent(each / total) if total else _DASH for each in seconds.values()],
        "scoring": seconds["scoring"] / total if total else 0.0,
    }


def _sides(a: ComparedSide, b: ComparedSide) -> Iterator[dict[str, str]]:
    names = {
        "images": "Images with a result",
        "failed": "Failed",
        "skipped": "Skipped",
        "images_per_second": "Images per second",
        "cost_usd": "Model cost",
    }
    formats: dict[str, Callable[[Any], str]] = {"images_per_second": _pace, "cost_usd": _cost}
    for name, title in names.items():
        shown = formats.get(name, _number)
        yield {"name": title, "a": shown(getattr(a, name)), "b": shown(getattr(b, name))}
    yield {"name": "Model", "a": ", ".join(a.models) or _DASH, "b": ", ".join(b.models) or _DASH}


def _label_change(row: Mapping[str, Any]) -> dict[str, Any]:
    low, high = row["change_low"], row["change_high"]
    findings = [row["presence"] or "", "significant" if row["significant"] else ""]
    distance = row["confidence_distance"]
    return {
        "label": row["label"],
        "a": _percent(row["share_a"]),
        "b": _percent(row["share_b"]),
        "change": _points(row["change"]),
        "interval": _DASH if low is None or high is None else f"{_points(low)} to {_points(high)}",
        "distance": _DASH if distance is None else f"{distance:.1f}",
        "finding": ", ".join(finding for finding in findings if finding),
    }


def _points(value: float | None) -> str:
    """A difference of shares in percentage points, with a sign unless it is rounded to zero."""
    if value is None:
        return _DASH
    text = f"{value * 100:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def _curve(row: Mapping[str, Any], svg: str) -> dict[str, Any]:
    threshold = row["threshold"]
    at = "no threshold" if threshold is None else f"{threshold:.1f}"
    numbers = "" if threshold is None else f": precision {_ratio(row['precision'])}, recall {_ratio(row['recall'])}"
    return {
        "label": row["label"],
        "note": f"{at}{'*' if row['at_cut'] else ''}{numbers}",
        "description": f"Precision and recall of {visible(row['label'])}. Best threshold {at}{numbers}",
        "svg": _markup(svg),
    }


def _label(row: Mapping[str, Any], largest: float) -> dict[str, Any]:
    """A row of `labels`, with a bar relative to the `largest` share."""
    numbers = {name: _DASH if row[name] is None else f"{row[name]:.1f}" for name in ("mean", "p10", "p50", "p90")}
    return {
        "model": row["model"],
        "label": row["label"],
        "images": _number(row["images"]),
        "detections": _number(row["detections"]),
        "share": _percent(row["share"]),
        "ratio": min(1.0, (row["share"] or 0.0) / largest),
        **numbers,
    }


def _histogram(label: str, model: str, frame: pl.DataFrame, svg: str) -> dict[str, Any]:
    total = int(frame["detections"].sum())
    high = int(frame.filter(pl.col("from") >= 90)["detections"].sum())
    low = int(frame.filter(pl.col("to") <= 50)["detections"].sum())
    shares = "" if not total else f"{_percent(high / total)} at 90 or above, {_percent(low / total)} below 50"
    return {
        "label": label,
        "model": model,
        "note": pluralize(total, "detection"),
        "description": f"Confidences of {visible(label)}: {pluralize(total, 'detection')}, {shares}",
        "svg": _markup(svg),
    }


def _evaluated(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "label": row["label"],
        "support": _number(row["support"]),
        "predicted": _number(row["predicted"]),
        "correct": _number(row["true_positives"]),
        **{name: _ratio(row.get(name)) for name in ("precision", "recall", "f1", "average_precision")},
    }


def _matrix(confusion: pl.DataFrame) -> dict[str, Any] | None:
    """Rows and cells of the confusion matrix; None if it is too wide for a page."""
    columns = sorted(confusion["predicted"].unique().to_list(), key=lambda label: (label == NONE, label))
    labels = sorted(confusion["truth"].unique().to_list(), key=lambda label: (label == NONE, label))
    if len(columns) > _WIDEST_MATRIX or len(labels) > _WIDEST_MATRIX:
        return None
    counts = {(truth, predicted): images for truth, predicted, images in confusion.iter_rows()}
    totals = dict(confusion.group_by("truth").agg(pl.col("images").sum()).iter_rows())

    def cell(truth: str, predicted: str) -> dict[str, Any]:
        images = counts.get((truth, predicted), 0)
        level = min(_LEVELS, -(-images * _LEVELS // totals[truth]))
        return {"images": _number(images), "kind": "r" if truth == predicted else "w", "level": level}

    return {
        "columns": columns,
        "rows": [{"label": truth, "cells": [cell(truth, predicted) for predicted in columns]} for truth in labels],
    }


def _markup(svg: str) -> Any:
    from markupsafe import Markup

    return Markup(svg)  # noqa: S704 - drawn by `charts`, with numbers and dates only


def _number(value: float | None) -> str:
    return _DASH if value is None else f"{value:,.0f}"


def _percent(value: Any) -> str:
    if value is None:
        return _DASH
    percent = float(value) * 100
    return f"{percent:.2f}%" if 0 < percent < 1 else f"{percent:.1f}%"


def _ratio(value: float | None) -> str:
    return _DASH if value is None else f"{value:.3f}"


def _pace(value: Any) -> str:
    return _DASH if value is None else f"{float(value):,.1f}"


def _cost(dollars: float | None) -> str:
    if dollars is None:
        return _DASH
    return f"${dollars:,.2f}" if dollars >= 0.1 or dollars == 0 else f"${dollars:.2g}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return _DASH
    if seconds < 10:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{hours:,} h {minutes} min" if minutes else f"{hours:,} h"


def _time(moment: Any) -> str:
    if moment is None:
        return _DASH
    return f"{moment.astimezone(dt.UTC):%Y-%m-%d %H:%M} UTC"


def _period(first: dt.datetime | None, last: dt.datetime | None) -> str:
    if first is None or last is None:
        return ""
    if first.date() == last.date():
        return f"scored on {first:%Y-%m-%d}, {first:%H:%M} to {last:%H:%M} UTC"
    return f"scored from {_time(first)} to {_time(last)}"


def _nights_period(nights: pl.DataFrame) -> str:
    return "" if nights.is_empty() else f"{nights['date'].min()!s} to {nights['date'].max()!s}"
