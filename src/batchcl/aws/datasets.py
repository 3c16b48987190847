"""Datasets: the labelled images that a project's models learn from and are tested with.

Each verb takes an open Rekognition client. What changes a dataset is asynchronous in the service; the verbs here
return when it is done.
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
from batchcl.errors import RefusedError, UsageError

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
"""A dataset of 250,000 images takes a while; AWS publishes no time."""

MAX_CHANGES_BYTES: Final = 5 * 1024 * 1024 - 1
"""Largest body of one UpdateDatasetEntries: less than 5 MB; source: its API reference."""

_MAX_CHANGES_LINES: Final = 10_000
_READY: Final = frozenset({"CREATE_COMPLETE", "UPDATE_COMPLETE"})
_UNDER_WAY: Final = frozenset({"CREATE_IN_PROGRESS", "UPDATE_IN_PROGRESS"})


@dataclass(frozen=True, slots=True)
class S3Location:
    """An object in S3, `version` being its S3 version."""

    bucket: str
    key: str
    version: str | None = None

    @classmethod
    def parse(cls, text: str) -> S3Location:
        """Read `s3://bucket/key`, the key exactly as it is; raises `UsageError`."""
        bucket, slash, key = text.removeprefix("s3://").partition("/")
        if not text.startswith("s3://") or not bucket or not slash or not key:
            raise UsageError(f"{text!r} names no object in S3; it looks like s3://bucket/key")
        return cls(bucket, key)

    @property
    def manifest(self) -> dict[str, Any]:
        """As the service's operations take a manifest."""
        named = {"Bucket": self.bucket, "Name": self.key} | ({"Version": self.version} if self.version else {})
        return {"GroundTruthManifest": {"S3Object": named}}

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A dataset as the service describes it; once deleted its status is GONE.

    Attributes:
        arn: of the dataset.
        project: the project's name.
        kind: `train` or `test`.
        status: the service's own word.
        message: its reason.
        entries: manifest lines, an image each.
        labeled: entries with a label.
        labels: different labels.
        errors: entries that the service can't use.
        created: when.
        updated: when it was last changed.
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
    """A label of a dataset: how many images have it, and on how many of them it has a box."""

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
    """Make the project's training or test dataset, and return it when it is complete.

    Args:
        client: an open Rekognition client.
        project: which gets it; a project has at most one of each kind.
        kind: `train` or `test`.
        source: a Ground Truth manifest in S3, another dataset to copy, or None for an empty one.
        tags: of the dataset.
        timeout_s: how long to wait for it at most.
        on_state: told of each change of its status.

    Raises:
        RefusedError: the project has one of this kind already, or the source can't be read or used.
        StoppedError: it wasn't complete after `timeout_s`.
    """
    arguments: dict[str, Any] = {"ProjectArn": project.text, "DatasetType": kind.upper()}
    if isinstance(source, DatasetArn):
        arguments["DatasetSource"] = {"DatasetArn": source.text}
    elif source is not None:
        arguments["DatasetSource"] = source.manifest
    if tags:
        arguments["Tags"] = dict(tags)
    of = "" if source is None else f" from {source}"
    name = f"{project.project}/{kind}"
    in_use = f"add to it with `batchcl dataset update {name}`, or delete it first"
    with translate_errors(f"creating the dataset {name}{of}", in_use=in_use):
        made = await client.create_dataset(**arguments)
    return await _ready(client, DatasetArn.parse(made["DatasetArn"]), timeout_s=timeout_s, on_state=on_state)


