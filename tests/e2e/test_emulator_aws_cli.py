"""The AWS CLI creates a project and trains, starts, uses and stops a model in the emulator."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aws_cli import aws_cli
from batchcl.emulator.digits import write_digits
from servers import aws_env, client, model_status, serving, wait_for


@pytest.fixture
def aws(clean_env: dict[str, str]) -> Iterator[Callable[..., Any]]:
    """Run one `aws rekognition` command; returns its JSON."""
    with aws_cli(clean_env | aws_env()) as run_command:

        def run(endpoint: str, *words: str) -> Any:
            said = run_command("--endpoint-url", endpoint, "--output", "json", *words)
            return json.loads(said) if said.strip() else None

        yield run


def test_the_aws_cli_trains_starts_stops_and_deletes_a_model(
    aws: Callable[..., Any], clean_env: dict[str, str], tmp_path: Path
) -> None:
    data = write_digits(tmp_path / "buckets", bucket="pictures", train=60, test=30, seed=2)
    flags = ("--buckets", data.directory, "--train-seconds", 0, "--start-seconds", 0, "--stop-seconds", 0)
    with serving(clean_env, *flags, "--dataset-seconds", 0, "--control-tps", 100) as endpoint:
        project = aws(endpoint, "create-project", "--project-name", "digits")["ProjectArn"]
        source = {"GroundTruthManifest": {"S3Object": {"Bucket": "pictures", "Name": "train.manifest"}}}
        made = aws(
            *(endpoint, "create-dataset", "--project-arn", project, "--dataset-type", "TRAIN"),
            *("--dataset-source", json.dumps(source)),
        )
        source["GroundTruthManifest"]["S3Object"]["Name"] = "test.manifest"
        boto = client("rekognition", endpoint)  # the same requests in a tenth of the CLI's time
        boto.create_dataset(ProjectArn=project, DatasetType="TEST", DatasetSource=source)
        entries = aws(endpoint, "list-dataset-entries", "--dataset-arn", made["DatasetArn"], "--max-items", "3")
        assert len(entries["DatasetEntries"]) == 3
        version = aws(
            *(endpoint, "create-project-version", "--project-arn", project, "--version-name", "v1"),
            *("--output-config", "S3Bucket=pictures,S3KeyPrefix=out", "--tags", "team=a"),
        )["ProjectVersionArn"]
        wait_for(lambda: model_status(endpoint, version) != "TRAINING_IN_PROGRESS")
        (described,) = aws(endpoint, "describe-project-versions", "--project-arn", project)[
            "ProjectVersionDescriptions"
        ]
        assert (described["Status"], described["ProjectVersionArn"]) == ("TRAINING_COMPLETED", version)
        assert described["EvaluationResult"]["F1Score"] > 0.3
        aws(endpoint, "start-project-version", "--project-version-arn", version, "--min-inference-units", "1")
        aws(endpoint, "wait", "project-version-running", "--project-arn", project)
        image = {"S3Object": {"Bucket": "pictures", "Name": data.test[0].uri.split("/", 3)[3]}}
        seen = aws(
            *(endpoint, "detect-custom-labels", "--project-version-arn", version, "--image", json.dumps(image)),
            *("--min-confidence", "0"),
        )["CustomLabels"]
        assert {label["Name"] for label in seen} == set("0123456789")
        stopped = aws(endpoint, "stop-project-version", "--project-version-arn", version)
        assert stopped == {"Status": "STOPPING"}
        assert boto.list_tags_for_resource(ResourceArn=version)["Tags"] == {"team": "a"}
