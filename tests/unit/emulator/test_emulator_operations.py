from __future__ import annotations

import base64
import http.client
import io
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.exceptions
import numpy as np
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from PIL import Image

from batchcl.emulator.digits import DigitBox, DigitPicture, DigitsDataset
from batchcl.emulator.errors import ApiError
from batchcl.emulator.operations import OPERATIONS
from batchcl.emulator.protocol import decode, operation_names
from batchcl.imaging.fit import fit
from pixels import encoded, noise
from unit.emulator.harness import Server, Trained, refused, running_server, train, wait_for


def s3(picture: DigitPicture) -> dict[str, Any]:
    bucket, key = picture.uri.removeprefix("s3://").split("/", 1)
    return {"S3Object": {"Bucket": bucket, "Name": key}}


def version_arn(account: str = "123456789012", region: str = "us-east-1") -> str:
    return f"arn:aws:rekognition:{region}:{account}:project/none/version/v1/1700000000000"


def put_manifest(folder: Path, name: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"GroundTruthManifest": {"S3Object": {"Bucket": folder.name, "Name": name}}}


# projects


def test_projects_are_created_described_and_deleted(empty: Server) -> None:
    client = empty.client()
    arn = client.create_project(ProjectName="one")["ProjectArn"]
    assert re.fullmatch(r"arn:aws:rekognition:us-east-1:123456789012:project/one/\d{13}", arn)
    described = client.describe_projects(ProjectNames=["one", "unknown"])["ProjectDescriptions"]
    assert [(d["ProjectArn"], d["Status"], d["Feature"]) for d in described] == [(arn, "CREATED", "CUSTOM_LABELS")]
    assert abs(described[0]["CreationTimestamp"].timestamp() - time.time()) < 60
    assert refused(client.create_project, ProjectName="one") == "ResourceInUseException"
    assert client.delete_project(ProjectArn=arn)["Status"] == "DELETING"
    assert client.describe_projects()["ProjectDescriptions"] == []
    assert refused(client.delete_project, ProjectArn=arn) == "ResourceNotFoundException"


def test_projects_are_listed_in_pages_newest_first(empty: Server) -> None:
    client = empty.client()
    for n in range(5):
        empty.clock.ahead += 1
        client.create_project(ProjectName=f"p{n}")
    pages = client.get_paginator("describe_projects").paginate(PaginationConfig={"PageSize": 2})
    arns = [[d["ProjectArn"].split("/")[1] for d in p["ProjectDescriptions"]] for p in pages]
    assert arns == [["p4", "p3"], ["p2", "p1"], ["p0"]]
    for token in ("nonsense", base64.b64encode(b'["versions x",1,"a"]').decode()):
        assert refused(client.describe_projects, NextToken=token) == "InvalidPaginationTokenException"


def test_an_empty_token_requests_the_first_page(empty: Server) -> None:
    """A program in the developer guide starts with an empty token."""
    client = empty.client()
    project = client.create_project(ProjectName="p")["ProjectArn"]
    dataset = client.create_dataset(ProjectArn=project, DatasetType="TRAIN")["DatasetArn"]
    empty.clock.ahead += 5
    assert client.describe_projects(NextToken="")["ProjectDescriptions"]
    for call, name, arn in (
        (client.describe_project_versions, "ProjectVersionDescriptions", {"ProjectArn": project}),
        (client.list_project_policies, "ProjectPolicies", {"ProjectArn": project}),
        (client.list_dataset_entries, "DatasetEntries", {"DatasetArn": dataset}),
        (client.list_dataset_labels, "DatasetLabelDescriptions", {"DatasetArn": dataset}),
    ):
        assert call(**arn, NextToken="")[name] == []


