from __future__ import annotations

import json
from typing import Any

import boto3
import pytest

from batchcl.aws.session import Aws, AwsSettings
from batchcl.errors import StoppedError
from batchcl.events import Notice
from batchcl.monitoring import Targets
from batchcl.monitoring.report import Report
from batchcl.monitoring.sender import SendError
from batchcl.monitoring.sns import SnsTopic
from unit.monitoring.runs import STARTED, run

REGION = "eu-central-1"


@pytest.fixture
def received(monkeypatch):
    """A topic, and what a queue receives from it."""
    from moto import mock_aws  # slow to import

    for name, value in (("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_REGION", "us-east-1")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        topic = boto3.client("sns", region_name=REGION).create_topic(Name="nights")["TopicArn"]
        sqs = boto3.client("sqs", region_name=REGION)
        url = sqs.create_queue(QueueName="q")["QueueUrl"]
        arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        boto3.client("sns", region_name=REGION).subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)

        def messages() -> list[dict[str, Any]]:
            found = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages", [])
            return [json.loads(each["Body"]) for each in found]

        yield topic, messages


def test_a_topic_receives_trouble_and_the_end(received):
    topic, messages = received
    trouble = Notice("stalled", "no image for 60 s", {"seconds": 60}, level="warning")
    run(Targets(sns_topic=topic), [STARTED, trouble], StoppedError("é https://u:p@h/x?Signature=abc"))
    first, last = messages()
    assert json.loads(first["Message"])["event"] == "stalled"
    assert first["MessageAttributes"]["severity"]["Value"] == "warning"
    end = json.loads(last["Message"])
    assert (end["event"], end["exit_code"], end["reason"]) == ("end", 4, "é https://h/x")
    assert last["Subject"].startswith("batchcl: run night in s3://tables/labels is stopped (exit code 4)")
    assert last["MessageAttributes"]["event"]["Value"] == "end"


def test_a_subject_is_short_ascii(received):
    topic, messages = received
    back_end = SnsTopic(topic, lambda: Aws(AwsSettings()))
    document = {"event": "end", "severity": "error"}
    back_end.send(Report(stage="end", document=document, text="é\n" + "x" * 200))
    (subject,) = [each["Subject"] for each in messages()]
    assert subject == "??" + "x" * 94 + "..."


def test_a_topic_that_does_not_exist_is_one_warning(received):
    topic, _ = received
    observer = run(Targets(sns_topic=f"{topic}-gone"), [STARTED])
    texts = [each.text for each in observer.notices if each.kind == "monitoring-failed"]
    assert len(texts) == 1
    assert texts[0].startswith(f"the SNS topic {topic}-gone failed: NotFound: ")


def test_missing_credentials_are_one_sentence(monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    back_end = SnsTopic("arn:aws:sns:eu-central-1:123456789012:nights", Aws)
    with pytest.raises(SendError, match="credentials"):
        back_end.send(Report(stage="end", document={"event": "end", "severity": "error"}))
