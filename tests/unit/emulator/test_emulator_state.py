from __future__ import annotations

import math
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import boto3
import pytest

from batchcl.emulator.buckets import DirectoryObjectStore, NoObjectStore, S3ObjectStore
from batchcl.emulator.digits import DigitsDataset
from batchcl.emulator.errors import ApiError
from batchcl.emulator.records import StoredVersion
from batchcl.emulator.settings import EmulatorSettings
from batchcl.emulator.state import EmulatorState
from batchcl.errors import RefusedError, UsageError
from unit.emulator.harness import running_server, train


def test_projects_and_models_survive_a_restart(small_digits: DigitsDataset, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "buckets": small_digits.directory,
        "state": tmp_path / "state",
        "train_seconds": 0,
        "start_seconds": 0,
    }
    image = {"S3Object": {"Bucket": "small", "Name": "test/00000.png"}}
    with running_server(**settings) as server:
        client = server.client()
        described = train(client, bucket="small")
        arn = described["ProjectVersionArn"]
        client.start_project_version(ProjectVersionArn=arn, MinInferenceUnits=1)
        before = client.detect_custom_labels(ProjectVersionArn=arn, Image=image, MinConfidence=0)["CustomLabels"]
    with running_server(**settings) as server:
        client = server.client()
        again = client.describe_project_versions(ProjectArn=described["ProjectArn"])["ProjectVersionDescriptions"][0]
        assert again["Status"] == "STOPPED"
        assert again["EvaluationResult"] == described["EvaluationResult"]
        client.start_project_version(ProjectVersionArn=arn, MinInferenceUnits=1)
        after = client.detect_custom_labels(ProjectVersionArn=arn, Image=image, MinConfidence=0)["CustomLabels"]
    assert after == before


def test_without_a_state_folder_no_files_remain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "b").mkdir()
    with running_server(buckets=tmp_path / "b") as server:
        server.client().create_project(ProjectName="p")
        assert len(list(tmp_path.iterdir())) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize(
    ("stored", "scheduled", "after"),
    [
        ("STARTING", "RUNNING", "STOPPED"),
        ("RUNNING", None, "STOPPED"),
        ("STOPPING", "STOPPED", "STOPPED"),
        ("STOPPED", None, "STOPPED"),
        ("TRAINING_IN_PROGRESS", None, "TRAINING_FAILED"),
        ("TRAINING_IN_PROGRESS", "TRAINING_COMPLETED", "TRAINING_COMPLETED"),
        ("TRAINING_COMPLETED", None, "TRAINING_COMPLETED"),
    ],
)
def test_status_of_a_version_after_a_restart(stored: str, scheduled: str | None, after: str, tmp_path: Path) -> None:
    state = EmulatorState.open(tmp_path)
    version = StoredVersion(
        arn="a",
        project_arn="p",
        name="v",
        created=0,
        status=stored,
        status_message="",
        output_bucket="b",
        output_prefix="",
    )
    if scheduled is not None:
        version.schedule(scheduled, "", due=1e12)
    state.versions["a"] = version
    state.save()
    state.close()
    again = EmulatorState.open(tmp_path)
    found = again.version("a", now=1e13)
    again.close()
    assert found is not None
    assert found.status == after


def test_a_state_folder_is_used_by_one_emulator_at_a_time(tmp_path: Path) -> None:
    first = EmulatorState.open(tmp_path)
    with pytest.raises(RefusedError, match="another emulator"):
        EmulatorState.open(tmp_path)
    first.close()
    EmulatorState.open(tmp_path).close()


def test_a_foreign_state_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"format": 99}')
    with pytest.raises(RefusedError, match="is not the state of an emulator"):
        EmulatorState.open(tmp_path)
    assert (tmp_path / "state.json").read_text() == '{"format": 99}'


def read(root: Path, bucket: str, key: str, *, limit: int = 100, version: str | None = None) -> bytes:
    async def go() -> bytes:
        return await DirectoryObjectStore(root).read(bucket, key, limit_bytes=limit, version_id=version)

    return anyio.run(go)


def test_objects_are_files_under_their_exact_keys(tmp_path: Path) -> None:
    (tmp_path / "bucket/a b+%20").mkdir(parents=True)
    (tmp_path / "bucket/a b+%20/ü.png").write_bytes(b"0123456789")
    assert read(tmp_path, "bucket", "a b+%20/ü.png") == b"0123456789"
    assert read(tmp_path, "bucket", "a b+%20/ü.png", limit=4, version="null") == b"01234"