def test_regions_and_accounts_do_not_see_each_other(tmp_path: Path) -> None:
    environment = {"BATCHCL_EMULATOR_CREDENTIALS": "other:secret:210987654321"}
    with running_server(environment, buckets=tmp_path) as server:
        here, there = server.client(), server.client(region="eu-west-1")
        stranger = server.client("other", "secret")
        arn = here.create_project(ProjectName="mine")["ProjectArn"]
        assert there.describe_projects()["ProjectDescriptions"] == []
        assert stranger.describe_projects()["ProjectDescriptions"] == []
        assert refused(there.delete_project, ProjectArn=arn) == "ResourceNotFoundException"
        assert refused(stranger.delete_project, ProjectArn=arn) == "AccessDeniedException"


# the protocol


def test_constraints_of_the_model_are_checked(empty: Server) -> None:
    client = empty.client()
    bad = "InvalidParameterException"
    assert refused(client.create_project, ProjectName="not a name!") == bad
    assert refused(client.create_project, ProjectName="x" * 256) == bad
    assert refused(client.create_project, ProjectName="x", Feature="SORCERY") == bad
    assert refused(client.describe_projects, MaxResults=101) == bad
    assert refused(client.describe_projects, ProjectNames=["x"] * 11) == bad
    image = {"S3Object": {"Bucket": "bucket", "Name": "a.png"}}
    detect = client.detect_custom_labels
    arn = version_arn()
    assert refused(detect, ProjectVersionArn="arn:aws:nonsense:::::::::", Image=image) == bad
    assert refused(detect, ProjectVersionArn=arn, Image=image, MinConfidence=101) == bad
    long_key = {"S3Object": {"Bucket": "bucket", "Name": "k" * 1025}}
    assert refused(detect, ProjectVersionArn=arn, Image=long_key) == bad
    assert refused(detect, ProjectVersionArn=arn, Image={}) == bad
    assert refused(detect, ProjectVersionArn=arn, Image=image | {"Bytes": b"x"}) == bad


def test_messages_name_the_member_and_the_constraint(empty: Server) -> None:
    with pytest.raises(botocore.exceptions.ClientError, match=r"'projectName'.*regular expression"):
        empty.client().create_project(ProjectName="a b")


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'{"ProjectName":3}', b'{"ProjectName":{}}', b'{"Tags":[],"ProjectName":"a"}']
)
def test_bodies_of_the_wrong_type_are_serialization_errors(body: bytes) -> None:
    with pytest.raises(ApiError, match=r"JSON|converted") as caught:
        decode("CreateProject", body)
    assert caught.value.code == "SerializationException"


@pytest.mark.parametrize("most", [2**31, 2**63, -(2**31) - 1, 1e300])
def test_integers_have_32_bits(most: float) -> None:
    body = json.dumps({"ProjectVersionArn": version_arn(), "Image": {}, "MaxResults": most}).encode()
    with pytest.raises(ApiError, match="maxResults") as caught:
        decode("DetectCustomLabels", body)
    assert caught.value.code == "SerializationException"
    body = body.replace(json.dumps(most).encode(), b"2147483647")
    assert decode("DetectCustomLabels", body)["MaxResults"] == 2**31 - 1


def test_unknown_members_and_nulls_are_ignored() -> None:
    assert decode("CreateProject", b'{"ProjectName":"a","Later":1,"Feature":null}') == {"ProjectName": "a"}


def test_other_operations_are_unknown(empty: Server) -> None:
    assert refused(empty.client().list_collections) == "UnknownOperationException"


def test_every_operation_is_one_of_the_services() -> None:
    assert OPERATIONS.keys() <= operation_names()


def test_errors_have_the_format_of_the_service(empty: Server) -> None:
    request = AWSRequest(
        "POST", f"{empty.endpoint}/", data=b"{}", headers={"X-Amz-Target": "RekognitionService.CreateProject"}
    )
    SigV4Auth(Credentials("emulator", "emulator"), "rekognition", "us-east-1").add_auth(request)
    connection = http.client.HTTPConnection(empty.endpoint.removeprefix("http://"), timeout=10)
    connection.request("POST", "/", body=b"{}", headers=dict(request.headers))
    answer = connection.getresponse()
    body = json.loads(answer.read())
    connection.close()
    assert answer.status == 400
    assert answer.headers["Content-Type"] == "application/x-amz-json-1.1"
    assert re.fullmatch(r"[0-9a-f-]{36}", answer.headers["x-amzn-RequestId"])
    assert body.keys() == {"__type", "Code", "Logref", "Message"}
    assert body["__type"] == body["Code"] == "InvalidParameterException"


