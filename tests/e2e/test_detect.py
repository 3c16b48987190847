"""`batchcl detect` against the emulator and a local S3, compared with the AWS CLI."""

from __future__ import annotations

import base64
import json
import shutil
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import anyio
import pytest
import yaml

import batchcl
from aws_cli import aws_cli
from batchcl.images import MAX_BYTES_INLINE
from certificates import certificates
from commands import run_command
from pixels import resized
from servers import REGION, CommandResult, aws_env, client, make_bucket

pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body directly")  # how aiobotocore sends any body
BUCKET = "detected"
Run = Callable[..., CommandResult]


@pytest.fixture
def env(clean_env, service, seaweed, monkeypatch, tmp_path) -> dict[str, str]:
    """The emulator and a local S3 in place of AWS; the working directory is empty."""
    variables: dict[str, str] = clean_env | aws_env(service, seaweed) | {"AWS_DEFAULT_REGION": REGION}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return variables


@pytest.fixture
def detect(env) -> Run:
    """`batchcl detect` in this process, which has already imported everything."""
    assert env

    return partial(run_command, "detect")


@pytest.fixture(scope="module")
def aws(clean_env, service, seaweed) -> Iterator[Callable[..., str]]:
    """Run `aws rekognition detect-custom-labels`; returns its stdout."""
    with aws_cli(clean_env | aws_env(service, seaweed)) as run:
        yield partial(run, "detect-custom-labels")


@pytest.fixture
def picture(demo, env) -> Path:
    """An image that the model was not trained on."""
    assert env
    source = min(demo.data.images.rglob("*.png"))
    return Path(shutil.copy(source, "picture.png"))


def inline(picture: Path) -> tuple[str, str]:
    """The AWS CLI's arguments to send the image itself."""
    return "--image-bytes", f"fileb://{picture.absolute()}"


def upload(seaweed: str, key: str, data: bytes) -> str:
    s3 = client("s3", seaweed)
    make_bucket(s3, BUCKET)
    s3.put_object(Bucket=BUCKET, Key=key, Body=data)
    return f"s3://{BUCKET}/{key}"


def names(answer: Any) -> list[str]:
    return [label["Name"] for label in answer["CustomLabels"]]


@pytest.mark.parametrize("options", [(), ("--min-confidence", 0.01, "--max-results", 3)], ids=["plain", "options"])
def test_the_output_for_a_file_equals_the_aws_cli_s(detect, aws, demo, picture, options):
    ours = detect(picture, "--model", demo.arn, *options, "--json")
    assert (ours.code, ours.err) == (0, "")
    theirs = json.loads(aws("--project-version-arn", demo.arn, *inline(picture), *options))
    assert ours.json == theirs
    assert theirs["CustomLabels"]


def test_the_output_for_an_object_equals_the_aws_cli_s(detect, aws, demo, picture, seaweed):
    key = "a b+c/ü.png"
    uri = upload(seaweed, key, picture.read_bytes())
    where = json.dumps({"S3Object": {"Bucket": BUCKET, "Name": key}})
    theirs = aws("--project-version-arn", demo.arn, "--image", where, "--min-confidence", 0)
    ours = detect(uri, "--model", "digits@v1", "--min-confidence", 0, "--json")
    assert ours.json == json.loads(theirs)


_EDGE = {"Width": 1, "Height": 0.5, "Left": 0.0, "Top": 0}
POLYGONS = {
    "CustomLabels": [
        {
            "Name": "Café №1",
            "Confidence": 99.10000228881836,
            "Geometry": {
                "BoundingBox": {"Width": 0.25, "Height": 1e-07, "Left": 0.5, "Top": 0.125},
                "Polygon": [{"X": 0.1, "Y": 0.2}, {"X": 0.3, "Y": 0.4}, {"X": 0.5, "Y": 0.6}],
            },
        },
        {"Name": "no", "Confidence": 50.0, "Geometry": {"BoundingBox": _EDGE, "Polygon": []}},
        {"Name": "whole image", "Confidence": 12.5},
    ]
}


