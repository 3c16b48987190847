"""Running models in all regions, and alarms about those without a lease: an emulator, and moto's CloudWatch and SNS."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.request import Request, urlopen

import pytest

import batchcl
from servers import aws_env, client, model_status, start_model
from unit.emulator.harness import serving_here


class Cloud:
    """An emulator with the demo's model, RUNNING with two units and without a lease."""

    def __init__(self, endpoint: str, arn: str, moto: str) -> None:
        self.endpoint = endpoint
        self.arn = arn
        self.moto = moto
        self.now = dt.datetime.now(dt.UTC).replace(second=0, microsecond=0)
        services = ("CLOUDWATCH", "SNS", "SCHEDULER")
        self.env = aws_env(endpoint) | {f"AWS_ENDPOINT_URL_{name}": moto for name in services}

    def lease(self, value: str) -> None:
        client("rekognition", self.endpoint).tag_resource(ResourceArn=self.arn, Tags={"batchcl:lease/x": value})

    def has_run_for(self, minutes: int, units: float) -> None:
        """Put the metrics of the minutes until now."""
        _, project, _, version, _ = self.arn.split("/")
        dimensions = [{"Name": "ProjectName", "Value": project}, {"Name": "VersionName", "Value": version}]
        data = [
            {
                "MetricName": "InServiceInferenceUnits",
                "Dimensions": dimensions,
                "Timestamp": self.now - dt.timedelta(minutes=ago),
                "Value": units,
            }
            for ago in range(1, minutes + 1)
        ]
        client("cloudwatch", self.moto).put_metric_data(Namespace="AWS/Rekognition", MetricData=data)