def test_bad_signatures_are_refused_on_the_wire(empty: Server) -> None:
    assert refused(empty.client(secret="wrong").describe_projects) == "InvalidSignatureException"
    assert refused(empty.client("nobody").describe_projects) == "UnrecognizedClientException"
    assert empty.client(token="a session").describe_projects()["ProjectDescriptions"] == []
    empty.clock.ahead = 400
    assert refused(empty.client().describe_projects) == "RequestTimeTooSkewed"


def test_control_plane_calls_over_the_quota_are_refused_fast(tmp_path: Path) -> None:
    with running_server(buckets=tmp_path, control_tps=5) as server:
        client = server.client()
        codes = []
        start = time.monotonic()
        for _ in range(12):
            try:
                client.describe_projects()
            except botocore.exceptions.ClientError as error:
                codes.append(error.response["Error"]["Code"])
        assert len(codes) >= 12 - 5 - 5 * (time.monotonic() - start) - 1
        assert set(codes) == {"ProvisionedThroughputExceededException"}


# datasets


def test_a_missing_manifest_is_an_invalid_object(empty: Server) -> None:
    client = empty.client()
    project = client.create_project(ProjectName="p")["ProjectArn"]
    for where in ({"Bucket": "bucket", "Name": "no"}, {"Bucket": "nobucket", "Name": "no"}):
        source = {"GroundTruthManifest": {"S3Object": where}}
        make = {"ProjectArn": project, "DatasetType": "TRAIN", "DatasetSource": source}
        assert refused(client.create_dataset, **make) == "InvalidS3ObjectException"


# training


def test_a_trained_version_is_described_with_its_results(classifier: Trained) -> None:
    described = classifier.description
    assert re.fullmatch(r"arn:aws:rekognition:us-east-1:\d{12}:project/digits/version/v1/\d{13}", classifier.arn)
    assert described["EvaluationResult"]["F1Score"] > 0.85
    assert described["BillableTrainingTimeInSeconds"] >= 1
    assert described["TrainingEndTimestamp"] > described["CreationTimestamp"]
    assert described["OutputConfig"] == {"S3Bucket": "pictures", "S3KeyPrefix": "out"}
    folder = classifier.data.directory / "pictures"
    summary = json.loads((folder / described["EvaluationResult"]["Summary"]["S3Object"]["Name"]).read_bytes())
    assert summary["EvaluationDetails"]["NumberOfTestingImages"] == 100
    assert summary["AggregatedEvaluationResults"]["F1Score"] == pytest.approx(
        described["EvaluationResult"]["F1Score"], abs=1e-6
    )
    assert {r["Label"] for r in summary["LabelEvaluationResults"]} == set("0123456789")
    assert all(0 < r["Metrics"]["Threshold"] < 1 for r in summary["LabelEvaluationResults"])


def snapshot(trained: Trained) -> list[dict[str, Any]]:
    asset = trained.description["TestingDataResult"]["Output"]["Assets"][0]
    where = asset["GroundTruthManifest"]["S3Object"]
    path = trained.data.directory / where["Bucket"] / where["Name"]
    return [json.loads(line) for line in path.read_bytes().splitlines()]


DETAILS = "rekognition-custom-labels-evaluation-details"
OUTCOMES = ("is-true-positive", "is-true-negative", "is-false-positive", "is-false-negative")


