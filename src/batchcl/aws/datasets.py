"""Datasets: a project's labelled images for training and testing.

Each function takes an open Rekognition client. Changes of a dataset are asynchronous in the service; these functions
return when they are complete.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from batchcl.arns import DatasetArn, ProjectArn
from batchcl.aws.errors import cause_code, translate_errors
from batchcl.aws.values import drop_none, utc
from batchcl.aws.waiting import GONE, wait_until
from batchcl.errors import ErrorCode, RefusedError, UsageError

__all__ = [
    "Dataset",
    "DatasetLabel",
    "S3Location",
    "create_dataset",
    "dataset_entries",
    "dataset_labels",
    "delete_dataset",
    "describe_dataset",
    "distribute_entries",
    "update_entries",
]

TIMEOUT_S: Final = 60 * 60.0
"""Enough for 250,000 images; AWS publishes no time."""

MAX_CHANGES_BYTES: Final = 5 * 1024 * 1024 - 1
"""Largest body of one UpdateDatasetEntries request: less than 5 MB. Source: its API reference."""

_MAX_CHANGES_LINES: Final = 10_000
_READY: Final = frozenset({"CREATE_COMPLETE", "UPDATE_COMPLETE"})
_IN_PROGRESS: Final = frozenset({"CREATE_IN_PROGRESS", "UPDATE_IN_PROGRESS"})


@dataclass(frozen=True, slots=True)
class S3Location:
    """An S3 object; `version` is its version id."""

    bucket: str
    key: str
    version: str | None = None

    @classmethod
    def parse(cls, text: str) -> S3Location:
        """Parse `s3://bucket/key`, without decoding the key; raises `UsageError`."""
        bucket, slash, key = text.removeprefix("s3://").partition("/")
        if not text.startswith("s3://") or not bucket or not slash or not key:
            raise UsageError(f"{text!r} is not an object in S3; write it like s3://bucket/key")
        return cls(bucket, key)

    @property
    def manifest(self) -> dict[str, Any]:
        """The object as a manifest, in the API's format."""
        location = {"Bucket": self.bucket, "Name": self.key} | ({"Version": self.version} if self.version else {})
        return {"GroundTruthManifest": {"S3Object": location}}

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """The service's description of a dataset; the status of a deleted one is GONE.

    Attributes:
        arn: of the dataset.
        project: the project's name.
        kind: `train` or `test`.
        status: as in the API.
        message: the reason for the status.
        entries: number of manifest lines, one for each image.
        labeled: number of entries with a label.
        labels: number of distinct labels.
        errors: number of entries that the service can't use.
        created: time of creation.
        updated: time of the last change.
    """

    arn: str
    project: str
    kind: str
    status: str
    message: str
    entries: int = 0
    labeled: int = 0
    labels: int = 0
    errors: int = 0
    created: dt.datetime | None = None
    updated: dt.datetime | None = None

    @property
    def name(self) -> str:
        """`<project>/<kind>`."""
        return f"{self.project}/{self.kind}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetLabel:
    """A label of a dataset, with the number of images that have it, and of those with a box for it."""

    label: str
    entries: int
    boxed: int


