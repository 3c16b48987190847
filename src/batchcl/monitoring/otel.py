"""The back end that sends metrics and one trace per run by OpenTelemetry's OTLP, over HTTP.

It uses the official SDK's data model, samplers and exporters, but not its readers and processors: their threads and
exit handlers wait up to 30 seconds at the end of a process. The `OTEL_…` variables that configure exporters, resources
and samplers apply.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from batchcl.__about__ import __version__
from batchcl.errors import UsageError
from batchcl.extras import require_extra
from batchcl.monitoring.metrics import METRICS, Histogram, Sample
from batchcl.monitoring.report import Report
from batchcl.monitoring.sender import SendError
from batchcl.monitoring.trace import Trace

__all__ = ["OpenTelemetry", "check_settings"]

_PROTOCOL: Final = "http/protobuf"
_DEFAULT_INTERVAL_S: Final = 60.0
_INFO: Final = "batchcl_run_info"


def check_settings() -> None:
    """Raise `UsageError` if the SDK is not installed, or its variables require another protocol."""
    require_extra("otel", "--otel")
    for signal in ("", "METRICS_", "TRACES_"):
        variable = f"OTEL_EXPORTER_OTLP_{signal}PROTOCOL"
        if os.environ.get(variable) not in {None, "", _PROTOCOL}:  # empty is unset, as in OpenTelemetry's own packages
            raise UsageError(
                f"{variable} is {os.environ[variable]!r}, but --otel sends {_PROTOCOL}; unset it, or use {_PROTOCOL}"
            )


class OpenTelemetry:
    """Exports the metrics at the interval of `OTEL_METRIC_EXPORT_INTERVAL`, and at the end the trace."""

    name = "OpenTelemetry"

    def __init__(self) -> None:
        self.every_s = _interval_s()
        self._resource: Any = None
        self._metrics: Any = None
        self._traces: Any = None
        self._since_ns = time.time_ns()
        self._sent: dict[tuple[str, tuple[tuple[str, str], ...]], float | Histogram] = {}

    def send(self, report: Report) -> None:
        """Export the samples, at the end also the trace; at the start only import the libraries, which is slow."""
        if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
            return
        if self._resource is None:
            self._open()
        if report.stage not in {"sample", "end"}:
            return
        with _QUIET:
            try:
                if self._metrics is not None:
                    self._export(report.samples)
            finally:
                if report.trace is not None and self._traces is not None:
                    self._export_trace(report.trace)

    def _open(self) -> None:
        """Create the exporters; reads the variables."""
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        _QUIET.attach()
        with _QUIET:
            self._resource = _resource()
            if os.environ.get("OTEL_METRICS_EXPORTER", "") != "none":
                self._metrics = OTLPMetricExporter()
            if os.environ.get("OTEL_TRACES_EXPORTER", "") != "none":
                self._traces = OTLPSpanExporter()

    def _export_trace(self, trace: Trace) -> None:
        spans = _spans(trace, self._resource)
        if spans:
            _check(self._traces.export(spans))

    def _export(self, samples: Iterable[Sample]) -> None:
        from opentelemetry.sdk.metrics.export import MetricsData, ResourceMetrics, ScopeMetrics
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        now_ns = time.time_ns()
        is_delta = os.environ.get("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "").lower() in _DELTA
        sent = {}
        by_name: dict[str, list[Any]] = {}
        given = list(samples)
        info = next((sample.labels for sample in given if sample.name == _INFO), {})
        base = {f"batchcl.{name}": value for name, value in info.items() if name != "version"}
        for sample in given:
            metric = METRICS[sample.name]
            if metric.otel is None:
                continue
            key = (sample.name, tuple(sample.labels.items()))
            value = sample.value
            if metric.kind != "gauge":
                sent[key] = value
                value = _difference(value, self._sent.get(key)) if is_delta else value
            attributes = base | {f"batchcl.{name}": text for name, text in sample.labels.items()}
            by_name.setdefault(sample.name, []).append(_point(value, attributes, self._since_ns, now_ns))
        metrics = [_metric(name, points, is_delta=is_delta) for name, points in by_name.items()]
        scope = ScopeMetrics(InstrumentationScope("batchcl", __version__), metrics, "")
        _check(self._metrics.export(MetricsData([ResourceMetrics(self._resource, [scope], "")])))
        if is_delta:  # after a success only: what was not delivered is part of the next difference
            self._since_ns, self._sent = now_ns, sent


_DELTA: Final = frozenset({"delta", "lowmemory"})


def _point(value: float | Histogram, attributes: Mapping[str, str], since_ns: int, now_ns: int) -> Any:
    from opentelemetry.sdk.metrics.export import HistogramDataPoint, NumberDataPoint

    if not isinstance(value, Histogram):
        return NumberDataPoint(attributes, since_ns, now_ns, value)
    return HistogramDataPoint(
        attributes=attributes,
        start_time_unix_nano=since_ns,
        time_unix_nano=now_ns,
        count=sum(value.counts),
        sum=value.total,
        bucket_counts=value.counts,
        explicit_bounds=value.bounds,
        min=None,  # type: ignore[arg-type]  # optional in OTLP; the SDK's type has no way to say that it is unknown
        max=None,  # type: ignore[arg-type]
    )


def _metric(name: str, points: list[Any], *, is_delta: bool) -> Any:
    from opentelemetry.sdk.metrics import export

    metric = METRICS[name]
    temporality = export.AggregationTemporality.DELTA if is_delta else export.AggregationTemporality.CUMULATIVE
    data: Any
    match metric.kind:
        case "counter":
            data = export.Sum(points, temporality, is_monotonic=True)
        case "histogram":
            data = export.Histogram(points, temporality)
        case "gauge":
            data = export.Gauge(points)
    assert metric.otel is not None
    return export.Metric(metric.otel, metric.help, metric.unit, data)


def _difference(value: float | Histogram, before: float | Histogram | None) -> float | Histogram:
    """What has been added since `before`; everything if the counter began again, as at a takeover of a run."""
    if before is None or _size(value) < _size(before):
        return value
    if isinstance(value, Histogram):
        assert isinstance(before, Histogram)
        counts = tuple(new - old for new, old in zip(value.counts, before.counts, strict=True))
        return Histogram(value.bounds, counts, value.total - before.total)
    assert not isinstance(before, Histogram)
    return value - before


def _size(value: float | Histogram) -> float:
    return sum(value.counts) if isinstance(value, Histogram) else value


def _spans(trace: Trace, resource: Any) -> list[Any]:
    """The run's span and one below it for each phase; none if the sampler drops them."""
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.trace import Status, StatusCode, set_span_in_context

    ended: list[Any] = []

    class Collector(SpanProcessor):
        def on_end(self, span: Any) -> None:
            ended.append(span)

    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(Collector())
    tracer = provider.get_tracer("batchcl", __version__)
    root = tracer.start_span("batchcl run", start_time=trace.phases[0].began_ns, attributes=dict(trace.attributes))
    for at_ns, kind, text in trace.events:
        root.add_event(kind, {"message": text}, timestamp=at_ns)
    context = set_span_in_context(root)
    for phase in trace.phases:
        tracer.start_span(phase.name, context, start_time=phase.began_ns).end(phase.ended_ns)
    if trace.error is not None:
        kind, text = trace.error
        root.set_attribute("error.type", kind)
        root.set_status(Status(StatusCode.ERROR, text))
    root.end(trace.phases[-1].ended_ns)
    return [span for span in ended if span.context.trace_flags.sampled]