def test_the_snapshot_has_whether_each_prediction_was_right(classifier: Trained) -> None:
    lines = snapshot(classifier)
    assert len(lines) == 100
    for line in lines:
        metadata = [v for k, v in line.items() if "evaluation" in k and k.endswith("-metadata")]
        assert len(metadata) == 10
        for each in metadata:
            assert sum(each[DETAILS][outcome] for outcome in OUTCOMES) == 1
            assert each[DETAILS]["is-present-in-ground-truth"] == (
                each["class-name"] == line["rekognition-custom-labels-training-0-metadata"]["class-name"]
            )


def test_the_snapshot_has_evaluation_details_for_every_box(locator: Trained) -> None:
    hits = misses = 0
    for line in snapshot(locator):
        value, metadata = (line[f"rekognition-custom-labels-evaluation{end}"] for end in ("", "-metadata"))
        assert len(value["annotations"]) == len(metadata["objects"])
        present = sum(o[DETAILS]["is-present-in-ground-truth"] for o in metadata["objects"])
        assert present == len(line["rekognition-custom-labels-training-0"]["annotations"])
        hits += sum(o[DETAILS]["is-true-positive"] for o in metadata["objects"])
        misses += sum(o[DETAILS]["is-false-negative"] for o in metadata["objects"])
    assert hits > 3 * misses


def test_the_server_responds_during_a_training(small_digits: DigitsDataset) -> None:
    with running_server(buckets=small_digits.directory, train_seconds=1000, dataset_seconds=100) as server:
        client = server.client()
        project = client.create_project(ProjectName="p")["ProjectArn"]
        source = put_manifest(small_digits.directory / "small", "unused", [])
        source["GroundTruthManifest"]["S3Object"]["Name"] = "train.manifest"
        client.create_dataset(ProjectArn=project, DatasetType="TRAIN", DatasetSource=source)
        output = {"S3Bucket": "small", "S3KeyPrefix": "p"}
        make = {"ProjectArn": project, "VersionName": "v", "OutputConfig": output}
        assert refused(client.create_project_version, **make) == "ResourceInUseException"
        server.clock.ahead = 100
        assert (
            refused(client.create_project_version, **make, TrainingData={"Assets": [source]})
            == "InvalidParameterException"
        )
        arn = client.create_project_version(**make)["ProjectVersionArn"]
        assert refused(client.create_project_version, **make) == "ResourceInUseException"
        end = time.monotonic() + 30
        while not (small_digits.directory / "small/p/p-v-testing.manifest").exists():
            assert time.monotonic() < end
            described = client.describe_project_versions(ProjectArn=project)["ProjectVersionDescriptions"][0]
            assert described["Status"] == "TRAINING_IN_PROGRESS"
        assert (
            refused(client.start_project_version, ProjectVersionArn=arn, MinInferenceUnits=1)
            == "ResourceInUseException"
        )
        assert refused(client.delete_project, ProjectArn=project) == "ResourceInUseException"


def test_results_that_cannot_be_written_fail_the_training(small_digits: DigitsDataset) -> None:
    with running_server(buckets=small_digits.directory, train_seconds=0) as server:
        client = server.client()
        project = client.create_project(ProjectName="p")["ProjectArn"]
        asset = {"GroundTruthManifest": {"S3Object": {"Bucket": "small", "Name": "train.manifest"}}}
        client.create_project_version(
            ProjectArn=project,
            VersionName="v",
            OutputConfig={"S3Bucket": "nowhere", "S3KeyPrefix": ""},
            TrainingData={"Assets": [asset]},
            TestingData={"AutoCreate": True},
        )
        described = wait_for(client, project, not_status="TRAINING_IN_PROGRESS")
        assert described["Status"] == "TRAINING_FAILED"
        assert "s3://nowhere/" in described["StatusMessage"]


