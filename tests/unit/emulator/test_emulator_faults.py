"""Fault injection, auto-scaling, latencies and usage."""

from __future__ import annotations

import http.client
import json
import math
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.exceptions
import pytest

from batchcl.emulator.capacity import AutoScaler, Capacity, Latency
from batchcl.emulator.digits import DigitsDataset
from batchcl.emulator.fault_injection import Injector, load_faults, parse_faults
from batchcl.errors import UsageError
from unit.emulator.harness import Server, Trained, running_model, running_server, train

IMAGE = {"S3Object": {"Bucket": "small", "Name": "test/00000.png"}}


def fates(rules: list[dict[str, Any]], *, seed: int = 0, calls: int = 400, operation: str = "X") -> list[bool]:
    injector = Injector()
    injector.replace(parse_faults({"seed": seed, "faults": rules}, where="a test"), now=100.0)
    return [injector.draw(operation, now=100.0 + n).error is not None for n in range(calls)]


def test_the_same_seed_fails_the_same_calls() -> None:
    rule = {"kind": "throttle", "share": 0.25}
    first = fates([rule], seed=1)
    assert first == fates([rule], seed=1) == fates([rule, {"kind": "latency", "share": 0.5}], seed=1)
    assert first != fates([rule], seed=2)
    assert 60 < sum(first) < 140


def test_rules_apply_by_time_count_and_operation() -> None:
    assert fates([{"kind": "internal", "skip": 2, "times": 3}], calls=8) == [False] * 2 + [True] * 3 + [False] * 3
    assert fates([{"kind": "internal", "after_s": 2, "until_s": 4}], calls=6) == [False] * 2 + [True] * 2 + [False] * 2
    assert not any(fates([{"kind": "internal", "operation": "Y"}]))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("faults = [", "reading the faults file .* failed"),
        ("[[faults]]\nkind = 'sorcery'", r"faults\.0\.kind"),
        ("[[faults]]\nkind = 'reset'\nshare = 2", r"faults\.0\.share"),
        ("[[faults]]\nkind = 'reset'\nsahre = 1", r"faults\.0\.sahre"),
    ],
)
def test_invalid_faults_files_are_refused(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "f.toml").write_text(text)
    with pytest.raises(UsageError, match=why):
        load_faults(tmp_path / "f.toml")
    with pytest.raises(UsageError, match="reading the faults file"):
        load_faults(tmp_path / "none.toml")


@pytest.fixture(scope="module")
def model(small_digits: DigitsDataset) -> Iterator[Trained]:
    with running_model(small_digits) as trained:
        yield trained


def admin(server: Server, path: str, method: str = "GET", body: Any = None, **headers: str) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    connection = http.client.HTTPConnection(server.endpoint.removeprefix("http://"), timeout=10)
    connection.request(method, f"/_emulator/{path}", body=data, headers=headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, json.loads(content) if content.startswith(b"{") else content


def inject(server: Server, *rules: dict[str, Any]) -> None:
    status, report = admin(server, "faults", "PUT", {"faults": rules})
    assert status == 200, report


def detect(model: Trained) -> dict[str, Any]:
    answer: dict[str, Any] = model.client.detect_custom_labels(
        ProjectVersionArn=model.arn, Image=IMAGE, MinConfidence=0
    )
    return answer


ANSWERS = [
    ("throttle", 400, "ProvisionedThroughputExceededException", "Provisioned Rate exceeded"),
    ("throttle-s3", 400, "ProvisionedThroughputExceededException", "S3 download limit exceeded"),
    ("slow-down", 400, "ThrottlingException", "Slow down; sudden increase in rate of requests"),
    ("service-unavailable", 500, "ThrottlingException", "Service Unavailable"),
    ("internal", 500, "InternalServerError", "Amazon Rekognition experienced a service issue."),
    ("expired-credentials", 400, "ExpiredTokenException", "The security token included in the request is expired"),
]


@pytest.mark.parametrize(("kind", "status", "code", "message"), ANSWERS)
def test_error_faults_return_their_error(kind: str, status: int, code: str, message: str, model: Trained) -> None:
    inject(model.server, {"kind": kind, "operation": "DetectCustomLabels", "times": 1})
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        detect(model)
    response = caught.value.response
    assert (response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]) == (
        status,
        {"Code": code, "Message": message},
    )
    assert detect(model)["CustomLabels"]
    assert (
        admin(model.server, "faults")[1]["faults"][0] | {"met": 2, "struck": 1}
        == (admin(model.server, "faults")[1]["faults"][0])
    )


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("reset", botocore.exceptions.ConnectionClosedError),
        ("truncated", botocore.exceptions.ConnectionClosedError),
        ("http-503", botocore.exceptions.ClientError),
    ],
)
def test_connection_faults_break_the_response(kind: str, error: type[Exception], model: Trained) -> None:
    inject(model.server, {"kind": kind, "times": 1})
    with pytest.raises(error):
        detect(model)
    assert detect(model)["CustomLabels"]