async def create_dataset(
    client: Any,
    project: ProjectArn,
    kind: str,
    source: S3Location | DatasetArn | None = None,
    *,
    tags: Mapping[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
    on_state: Callable[[Dataset], None] = lambda _: None,
) -> Dataset:
    """Create a project's training or test dataset, and return it when it is complete.

    Args:
        client: an open Rekognition client.
        project: the project; it can have one dataset of each kind.
        kind: `train` or `test`.
        source: a Ground Truth manifest in S3, another dataset to copy, or None for an empty dataset.
        tags: of the dataset.
        timeout_s: maximum time to wait.
        on_state: receives the dataset at each change of status.

    Raises:
        RefusedError: the project already has one of this kind, or the source can't be read or used.
        StoppedError: it was not complete after `timeout_s`.
    """
    arguments: dict[str, Any] = {"ProjectArn": project.text, "DatasetType": kind.upper()}
    if isinstance(source, DatasetArn):
        arguments["DatasetSource"] = {"DatasetArn": source.text}
    elif source is not None:
        arguments["DatasetSource"] = source.manifest
    if tags:
        arguments["Tags"] = dict(tags)
    origin = "" if source is None else f" from {source}"
    name = f"{project.project}/{kind}"
    in_use = f"add to it with `batchcl dataset update {name}`, or delete it first"
    with translate_errors(f"creating the dataset {name}{origin}", in_use=in_use):
        response = await client.create_dataset(**arguments)
    return await _wait_ready(client, DatasetArn.parse(response["DatasetArn"]), timeout_s=timeout_s, on_state=on_state)


async def describe_dataset(client: Any, arn: DatasetArn) -> Dataset:
    """The current description of the dataset; raises `RefusedError` if it does not exist."""
    with translate_errors(f"describing the dataset {arn.name}"):
        response = await client.describe_dataset(DatasetArn=arn.text)
    description = response["DatasetDescription"]
    stats = description.get("DatasetStats", {})
    return Dataset(
        arn=arn.text,
        project=arn.project,
        kind=arn.kind,
        status=description["Status"],
        message=description.get("StatusMessage", ""),
        entries=stats.get("TotalEntries", 0),
        labeled=stats.get("LabeledEntries", 0),
        labels=stats.get("TotalLabels", 0),
        errors=stats.get("ErrorEntries", 0),
        created=utc(description.get("CreationTimestamp")),
        updated=utc(description.get("LastUpdatedTimestamp")),
    )


async def dataset_entries(
    client: Any,
    arn: DatasetArn,
    *,
    labels: Sequence[str] = (),
    labeled: bool | None = None,
    source_contains: str | None = None,
    has_errors: bool | None = None,
) -> AsyncIterator[str]:
    """Iterate over the manifest lines that pass all filters.

    Args:
        client: an open Rekognition client.
        arn: of the dataset.
        labels: with any of these labels.
        labeled: with a label (True) or without (False).
        source_contains: the image's URI contains this text.
        has_errors: unusable by the service (True) or usable (False).
    """
    filters = drop_none(
        ContainsLabels=list(labels) or None, Labeled=labeled, SourceRefContains=source_contains, HasErrors=has_errors
    )
    with translate_errors(f"listing the entries of the dataset {arn.name}"):
        async for page in client.get_paginator("list_dataset_entries").paginate(DatasetArn=arn.text, **filters):
            for entry in page["DatasetEntries"]:
                yield entry


async def dataset_labels(client: Any, arn: DatasetArn) -> list[DatasetLabel]:
    """The dataset's labels with their counts."""
    labels: list[DatasetLabel] = []
    with translate_errors(f"listing the labels of the dataset {arn.name}"):
        async for page in client.get_paginator("list_dataset_labels").paginate(DatasetArn=arn.text):
            for each in page["DatasetLabelDescriptions"]:
                stats = each.get("LabelStats", {})
                labels.append(
                    DatasetLabel(
                        label=each["LabelName"],
                        entries=stats.get("EntryCount", 0),
                        boxed=stats.get("BoundingBoxCount", 0),
                    )
                )
    return labels


async def update_entries(
    client: Any,
    arn: DatasetArn,
    lines: Iterable[bytes],
    *,
    timeout_s: float = TIMEOUT_S,
    on_batch: Callable[[int], None] = lambda _: None,
) -> Dataset:
    """Add entries, or replace those with the same `source-ref`; return the dataset when all are in it.

    Lines are sent in batches below the service's limit of 5 MB. If a batch fails, the earlier ones stay in the dataset.

    Args:
        client: an open Rekognition client.
        arn: of the dataset.
        lines: manifest lines, JSON without line ends.
        timeout_s: maximum time for each batch.
        on_batch: receives the number of lines added so far, after each batch.

    Raises:
        UsageError: a line is larger than the limit of a batch.
        RefusedError: the service refuses a batch.
        StoppedError: a batch took longer than `timeout_s`.
    """
    done = 0
    dataset = await _wait_ready(client, arn, timeout_s=timeout_s)
    for batch in _batches(lines):
        with translate_errors(f"updating the dataset {arn.name}"):
            await client.update_dataset_entries(
                DatasetArn=arn.text, Changes={"GroundTruth": b"".join(line + b"\n" for line in batch)}
            )
        dataset = await _wait_ready(client, arn, timeout_s=timeout_s)
        done += len(batch)
        on_batch(done)
    return dataset


async def distribute_entries(
    client: Any, train: DatasetArn, test: DatasetArn, *, timeout_s: float = TIMEOUT_S
) -> tuple[Dataset, Dataset]:
    """Move a fifth of the training entries into the empty test dataset; return both when they are ready.

    Raises:
        RefusedError: the test dataset is not empty, or one of them is not ready.
    """
    with translate_errors(f"distributing the entries of the dataset {train.name}"):
        await client.distribute_dataset_entries(Datasets=[{"Arn": train.text}, {"Arn": test.text}])
    return (
        await _wait_ready(client, train, timeout_s=timeout_s),
        await _wait_ready(client, test, timeout_s=timeout_s),
    )


async def delete_dataset(client: Any, arn: DatasetArn, *, timeout_s: float = TIMEOUT_S) -> None:
    """Delete a dataset, and return when it no longer exists; its images and manifest stay in S3.

    Raises:
        RefusedError: it is being created, changed or used for training.
    """
    with translate_errors(f"deleting the dataset {arn.name}"):
        await client.delete_dataset(DatasetArn=arn.text)

    async def describe() -> Dataset:
        try:
            return await describe_dataset(client, arn)
        except RefusedError as error:
            if cause_code(error) != "ResourceNotFoundException":
                raise
            return Dataset(arn=arn.text, project=arn.project, kind=arn.kind, status=GONE, message="")

    passing = _READY | {"DELETE_IN_PROGRESS", "CREATE_FAILED"}
    await wait_until(describe, until={GONE}, passing=passing, timeout_s=timeout_s)


async def _wait_ready(
    client: Any,
    arn: DatasetArn,
    *,
    timeout_s: float,
    on_state: Callable[[Dataset], None] = lambda _: None,
) -> Dataset:
    return await wait_until(
        lambda: describe_dataset(client, arn),
        until=_READY,
        passing=_IN_PROGRESS,
        timeout_s=timeout_s,
        on_state=on_state,
    )


def _batches(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for line in lines:
        length = len(line) + 1
        if length > MAX_CHANGES_BYTES:
            raise UsageError(
                f"a manifest line of {length:,} bytes is too large; the limit of an update is 5 MB",
                code=ErrorCode.UNSUITABLE_DATASET,
            )
        if batch and (size + length > MAX_CHANGES_BYTES or len(batch) >= _MAX_CHANGES_LINES):
            yield batch
            batch, size = [], 0
        batch.append(line)
        size += length
    if batch:
        yield batch