def test_a_single_dataset_is_split_by_its_first_training(small_digits: DigitsDataset) -> None:
    with running_server(buckets=small_digits.directory, train_seconds=0) as server:
        client = server.client()
        project = client.create_project(ProjectName="p")["ProjectArn"]
        source = {"GroundTruthManifest": {"S3Object": {"Bucket": "small", "Name": "train.manifest"}}}
        dataset = client.create_dataset(ProjectArn=project, DatasetType="TRAIN", DatasetSource=source)["DatasetArn"]
        server.clock.ahead += 5

        def lines(arn: str) -> set[str]:
            return set(client.list_dataset_entries(DatasetArn=arn)["DatasetEntries"])

        def trained(name: str, bucket: str = "small") -> dict[str, Any]:
            output = {"S3Bucket": bucket, "S3KeyPrefix": "single"}
            client.create_project_version(ProjectArn=project, VersionName=name, OutputConfig=output)
            return wait_for(client, project, not_status="TRAINING_IN_PROGRESS")

        def datasets() -> dict[str, str]:
            (described,) = client.describe_projects()["ProjectDescriptions"]
            return {each["DatasetType"]: each["DatasetArn"] for each in described["Datasets"]}

        whole = lines(dataset)
        assert trained("failed", "nowhere")["Status"] == "TRAINING_FAILED"
        assert datasets() == {"TRAIN": dataset}
        first = trained("v1")
        assert first["Status"] == "TRAINING_COMPLETED", first
        found = datasets()
        assert found["TRAIN"] == dataset
        rest, test = lines(dataset), lines(found["TEST"])
        assert (len(rest), len(test), rest | test) == (48, 12, whole)
        described = client.describe_dataset(DatasetArn=found["TEST"])["DatasetDescription"]
        assert (described["Status"], described["DatasetStats"]["TotalEntries"]) == ("CREATE_COMPLETE", 12)
        key = first["TestingDataResult"]["Output"]["Assets"][0]["GroundTruthManifest"]["S3Object"]["Name"]
        tested = (small_digits.directory / "small" / key).read_text().splitlines()
        refs = {json.loads(line)["source-ref"] for line in test}
        assert {json.loads(line)["source-ref"] for line in tested} == refs
        assert trained("v2")["Status"] == "TRAINING_COMPLETED"
        assert (lines(dataset), lines(found["TEST"])) == (rest, test), "only the first training moves any"


# starting and stopping


@pytest.fixture(scope="module")
def slow(small_digits: DigitsDataset) -> Iterator[tuple[Server, list[str]]]:
    """A server whose models take a minute to start and to stop, and three trained versions."""
    with running_server(buckets=small_digits.directory, train_seconds=0, start_seconds=60, stop_seconds=60) as server:
        client = server.client()
        arns = [train(client, bucket="small", project=f"p{n}")["ProjectVersionArn"] for n in range(3)]
        yield server, arns


def status(server: Server, arn: str) -> str:
    client = server.client()
    project = client.describe_projects(ProjectNames=[arn.split("/")[1]])["ProjectDescriptions"][0]["ProjectArn"]
    described = client.describe_project_versions(ProjectArn=project)["ProjectVersionDescriptions"][0]
    return f"{described['Status']} {described.get('MinInferenceUnits')} {described.get('MaxInferenceUnits')}"