def test_botocore_reads_a_malformed_response_as_empty(model: Trained) -> None:
    inject(model.server, {"kind": "malformed", "times": 1})
    assert "CustomLabels" not in detect(model)
    assert detect(model)["CustomLabels"]


def test_clock_skew_is_visible_in_the_date_header(model: Trained) -> None:
    inject(model.server, {"kind": "clock-skew", "seconds": 3600, "times": 1})
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        detect(model)
    response = caught.value.response
    assert response["Error"]["Code"] == "RequestTimeTooSkewed"
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 403
    told = response["ResponseMetadata"]["HTTPHeaders"]["date"]
    assert told != detect(model)["ResponseMetadata"]["HTTPHeaders"]["date"]


def test_latency_faults_delay_the_response(model: Trained) -> None:
    inject(model.server, {"kind": "latency", "milliseconds": 300, "times": 1})
    connection = http.client.HTTPConnection(model.server.endpoint.removeprefix("http://"), timeout=0.1)
    connection.request("POST", "/")
    with pytest.raises(TimeoutError):
        connection.getresponse()
    connection.close()
    assert detect(model)["CustomLabels"]


def test_a_model_stopped_by_a_fault_can_be_started_again(model: Trained) -> None:
    inject(model.server, {"kind": "model-stops", "operation": "DetectCustomLabels", "skip": 1, "times": 1})
    assert detect(model)["CustomLabels"]
    with pytest.raises(botocore.exceptions.ClientError, match="ResourceNotReadyException"):
        detect(model)
    model.client.start_project_version(ProjectVersionArn=model.arn, MinInferenceUnits=1)
    assert detect(model)["CustomLabels"]


def test_admin_routes_refuse_invalid_rules_and_browsers(model: Trained) -> None:
    inject(model.server, {"kind": "throttle", "operation": "None"})
    status, told = admin(model.server, "faults", "PUT", {"faults": [{"kind": "sorcery"}]})
    assert status == 400
    assert "faults.0.kind" in told["error"]
    assert admin(model.server, "faults")[1]["faults"][0]["kind"] == "throttle"
    assert admin(model.server, "faults", "DELETE", Origin="https://example.org")[0] == 403
    assert admin(model.server, "faults", "DELETE")[1]["faults"] == []


@pytest.mark.parametrize(
    "host", ["example.org", "127.0.0.1.example.org:80", "10.0.0.1", "[2001:db8::1]:9", "localhost.example.org", ""]
)
def test_host_headers_of_other_machines_are_refused(model: Trained, host: str) -> None:
    """With DNS rebinding, a page's requests have no Origin, but its own name as Host."""
    for path in ("faults", "usage", "clock", "nothing"):
        assert admin(model.server, path, Host=host)[0] == 403
    status, told = admin(model.server, "../", "POST", {}, Host=host)
    assert (status, told["__type"]) == (403, "AccessDeniedException")


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:99", "emulator.localhost:99", "[::1]:99", "[::1]", "127.8.9.10"]
)
def test_host_headers_of_this_machine_are_accepted(model: Trained, host: str) -> None:
    assert admin(model.server, "usage", Host=host)[0] == 200


def test_faults_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "faults.toml").write_text(
        'seed = 3\n[[faults]]\nkind = "error"\ncode = "AccessDeniedException"\nmessage = "no"\ntimes = 1\n'
    )
    with running_server(buckets=tmp_path, faults=tmp_path / "faults.toml") as server:
        with pytest.raises(botocore.exceptions.ClientError, match=r"AccessDeniedException.*no"):
            server.client().describe_projects()
        assert server.client().describe_projects()["ProjectDescriptions"] == []


# inference units and usage


def test_units_follow_the_load_one_step_at_a_time() -> None:
    scaler = AutoScaler(min_units=1, max_units=3, tps_per_unit=2, period_s=10, now=0)

    def load(tps: float, *, now: float) -> list[tuple[float, int]]:
        for _ in range(round(tps * 10)):
            scaler.offer()
        return scaler.advance(now)

    assert load(1.7, now=10) == []
    assert load(1.9, now=20) == [(20, 2)]
    assert load(100, now=30) == [(30, 3)]
    assert load(100, now=40) == []
    assert load(2.5, now=50) == []
    assert load(2.3, now=60) == [(60, 2)]
    assert scaler.advance(69) == []
    assert scaler.advance(1_000_000) == [(70, 1)]
    assert load(100, now=1_000_010) == [(1_000_010, 2)]


def test_large_images_add_a_unit_with_fewer_calls() -> None:
    for megapixels, changes in ((0.1, []), (1.0, [(10, 2)])):
        capacity = Capacity(tps_per_unit=2, account_tps=100, control_tps=100, seconds_per_megapixel=1)
        scaler = AutoScaler(min_units=1, max_units=3, tps_per_unit=2, period_s=10, now=0)
        for second in range(10):
            capacity.admit_inference("arn", units=5, now=second)
            scaler.offer()
            scaler.offer(capacity.charge_pixels("arn", round(megapixels * 1e6)))
        assert scaler.advance(10) == changes


