"""Handwritten digits as a demo: a trained model, images to score, and labelled folders to train from."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aioboto3
import anyio
import anyio.to_thread
import orjson
from botocore.config import Config

from batchcl.arns import ModelArn
from batchcl.aws.session import DEFAULT_REGION
from batchcl.emulator.digits import write_digits
from batchcl.emulator.process import running_emulator
from batchcl.emulator.settings import ACCOUNT, EmulatorSettings
from batchcl.emulator.state import EmulatorState
from batchcl.errors import ErrorCode, ModelError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["DemoData", "demo_buckets", "demo_data", "demo_folders", "demo_model", "ensure_model"]

_BUCKET: Final = "digits"
_PROJECT: Final = "digits"
_VERSION: Final = "v1"
_TRAINING_IMAGES: Final = 1000
_TEST_IMAGES: Final = 300
_SEED: Final = 7
_LABELLED_IMAGES: Final = 400
_UNSEEN_IMAGES: Final = 40

_POLL_S: Final = 0.5
_CONFIG: Final = Config(retries={"mode": "standard", "total_max_attempts": 10})


@dataclass(frozen=True, slots=True)
class DemoData:
    """Images to score: their directory, and a Ground Truth manifest whose paths are relative to itself."""

    images: Path
    truth: Path


async def demo_model(state: Path) -> str:
    """The ARN of the demo model in the emulator's folder `state`. It is trained there if it isn't yet.

    Raises:
        RefusedError: `state` can't be written, or the emulator doesn't start.
        ModelError: the training failed.
    """
    trained = await anyio.to_thread.run_sync(_trained_model, state)
    if trained is not None:
        return trained
    buckets = await anyio.to_thread.run_sync(demo_buckets, state)
    settings = EmulatorSettings(state=state, buckets=buckets, exit_with_parent=True)
    async with running_emulator(settings) as emulator:
        return await ensure_model(emulator.endpoint_url, bucket=_BUCKET, test_manifest=None)


def _trained_model(state: Path) -> str | None:
    """The ARN of the demo model if it can be started, found without starting an emulator."""
    wanted = (ACCOUNT, DEFAULT_REGION, f"{_PROJECT}@{_VERSION}")
    stored = EmulatorState.open(state)
    try:
        for version in stored.versions.values():
            model = ModelArn.parse(version.arn)
            is_usable = version.gone is None and version.status in {"TRAINING_COMPLETED", "STOPPED"}
            if is_usable and (model.account, model.region, model.name) == wanted:
                return version.arn
    finally:
        stored.close()
    return None


def demo_buckets(state: Path) -> Path:
    """The `--buckets` folder below `state`, with the digits of the demo written into it. Blocking.

    Raises:
        RefusedError: `state` can't be written.
    """
    buckets = state / "buckets"
    if not (buckets / _BUCKET / "test.manifest").exists():
        partial = state / f"buckets-{os.getpid()}"
        with _write_errors(state):
            write_digits(partial, bucket=_BUCKET, train=_TRAINING_IMAGES, test=_TEST_IMAGES, seed=_SEED)
            shutil.rmtree(buckets, ignore_errors=True)
            partial.rename(buckets)
    return buckets


def demo_data(directory: Path, state: Path) -> DemoData:
    """Write the demo's test images and their labels to `directory`; always the same ones. Blocking.

    Raises:
        RefusedError: `directory` or `state` can't be written.
    """
    bucket = demo_buckets(state) / _BUCKET
    data = DemoData(directory / "images", directory / "truth.manifest")
    with _write_errors(directory):
        _copy_images(data, (bucket / "test").iterdir(), bucket / "test.manifest")
    return data


def demo_folders(directory: Path) -> DemoData:
    """Write labelled images to `directory`, to train a model of one's own; always the same ones. Blocking.

    `directory/labelled` has a folder for each digit, for the training and test datasets. `directory/unseen` has other
    images to score, and `directory/unseen.manifest` their labels; both are returned.

    Raises:
        RefusedError: `directory` can't be written.
    """
    with tempfile.TemporaryDirectory() as temporary, _write_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)  # fails now, not after the images are drawn
        digits = write_digits(Path(temporary), bucket=_BUCKET, train=_LABELLED_IMAGES, test=_UNSEEN_IMAGES, seed=_SEED)
        for picture in digits.train:
            folder = directory / "labelled" / picture.labels[0]
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(picture.path, folder / picture.path.name)
        data = DemoData(directory / "unseen", directory / "unseen.manifest")
        _copy_images(data, (picture.path for picture in digits.test), digits.test_manifest)
    return data


def _copy_images(data: DemoData, images: Iterable[Path], manifest: Path) -> None:
    """Copy images to `data.images`, and their manifest, with relative paths instead of S3 URIs, to `data.truth`."""
    data.images.mkdir(parents=True, exist_ok=True)
    for path in images:
        shutil.copyfile(path, data.images / path.name)
    lines = []
    for line in manifest.read_bytes().splitlines():
        entry = orjson.loads(line)
        name = entry["source-ref"].rpartition("/")[2]
        lines.append(orjson.dumps(entry | {"source-ref": f"{data.images.name}/{name}"}) + b"\n")
    data.truth.write_bytes(b"".join(lines))


@contextmanager
def _write_errors(directory: Path) -> Iterator[None]:
    """Raise an OSError of the block as a RefusedError that names `directory`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise RefusedError(
            f"writing the demo's images to {directory} failed: {reason}. Choose a folder that can be written.",
            code=ErrorCode.WRITE_FAILED,
        ) from error