def test_each_state_of_a_model_allows_only_its_operations(slow: tuple[Server, list[str]]) -> None:
    server, arns = slow
    arn = arns[0]
    server.clock.ahead = 0.0
    client = server.client()
    start = {"ProjectVersionArn": arn, "MinInferenceUnits": 1, "MaxInferenceUnits": 3}
    image = {"S3Object": {"Bucket": "small", "Name": "test/00000.png"}}
    detect = {"ProjectVersionArn": arn, "Image": image}
    assert refused(client.detect_custom_labels, **detect) == "ResourceNotReadyException"
    assert refused(client.stop_project_version, ProjectVersionArn=arn) == "ResourceInUseException"
    assert client.start_project_version(**start)["Status"] == "STARTING"
    assert status(server, arn) == "STARTING 1 3"
    for call, arguments in (
        (client.start_project_version, start),
        (client.stop_project_version, {"ProjectVersionArn": arn}),
        (client.delete_project_version, {"ProjectVersionArn": arn}),
    ):
        assert refused(call, **arguments) == "ResourceInUseException"
    assert refused(client.detect_custom_labels, **detect) == "ResourceNotReadyException"
    server.clock.ahead = 61.0
    assert status(server, arn) == "RUNNING 1 3"
    assert client.detect_custom_labels(**detect, MinConfidence=0)["CustomLabels"]
    assert refused(client.start_project_version, **start) == "ResourceInUseException"
    assert client.stop_project_version(ProjectVersionArn=arn)["Status"] == "STOPPING"
    assert refused(client.detect_custom_labels, **detect) == "ResourceNotReadyException"
    assert refused(client.start_project_version, **start) == "ResourceInUseException"
    server.clock.ahead = 122.0
    assert status(server, arn) == "STOPPED 1 3"
    assert client.start_project_version(**start)["Status"] == "STARTING"
    server.clock.ahead = 183.0
    client.stop_project_version(ProjectVersionArn=arn)
    server.clock.ahead = 244.0


def test_units_have_limits_and_two_models_run_at_once(slow: tuple[Server, list[str]]) -> None:
    server, arns = slow
    server.clock.ahead = 244.0
    client = server.client()
    start = client.start_project_version
    bad, limit = "InvalidParameterException", "LimitExceededException"
    assert refused(start, ProjectVersionArn=arns[0], MinInferenceUnits=6) == limit
    assert refused(start, ProjectVersionArn=arns[0], MinInferenceUnits=1, MaxInferenceUnits=6) == limit
    assert refused(start, ProjectVersionArn=arns[0], MinInferenceUnits=3, MaxInferenceUnits=2) == bad
    for arn in arns[:2]:
        start(ProjectVersionArn=arn, MinInferenceUnits=5)
    assert refused(start, ProjectVersionArn=arns[2], MinInferenceUnits=1) == limit
    assert refused(start, ProjectVersionArn=version_arn(), MinInferenceUnits=1) == "ResourceNotFoundException"


def test_versions_are_deleted_and_then_their_project(small_digits: DigitsDataset) -> None:
    with running_server(buckets=small_digits.directory, train_seconds=0) as server:
        client = server.client()
        described = train(client, bucket="small")
        assert client.delete_project_version(ProjectVersionArn=described["ProjectVersionArn"])["Status"] == "DELETING"
        answer = client.describe_project_versions(ProjectArn=described["ProjectArn"])
        assert answer["ProjectVersionDescriptions"] == []
        client.delete_project(ProjectArn=described["ProjectArn"])


# detection


def test_unseen_pictures_are_labelled_over_the_wire(classifier: Trained) -> None:
    right = [
        picture.labels[0] in {d["Name"] for d in classifier.detect(s3(picture))} for picture in classifier.data.test
    ]
    assert sum(right) >= 90


def test_bytes_and_the_s3_object_give_the_same(classifier: Trained) -> None:
    picture = classifier.data.test[0]
    by_bytes = classifier.detect({"Bytes": picture.path.read_bytes()}, MinConfidence=0)
    assert by_bytes == classifier.detect(s3(picture), MinConfidence=0)
    assert len(by_bytes) == 10
    confidences = [d["Confidence"] for d in by_bytes]
    assert confidences == sorted(confidences, reverse=True)
    assert 0 <= confidences[-1] <= confidences[0] <= 100
    assert all("Geometry" not in d for d in by_bytes)
    assert [d["Name"] for d in classifier.detect(s3(picture), MinConfidence=0, MaxResults=3)] == [
        d["Name"] for d in by_bytes[:3]
    ]
    assert [np.float32(confidence) for confidence in confidences] == confidences, "numbers of 32 bits"
    for at in (confidences[1], float(str(np.float32(confidences[1])))):
        assert len(classifier.detect(s3(picture), MinConfidence=at)) == 2, "compared in 32 bits, in its short form too"
    middle = (confidences[0] + confidences[1]) / 2
    assert len(classifier.detect(s3(picture), MinConfidence=middle)) == 1