def _resource() -> Any:
    """The process, with the attributes of `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES`."""
    from opentelemetry.sdk.resources import Resource

    found = dict(Resource.create().attributes)
    if str(found["service.name"]).startswith("unknown_service"):
        found["service.name"] = "batchcl"
    # the same for all runs on a host, so that the number of series does not grow with the runs
    instance = uuid.uuid5(uuid.NAMESPACE_DNS, socket.gethostname())
    return Resource({"service.version": __version__, "service.instance.id": str(instance)} | found)


def _interval_s() -> float:
    try:
        interval_s = float(os.environ.get("OTEL_METRIC_EXPORT_INTERVAL", "")) / 1000
    except ValueError:
        return _DEFAULT_INTERVAL_S
    return interval_s if 1.0 <= interval_s < float("inf") else _DEFAULT_INTERVAL_S


def _check(result: Any) -> None:
    """Raise `SendError` for the result of an export that failed."""
    if result.name != "SUCCESS":
        raise SendError(_QUIET.reason or "the export failed")


class _Quiet(logging.Filter):
    """Drops what the SDK logs about our exports, and keeps the reason for `_check`."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.local()

    def attach(self) -> None:
        """Filter all loggers of the SDK that exist."""
        for name in list(logging.root.manager.loggerDict):
            if name.startswith("opentelemetry"):
                logging.getLogger(name).addFilter(self)

    def __enter__(self) -> None:
        self._thread.is_ours = True
        self._thread.reason = ""

    def __exit__(self, *_: object) -> None:
        self._thread.is_ours = False

    @property
    def reason(self) -> str:
        """Why the last export of this thread failed: a status or the type of an error, never a URL."""
        return str(getattr(self._thread, "reason", ""))

    def filter(self, record: logging.LogRecord) -> bool:
        """Drop records of our threads."""
        if not getattr(self._thread, "is_ours", False):
            return True
        self._thread.reason = next(_reasons(record.args), self.reason)
        return False


def _reasons(values: Any) -> Iterator[str]:
    for value in values if isinstance(values, tuple) else ():
        if isinstance(value, int) and not isinstance(value, bool):
            yield f"HTTP status {value}"
        elif isinstance(value, BaseException):
            yield type(value).__name__


_QUIET: Final = _Quiet()