async def ensure_model(
    endpoint: str,
    *,
    bucket: str,
    train_manifest: str = "train.manifest",
    test_manifest: str | None = "test.manifest",
    project: str = _PROJECT,
    version: str = _VERSION,
    region: str = DEFAULT_REGION,
    access_key_id: str = "emulator",
    secret_access_key: str = "emulator",  # noqa: S107 - the emulator's built-in, not a secret
    timeout_s: float = 300.0,
) -> str:
    """Train a version if there is none of this name, and return its ARN.

    Creates the project, the datasets and the version that don't exist yet, and uses those that do. A second call is
    quick and changes nothing. The returned version can be started, or already runs.

    Args:
        endpoint: URL of the emulator.
        bucket: a bucket of the emulator with the manifests. The results of the training are written to `models/`.
        train_manifest: key of a Ground Truth manifest.
        test_manifest: likewise; None splits a test dataset off the training dataset.
        project: name of the project.
        version: name of the version.
        region: any; each region has its own resources.
        access_key_id: of credentials that the emulator accepts.
        secret_access_key: likewise.
        timeout_s: of all calls and the training together.

    Raises:
        ModelError: the training failed or took longer than `timeout_s`; with the service's message.
    """
    session = aioboto3.Session(
        aws_access_key_id=access_key_id, aws_secret_access_key=secret_access_key, region_name=region
    )
    async with session.client("rekognition", endpoint_url=endpoint, config=_CONFIG) as client:
        with anyio.move_on_after(timeout_s):
            manifests = {"TRAIN": train_manifest, "TEST": test_manifest}
            project_arn = await _project(client, project)
            for kind, key in manifests.items():
                if key is not None:
                    await _dataset(client, project_arn, kind, bucket, key)
            return await _version(client, project_arn, version, bucket)
    raise ModelError(
        f"training {project}@{version} at {endpoint} failed: it took longer than {timeout_s:g} s",
        code=ErrorCode.RESOURCE_FAILED,
    )


async def _project(client: Any, name: str) -> str:
    async def find() -> str | None:
        found = (await client.describe_projects(ProjectNames=[name]))["ProjectDescriptions"]
        return str(found[0]["ProjectArn"]) if found else None

    return await _find_or_create(client, find, lambda: client.create_project(ProjectName=name))


async def _dataset(client: Any, project_arn: str, kind: str, bucket: str, key: str) -> None:
    name = project_arn.split("/")[1]

    async def find() -> str | None:
        described = (await client.describe_projects(ProjectNames=[name]))["ProjectDescriptions"][0]
        found = [d for d in described.get("Datasets", ()) if d["DatasetType"] == kind]
        return str(found[0]["DatasetArn"]) if found else None

    source = {"GroundTruthManifest": {"S3Object": {"Bucket": bucket, "Name": key}}}
    arn = await _find_or_create(
        client,
        find,
        lambda: client.create_dataset(ProjectArn=project_arn, DatasetType=kind, DatasetSource=source),
    )
    while True:
        described = (await client.describe_dataset(DatasetArn=arn))["DatasetDescription"]
        if not described["Status"].endswith("IN_PROGRESS"):
            break
        await anyio.sleep(_POLL_S)
    if described["Status"] == "CREATE_FAILED":
        raise ModelError(
            f"creating the dataset {arn} failed: {described.get('StatusMessage', 'no reason given')}",
            code=ErrorCode.RESOURCE_FAILED,
        )


async def _version(client: Any, project_arn: str, name: str, bucket: str) -> str:
    async def find() -> str | None:
        described = await _describe_version(client, project_arn, name)
        return str(described["ProjectVersionArn"]) if described else None

    arn = await _find_or_create(
        client,
        find,
        lambda: client.create_project_version(
            ProjectArn=project_arn,
            VersionName=name,
            OutputConfig={"S3Bucket": bucket, "S3KeyPrefix": "models"},
        ),
    )
    while True:
        described = await _describe_version(client, project_arn, name)
        status = described["Status"] if described else "DELETED"
        if status in {"TRAINING_FAILED", "FAILED", "DELETED", "DELETING"}:
            reason = described.get("StatusMessage", "no reason given") if described else "the version was deleted"
            raise ModelError(f"training {arn} failed: {reason}", code=ErrorCode.RESOURCE_FAILED)
        if status != "TRAINING_IN_PROGRESS":
            return arn
        await anyio.sleep(_POLL_S)


async def _describe_version(client: Any, project_arn: str, name: str) -> dict[str, Any] | None:
    answer = await client.describe_project_versions(ProjectArn=project_arn, VersionNames=[name])
    found: list[dict[str, Any]] = answer["ProjectVersionDescriptions"]
    return found[0] if found else None


async def _find_or_create(
    client: Any, find: Callable[[], Awaitable[str | None]], create: Callable[[], Awaitable[Any]]
) -> str:
    """The ARN that `find` returns, else that of what `create` creates, or of what another caller created meanwhile."""
    found = await find()
    if found is not None:
        return found
    already_exists = (client.exceptions.ResourceInUseException, client.exceptions.ResourceAlreadyExistsException)
    try:
        created = await create()
    except already_exists:
        found = await find()
        if found is None:
            raise
        return found
    return str(next(created[name] for name in ("ProjectVersionArn", "DatasetArn", "ProjectArn") if name in created))