@pytest.fixture
def cloud(demo, moto) -> Iterator[Cloud]:
    client("cloudwatch", moto)
    with serving_here(demo.state, start_seconds=0) as endpoint:
        start_model(endpoint, demo.arn, units=2)
        yield Cloud(endpoint, demo.arn, moto)


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The URL of a webhook, and the documents that it has received."""
    received: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/secret-path", received
    server.shutdown()
    server.server_close()


def test_running_models_of_all_regions(cli, cloud, monkeypatch):
    unknown = cli("model", "list", "--all-regions", "--running", "--json", env=cloud.env)
    assert unknown.code == 0, unknown.err
    (model,) = unknown.json
    assert (model["model"], model["region"], model["status"], model["min_units"]) == (
        "digits@v1",
        "us-east-1",
        "RUNNING",
        2,
    )
    assert (model["is_leased"], model["since"], model["age_s"], model["cost_usd"]) == (False, None, None, None)

    cloud.has_run_for(90, units=2)
    known = cli("model", "list", "--running", env=cloud.env)
    assert known.code == 0, known.err
    assert "unknown" not in known.out
    assert "$12.00" in known.out  # 90 minutes of 2 units
    assert "no lease: started by other means" in known.out

    for name, value in cloud.env.items():
        monkeypatch.setenv(name, value)
    found = batchcl.running_models_sync(all_regions=True)
    assert [each.since_source for each in found.models] == [batchcl.AgeSource.CLOUDWATCH]
    assert [each.since for each in found.models] == [cloud.now - dt.timedelta(minutes=90)]
    assert {"us-east-1", "eu-west-1", "ap-northeast-1"} <= set(found.regions)
    assert found.skipped == ()

    cloud.lease(
        f"{cloud.now + dt.timedelta(hours=1):%FT%TZ} started run r since {cloud.now - dt.timedelta(minutes=30):%FT%TZ}"
    )
    leased = cli("model", "list", "--running", env=cloud.env)
    assert "up to $" in leased.out
    assert f"leased until {cloud.now + dt.timedelta(hours=1):%FT%TZ} by run r\n" in leased.out


@pytest.fixture
def partly_closed(cloud) -> Iterator[dict[str, str]]:
    """The environment of an account without eu-south-2 and il-central-1, and without permissions in eu-west-2."""
    codes = {
        "eu-south-2": "UnrecognizedClientException",
        "il-central-1": "UnrecognizedClientException",
        "eu-west-2": "AccessDeniedException",
    }

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            region = self.headers["Authorization"].split("/")[2]
            if region in codes:
                status, answer = 400, json.dumps({"__type": codes[region], "Message": "not here"}).encode()
            else:
                request = Request(cloud.endpoint, data=body, headers=dict(self.headers))
                with urlopen(request, timeout=10) as response:
                    status, answer = response.status, response.read()
            self.send_response(status)
            self.send_header("Content-Type", "application/x-amz-json-1.1")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield cloud.env | {"AWS_ENDPOINT_URL_REKOGNITION": cloud.endpoint.rpartition(":")[0] + f":{server.server_port}"}
    server.shutdown()
    server.server_close()


def test_regions_that_refuse_are_skipped(cli, cloud, partly_closed):
    cloud.lease(f"{cloud.now - dt.timedelta(hours=1):%FT%TZ} started run dead")
    done = cli("model", "reap", "--all-regions", "--alarm", "--json", env=partly_closed)
    assert done.code == 0, done.err
    assert [(each["done"], each["region"]) for each in done.json] == [("stopped", "us-east-1")]
    lines = done.err.splitlines()
    assert (
        "batchcl: skipped eu-south-2, il-central-1: not enabled for this account, or not with these credentials"
        in lines
    )
    assert [line for line in lines if line.startswith("batchcl: skipped eu-west-2: ") and "AccessDenied" in line]
    alone = cli("model", "list", "--running", "--region", "eu-west-2", env=partly_closed)
    assert alone.code == 5
    assert "AccessDenied" in alone.err


def test_all_models_of_all_regions(cli, cloud):
    done = cli("model", "list", "--all-regions", "--json", env=cloud.env)
    assert done.code == 0, done.err
    assert [each["arn"] for each in done.json] == [cloud.arn]
    none = cli("model", "list", "--all-regions", "--running", "--project", "cats", env=cloud.env)
    assert (none.code, none.out) == (0, "")
    assert "no model is running in 15 regions" in none.err
    missing = cli("model", "list", "--running", "--project", "cats", env=cloud.env)
    assert missing.code == 5
    assert "there is no project cats" in missing.err


def test_an_alarm_is_sent_and_the_model_stays(cli, cloud, receiver, tmp_path):
    url, received = receiver
    metrics = tmp_path / "reap.prom"
    topic = client("sns", cloud.moto).create_topic(Name="alarms")["TopicArn"]
    flags = ("--all-regions", "--alarm", "--metrics-file", metrics, "--sns-topic", topic)
    env = cloud.env | {"BATCHCL_ALARM_WEBHOOK": url, "BATCHCL_WEBHOOK": "http://127.0.0.1:9/of-runs"}
    done = cli("model", "reap", *flags, "--json", env=env)
    assert done.code == 3, done.err
    assert [(each["done"], each["alarm"], each["region"]) for each in done.json] == [("left", True, "us-east-1")]
    assert "1 model without a lease, which nothing stops: digits@v1 in us-east-1" in done.err
    assert "secret-path" not in done.err
    assert [each["event"] for each in received] == ["models-without-lease"]
    assert received[0]["models"][0]["arn"] == cloud.arn
    assert 'batchcl_models_without_lease{task="reap"} 1.0' in metrics.read_text()
    assert model_status(cloud.endpoint, cloud.arn) == "RUNNING"

    cloud.lease(f"{cloud.now + dt.timedelta(hours=1):%FT%TZ} started run r")
    calm = cli("model", "reap", *flags, env=env)
    assert calm.code == 0, calm.err
    assert len(received) == 1
    assert 'batchcl_models_without_lease{task="reap"} 0.0' in metrics.read_text()


def test_a_dry_run_sends_no_alarm(cli, cloud, receiver):
    url, received = receiver
    done = cli("model", "reap", "--alarm", "--dry-run", "--webhook", url, env=cloud.env)
    assert (done.code, received) == (3, [])


def test_an_invalid_variable_of_an_alarm_is_named(cli):
    env = {"BATCHCL_ALARM_WEBHOOK": "nonsense-secret"}
    refused = cli("model", "reap", "--alarm", env=env)
    assert refused.code == 2
    assert "BATCHCL_ALARM_WEBHOOK: expected a URL" in refused.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--older-than", "1h"), "need --alarm"),
        (("--webhook", "https://x/y"), "need --alarm"),
        (("--alarm", "--older-than", "soon"), "'soon' is not a duration"),
        (("--alarm", "--ping", "nonsense-secret"), "--ping: expected a URL"),
    ],
)
def test_mistakes_are_refused_before_a_request(cli, flags, message):
    done = cli("model", "reap", *flags, env=aws_env("http://127.0.0.1:9"))
    assert done.code == 2, done.err
    assert message in done.err
    assert "secret" not in done.err