class _Canned(BaseHTTPRequestHandler):
    """Returns `POLYGONS`, which no emulated model returns, for every call, and records the requests."""

    requests: ClassVar[list[tuple[dict[str, str], Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append(({name.lower(): value for name, value in self.headers.items()}, body))
        response = json.dumps(POLYGONS).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/x-amz-json-1.1")
        self.send_header("Content-Length", str(len(response)))
        self.end_headers()
        self.wfile.write(response)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def answering(tls: ssl.SSLContext | None = None) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Canned)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    _Canned.requests.clear()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def canned() -> Iterator[str]:
    with answering() as endpoint:
        yield endpoint


def test_boxes_and_polygons_equal_the_aws_cli_s(detect, aws, demo, picture, canned):
    ours = {
        form: detect(picture, "--model", demo.arn, "--endpoint-url", canned, "--output", form)
        for form in ("json", "yaml", "text", "table")
    }
    assert [each.code for each in ours.values()] == [0] * 4
    for form in ("json", "text"):
        theirs = aws("--endpoint-url", canned, "--project-version-arn", demo.arn, *inline(picture), "--output", form)
        assert ours[form].out == theirs if form == "text" else ours[form].json == json.loads(theirs)
    assert ours["json"].json == POLYGONS
    assert yaml.safe_load(ours["yaml"].out) == POLYGONS
    table = ours["table"].out.splitlines()
    assert table[0].split() == ["label", "confidence", "left", "top", "width", "height"]
    assert "12.50" in table[3]
    bodies = [body for _, body in _Canned.requests]
    assert bodies == bodies[:1] * 6, "the AWS CLI and batchcl send the same requests"


def test_query_selects_part_of_the_output(detect, aws, demo, picture):
    query = "CustomLabels[].[Name, Confidence]"
    flags = ("--min-confidence", 0, "--query", query)
    ours = detect(picture, "--model", demo.arn, *flags)
    theirs = aws("--project-version-arn", demo.arn, *inline(picture), *flags, "--output", "text")
    assert [name for name, _ in ours.json] == [line.split("\t")[0] for line in theirs.splitlines()]
    assert detect(picture, "--model", demo.arn, *flags, "--output", "text").out == theirs
    bad = detect(picture, "--model", demo.arn, "--query", "[")
    assert (bad.code, bad.out) == (2, "")


def test_one_failed_image_keeps_the_other_results(detect, demo, picture, seaweed):
    uri = upload(seaweed, "there.png", picture.read_bytes())
    Path("text.png").write_text("no picture")
    done = detect(picture, "text.png", uri, f"s3://{BUCKET}/missing.png", "--model", demo.arn, "--json")
    assert done.code == 3
    first, second, third, fourth = done.json["Images"]
    assert [each["Image"] for each in done.json["Images"]] == [
        str(picture),
        "text.png",
        uri,
        f"s3://{BUCKET}/missing.png",
    ]
    assert first["CustomLabels"] == third["CustomLabels"]
    assert second["Error"]["Code"] == "InvalidImageFormatException"
    assert fourth["Error"]["Code"] == "InvalidS3ObjectException"
    assert "text.png: InvalidImageFormatException" in done.err
    assert "--fit may fix this" in done.err
    table = detect(picture, uri, "--model", demo.arn)
    assert table.out.splitlines()[0].split()[0] == "image"


def test_stdin_and_a_request_file_are_accepted(detect, demo, picture):
    plain = detect(picture, "--model", demo.arn, "--min-confidence", 0, "--json").json
    assert detect("-", "--model", demo.arn, "--min-confidence", 0, "--json", stdin=picture.read_bytes()).json == plain
    request = detect("--skeleton").json
    request["ProjectVersionArn"] = demo.arn
    request["Image"]["Bytes"] = base64.b64encode(picture.read_bytes()).decode()
    del request["MaxResults"]
    Path("request.json").write_text(json.dumps(request))
    assert detect("--input-json", "request.json", "--json").json == plain
    few_labels = detect("--input-json", "-", "--max-results", 2, "--json", stdin=Path("request.json").read_bytes())
    assert few_labels.json["CustomLabels"] == plain["CustomLabels"][:2], "flags override the request"
    for form in (f" {json.dumps(request)}", f"file://{Path('request.json').absolute()}"):
        assert detect("--input-json", form, "--json").json == plain


def test_bytes_and_s3object_together_are_refused(detect, demo, service):
    image = {"Bytes": "aGVsbG8=", "S3Object": {"Bucket": BUCKET, "Name": "k"}}
    request = json.dumps({"ProjectVersionArn": demo.arn, "Image": image, "MinConfidence": 0})
    done = detect("--input-json", request)
    assert (done.code, "Image: expected Bytes or S3Object, got both" in done.err) == (2, True), done.err
    rekognition = client("rekognition", service)
    with pytest.raises(rekognition.exceptions.InvalidParameterException):
        rekognition.detect_custom_labels(ProjectVersionArn=demo.arn, Image=image | {"Bytes": b"hello"})


def test_a_request_can_name_an_object_version(detect, demo, picture, seaweed):
    s3 = client("s3", seaweed)
    make_bucket(s3, "versions")
    s3.put_bucket_versioning(Bucket="versions", VersioningConfiguration={"Status": "Enabled"})
    older = s3.put_object(Bucket="versions", Key="a.png", Body=picture.read_bytes())["VersionId"]
    s3.put_object(Bucket="versions", Key="a.png", Body=b"not an image")
    image = {"S3Object": {"Bucket": "versions", "Name": "a.png"}}
    words = ("--input-json", json.dumps({"ProjectVersionArn": demo.arn, "Image": image}))
    assert detect(*words).code == 3
    assert detect(*words, "--version-id", older).code == 0


def test_the_region_flag_overrides_the_arn_or_is_refused(detect, aws, demo, picture, monkeypatch):
    """As with the AWS CLI; the region of the environment does not override the region in the ARN."""
    words = ("--project-version-arn", demo.arn, *inline(picture), "--region", "eu-west-1")
    with pytest.raises(AssertionError, match="ResourceNotFoundException"):
        aws(*words)
    done = detect(picture, "--model", demo.arn, "--region", "eu-west-1")
    assert (done.code, "ResourceNotFoundException" in done.err) == (5, True), done.err
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert detect(picture, "--model", demo.arn).code == 0
    assert run_command("model", "show", demo.arn).code == 0
    other_region = run_command("model", "show", demo.arn, "--region", "eu-west-1")
    assert (other_region.code, "there is no model" in other_region.err) == (5, True), other_region.err
    for command in ("run", "plan", "doctor"):
        done = run_command(command, picture, "--model", demo.arn, "--out", "out", "--region", "eu-west-1")
        assert (done.code, done.out) == (5, "")
        assert f"is in {REGION}, and --region is eu-west-1; remove --region or use --region {REGION}" in done.err
    assert "region       eu-west-1" in run_command("doctor", "--region", "eu-west-1").out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "IMAGE is missing"),
        (("picture.png",), "--model is missing: name a model"),
        (("picture.png", "--model", "digits@"), "is not a model"),
        (("picture.png", "--model", "ARN", "--min-confidence", 101), "is not between 0 and 100"),
        (("picture.png", "--model", "ARN", "--max-results", -1), "is not between 0 and 2147483647"),
        (("picture.png", "--model", "ARN", "--max-results", 2**31), "is not between 0 and 2147483647"),
        (("picture.png", "--model", "ARN", "--version-id", "x"), "is not in S3"),
        (("s3://bucket", "--model", "ARN"), "is not s3://bucket/key"),
        (("-", "-", "--model", "ARN"), "- is given more than once"),
        (("-", "--model", "ARN"), "stdin is empty"),
        (("-", "--input-json", "-"), "is both an image and --input-json"),
        (("--input-json", "bad.json"), "Imagine: Extra inputs are not permitted"),
        (("--input-json", "nowhere.json"), "No such file"),
        (("--input-json", "{"), "--input-json is not a DetectCustomLabels request: JSON: Invalid JSON"),
        (("--input-json", '{"Image": {"Bytes": "!!!!"}}'), "Image.Bytes: invalid base64"),
        (("--input-json", '{"Image": {"Bytes": "aGVsbG"}}'), "Image.Bytes: invalid base64: Incorrect padding"),
        (("--input-json", '{"Image": {"S3Object": {"Bucket": "b"}}}'), "Image: S3Object needs Bucket and Name"),
        (("--input-json", '{"MaxResults": 2147483648}'), "MaxResults: Input should be less than or equal to"),
        (("--input-json", '{"Image": {"Bytes": "aGk="}}', "--version-id", "x"), "the request's image is bytes"),
        (("picture.png", "--model", "ARN", "--json", "--output", "text"), "exclude each other"),
        (("picture.png", "--model", "ARN", "--annotate", "boxes.gif"), "unknown format; name OUT.png"),
        (("picture.png", "picture.png", "--model", "ARN", "--annotate", "bad.json"), "name a directory"),
        (("picture.png", "picture.png", "--model", "ARN", "--annotate", "b.png"), "name a directory"),
        (("picture.png", "--model", "ARN", "--annotate", "bad.json"), "is not a PNG or JPEG"),
    ],
)
def test_bad_arguments_are_refused_without_a_call(detect, demo, picture, words, message):
    assert picture.exists()
    Path("bad.json").write_text('{"Imagine": 1}')
    done = detect(*(demo.arn if word == "ARN" else word for word in words))
    assert (done.code, done.out) == (2, ""), done.err
    assert message in done.err
    assert done.sentence.count("batchcl: ") == 1