async def describe_dataset(client: Any, arn: DatasetArn) -> Dataset:
    """The dataset as it is now; raises `RefusedError` where there is none."""
    with translate_errors(f"describing the dataset {arn.name}"):
        answer = await client.describe_dataset(DatasetArn=arn.text)
    described = answer["DatasetDescription"]
    stats = described.get("DatasetStats", {})
    return Dataset(
        arn=arn.text,
        project=arn.project,
        kind=arn.kind,
        status=described["Status"],
        message=described.get("StatusMessage", ""),
        entries=stats.get("TotalEntries", 0),
        labeled=stats.get("LabeledEntries", 0),
        labels=stats.get("TotalLabels", 0),
        errors=stats.get("ErrorEntries", 0),
        created=utc(described.get("CreationTimestamp")),
        updated=utc(described.get("LastUpdatedTimestamp")),
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
    """The dataset's manifest lines that pass all filters, a page at a time.

    Args:
        client: an open Rekognition client.
        arn: of the dataset.
        labels: entries with any of these labels.
        labeled: entries with a label, or those without.
        source_contains: entries whose image's URI contains this.
        has_errors: entries that the service can't use, or those that it can.
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
    found: list[DatasetLabel] = []
    with translate_errors(f"listing the labels of the dataset {arn.name}"):
        async for page in client.get_paginator("list_dataset_labels").paginate(DatasetArn=arn.text):
            for each in page["DatasetLabelDescriptions"]:
                stats = each.get("LabelStats", {})
                found.append(
                    DatasetLabel(
                        label=each["LabelName"],
                        entries=stats.get("EntryCount", 0),
                        boxed=stats.get("BoundingBoxCount", 0),
                    )
                )
    return found


async def update_entries(
    client: Any,
    arn: DatasetArn,
    lines: Iterable[bytes],
    *,
    timeout_s: float = TIMEOUT_S,
    on_batch: Callable[[int], None] = lambda _: None,
) -> Dataset:
    """Add or replace entries, by their `source-ref`, and return the dataset when all of them are in.

    The lines go out in batches below the service's 5 MB; one that fails leaves the earlier ones in.

    Args:
        client: an open Rekognition client.
        arn: of the dataset.
        lines: manifest lines, JSON without line ends.
        timeout_s: how long to wait for each batch at most.
        on_batch: told how many lines are in, after each batch.

    Raises:
        UsageError: one line is larger than a batch may be.
        RefusedError: the service refuses a batch.
        StoppedError: a batch took longer than `timeout_s`.
    """
    done = 0
    dataset = await _ready(client, arn, timeout_s=timeout_s)
    for batch in _batches(lines):
        with translate_errors(f"updating the dataset {arn.name}"):
            await client.update_dataset_entries(
                DatasetArn=arn.text, Changes={"GroundTruth": b"".join(line + b"\n" for line in batch)}
            )
        dataset = await _ready(client, arn, timeout_s=timeout_s)
        done += len(batch)
        on_batch(done)
    return dataset


async def distribute_entries(
    client: Any, train: DatasetArn, test: DatasetArn, *, timeout_s: float = TIMEOUT_S
) -> tuple[Dataset, Dataset]:
    """Move a fifth of the training entries into the empty test dataset; return both when that is done.

    Raises:
        RefusedError: the test dataset isn't empty, or one of them isn't ready.
    """
    with translate_errors(f"distributing the entries of the dataset {train.name}"):
        await client.distribute_dataset_entries(Datasets=[{"Arn": train.text}, {"Arn": test.text}])
    return (
        await _ready(client, train, timeout_s=timeout_s),
        await _ready(client, test, timeout_s=timeout_s),
    )


async def delete_dataset(client: Any, arn: DatasetArn, *, timeout_s: float = TIMEOUT_S) -> None:
    """Delete a dataset, and return when it is gone; its images and manifest stay in S3.

    Raises:
        RefusedError: it is being made, changed or trained with.
    """
    with translate_errors(f"deleting the dataset {arn.name}"):
        await client.delete_dataset(DatasetArn=arn.text)

    async def look() -> Dataset:
        try:
            return await describe_dataset(client, arn)
        except RefusedError as error:
            if cause_code(error) != "ResourceNotFoundException":
                raise
            return Dataset(arn=arn.text, project=arn.project, kind=arn.kind, status=GONE, message="")

    await wait_until(look, until={GONE}, passing=_READY | {"DELETE_IN_PROGRESS", "CREATE_FAILED"}, timeout_s=timeout_s)


async def _ready(
    client: Any,
    arn: DatasetArn,
    *,
    timeout_s: float,
    on_state: Callable[[Dataset], None] = lambda _: None,
) -> Dataset:
    return await wait_until(
        lambda: describe_dataset(client, arn),
        until=_READY,
        passing=_UNDER_WAY,
        timeout_s=timeout_s,
        on_state=on_state,
    )


def _batches(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for line in lines:
        length = len(line) + 1
        if length > MAX_CHANGES_BYTES:
            raise UsageError(f"a manifest line of {length:,} bytes is too large; a change may have less than 5 MB")
        if batch and (size + length > MAX_CHANGES_BYTES or len(batch) >= _MAX_CHANGES_LINES):
            yield batch
            batch, size = [], 0
        batch.append(line)
        size += length
    if batch:
        yield batch
