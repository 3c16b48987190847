"""Commands with misbehaving networks and servers end with results or one clear sentence, never a traceback."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal

from certificates import certificates
from servers import CommandResult, aws_env
from tables import published
from unit.aws.raw_server import CUT, HANG, Answers, Asked, RawServer, answering, http

MODEL = "arn:aws:rekognition:us-east-1:123456789012:project/digits/version/v1/1700000000000"
GOOD = b'{"CustomLabels":[{"Name":"seven","Confidence":97.5}]}'
CONTROL = {
    "DescribeProjects": {"ProjectDescriptions": [{"ProjectArn": MODEL.partition("/version")[0] + "/1600000000000"}]},
    "DescribeProjectVersions": {
        "ProjectVersionDescriptions": [{"ProjectVersionArn": MODEL, "Status": "RUNNING"}],
    },
}
OTHER_REGION_URL = "https://rekognition.eu-west-1.amazonaws.com/"
BAD_RESPONSES = (
    CUT,
    http(200, GOOD, length=len(GOOD) + 100) + CUT,
    http(200, b'["no", "labels"]'),
    http(200, b"<html>log in to the guests' network</html>", ("Content-Type", "text/html")),
    http(200, b"\x1f\x8b nonsense", ("Content-Encoding", "gzip")),
    http(503, b"busy"),
    HANG,
)


@contextmanager
def service(detect: Answers, *, version: str = "HTTP/1.1", **how: Any) -> Iterator[RawServer]:
    """A service with a working control plane; `detect` returns the response to the nth call of the model."""
    calls = 0

    def answer(_: int, asked: Asked) -> bytes:
        nonlocal calls
        operation = asked.headers["x-amz-target"].rpartition(".")[2]
        if operation != "DetectCustomLabels":
            response = http(200, json.dumps(CONTROL.get(operation, {})).encode(), version=version)
            return response + CUT if version == "HTTP/1.0" else response
        calls += 1
        return detect(calls - 1, asked)

    with start_blocking_portal() as portal, portal.wrap_async_context_manager(answering(**how)) as server:
        server.answers = answer
        yield server


@pytest.fixture
def score(demo, cli, tmp_path) -> Callable[..., CommandResult]:
    """Run over ten images, and check what all outcomes have in common."""

    def run(env: dict[str, str]) -> CommandResult:
        done: CommandResult = cli(
            *("run", demo.data.images, "--limit", 10, "--model", MODEL, "--out", tmp_path / "out", "--json"),
            env=env,
        )
        assert "Traceback" not in done.err, done.err[-4000:]
        why = done.err.replace("batchcl: results so far are saved; ", "")
        assert why.count("batchcl: ") <= 1 or done.code == 0, done.err
        return done

    return run


@pytest.fixture
def detect(demo, cli) -> Callable[[dict[str, str]], CommandResult]:
    """Score one image with `batchcl detect`, which reports connection errors without the checks of `run`."""

    def one(env: dict[str, str]) -> CommandResult:
        done: CommandResult = cli("detect", next(demo.data.images.iterdir()), "--model", MODEL, env=env)
        assert "Traceback" not in done.err, done.err[-4000:]
        return done

    return one


def test_each_bad_response_costs_one_call_and_no_image(score, tmp_path):
    def detect(number: int, _: Asked) -> bytes:
        return BAD_RESPONSES[number] if number < len(BAD_RESPONSES) else http(200, GOOD)

    with service(detect) as server:
        done = score(aws_env(server.url))
    assert done.code == 0, done.err
    assert (done.json["scored"], done.json["calls"]) == (10, 10 + len(BAD_RESPONSES))
    rows = published(tmp_path / "out")
    assert rows["uri"].n_unique() == rows.height == 10
    assert rows["labels"].list.len().to_list() == [1] * 10


def test_an_http_1_0_server_that_closes_each_connection_works(score):
    with service(lambda *_: http(200, GOOD, version="HTTP/1.0") + CUT, version="HTTP/1.0") as server:
        done = score(aws_env(server.url))
    assert done.code == 0, done.err
    assert (done.json["scored"], done.json["calls"]) == (10, 10)


def test_a_redirect_to_another_region_stops_the_run(score):
    with service(lambda *_: http(307, b"", ("Location", OTHER_REGION_URL))) as server:
        done = score(aws_env(server.url))
    assert done.code == 5, done.err
    assert re.search(rf"responded with 307 and redirects to {OTHER_REGION_URL}; check the region", done.err)
    assert done.json["status"] == "stopped"


def test_an_untrusted_certificate_error_names_aws_ca_bundle(detect, tmp_path):
    tls, _ = certificates(tmp_path)
    with service(lambda *_: http(200, GOOD), tls=tls) as server:
        https = server.url.replace("http:", "https:")
        refused = detect(aws_env(https))
        trusted = detect(aws_env(https) | {"AWS_CA_BUNDLE": str(tmp_path / "ca.pem")})
    assert refused.code == 5
    assert "certificate" in refused.err
    assert "AWS_CA_BUNDLE" in refused.err
    assert trusted.code == 0, trusted.err


def test_a_malformed_control_plane_response_is_one_sentence(score):
    with service(lambda *_: http(200, GOOD)) as server:
        server.answers = lambda *_: http(200, b'["no", "projects"]')
        done = score(aws_env(server.url))
    assert done.code == 5, done.err
    assert "malformed response; check the endpoint and the proxy" in done.err


def test_a_response_that_is_not_from_aws_is_one_sentence(score, cli):
    """For example an S3 server; the message shows only the beginning of its error page."""
    page = http(403, b"<Error>\n  <Code>AccessDenied</Code>\n" + b"<!-- more -->\n" * 100 + b"</Error>\n")
    with service(lambda *_: page) as server:
        server.answers = lambda *_: page
        control = score(aws_env(server.url))
        bucket = cli("plan", "s3://photos/", "--model", MODEL, env=aws_env(s3=server.url))
    assert control.code == 5
    assert control.sentence.count("\n") == 1, control.err
    assert "the response is not from AWS; check the endpoint and the proxy" in control.err
    assert len(control.err) < 800
    assert (bucket.code, bucket.sentence.count("\n")) == (5, 1), bucket.err


def test_a_missing_ca_bundle_is_named(score):
    with service(lambda *_: http(200, GOOD)) as server:
        done = score(aws_env(server.url) | {"AWS_CA_BUNDLE": "/no/such.pem"})
    assert done.code == 5
    assert "the CA certificates in /no/such.pem can't be read: there is no such file; check AWS_CA_BUNDLE" in done.err


def test_a_proxy_that_closes_connections_is_reported(detect):
    with service(lambda *_: CUT) as proxy:
        proxy.answers = lambda *_: CUT
        done = detect(aws_env("http://rekognition.invalid") | {"HTTP_PROXY": proxy.url, "http_proxy": proxy.url})
        assert proxy.asked
    assert done.code == 3, done.err
    assert "ConnectionLost: the connection to http://rekognition.invalid was lost" in done.err