def test_missing_models_and_files_are_reported(detect, demo, picture):
    other = demo.arn.replace("/v1/", "/v9/")
    assert (detect(picture, "--model", other).code, detect(picture, "--model", "digits@v9").code) == (5, 5)
    missing = detect("nowhere.png", "--model", demo.arn, "--json")
    assert (missing.code, missing.out) == (3, "")
    assert "nowhere.png: UnreadableFile: the file can't be read" in missing.err


def test_connection_flags_reach_the_service(detect, demo, picture, canned, monkeypatch):
    unsigned = detect(picture, "--model", demo.arn, "--no-sign-request", "--json", "--endpoint-url", canned)
    assert unsigned.code == 0, unsigned.err
    detect(picture, "--model", demo.arn, "--json", "--endpoint-url", canned)
    (first, _), (second, _) = _Canned.requests
    assert "authorization" not in first
    assert second["authorization"].startswith("AWS4-HMAC-SHA256")
    refused = detect(picture, "--model", demo.arn, "--no-sign-request")
    assert refused.code == 5
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    no_credentials = detect(picture, "--model", demo.arn)
    assert no_credentials.code == 5
    assert "no AWS credentials found" in no_credentials.err


def test_tls_flags_set_the_ca_bundle_or_disable_checks(detect, demo, picture, tmp_path):
    tls, bundle = certificates(tmp_path)
    with answering(tls) as endpoint:
        flags = (picture, "--model", demo.arn, "--endpoint-url", endpoint, "--json")
        assert detect(*flags, "--ca-bundle", bundle).json == POLYGONS
        assert detect(*flags, "--no-verify-ssl").json == POLYGONS
        refused = detect(*flags)
    assert (refused.code, refused.out) == (5, "")
    assert "Tls" in refused.err
    assert detect(*flags, "--ca-bundle", "nowhere.pem").code == 2