def overlap(box: dict[str, float], truth: DigitBox, size: tuple[int, int]) -> float:
    width, height = size
    left, top = max(box["Left"], truth.left / width), max(box["Top"], truth.top / height)
    right = min(box["Left"] + box["Width"], (truth.left + truth.width) / width)
    bottom = min(box["Top"] + box["Height"], (truth.top + truth.height) / height)
    common = max(0.0, right - left) * max(0.0, bottom - top)
    return common / (box["Width"] * box["Height"] + truth.width * truth.height / (width * height) - common)


def test_objects_are_boxed_where_they_are(locator: Trained) -> None:
    found = total = 0
    for picture in locator.data.test:
        seen = locator.detect(s3(picture))
        for truth in picture.boxes:
            total += 1
            found += any(
                d["Name"] == truth.label and overlap(d["Geometry"]["BoundingBox"], truth, (192, 144)) >= 0.5
                for d in seen
            )
    assert found / total >= 0.7


def test_boxes_are_those_of_the_upright_image(locator: Trained) -> None:
    picture = next(p for p in locator.data.test if len(p.boxes) == 1 and locator.detect(s3(p), MaxResults=1))
    plain = locator.detect({"Bytes": picture.path.read_bytes()}, MaxResults=1)[0]
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # stored rotated by 90 degrees counterclockwise
    with Image.open(picture.path) as image:
        image.convert("RGB").transpose(Image.Transpose.ROTATE_90).save(out, "PNG", exif=exif)
    turned = locator.detect({"Bytes": out.getvalue()}, MaxResults=1)[0]
    assert turned["Name"] == plain["Name"]
    assert turned["Geometry"]["BoundingBox"] == pytest.approx(plain["Geometry"]["BoundingBox"], abs=0.02)


@pytest.mark.parametrize("kind", ["TIFF", "WEBP"])
def test_boxes_of_a_fitted_image_refer_to_the_original(locator: Trained, kind: str) -> None:
    picture = next(p for p in locator.data.test if len(p.boxes) == 1 and locator.detect(s3(p), MaxResults=1))
    plain = locator.detect({"Bytes": picture.path.read_bytes()}, MaxResults=1)[0]
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(picture.path) as image:
        image.convert("RGB").transpose(Image.Transpose.ROTATE_90).save(out, kind, exif=exif)
    with pytest.raises(botocore.exceptions.ClientError):
        locator.detect({"Bytes": out.getvalue()})
    fitted = fit(out.getvalue())
    assert fitted is not None
    seen = locator.detect({"Bytes": fitted.data}, MaxResults=1)[0]
    assert seen["Name"] == plain["Name"]
    assert seen["Geometry"]["BoundingBox"] == pytest.approx(plain["Geometry"]["BoundingBox"], abs=0.05)


def test_images_outside_the_limits_are_refused(classifier: Trained) -> None:
    detect = classifier.client.detect_custom_labels
    arn = classifier.arn
    small = io.BytesIO()
    Image.new("RGB", (63, 63)).save(small, "PNG")
    whole = classifier.data.test[0].path.read_bytes()
    for data, code in (
        (small.getvalue(), "InvalidParameterException"),
        (whole[:300], "InvalidImageFormatException"),
        (b"GIF89a" + bytes(100), "InvalidImageFormatException"),
        (bytes(4 * 1024**2 + 1), "ImageTooLargeException"),
        (bytes(6 * 1024**2), "ImageTooLargeException"),
    ):
        assert refused(detect, ProjectVersionArn=arn, Image={"Bytes": data}) == code
    big = classifier.data.directory / "pictures" / "big.png"
    with big.open("wb") as file:
        file.truncate(15 * 1024**2 + 1)
    where = {"S3Object": {"Bucket": "pictures", "Name": "big.png"}}
    assert refused(detect, ProjectVersionArn=arn, Image=where) == "ImageTooLargeException"


