from __future__ import annotations

import datetime as dt
import errno
import io
import os
import sys
import tarfile
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from batchcl.aws.listing import ListingPage
from batchcl.aws.session import Aws
from batchcl.choices import SourceKind
from batchcl.errors import SourceError
from batchcl.images import ImageRef
from batchcl.sources.base import Source, s3_image
from batchcl.sources.directory import DirectorySource
from batchcl.sources.list_source import ListSource
from batchcl.sources.open import ListOptions, open_sources
from batchcl.sources.s3_prefix import S3PrefixSource
from fake_s3 import FakeS3

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff\xe0"


NO_AWS = cast("Aws", None)


def opened(*names: str, aws: object = NO_AWS, out: Path | None = None, **options: Any) -> list[Source]:
    async def main() -> list[Source]:
        with ExitStack() as stack:
            return await open_sources(
                names,
                stack,
                aws=cast("Aws", aws),
                region="eu-west-1",
                options=ListOptions(**options),
                out=None if out is None else str(out),
            )

    return anyio.run(main)


def read(*names: str, aws: object = NO_AWS, out: Path | None = None, **options: Any) -> list[ImageRef]:
    """All images of the sources, read before their temporary copies are removed."""

    async def main() -> list[ImageRef]:
        with ExitStack() as stack:
            sources = await open_sources(
                names,
                stack,
                aws=cast("Aws", aws),
                region="eu-west-1",
                options=ListOptions(**options),
                out=None if out is None else str(out),
            )
            for source in sources:
                await source.check()
            return [image for source in sources async for page in source.pages() for image in page]

    return anyio.run(main)


def uris(*names: str, **options: Any) -> list[str]:
    return [image.uri for image in read(*names, **options)]


def file(tmp_path: Path, data: bytes, name: str = "any.xyz") -> str:
    path = tmp_path / name
    path.write_bytes(data)
    return str(path)


def test_an_s3_name_is_a_prefix_and_a_folder_is_a_directory(tmp_path: Path) -> None:
    prefix, directory = opened("s3://b/2026", str(tmp_path))
    assert isinstance(prefix, S3PrefixSource)
    assert isinstance(directory, DirectorySource)
    assert (prefix.description, directory.description) == ("s3://b/2026", str(tmp_path))


