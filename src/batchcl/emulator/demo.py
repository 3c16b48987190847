"""The demo's data and model: handwritten digits, trained in the emulator."""

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

from batchcl.emulator.digits import write_digits
from batchcl.emulator.process import running_emulator
from batchcl.emulator.settings import EmulatorSettings
from batchcl.errors import ModelError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["DemoData", "demo_data", "demo_folders", "demo_model", "ensure_model"]

_POLL_S: Final = 0.5
_CONFIG: Final = Config(retries={"mode": "standard", "total_max_attempts": 10})


async def ensure_model(
    endpoint: str,
    *,
    bucket: str,
    train_manifest: str = "train.manifest",
    test_manifest: str | None = "test.manifest",
    project: str = "digits",
    version: str = "v1",
    region: str = "us-east-1",
    access_key_id: str = "emulator",
    secret_access_key: str = "emulator",  # noqa: S107 - the emulator's built-in, not a secret
    timeout_s: float = 300.0,
) -> str:
    """The ARN of a trained version, in any state that can be started or runs.

    Project, datasets and version are made where they are missing; what is there is taken as it is, so a second call
    is quick and changes nothing.

    Args:
        endpoint: of the emulator.
        bucket: as the emulator sees it; it has the manifests and takes the training's results under `models/`.
        train_manifest: key of a Ground Truth manifest.
        test_manifest: likewise; None lets the service split a part off the training set.
        project: the project's name.
        version: the version's name.
        region: any; resources are per region.
        access_key_id: a pair that the emulator knows.
        secret_access_key: likewise.
        timeout_s: how long the training may take.

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
    raise ModelError(f"training {project}/{version} at {endpoint} took longer than {timeout_s:g} s")


async def _project(client: Any, name: str) -> str:
    async def find() -> str | None:
        found = (await client.describe_projects(ProjectNames=[name]))["ProjectDescriptions"]
        return str(found[0]["ProjectArn"]) if found else None

    return await _find_or_make(client, find, lambda: client.create_project(ProjectName=name))


async def _dataset(client: Any, project_arn: str, kind: str, bucket: str, key: str) -> None:
    name = project_arn.split("/")[1]

    async def find() -> str | None:
        described = (await client.describe_projects(ProjectNames=[name]))["ProjectDescriptions"][0]
        found = [d for d in described.get("Datasets", ()) if d["DatasetType"] == kind]
        return str(found[0]["DatasetArn"]) if found else None

    source = {"GroundTruthManifest": {"S3Object": {"Bucket": bucket, "Name": key}}}
    arn = await _find_or_make(
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
        raise ModelError(f"making the dataset {arn} failed: {described.get('StatusMessage', 'no reason given')}")


async def _version(client: Any, project_arn: str, name: str, bucket: str) -> str:
    async def find() -> str | None:
        described = await _described(client, project_arn, name)
        return str(described["ProjectVersionArn"]) if described else None

    arn = await _find_or_make(
        client,
        find,
        lambda: client.create_project_version(
            ProjectArn=project_arn,
            VersionName=name,
            OutputConfig={"S3Bucket": bucket, "S3KeyPrefix": "models"},
        ),
    )
    while True:
        described = await _described(client, project_arn, name)
        status = described["Status"] if described else "DELETED"
        if status in {"TRAINING_FAILED", "FAILED", "DELETED", "DELETING"}:
            why = described.get("StatusMessage", "no reason given") if described else "the version is gone"
            raise ModelError(f"training {arn} failed: {why}")
        if status != "TRAINING_IN_PROGRESS":
            return arn
        await anyio.sleep(_POLL_S)


async def _described(client: Any, project_arn: str, name: str) -> dict[str, Any] | None:
    answer = await client.describe_project_versions(ProjectArn=project_arn, VersionNames=[name])
    found: list[dict[str, Any]] = answer["ProjectVersionDescriptions"]
    return found[0] if found else None


async def _find_or_make(
    client: Any, find: Callable[[], Awaitable[str | None]], make: Callable[[], Awaitable[Any]]
) -> str:
    """What `find` finds, else what `make` makes; if somebody else makes it just then, theirs."""
    found = await find()
    if found is not None:
        return found
    taken = (client.exceptions.ResourceInUseException, client.exceptions.ResourceAlreadyExistsException)
    try:
        made = await make()
    except taken:
        found = await find()
        if found is None:
            raise
        return found
    return str(next(made[name] for name in ("ProjectVersionArn", "DatasetArn", "ProjectArn") if name in made))


_BUCKET: Final = "digits"
_TRAIN: Final = 1000
_TEST: Final = 300
_SEED: Final = 7
_LABELLED: Final = 400
_UNSEEN: Final = 40


@dataclass(frozen=True, slots=True)
class DemoData:
    """Pictures to score and what is on them.

    Attributes:
        images: a directory of pictures that no training has seen.
        truth: a Ground Truth manifest with paths relative to itself.
    """

    images: Path
    truth: Path


async def demo_model(state: Path) -> str:
    """The ARN of the demo's model in the emulator's `state`; it is trained there if it isn't yet.

    Raises:
        RefusedError: `state` can't be written, or the emulator doesn't start.
    """
    buckets = await anyio.to_thread.run_sync(_pictures, state)
    settings = EmulatorSettings(state=state, buckets=buckets, exit_with_parent=True)
    async with running_emulator(settings) as emulator:
        return await ensure_model(emulator.endpoint, bucket=_BUCKET, test_manifest=None)


def demo_data(directory: Path, state: Path) -> DemoData:
    """Lay the unseen pictures and their truth into `directory`, the same ones each time. Blocks.

    Raises:
        RefusedError: `directory` or `state` can't be written.
    """
    bucket = _pictures(state) / _BUCKET
    laid = DemoData(directory / "images", directory / "truth.manifest")
    with _writing(directory):
        _lay(laid, (bucket / "test").iterdir(), bucket / "test.manifest")
    return laid


def demo_folders(directory: Path) -> DemoData:
    """Lay pictures into `directory` for a model of one's own, the same ones each time. Blocks.

    `directory/labelled` has a folder for each digit, to learn from and test with; `directory/unseen` has other
    pictures to score, with their truth beside it.

    Raises:
        RefusedError: `directory` can't be written.
    """
    with tempfile.TemporaryDirectory() as temporary, _writing(directory):
        data = write_digits(Path(temporary), bucket=_BUCKET, train=_LABELLED, test=_UNSEEN, seed=_SEED)
        for picture in data.train:
            folder = directory / "labelled" / picture.labels[0]
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(picture.path, folder / picture.path.name)
        laid = DemoData(directory / "unseen", directory / "unseen.manifest")
        _lay(laid, (picture.path for picture in data.test), data.test_manifest)
    return laid


def _lay(data: DemoData, pictures: Iterable[Path], manifest: Path) -> None:
    """Copy the pictures, and their manifest with paths instead of S3 URIs, to where `data` says."""
    data.images.mkdir(parents=True, exist_ok=True)
    for path in pictures:
        shutil.copyfile(path, data.images / path.name)
    data.truth.write_bytes(_relative(manifest, data.images.name))


def _relative(manifest: Path, folder: str) -> bytes:
    """The manifest's lines with paths instead of S3 URIs."""
    lines = []
    for line in manifest.read_bytes().splitlines():
        entry = orjson.loads(line)
        lines.append(orjson.dumps(entry | {"source-ref": f"{folder}/{entry['source-ref'].rpartition('/')[2]}"}) + b"\n")
    return b"".join(lines)


def _pictures(state: Path) -> Path:
    """The emulator's buckets below `state`, with the digits in them."""
    buckets = state / "buckets"
    if not (buckets / _BUCKET / "test.manifest").exists():
        being_made = state / f"buckets-{os.getpid()}"
        with _writing(state):
            write_digits(being_made, bucket=_BUCKET, train=_TRAIN, test=_TEST, seed=_SEED)
            shutil.rmtree(buckets, ignore_errors=True)
            being_made.rename(buckets)
    return buckets


@contextmanager
def _writing(directory: Path) -> Iterator[None]:
    """What the system refuses in the block is a refusal that names `directory`."""
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise RefusedError(f"can't write the demo's pictures to {directory}: {why}; name a writable one") from error