@pytest.mark.parametrize(
    ("bucket", "key"),
    [
        ("bucket", "../secret"),
        ("bucket", "../other/x"),
        ("bucket", "a/../../secret"),
        ("bucket", "./x"),
        ("bucket", "/etc/passwd"),
        ("bucket", "link"),
        ("bucket", "folder/x"),
        ("bucket", "x\0"),
        ("bucket", ""),
        ("bucket", "x/"),
        ("..", "secret"),
        ("...", "secret"),
        ("../bucket", "x"),
        ("linked", "x"),
    ],
)
def test_no_key_reaches_a_file_outside_its_bucket(bucket: str, key: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("bucket", "other", "..."):
        (root / name).mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    for place in (root / "secret", root / "other/x", root / ".../secret", root / "bucket/x", tmp_path / "outside/x"):
        place.write_bytes(b"secret")
    (root / "bucket/link").symlink_to(root / "secret")
    (root / "bucket/folder").symlink_to(tmp_path / "outside")
    (root / "linked").symlink_to(tmp_path / "outside")
    assert read(root, "bucket", "x") == b"secret"
    with pytest.raises(ApiError) as caught:
        read(root, bucket, key)
    assert caught.value.code == "InvalidS3ObjectException"


@pytest.mark.parametrize("key", ["../x", "a/../../../x", "/x"])
def test_nothing_is_written_outside_of_a_bucket(key: str, tmp_path: Path) -> None:
    (tmp_path / "root/bucket").mkdir(parents=True)

    async def write(bucket: str, name: str) -> None:
        await DirectoryObjectStore(tmp_path / "root").write(bucket, name, b"data", content_type="text/plain")

    anyio.run(write, "bucket", "good/x")
    with pytest.raises(ApiError):
        anyio.run(write, "bucket", key)
    with pytest.raises(ApiError):
        anyio.run(write, "nobucket", "x")
    written = [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()]
    assert written == ["root/bucket/good/x"]


def test_without_buckets_no_object_exists() -> None:
    async def go() -> bytes:
        return await NoObjectStore().read("bucket", "x", limit_bytes=1)

    with pytest.raises(ApiError, match="Unable to get object metadata"):
        anyio.run(go)


def test_invalid_settings_are_refused() -> None:
    for host in ("0.0.0.0", "example.org", "192.168.1.2", "::"):
        with pytest.raises(UsageError, match="loopback"):
            EmulatorSettings(host=host)
    for host in ("127.0.0.1", "127.0.0.9", "::1", "localhost"):
        assert EmulatorSettings(host=host)
    with pytest.raises(UsageError, match="exclude each other"):
        EmulatorSettings(buckets=Path("x"), s3_endpoint_url="http://127.0.0.1:1")
    with pytest.raises(UsageError, match="--tps-per-unit"):
        EmulatorSettings(tps_per_unit=0)
    for seconds in (-1, math.nan, math.inf):
        with pytest.raises(UsageError, match="--start-seconds must be a number that is not negative"):
            EmulatorSettings(start_seconds=seconds)
        with pytest.raises(UsageError, match="--seconds-per-megapixel must be a number that is not negative"):
            EmulatorSettings(seconds_per_megapixel=seconds)
        with pytest.raises(UsageError, match="--tps-per-unit must be a number greater than 0"):
            EmulatorSettings(tps_per_unit=seconds)


def test_settings_become_flags() -> None:
    settings = EmulatorSettings(port=5, buckets=Path("/b"), exit_with_parent=True, tps_per_unit=9.5)
    assert settings.arguments() == ["--port", "5", "--buckets", "/b", "--tps-per-unit", "9.5", "--exit-with-parent"]


def test_missing_credentials_for_s3_are_not_a_failure_of_s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    async def main() -> None:
        async with AsyncExitStack() as stack:
            await (await S3ObjectStore.open("http://127.0.0.1:9", stack)).read("bucket", "x", limit_bytes=1)

    with pytest.raises(ApiError, match="no AWS credentials to read S3 with") as caught:
        anyio.run(main)
    assert caught.value.code == "InvalidParameterException", "clients don't repeat it"


def test_object_versions_are_read_from_an_s3_service(
    moto: str, small_digits: DigitsDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    s3 = boto3.client("s3", endpoint_url=moto, region_name="us-east-1")
    s3.create_bucket(Bucket="bucket")
    s3.create_bucket(Bucket="abroad", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    s3.put_bucket_versioning(Bucket="bucket", VersioningConfiguration={"Status": "Enabled"})
    first = s3.put_object(Bucket="bucket", Key="a//b+%2F", Body=b"0123456789")["VersionId"]
    s3.put_object(Bucket="bucket", Key="a//b+%2F", Body=b"new")

    async def go() -> None:
        async with AsyncExitStack() as stack:
            buckets = await S3ObjectStore.open(moto, stack)
            assert await buckets.region("abroad") == "eu-west-1"
            assert await buckets.region("bucket") == "us-east-1"
            assert await buckets.read("bucket", "a//b+%2F", limit_bytes=100) == b"new"
            assert await buckets.read("bucket", "a//b+%2F", limit_bytes=100, version_id=first) == b"0123456789"
            assert await buckets.read("bucket", "a//b+%2F", limit_bytes=4, version_id=first) == b"01234"
            await buckets.write("bucket", "out/x", b"{}", content_type="application/json")
            for bucket, key, version in (("bucket", "no", None), ("nobucket", "x", None), ("bucket", "out/x", "zzz")):
                with pytest.raises(ApiError) as caught:
                    await buckets.read(bucket, key, limit_bytes=1, version_id=version)
                assert caught.value.code == "InvalidS3ObjectException"
        async with AsyncExitStack() as stack:
            nobody = await S3ObjectStore.open("http://127.0.0.1:9", stack)
            with pytest.raises(ApiError) as caught:
                await nobody.read("bucket", "x", limit_bytes=1)
            assert (caught.value.code, caught.value.status) == ("InternalServerError", 500)

    anyio.run(go)
    for path in (small_digits.directory / "small").rglob("*.*"):
        s3.upload_file(str(path), "bucket", f"d/{path.relative_to(small_digits.directory / 'small')}")
    for kind in ("train", "test"):
        manifest = (small_digits.directory / f"small/{kind}.manifest").read_bytes()
        s3.put_object(Bucket="bucket", Key=f"{kind}.manifest", Body=manifest.replace(b"s3://small/", b"s3://bucket/d/"))
    with running_server(s3_endpoint_url=moto, train_seconds=0) as server:
        assert train(server.client(), bucket="bucket")["Status"] == "TRAINING_COMPLETED"
    assert (
        b"LabelEvaluationResults"
        in s3.get_object(Bucket="bucket", Key="out/EvaluationSummary-digits-v1.json")["Body"].read()
    )