def test_the_output_root_is_excluded_from_directories(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    file(tmp_path, PNG, "a.png")
    file(tmp_path / "out", b"", "x.parquet")
    assert uris(str(tmp_path), out=tmp_path / "out") == [str(tmp_path / "a.png")]


def test_in_the_output_root_only_its_folders_are_excluded(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    file(tmp_path, PNG, "a.png")
    file(tmp_path / "results", b"", "x.parquet")
    assert uris(str(tmp_path), out=tmp_path) == [str(tmp_path / "a.png")]


@pytest.mark.parametrize("folder", ["results", "failures/model=p@v", "runs"])
def test_a_directory_inside_the_output_folders_is_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(SourceError, match=rf"is inside {folder[:4]}.* of the output root"):
        opened(str(tmp_path / folder), out=tmp_path)


@pytest.mark.parametrize(
    ("prefix", "out", "left_out"),
    [
        ("s3://b/", "s3://b/out", ("s3://b/out/",)),
        ("s3://b/o", "s3://b/out", ("s3://b/out/",)),
        ("s3://b/out", "s3://b/out", ("s3://b/out/results/", "s3://b/out/failures/", "s3://b/out/runs/")),
        ("s3://b", "s3://b", ("s3://b/results/", "s3://b/failures/", "s3://b/runs/")),
        ("s3://b/out/re", "s3://b/out", ("s3://b/out/results/",)),
        ("s3://b/out/photos/", "s3://b/out", ()),
        ("s3://b/other", "s3://b/out", ()),
        ("s3://bc/", "s3://b/out", ()),
        ("s3://b/", "/out", ()),
    ],
)
def test_the_output_root_is_excluded_from_prefixes(prefix: str, out: str, left_out: tuple[str, ...]) -> None:
    async def main() -> None:
        with ExitStack() as stack:
            (source,) = await open_sources(
                [prefix],
                stack,
                aws=NO_AWS,
                region="eu-west-1",
                options=ListOptions(kind=SourceKind.PREFIX),
                out=out,
            )
            assert (await source.check()).excluded_folders == left_out
            mine = [s3_image(f"{folder}x.jpg") for folder in left_out]
            assert not any(await source.may_name(mine))
            page = ListingPage(
                keys=[image.key for image in [*mine, s3_image("s3://b/z.jpg")]],
                etags=[None] * (len(mine) + 1),
                sizes=[1] * (len(mine) + 1),
                modified=[dt.datetime.now(dt.UTC)] * (len(mine) + 1),
                is_last=True,
                token=None,
                is_sorted=True,
            )
            assert [image.key for image in cast("S3PrefixSource", source)._images(page)] == ["z.jpg"]

    anyio.run(main)


@pytest.mark.parametrize("folder", ["results", "failures/model=p@v/", "runs/night"])
def test_a_prefix_inside_the_output_folders_is_refused(folder: str) -> None:
    async def main() -> None:
        with ExitStack() as stack:
            await open_sources([f"s3://b/out/{folder}/"], stack, aws=NO_AWS, region="eu-west-1", out="s3://b/out")

    with pytest.raises(SourceError, match="of the output root s3://b/out; name another prefix"):
        anyio.run(main)


@pytest.mark.parametrize("data", [PNG, JPEG])
def test_an_image_is_detected_whatever_its_name(tmp_path: Path, data: bytes) -> None:
    (image,) = read(file(tmp_path, data, "list.txt"))
    assert (image.uri, image.size_bytes, image.local) == (str(tmp_path / "list.txt"), len(data), True)


@pytest.mark.parametrize("start", [b"", b"\n\r\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n"])
def test_a_manifest_is_detected_by_its_first_line(tmp_path: Path, start: bytes) -> None:
    name = file(tmp_path, start + b'{"source-ref": "s3://b/1"}\n{"source-ref": "a/2.png", "x": 1}\n', "a.png")
    assert uris(name) == ["s3://b/1", str(tmp_path / "a" / "2.png")]


@pytest.mark.parametrize(
    "data", [b"s3://b/1\ns3://b/2", b"\r\ns3://b/1\r\ns3://b/2\r\n", b"\xef\xbb\xbfs3://b/1\ns3://b/2"]
)
def test_any_other_text_is_a_key_list(tmp_path: Path, data: bytes) -> None:
    assert uris(file(tmp_path, data, "x.manifest")) == ["s3://b/1", "s3://b/2"]


@pytest.mark.parametrize("data", [b"{", b'{"a": 1}', b"{}", b'  {"source_ref": "s3://b/1"}', b"{x}.png\n"])
def test_json_without_source_ref_is_ambiguous(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(SourceError, match="--source-kind manifest or --source-kind keys"):
        opened(file(tmp_path, data))


def test_a_given_kind_overrides_detection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = file(tmp_path, b'{"source-ref": "x"}\n')
    assert uris(name, kind=SourceKind.KEYS) == [f'{tmp_path}/{{"source-ref": "x"}}']
    assert uris(name, kind=SourceKind.MANIFEST) == [f"{tmp_path}/x"]
    assert uris(name, kind=SourceKind.IMAGE) == [name]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"\n\r\n", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"PK\0\0", "is not text, a table, or"),
    ],
)
def test_a_file_without_images_is_refused(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(SourceError, match=words):
        opened(file(tmp_path, data))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.txt", "missing.txt does not exist; check the path, or write s3://bucket/prefix"),
        ("ftp://host/list", "unknown scheme; name s3://bucket/prefix, a directory, a file, or -"),
        ("s3://", "has no bucket"),
        ("s3:///key", "has no bucket"),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_name_that_does_not_exist_is_refused_with_advice(name: str, words: str) -> None:
    with pytest.raises(SourceError) as caught:
        opened(name)
    assert words in str(caught.value)


@pytest.mark.parametrize("kind", [SourceKind.LABEL_CSV, SourceKind.KEYS, SourceKind.TABLE])
def test_a_given_list_kind_does_not_apply_to_folders(tmp_path: Path, kind: SourceKind) -> None:
    listed = file(tmp_path, b"s3://b/a.jpg,cat\n", "list.csv")
    sources = opened("s3://b/2026/", str(tmp_path), listed, kind=kind)
    assert [type(source) for source in sources] == [S3PrefixSource, DirectorySource, ListSource]


def test_a_local_name_is_not_a_prefix(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is not an S3 prefix; write s3://bucket/prefix"):
        opened(str(tmp_path), kind=SourceKind.PREFIX)


def stdin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "cwd").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    monkeypatch.chdir(tmp_path / "cwd")


@pytest.mark.parametrize("data", [b"s3://b/1\na.png\n", b'{"source-ref":"s3://b/1"}\n{"source-ref":"a.png"}\n'])
def test_stdin_is_detected_and_its_copy_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    stdin(monkeypatch, tmp_path, data)
    assert uris("-") == ["s3://b/1", str(tmp_path / "cwd" / "a.png")]
    assert list((tmp_path / "tmp").iterdir()) == []


def test_standard_input_is_called_by_its_name_in_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, tmp_path, b"s3://b/1\nhttp://x\n")
    with pytest.raises(SourceError, match=r"^standard input line 2: "):
        read("-")


