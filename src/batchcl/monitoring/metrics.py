"""The metrics of a run: names, types, units and help, each declared once for Prometheus, OpenTelemetry and the docs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

__all__ = ["METRICS", "Histogram", "Metric", "Sample"]


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric.

    Attributes:
        name: in Prometheus.
        otel: name in OpenTelemetry; None if only the metrics file has it.
        kind: its type.
        unit: in UCUM, for OpenTelemetry.
        help: one sentence.
        labels: names of its labels, besides `task`; in OpenTelemetry with the prefix `batchcl.`.
    """

    name: str
    otel: str | None
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    help: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Histogram:
    """The value of a histogram: counts by bucket, not cumulative and with an unbounded last bucket, and the sum."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float


@dataclass(frozen=True, slots=True)
class Sample:
    """A value of the metric `name`."""

    name: str
    value: float | Histogram
    labels: Mapping[str, str] = field(default_factory=dict)


METRICS: Final = {
    each.name: each
    for each in (
        Metric(
            "batchcl_images_total",
            "batchcl.images",
            "counter",
            "{image}",
            "Images of the run with an outcome.",
            ("outcome",),
        ),
        Metric(
            "batchcl_unlabelled_images_total",
            "batchcl.images.unlabelled",
            "counter",
            "{image}",
            "Scored images for which the model found no label.",
        ),
        Metric("batchcl_images_planned", "batchcl.images.planned", "gauge", "{image}", "Images on the work list."),
        Metric(
            "batchcl_calls_total",
            "batchcl.calls",
            "counter",
            "{call}",
            "DetectCustomLabels calls, including throttled ones.",
        ),
        Metric(
            "batchcl_throttled_calls_total",
            "batchcl.calls.throttled",
            "counter",
            "{call}",
            "Calls that were throttled.",
        ),
        Metric("batchcl_calls_in_flight", "batchcl.calls.in_flight", "gauge", "{call}", "Calls without a response."),
        Metric(
            "batchcl_call_duration_seconds",
            "batchcl.call.duration",
            "histogram",
            "s",
            "Time from sending a call to its response, of calls that returned labels.",
        ),
        Metric(
            "batchcl_pace_calls_per_second", "batchcl.pace", "gauge", "{call}/s", "Calls a second that may be sent."
        ),
        Metric(
            "batchcl_capacity_calls_per_second",
            "batchcl.capacity",
            "gauge",
            "{call}/s",
            "Calls a second that the model was measured to accept.",
        ),
        Metric(
            "batchcl_model_cost_dollars_total",
            "batchcl.model.cost",
            "counter",
            "{USD}",
            "Minimum cost of the model in this process, if the run started it.",
        ),
        Metric(
            "batchcl_model_state",
            "batchcl.model.state",
            "gauge",
            "1",
            "1 for the last known state of the model, else 0.",
            ("state",),
        ),
        Metric(
            "batchcl_model_units",
            "batchcl.model.units",
            "gauge",
            "{unit}",
            "Minimum number of inference units of the model.",
        ),
        Metric(
            "batchcl_model_left_running",
            "batchcl.model.left_running",
            "gauge",
            "1",
            "1 if the run could not stop the model that it had started, else 0.",
        ),
        Metric("batchcl_run_in_progress", None, "gauge", "1", "1 during a run, 0 after it."),
        Metric(
            "batchcl_run_info",
            None,
            "gauge",
            "1",
            "Always 1; the labels describe the run.",
            ("model", "root", "version"),
        ),
        Metric("batchcl_last_start_timestamp_seconds", None, "gauge", "s", "When the last run began, in Unix time."),
        Metric(
            "batchcl_last_update_timestamp_seconds", None, "gauge", "s", "When this file was written, in Unix time."
        ),
        Metric(
            "batchcl_last_success_timestamp_seconds",
            None,
            "gauge",
            "s",
            "When a run last ended with exit code 0, in Unix time.",
        ),
        Metric("batchcl_last_exit_code", None, "gauge", "1", "Exit code of the last run that has ended."),
        Metric(
            "batchcl_models_without_lease",
            None,
            "gauge",
            "{model}",
            "Running models without a lease.",
        ),
    )
}
"""All metrics, by name."""
