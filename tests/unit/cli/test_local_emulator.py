from __future__ import annotations

from pathlib import Path

import pytest

from batchcl.cli.local_emulator import _settings

MODEL = "arn:aws:rekognition:eu-west-1:123456789012:project/dogs/version/v1/1700000000000"


@pytest.mark.parametrize(
    ("model", "region"),
    [(MODEL, "eu-west-1"), ("dogs@v1", "ap-south-1"), (None, "us-east-1")],
    ids=["arn", "name", "demo"],
)
def test_images_are_read_in_the_models_region(
    model: str | None, region: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    settings = _settings(model, state=tmp_path, profile=None, region="ap-south-1")
    assert settings.s3_endpoint_url == f"https://s3.{region}.amazonaws.com"