@pytest.mark.parametrize(
    "where",
    [
        {"Bucket": "pictures", "Name": "no.png"},
        {"Bucket": "nothing", "Name": "a.png"},
        {"Bucket": "pictures", "Name": "../pictures/test/00000.png"},
        {"Bucket": "pictures", "Name": "test//00000.png"},
        {"Bucket": "pictures", "Name": "test/00000.png", "Version": "abc"},
    ],
)
def test_missing_s3_objects_are_refused(where: dict[str, str], classifier: Trained) -> None:
    with pytest.raises(botocore.exceptions.ClientError, match=r"Unable to get object metadata from S3") as caught:
        classifier.detect({"S3Object": where})
    assert caught.value.response["Error"]["Code"] == "InvalidS3ObjectException"


def test_a_running_model_throttles_above_its_capacity(small_digits: DigitsDataset) -> None:
    with running_server(buckets=small_digits.directory, train_seconds=0, start_seconds=0, tps_per_unit=4) as server:
        client = server.client()
        arn = train(client, bucket="small")["ProjectVersionArn"]
        client.start_project_version(ProjectVersionArn=arn, MinInferenceUnits=2)
        image = {"S3Object": {"Bucket": "small", "Name": "test/00000.png"}}
        server.clock.stop()
        for _ in range(2):
            codes = []
            for _ in range(20):
                try:
                    client.detect_custom_labels(ProjectVersionArn=arn, Image=image)
                except botocore.exceptions.ClientError as error:
                    codes.append(error.response["Error"]["Code"])
            assert codes == ["ProvisionedThroughputExceededException"] * 12, "a second's worth of calls is let through"
            server.clock.ahead += 1


def test_larger_images_take_more_of_the_capacity(small_digits: DigitsDataset) -> None:
    paced: dict[str, Any] = {"tps_per_unit": 4, "seconds_per_megapixel": 25}
    with running_server(buckets=small_digits.directory, train_seconds=0, start_seconds=0, **paced) as server:
        client = server.client()
        arn = train(client, bucket="small")["ProjectVersionArn"]
        client.start_project_version(ProjectVersionArn=arn, MinInferenceUnits=1)
        server.clock.stop()

        def accepted(side: int) -> int:
            """How many of ten images of this size are admitted without a pause."""
            codes = []
            for _ in range(10):
                try:
                    client.detect_custom_labels(ProjectVersionArn=arn, Image={"Bytes": encoded(noise(side, side))})
                except botocore.exceptions.ClientError as error:
                    codes.append(error.response["Error"]["Code"])
            assert set(codes) <= {"ProvisionedThroughputExceededException"}
            return 10 - len(codes)

        assert accepted(100) == 2, "0.01 megapixels take 1/4 + 0.25 s of one unit"
        server.clock.ahead += 1
        assert accepted(400) == 1, "0.16 megapixels take 1/4 + 4 s"
        server.clock.ahead += 3
        assert accepted(100) == 0
        server.clock.ahead += 0.5
        assert accepted(100) == 1
        server.clock.ahead += 10
        with pytest.raises(botocore.exceptions.ClientError, match="exceed the maximum limit"):
            client.detect_custom_labels(ProjectVersionArn=arn, Image={"Bytes": encoded(noise(5000, 100))})
        assert accepted(100) == 2, "what is refused for its size is not charged for it"


def test_concurrent_clients_get_their_own_responses(classifier: Trained) -> None:
    expected = {p.uri: classifier.detect(s3(p), MinConfidence=0) for p in classifier.data.test[:20]}
    wrong: list[str] = []

    def ask() -> None:
        client = classifier.server.client()
        for picture in classifier.data.test[:20]:
            answer = client.detect_custom_labels(ProjectVersionArn=classifier.arn, Image=s3(picture), MinConfidence=0)
            if answer["CustomLabels"] != expected[picture.uri]:
                wrong.append(picture.uri)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