@pytest.mark.parametrize("kind", ["WEBP", "TIFF", "BMP"])
def test_fit_scores_an_image_that_the_service_would_refuse(detect, demo, picture, seaweed, kind):
    Path("other").write_bytes(resized(picture, kind, (300, 300)))
    uri = upload(seaweed, f"other.{kind.lower()}", Path("other").read_bytes())
    plain = detect("other", "--model", demo.arn, "--json")
    assert (plain.code, plain.out) == (3, "")
    done = detect("other", uri, "--model", demo.arn, "--fit", "--json")
    assert done.code == 0, done.err
    local, remote = done.json["Images"]
    assert local["CustomLabels"] == remote["CustomLabels"]
    assert names(local) == names(detect(picture, "--model", demo.arn, "--json").json)
    assert local["Fitted"] == remote["Fitted"]
    assert f"other was changed before sending: {kind} to " in done.err


def test_fit_resizes_only_images_that_are_too_large(detect, demo, picture, seaweed):
    wide = resized(picture, "PNG", (4500, 450))
    uri = upload(seaweed, "wide.png", wide)
    done = detect(uri, picture, "--model", demo.arn, "--fit", "--json")
    assert done.code == 0, done.err
    assert "4500 x 450 to 4096 x 410 pixels" in done.err
    assert "Fitted" not in done.json["Images"][1]
    assert len(wide) < MAX_BYTES_INLINE
    broken = upload(seaweed, "broken.jpg", b"\xff\xd8\xff" + bytes(1000))
    failed = detect(broken, "--model", demo.arn, "--fit", "--json")
    assert (failed.code, failed.out) == (3, "")


def test_fit_keeps_errors_that_it_can_not_fix(detect, demo, seaweed):
    uri = upload(seaweed, "empty.png", b"")
    done = detect(uri, "--model", demo.arn, "--fit")
    assert done.code == 3
    assert "EmptyFile" in done.err or "InvalidImageFormat" in done.err


def test_annotate_draws_each_image_with_an_answer(detect, demo, picture, seaweed):
    uri = upload(seaweed, "picture.png", picture.read_bytes())
    done = detect(picture, "--model", demo.arn, "--annotate", "one.jpg", "--json")
    assert done.code == 0, done.err
    assert Path("one.jpg").read_bytes().startswith(b"\xff\xd8\xff")
    assert names(done.json), "drawing does not change the output"
    many = detect(picture, uri, "-", "--model", demo.arn, "--annotate", "drawn", stdin=picture.read_bytes())
    assert many.code == 0, many.err
    assert sorted(path.name for path in Path("drawn").iterdir()) == ["picture-2.png", "picture.png", "stdin.png"]
    assert detect(picture, "--model", demo.arn, "--annotate", "made").code == 0
    assert Path("made/picture.png").exists(), "one image is named by the rule for several"


def test_the_python_api_returns_the_same_labels(demo, picture):
    bytes_, path, missing = anyio.run(
        partial(batchcl.detect, [picture.read_bytes(), picture, "nowhere.png"], model=demo.arn, min_confidence=0)
    )
    assert bytes_.answer == path.answer
    assert [label.name for label in path.labels] == names(path.answer)
    assert isinstance(missing.error, batchcl.CallError)
    assert (missing.answer, missing.error.code, missing.labels) == (None, "UnreadableFile", ())
    with pytest.raises(batchcl.ModelError):
        anyio.run(partial(batchcl.detect, [picture], model="digits@v9"))
