"""OpenTelemetry's own messages decode what an OTLP receiver gets."""

from __future__ import annotations

import atexit
import logging
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from batchcl.errors import StoppedError, UsageError
from batchcl.events import Notice
from batchcl.monitoring import Targets
from batchcl.monitoring.metrics import METRICS, Histogram, Sample
from batchcl.monitoring.otel import OpenTelemetry
from batchcl.monitoring.report import Report
from batchcl.monitoring.sender import FLUSH_S
from receivers import Receiver, receiving
from unit.monitoring.runs import MODEL, ROOT, STARTED, run
from virtual import run_virtual

TARGETS = Targets(otel=True)


@pytest.fixture
def receiver(monkeypatch):
    with receiving() as made:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", made.url)
        yield made


def metrics_of(receiver: Receiver) -> list[Any]:
    """The metrics of each request."""
    requests = [
        ExportMetricsServiceRequest.FromString(each.body) for each in receiver.requests if "metrics" in each.path
    ]
    return [request.resource_metrics[0] for request in requests]


def spans_of(receiver: Receiver) -> list[Any]:
    requests = [ExportTraceServiceRequest.FromString(each.body) for each in receiver.requests if "traces" in each.path]
    return [span for request in requests for span in request.resource_spans[0].scope_spans[0].spans]


def attributes_of(message: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in message.attributes}


def test_the_metrics_have_their_types_units_and_attributes(receiver):
    run(TARGETS)
    (sent,) = metrics_of(receiver)
    found = {metric.name: metric for metric in sent.scope_metrics[0].metrics}
    expected = {each.otel: each for each in METRICS.values() if each.otel is not None}
    assert set(found) == set(expected)
    for name, metric in found.items():
        assert (metric.unit, metric.description) == (expected[name].unit, expected[name].help)
        assert metric.WhichOneof("data") == {"counter": "sum"}.get(expected[name].kind, expected[name].kind)
    images = {attributes_of(point)["batchcl.outcome"]: point for point in found["batchcl.images"].sum.data_points}
    assert {outcome: point.as_int for outcome, point in images.items()} == {"scored": 90, "failed": 6, "skipped": 4}
    assert found["batchcl.images"].sum.is_monotonic
    assert attributes_of(images["scored"]) == {
        "batchcl.outcome": "scored",
        "batchcl.model": "birds@v1",
        "batchcl.root": ROOT,
    }
    (latency,) = found["batchcl.call.duration"].histogram.data_points
    assert (latency.count, sum(latency.bucket_counts)) == (4, 4)
    assert latency.sum == pytest.approx(70.84)
    assert attributes_of(sent.resource)["service.name"] == "batchcl"


def test_a_run_is_one_trace_with_its_phases_and_its_error(receiver):
    notices = [
        STARTED,
        *(Notice("model", f"the model is {status}", {"status": status}) for status in ("STARTING", "RUNNING")),
        Notice("model", "the model is STOPPING", {"status": "STOPPING"}),
        Notice("model-stopped", "the model is stopped"),
    ]
    run(TARGETS, notices, StoppedError("reading https://h/?X-Amz-Signature=abc failed"))
    *phases, root = spans_of(receiver)
    assert [span.name for span in phases] == ["prepare", "score", "start model", "score", "stop model", "finish"]
    assert {span.trace_id for span in phases} == {root.trace_id}
    assert {span.parent_span_id for span in phases} == {root.span_id}
    assert (root.name, root.status.code) == ("batchcl run", Status.STATUS_CODE_ERROR)
    assert root.status.message == "reading https://h/ failed"
    assert [event.name for event in root.events] == [notice.kind for notice in notices]
    assert phases[0].start_time_unix_nano == root.start_time_unix_nano
    assert phases[-1].end_time_unix_nano == root.end_time_unix_nano
    found = attributes_of(root)
    assert (found["batchcl.run_id"], found["batchcl.model"], found["error.type"]) == ("night", MODEL, "StoppedError")
    assert (found["process.exit.code"], found["batchcl.scored"]) == (4, 90)


def test_the_standard_variables_apply(receiver, monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "nightly")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=prod")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=abc")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    run(TARGETS)
    assert receiver.paths == ["/v1/metrics"]
    assert receiver.requests[0].headers["x-api-key"] == "abc"
    resource = attributes_of(metrics_of(receiver)[0].resource)
    assert (resource["service.name"], resource["deployment.environment.name"]) == ("nightly", "prod")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    run(TARGETS)
    assert len(receiver.paths) == 1