def usage(server: Server) -> dict[str, Any]:
    with urllib.request.urlopen(f"{server.endpoint}/_emulator/usage", timeout=10) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def test_usage_counts_running_units_also_after_a_restart(small_digits: DigitsDataset, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "buckets": small_digits.directory,
        "state": tmp_path,
        "train_seconds": 30,
        "start_seconds": 10,
        "stop_seconds": 10,
        "scale_seconds": 40,
        "tps_per_unit": 0.01,
    }

    def unit_seconds(server: Server) -> float:
        return float(usage(server)["inference_unit_hours"]) * 3600

    with running_server(**settings) as server:
        client = server.client()
        project = client.create_project(ProjectName="p")["ProjectArn"]
        arn = _trained(client, project, server)
        assert usage(server)["training_hours"] * 3600 == pytest.approx(30, abs=8)
        client.start_project_version(ProjectVersionArn=arn, MinInferenceUnits=2, MaxInferenceUnits=3)
        assert unit_seconds(server) == 0
        server.clock.ahead += 10
        client.detect_custom_labels(
            ProjectVersionArn=arn, Image=IMAGE
        )  # one image is admitted, the next ones are throttled
        for _ in range(10):
            with pytest.raises(botocore.exceptions.ClientError):
                client.detect_custom_labels(ProjectVersionArn=arn, Image=IMAGE)
        server.clock.ahead += 40
        assert usage(server)["versions"][arn]["units_in_service"] == 3
        server.clock.ahead += 40  # without load, the third unit is removed
        assert usage(server)["versions"][arn]["units_in_service"] == 2
        client.stop_project_version(ProjectVersionArn=arn)
        assert unit_seconds(server) == pytest.approx(2 * 40 + 3 * 40, abs=12)
        server.clock.ahead += 50
        assert unit_seconds(server) == pytest.approx(200, abs=12)
        client.start_project_version(ProjectVersionArn=arn, MinInferenceUnits=1)
        server.clock.ahead += 10
        assert usage(server)["versions"][arn]["units_in_service"] == 1
        server.clock.ahead += 60
    with running_server(**settings) as server:
        assert unit_seconds(server) == pytest.approx(260, abs=15)
        server.client().delete_project_version(ProjectVersionArn=arn)
        assert usage(server)["versions"][arn]["status"] == "DELETED"
        assert unit_seconds(server) == pytest.approx(260, abs=15)


def _trained(client: Any, project: str, server: Server) -> str:
    manifest = {"GroundTruthManifest": {"S3Object": {"Bucket": "small", "Name": "train.manifest"}}}
    client.create_project_version(
        ProjectArn=project,
        VersionName="v",
        OutputConfig={"S3Bucket": "small", "S3KeyPrefix": "bill"},
        TrainingData={"Assets": [manifest]},
        TestingData={"AutoCreate": True},
    )
    while True:
        found = client.describe_project_versions(ProjectArn=project)["ProjectVersionDescriptions"][0]
        if usage_ready(server, found["ProjectVersionArn"]):
            server.clock.ahead += 30
            described = client.describe_project_versions(ProjectArn=project)["ProjectVersionDescriptions"][0]
            assert described["Status"] == "TRAINING_COMPLETED", described
            arn: str = found["ProjectVersionArn"]
            return arn


def usage_ready(server: Server, arn: str) -> bool:
    """Whether the work of a training is done, although `train_seconds` are not over."""
    return bool(usage(server)["versions"][arn]["training_hours"])


# latency and the cache


def test_latencies_have_the_configured_median_and_p99() -> None:
    draws = [Latency(median_s=0.1, p99_s=0.5, seed=1) for _ in range(2)]
    first, second = ([each.draw() for _ in range(5000)] for each in draws)
    assert first == second
    ordered = sorted(first)
    assert ordered[2500] == pytest.approx(0.1, rel=0.05)
    assert ordered[4950] == pytest.approx(0.5, rel=0.15)
    assert Latency(median_s=0.1, p99_s=0, seed=1).draw() == 0.1
    assert math.isclose(Latency(median_s=0, p99_s=5, seed=1).draw(), 0)


def test_cached_results_equal_those_of_the_model(small_digits: DigitsDataset) -> None:
    settings: dict[str, Any] = {"buckets": small_digits.directory, "train_seconds": 0, "start_seconds": 0}
    pictures = [p.path.read_bytes() for p in small_digits.test[:8]]

    def answers(server: Server) -> list[Any]:
        client = server.client()
        arn = train(client, bucket="small")["ProjectVersionArn"]
        client.start_project_version(ProjectVersionArn=arn, MinInferenceUnits=1)
        return [
            client.detect_custom_labels(ProjectVersionArn=arn, Image={"Bytes": picture}, **more)["CustomLabels"]
            for picture in [*pictures, *pictures]
            for more in ({"MinConfidence": 0}, {}, {"MinConfidence": 30, "MaxResults": 1})
        ]

    with running_server(**settings) as live, running_server(**settings, cached_inference=True) as cached:
        assert answers(live) == answers(cached)
