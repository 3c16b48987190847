from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcl.arns import ModelArn
from batchcl.errors import UsageError

ARN = "arn:aws:rekognition:eu-west-1:123456789012:project/Dog_s.v-2/version/v.1/1700000000000"


def test_an_arn_gives_region_account_project_and_version() -> None:
    arn = ModelArn.parse(ARN)
    assert (arn.region, arn.account, arn.project, arn.version) == ("eu-west-1", "123456789012", "Dog_s.v-2", "v.1")
    assert arn.name == "Dog_s.v-2@v.1"
    assert str(arn) == arn.text == ARN


@pytest.mark.parametrize("partition", ["aws", "aws-cn", "aws-us-gov"])
def test_every_partition_is_accepted(partition: str) -> None:
    assert ModelArn.parse(ARN.replace(":aws:", f":{partition}:")).text.startswith(f"arn:{partition}:")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "dogs",
        ARN + "\n",
        " " + ARN,
        ARN + "/more",
        ARN.replace("rekognition", "s3"),
        ARN.replace("123456789012", "12345678901"),
        ARN.replace("/1700000000000", ""),
        ARN.replace("/1700000000000", "/now"),
        ARN.replace("Dog_s.v-2", "Dög"),
        ARN.replace("Dog_s.v-2", ""),
        ARN.replace("Dog_s.v-2", "d" * 256),
        "arn:aws:rekognition:eu-west-1:123456789012:project/dogs/1700000000000",
    ],
)
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not the ARN of a Custom Labels model, such as arn:aws:.*model list"):
        ModelArn.parse(text)


@given(st.from_regex(r"arn:aws:rekognition:us-east-1:[0-9]{12}:project/[\w.\-]{1,255}/version/[\w.\-]{1,255}/[0-9]+"))
def test_any_text_is_an_arn_or_refused(text: str) -> None:
    try:
        arn = ModelArn.parse(text)
    except UsageError:
        return
    assert arn.text == text
    assert f":project/{arn.project}/version/{arn.version}/" in text
