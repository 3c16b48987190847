"""`batchcl run`, `retry` and `doctor` with monitoring, from the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from unittest import mock

import pytest
from prometheus_client.parser import text_string_to_metric_families

from receivers import receiving
from servers import aws_env


@pytest.fixture
def env(service):
    return aws_env(service)


@pytest.fixture(autouse=True)
def _patience() -> Iterator[None]:
    """Busy machines may take longer than the two seconds at the end of a run."""
    with mock.patch("batchcl.monitoring.monitor.FLUSH_S", 60.0):
        yield


@pytest.fixture
def receiver():
    with receiving() as made:
        yield made


def test_a_run_reports_to_every_back_end_and_records_no_secret(cli, demo, env, receiver, tmp_path):
    out, metrics = tmp_path / "out", tmp_path / "nightly.prom"
    secrets = {"BATCHCL_PING": f"{receiver.url}/check/secret", "BATCHCL_WEBHOOK": f"{receiver.url}/hook/secret"}
    otel = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"{receiver.url}/otlp"}
    flags = ("--metrics-file", metrics, "--otel")
    job = ("--model", demo.arn, "--out", out, "--run-id", "night")
    done = cli("run", demo.data.images, *job, "--limit", 5, *flags, env=env | secrets | otel)
    assert done.code == 0, done.err
    assert "monitoring" not in done.both
    paths = [path.partition("?")[0] for path in receiver.paths]
    assert set(paths) == {
        "/check/secret/start",
        "/check/secret",
        "/hook/secret",
        "/otlp/v1/metrics",
        "/otlp/v1/traces",
    }
    (sent,) = [request.json for request in receiver.requests if request.path == "/hook/secret"]
    assert (sent["run_id"], sent["scored"], sent["exit_code"], sent["root"]) == ("night", 5, 0, str(out))
    values = {
        sample.name + sample.labels.get("outcome", ""): sample.value
        for family in text_string_to_metric_families(metrics.read_text())
        for sample in family.samples
    }
    assert (values["batchcl_images_totalscored"], values["batchcl_last_exit_code"]) == (5, 0)
    record = (out / "runs" / "night" / "run.json").read_text()
    assert "secret" not in record
    assert "metrics_file" not in record

    receiver.requests.clear()
    again = cli("retry", out, "night", env=env | {"BATCHCL_PING": f"{receiver.url}/check", "BATCHCL_OTEL": "false"})
    assert again.code == 0, again.err
    assert [path.partition("?")[0] for path in receiver.paths] == ["/check/start", "/check"]


def test_a_refused_run_and_a_refused_retry_are_reported(cli, demo, env, receiver, tmp_path):
    (tmp_path / "file").touch()
    targets = ("--ping", f"{receiver.url}/check", "--webhook", f"{receiver.url}/hook")
    done = cli("run", demo.data.images, "--model", demo.arn, "--out", tmp_path / "file", *targets, env=env)
    assert done.code == 5
    paths = [path.partition("?")[0] for path in receiver.paths]
    assert sorted(paths) == ["/check/5", "/check/start", "/hook"]
    (sent,) = [request.json for request in receiver.requests if request.path == "/hook"]
    assert (sent["status"], sent["severity"]) == ("refused", "error")
    assert sent["reason"] in done.err
    receiver.requests.clear()
    assert cli("retry", tmp_path / "out", "night", *targets, env=env).code == 5
    assert "/check/5" in [path.partition("?")[0] for path in receiver.paths]


def test_a_failing_back_end_changes_neither_result_nor_exit_code(cli, demo, env, receiver, tmp_path):
    receiver.statuses = [400, 400, 400]
    targets = ("--ping", f"{receiver.url}/secret", "--webhook", f"{receiver.url}/secret")
    job = ("--model", demo.arn, "--out", tmp_path / "out", "--limit", 5)
    done = cli("run", demo.data.images, *job, *targets, "--log-format", "json", "--json", env=env)
    assert done.code == 0, done.err
    assert done.json["scored"] == 5
    lines = [json.loads(line) for line in done.err.splitlines()]
    warnings = [line for line in lines if line["event"] == "monitoring-failed"]
    assert sorted(line["message"] for line in warnings) == [
        f"the ping of {receiver.url} failed: HTTP status 400; the run is not affected",
        f"the webhook {receiver.url} failed: HTTP status 400; the run is not affected",
    ]
    assert {line["level"] for line in warnings} == {"warning"}


def test_doctor_checks_monitoring_and_sends_nothing(cli, demo, env, receiver, tmp_path):
    job = ("--model", demo.arn, "--out", tmp_path / "out", "--otel", "--webhook", f"{receiver.url}/secret")
    done = cli("doctor", demo.data.images, *job, "--metrics-file", tmp_path / "n.prom", "--json", env=env)
    found = {each["check"]: each for each in done.json["findings"]}
    assert (found["monitoring"]["status"], found["monitoring"]["text"]) == (
        "ok",
        f"{tmp_path}/n.prom can be written; OpenTelemetry is installed; nothing was sent to {receiver.url}",
    )
    assert not receiver.requests
    assert not list(tmp_path.glob("*prom*"))
    grpc = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    refused = cli("doctor", demo.data.images, *job, "--json", env=env | grpc)
    found = {each["check"]: each for each in refused.json["findings"]}
    assert found["monitoring"]["status"] == "fail"
    assert "secret" not in done.both + refused.both


@pytest.mark.parametrize(
    ("flag", "value", "problem"),
    [
        ("--webhook", "hooks.example/secret", "--webhook ...: expected a URL such as https://host/path"),
        ("--metrics-file", "gone/n.prom", "--metrics-file 'gone/n.prom': there is no directory gone"),
        ("--sns-topic", "nights", "--sns-topic 'nights' is not the ARN of a standard SNS topic"),
    ],
)
def test_an_invalid_target_is_refused_in_one_sentence(cli, env, flag, value, problem, tmp_path):
    done = cli("run", "x/", "--model", "m", "--out", "out", flag, value, env=env, cwd=tmp_path)
    assert done.code == 2
    assert problem in done.err
    assert "secret" not in done.err
    assert len(done.err.splitlines()) == 1