def test_standard_input_can_be_named_only_once() -> None:
    with pytest.raises(SourceError, match="only once"):
        opened("-", "a", "-")


def test_a_list_in_s3_of_a_given_kind_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    s3 = FakeS3({"lists/a.manifest": b'{"source-ref":"s3://b/1"}\n'})
    assert uris("s3://lists/a.manifest", aws=s3.aws, kind=SourceKind.MANIFEST) == ["s3://b/1"]
    assert s3.arguments("get_object") == [{"Bucket": "lists", "Key": "a.manifest"}]
    assert s3.opened[0]["region"] == "eu-west-1"
    assert list(tmp_path.iterdir()) == []


def test_an_image_in_s3_is_not_read_by_its_source() -> None:
    s3 = FakeS3({"b/a b.png": PNG})
    (image,) = read("s3://b/a b.png", aws=s3.aws, kind=SourceKind.IMAGE)
    assert (image.uri, image.bucket, image.key) == ("s3://b/a b.png", "b", "a b.png")
    assert s3.calls == []
    (source,) = opened("s3://b/a b.png", aws=s3.aws, kind=SourceKind.IMAGE)
    assert anyio.run(source.check).buckets == {"b"}
    assert anyio.run(source.may_name, [image]) == [True]


def test_a_single_image_may_name_only_itself(tmp_path: Path) -> None:
    name = file(tmp_path, PNG, "a.png")
    (source,) = opened(name)
    (image,) = read(name)
    assert anyio.run(source.may_name, [image, ImageRef(uri="x", bucket="", key=name + "x")]) == [True, False]


def test_a_list_on_stdin_needs_a_temporary_directory(monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"s3://b/a.jpg\n")))
    with pytest.raises(SourceError, match=r"copying the list to a temporary directory failed: .*set TMPDIR"):
        opened("-")


def test_no_partial_copy_remains_when_the_disk_is_full(tmp_path: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"s3://b/a.jpg\n")))
    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(SourceError, match=f"copying the list to {tmp_path} failed: No space left on device"):
        opened("-")
    assert list(tmp_path.iterdir()) == []


def test_an_archive_needs_no_temporary_directory(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(file(tmp_path, PNG, "x.png"), "x.png")
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    assert uris(str(path)) == [f"{path}#x.png"]


@pytest.mark.parametrize("start", ["", "s3://"])
@pytest.mark.parametrize("resource", ["accesspoint/ap", "accesspoint/ap/object/photos", "accesspoint:ap"])
@pytest.mark.parametrize("service", ["s3", "s3-object-lambda", "s3express"])
def test_the_arn_of_an_access_point_is_refused_with_its_alias(start: str, resource: str, service: str) -> None:
    with pytest.raises(SourceError, match=r"use its alias, s3://ALIAS/prefix: .*--name ap ") as caught:
        opened(f"{start}arn:aws:{service}:eu-west-1:123456789012:{resource}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["arn:aws:s3:::bucket", "s3://arn:aws:s3:::bucket/x", "arn:x", "s3://arn:"])
def test_any_other_arn_is_refused(name: str) -> None:
    with pytest.raises(SourceError, match="is an ARN; write s3://bucket/prefix"):
        opened(name)


def test_the_alias_of_an_access_point_is_a_bucket() -> None:
    (source,) = opened("s3://ap-x7kz3q-s3alias/photos/", aws=FakeS3().aws)
    assert isinstance(source, S3PrefixSource)
    assert anyio.run(source.check).buckets == {"ap-x7kz3q-s3alias"}
