"""Writers of all list formats, and a reader of any source."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import quote, quote_plus

import anyio
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import orc

from batchcl.aws.session import Aws
from batchcl.choices import SourceKind
from batchcl.images import Bookmark, ImageRef, Position
from batchcl.sources.base import Source, SourceCheck
from batchcl.sources.deduplication import NO_NAMES
from batchcl.sources.filters import Filters
from batchcl.sources.open import ListOptions, open_sources
from batchcl.sources.select import SelectedPage, Selection

BUCKET = "acme-photos"

HARD_KEYS = (
    "plain.jpg",
    "with space.jpg",
    "a+b.jpg",
    "a%2Bb.jpg",
    "100%.jpg",
    "%",
    "%zz.jpg",
    "caf\u00e9.jpg",
    "cafe\u0301.jpg",
    "new\nline.jpg",
    "a//b.jpg",
    "/leading.jpg",
    "//.jpg",
    "../up.jpg",
    "a,b.jpg",
    'quo"te.jpg',
    "back\\slash.jpg",
    "tab\tand\rreturn.jpg",
    " around ",
    "s3://inside",
    "日本語/写真.jpg",
    "\U0001f4f7.png",
    "k" * 1020 + ".jpg",
    "é" * 510 + ".jpg",
)

FIELDS = ("Bucket", "Key", "VersionId", "IsLatest", "IsDeleteMarker", "Size", "LastModifiedDate", "ETag")


class FakeSource:
    """A source of images, or of keys in the bucket `b`, in pages of `page` images.

    With a `prefix`, it is exhaustive and may name all keys that start with it.
    """

    description = "fake"
    repeats = NO_NAMES
    is_explicit = False

    def __init__(self, images: Sequence[ImageRef | str], *, page: int = 2, prefix: str | None = None) -> None:
        self.images = [
            ImageRef(uri=f"s3://b/{each}", bucket="b", key=each) if isinstance(each, str) else each for each in images
        ]
        self.exhaustive = prefix is not None
        self.pages_read = 0
        self._page = page
        self._prefix = prefix

    async def check(self) -> SourceCheck:
        return SourceCheck()

    async def pages(self, after: Position | None = None) -> AsyncIterator[list[ImageRef]]:
        images = self.images[0 if after is None else after.count :]
        for begin in range(0, len(images), self._page):
            self.pages_read += 1
            yield images[begin : begin + self._page]

    async def may_name(self, images: Sequence[ImageRef]) -> list[bool]:
        if self._prefix is not None:
            return [image.key.startswith(self._prefix) for image in images]
        named = {image.uri for image in self.images}
        return [image.uri in named for image in images]


class Selected(NamedTuple):
    """A selected image and the bookmark after it."""

    image: ImageRef
    bookmark: Bookmark


def with_bookmarks(page: SelectedPage) -> list[Selected]:
    """The images of a page, each with its bookmark."""
    return [Selected(image, page.behind(number)) for number, image in enumerate(page.images, 1)]


class Read(NamedTuple):
    """The result of reading a whole source."""

    images: list[ImageRef]
    checked: SourceCheck
    duplicates: int


def read(*names: str | Path, aws: object = None, skip: int = 0, **options: Any) -> Read:
    """Check one source, then read its images, resuming after the first `skip`."""
    if options.get("kind") is not None:
        options["kind"] = SourceKind(options["kind"])

    async def main() -> Read:
        with ExitStack() as stack:
            sources = await open_sources(
                [str(name) for name in names],
                stack,
                aws=cast("Aws", aws),
                region="us-east-1",
                options=ListOptions(**options),
            )
            (checked,) = [await source.check() for source in sources]
            images, duplicates = await selected(sources[0], skip=skip)
            return Read(images, checked, duplicates)

    return anyio.run(main)


async def selected(source: Source, *, skip: int = 0) -> tuple[list[ImageRef], int]:
    """(the distinct images of `source` after the first `skip`, the number of duplicates)."""
    selection = Selection([source], Filters())
    if not skip:
        return [image async for page in selection.pages() for image in page.images], selection.duplicates
    before = [one async for page in selection.pages() for one in with_bookmarks(page)][:skip]

    async def earlier() -> AsyncIterator[tuple[int, Sequence[ImageRef]]]:
        yield 0, [one.image for one in before]

    rest = selection.pages(before[-1].bookmark, earlier=earlier())
    return [image async for page in rest for image in page.images], selection.duplicates


def keys(*names: str | Path, **options: Any) -> list[str]:
    """The keys of all images."""
    return [image.key for image in read(*names, **options).images]


def csv_text(rows: Sequence[Sequence[str]]) -> bytes:
    sink = io.StringIO(newline="")
    csv.writer(sink, quoting=csv.QUOTE_ALL).writerows(rows)
    return sink.getvalue().encode()


def write_keys(path: Path, names: Sequence[str]) -> dict[str, Any]:
    path.write_bytes("".join(f"s3://{BUCKET}/{name}\n" for name in names).encode())
    return {"kind": "keys"}


def write_manifest(path: Path, names: Sequence[str]) -> dict[str, Any]:
    path.write_bytes(b"".join(orjson.dumps({"source-ref": f"s3://{BUCKET}/{name}"}) + b"\n" for name in names))
    return {}


def write_json_lines(path: Path, names: Sequence[str]) -> dict[str, Any]:
    lines = (orjson.dumps({"id": 1, "image": {"uri": f"s3://{BUCKET}/{name}"}}) + b"\n" for name in names)
    path.write_bytes(b"".join(lines))
    return {"uri_field": "image.uri"}


def write_batch(path: Path, names: Sequence[str]) -> dict[str, Any]:
    path.write_bytes(csv_text([[BUCKET, quote(name, safe="/")] for name in names]))
    return {"kind": "batch-csv"}


def write_batch_with_versions(path: Path, names: Sequence[str]) -> dict[str, Any]:
    path.write_bytes("".join(f"{BUCKET},{quote_plus(name)},v1\n" for name in names).encode())
    return {"kind": "batch-csv"}


def write_labels(path: Path, names: Sequence[str]) -> dict[str, Any]:
    path.write_bytes(csv_text([[f"s3://{BUCKET}/{name}", "cat", "outside"] for name in names]))
    return {"kind": "label-csv"}


def write_csv_table(path: Path, names: Sequence[str]) -> dict[str, Any]:
    path.write_bytes(csv_text([["n", "where"], *([str(at), f"s3://{BUCKET}/{name}"] for at, name in enumerate(names))]))
    return {"kind": "table", "columns": columns(uri="where")}


def write_parquet(path: Path, names: Sequence[str]) -> dict[str, Any]:
    pq.write_table(pa.table({"uri": [f"s3://{BUCKET}/{name}" for name in names], "n": range(len(names))}), path)
    return {}


def write_orc(path: Path, names: Sequence[str]) -> dict[str, Any]:
    table = pa.table({"b": pa.array([BUCKET] * len(names), pa.string()), "k": pa.array(list(names), pa.string())})
    orc.write_table(table, path)
    return {"columns": columns(bucket="b", key="k")}


def columns(**given: str) -> Any:
    from batchcl.sources.base import Columns

    return Columns(**given)


def write_csv_inventory(path: Path, names: Sequence[str]) -> dict[str, Any]:
    path.mkdir(exist_ok=True)
    inventory(path, [row(name) for name in names], "CSV")
    return {}


def write_parquet_inventory(path: Path, names: Sequence[str]) -> dict[str, Any]:
    path.mkdir(exist_ok=True)
    inventory(path, [row(name) for name in names], "Parquet")
    return {}


def write_orc_inventory(path: Path, names: Sequence[str]) -> dict[str, Any]:
    path.mkdir(exist_ok=True)
    inventory(path, [row(name) for name in names], "ORC")
    return {}


def write_labelled_manifest(path: Path, names: Sequence[str]) -> dict[str, Any]:
    metadata = {"class-name": "cat", "type": "groundtruth/image-classification"}
    lines = ({"A": 0, "A-metadata": metadata, "source-ref": f"s3://{BUCKET}/{name}"} for name in names)
    path.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    return {}


def write_csv_table_of_keys(path: Path, names: Sequence[str]) -> dict[str, Any]:
    path.write_bytes(csv_text([["k", "note", "b"], *([name, "x", BUCKET] for name in names)]))
    return {"kind": "table", "columns": columns(bucket="b", key="k")}


def write_parquet_of_keys(path: Path, names: Sequence[str]) -> dict[str, Any]:
    pq.write_table(pa.table({"key": pa.array(list(names), pa.string()), "bucket": [BUCKET] * len(names)}), path)
    return {}


FORMATS = {
    "key list": write_keys,
    "manifest": write_manifest,
    "JSON Lines": write_json_lines,
    "batch CSV": write_batch,
    "batch CSV with versions": write_batch_with_versions,
    "label CSV": write_labels,
    "CSV table": write_csv_table,
    "Parquet table": write_parquet,
    "ORC table": write_orc,
    "CSV inventory": write_csv_inventory,
    "Parquet inventory": write_parquet_inventory,
    "ORC inventory": write_orc_inventory,
}

VARIANTS = {
    "labelled manifest": write_labelled_manifest,
    "CSV table of keys": write_csv_table_of_keys,
    "Parquet table of keys": write_parquet_of_keys,
}
"""Variants of these formats."""


def row(key: str, **more: Any) -> dict[str, Any]:
    """One object of an inventory."""
    return {
        "Bucket": BUCKET,
        "Key": key,
        "VersionId": "",
        "IsLatest": True,
        "IsDeleteMarker": False,
        "Size": 1234,
        "LastModifiedDate": "2026-11-01T02:03:04.000Z",
        "ETag": "d41d8cd98f00b204e9800998ecf8427e",
    } | more


def data_file(rows: Sequence[dict[str, Any]], kind: str, fields: Sequence[str]) -> bytes:
    """The bytes of a data file."""
    if kind == "CSV":
        return gzip.compress(csv_text([[_text(each, name) for name in fields] for each in rows]))
    table = pa.table({_SNAKE[name]: pa.array([_value(each, name) for each in rows], _TYPES[name]) for name in fields})
    sink = io.BytesIO()
    if kind == "ORC":
        orc.write_table(table, sink)
    else:
        pq.write_table(table, sink)
    return sink.getvalue()


def inventory(
    folder: Path,
    rows: Sequence[dict[str, Any]],
    kind: str = "CSV",
    *,
    date: str = "2026-11-20T01-00Z",
    fields: Sequence[str] = FIELDS,
    files: int = 2,
) -> Path:
    """Write an inventory as S3 delivers it; returns the path of its manifest.json."""
    (folder / "data").mkdir(exist_ok=True)
    (folder / date).mkdir()
    listed = []
    for number in range(files):
        data = data_file(rows[number::files], kind, fields)
        name = f"{date}-{number}.{'csv.gz' if kind == 'CSV' else kind.lower()}"
        (folder / "data" / name).write_bytes(data)
        md5 = hashlib.md5(data).hexdigest()
        listed.append({"key": f"inv/{BUCKET}/daily/data/{name}", "size": len(data), "MD5checksum": md5})
    schema = ", ".join(fields) if kind == "CSV" else "message s3.inventory { … }"
    manifest = orjson.dumps(
        {
            "sourceBucket": BUCKET,
            "destinationBucket": "arn:aws:s3:::acme-inventories",
            "version": "2016-11-30",
            "creationTimestamp": "1763600400000",
            "fileFormat": kind,
            "fileSchema": schema,
            "files": listed,
        }
    )
    (folder / date / "manifest.json").write_bytes(manifest)
    (folder / date / "manifest.checksum").write_text(hashlib.md5(manifest).hexdigest())
    return folder / date / "manifest.json"


_SNAKE = {
    "Bucket": "bucket",
    "Key": "key",
    "VersionId": "version_id",
    "IsLatest": "is_latest",
    "IsDeleteMarker": "is_delete_marker",
    "Size": "size",
    "LastModifiedDate": "last_modified_date",
    "ETag": "e_tag",
    "StorageClass": "storage_class",
}
_TYPES = {
    "IsLatest": pa.bool_(),
    "IsDeleteMarker": pa.bool_(),
    "Size": pa.int64(),
    "LastModifiedDate": pa.timestamp("ms", tz="UTC"),
} | dict.fromkeys(("Bucket", "Key", "VersionId", "ETag", "StorageClass"), pa.string())


def _text(each: dict[str, Any], name: str) -> str:
    value = each[name]
    if name == "Key":
        return quote_plus(value, safe="/")
    return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)


def _value(each: dict[str, Any], name: str) -> Any:
    import datetime as dt

    return dt.datetime.fromisoformat(each[name]) if name == "LastModifiedDate" else each[name]