def test_the_trace_can_be_sampled_away(receiver, monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    run(TARGETS)
    assert receiver.paths == ["/v1/metrics"]


def test_differences_include_what_was_not_delivered_before(receiver, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta")
    receiver.statuses = [200, 400, 200]
    back_end = OpenTelemetry()
    values = []
    for total in (10, 15, 21):
        try:
            back_end.send(Report(stage="sample", samples=(Sample("batchcl_calls_total", total),)))
        except Exception:  # noqa: BLE001 - the second request fails
            continue
    for sent in metrics_of(receiver):
        (point,) = sent.scope_metrics[0].metrics[0].sum.data_points
        values.append(point.as_int)
    assert values == [10, 5, 11]


def test_counters_that_begin_again_have_no_negative_difference(receiver, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta")
    back_end = OpenTelemetry()
    for total, counts in ((10, (4, 1)), (2, (1, 1))):  # those of the process that was followed, then our own
        samples = (
            Sample("batchcl_calls_total", total),
            Sample("batchcl_call_duration_seconds", Histogram((0.1,), counts, 0.5)),
        )
        back_end.send(Report(stage="sample", samples=samples))
    calls, durations = metrics_of(receiver)[1].scope_metrics[0].metrics
    assert calls.sum.data_points[0].as_int == 2
    assert list(durations.histogram.data_points[0].bucket_counts) == [1, 1]


def test_a_failed_export_is_one_warning_and_not_a_log_line(receiver, caplog):
    receiver.statuses = [400, 400]
    with caplog.at_level(logging.DEBUG):
        observer = run(TARGETS)
    assert [each.text for each in observer.notices if each.kind == "monitoring-failed"] == [
        "OpenTelemetry failed: HTTP status 400; the run is not affected"
    ]
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


def test_failed_metrics_do_not_keep_the_trace_back(receiver):
    receiver.statuses = [400]
    run(TARGETS)
    assert receiver.paths == ["/v1/metrics", "/v1/traces"]


@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL"])
def test_another_protocol_is_refused(monkeypatch, variable):
    monkeypatch.setenv(variable, "grpc")
    with pytest.raises(UsageError, match=f"{variable} is 'grpc', but --otel sends http/protobuf"):
        run(TARGETS)


def test_an_empty_variable_counts_as_unset(receiver, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "")
    run(TARGETS)
    assert receiver.paths == ["/v1/metrics", "/v1/traces"]


def waited_for() -> set[threading.Thread]:
    """The threads that the interpreter waits for at its exit."""
    return {thread for thread in threading.enumerate() if not thread.daemon}


def test_nothing_is_left_that_waits_at_the_exit_of_the_process(receiver):
    run(TARGETS)  # imports the libraries, which register functions of their own
    handlers, threads = atexit._ncallbacks(), waited_for()
    run(TARGETS)
    assert receiver.paths == ["/v1/metrics", "/v1/traces"] * 2
    assert atexit._ncallbacks() == handlers
    assert waited_for() <= threads


def test_a_receiver_that_hangs_delays_the_end_by_two_seconds(receiver):
    receiver.hangs = True
    ended_at = []

    async def timed(main: Callable[[], Awaitable[None]]) -> None:
        await main()
        ended_at.append(anyio.current_time())

    observer = run(TARGETS, flush_s=FLUSH_S, run_loop=lambda main: run_virtual(timed, main))
    assert ended_at == [pytest.approx(FLUSH_S, abs=0.1)]
    assert [each.text for each in observer.notices if each.kind == "monitoring-failed"] == [
        "OpenTelemetry failed: not finished within 2.0 s at the end; the run is not affected"
    ]


def test_missing_packages_are_named_with_the_install_command(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with receiving() as receiver, pytest.raises(UsageError) as refused:
        run(Targets(otel=True, ping=f"{receiver.url}/check"))
    assert str(refused.value).startswith(
        "--otel needs opentelemetry-sdk and opentelemetry-exporter-otlp-proto-http; install them with: "
    )
    assert "batchcl[" in str(refused.value)
    assert "otel]" in str(refused.value)
    assert [path.partition("?")[0] for path in receiver.paths] == ["/check/start", "/check/2"]
