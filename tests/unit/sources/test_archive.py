"""Tar archives as lists, and reading the listed images."""

from __future__ import annotations

import gzip
import io
import os
import re
import subprocess
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import anyio
import pyarrow as pa
import pytest

from batchcl.aws.session import Aws
from batchcl.errors import CallError, ImageError, SourceError
from batchcl.images import ImageRef, check_limits
from batchcl.loaders.open import open_reader
from batchcl.runs.worklist import ImageRows, image_table
from servers import REGION, aws_env, client, make_bucket
from unit.sources.lists import read

NAMES = ("a.png", "deep/b c+%2F.jpg", "../../up.png", "/etc/passwd", "new\nline.png", "日本.png", "\udcff.png", "#.png")
FILES = {name: f"bytes of {number}".encode() * 100 for number, name in enumerate(NAMES)}


def tar(files: dict[str, bytes] | list[tuple[str, bytes]], *more: tarfile.TarInfo) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as archive:
        for member in more:
            archive.addfile(member)
        for name, data in files.items() if isinstance(files, dict) else files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def link(name: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


def bytes_of(images: list[ImageRef], aws: Aws | None = None) -> list[bytes | CallError]:
    """The bytes of the images, read as a run does after storing them in its work list."""
    frozen = list(ImageRows(image_table(images), range(len(images))))
    assert frozen == images

    async def main() -> list[bytes | CallError]:
        result: list[bytes | CallError] = []
        async with open_reader(aws or Aws(), region=REGION, connections=4) as reader:
            for image in frozen:
                assert reader.accepts(image)
                try:
                    result.append(await reader.read(image))
                except CallError as error:
                    result.append(error)
        return result

    return anyio.run(main)


@pytest.mark.parametrize("name", ["x.tar", "no ending"])
def test_members_are_listed_and_their_bytes_can_be_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(tar(FILES))
    result = read(str(path))
    assert [image.key for image in result.images] == [f"{path}#{name}" for name in NAMES]
    assert [image.uri for image in result.images[:7:6]] == [f"{path}#a.png", f"{path}#\\udcff.png"]
    assert {image.size_bytes for image in result.images} == {1000}
    assert result.images[0].last_modified is not None
    assert result.images[0].last_modified.timestamp() == pytest.approx(path.stat().st_mtime)
    assert bytes_of(result.images) == list(FILES.values())
    assert bytes_of(result.images[::-1]) == list(FILES.values())[::-1]
    assert set(tmp_path.iterdir()) == {path}, "nothing is unpacked"


def test_reading_resumes_after_any_image(tmp_path: Path) -> None:
    (tmp_path / "1.tar").write_bytes(tar(FILES))
    (tmp_path / "2.tar").write_bytes(tar(FILES))
    whole = read(f"{tmp_path}/*.tar")
    assert len(whole.images) == 2 * len(FILES)
    for count in range(len(whole.images) + 1):
        rest = read(f"{tmp_path}/*.tar", skip=count)
        assert rest.images == whole.images[count:]
        assert rest.checked.digest == whole.checked.digest


def test_other_members_are_excluded_and_duplicates_removed(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    folder = tarfile.TarInfo("dir")
    folder.type = tarfile.DIRTYPE
    others = [link("s"), link("h", tarfile.LNKTYPE), link("c", tarfile.CHRTYPE), folder]
    path.write_bytes(tar([("a.png", b"first"), ("b.png", b"b"), ("a.png", b"second")], *others))
    result = read(str(path))
    assert [image.key.rpartition("#")[2] for image in result.images] == ["a.png", "b.png"]
    assert bytes_of(result.images) == [b"first", b"b"]
    assert result.checked.ignored == {"links": 2, "devices and pipes": 1}
    assert (result.checked.lines, result.duplicates) == (6, 1)


def test_members_are_checked_by_their_own_name_and_size(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(tar({".hidden": b"x", "a.cls": b"1", "b.png": bytes(4 << 20), "c.png": bytes((4 << 20) + 1)}))
    reasons = [check_limits(image) for image in read(str(path)).images]
    assert [reason and reason.code for reason in reasons] == [
        "UnsupportedExtension",
        "UnsupportedExtension",
        None,
        "TooLarge",
    ]
    assert "sent as bytes" in ((reasons[3] and reasons[3].message) or "")


def test_a_truncated_or_corrupt_archive_is_one_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    data = tar(FILES)
    for broken, words in ((data[:6000], "truncated"), (data[:4608] + b"?" + data[4609:], "corrupt")):
        path.write_bytes(broken)
        with pytest.raises(SourceError, match=rf"x\.tar: the archive is {words} .*; fix the file, .* --skip-bad-lines"):
            read(str(path))
        result = read(str(path), skip_bad_lines=True)
        assert len(result.images) == 3
        (bad,) = result.checked.bad_lines
        assert bad.reason.startswith(f"the archive is {words}")


def test_members_of_a_changed_archive_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(tar(FILES))
    images = read(str(path)).images
    os.utime(path, (1, 1))
    (changed,) = bytes_of(images[:1])
    assert isinstance(changed, ImageError)
    assert (changed.code, "changed since it was listed" in str(changed)) == ("ArchiveChanged", True)
    path.unlink()
    (gone,) = bytes_of(images[:1])
    assert isinstance(gone, ImageError)
    assert gone.code == "UnreadableFile"


@pytest.mark.parametrize("kind", [None, "tar"])
@pytest.mark.parametrize(
    ("name", "plain"), [("x y.tar.gz", "x y.tar"), ("x.TGZ", "x.tar"), ("x.tar", "x-plain.tar"), ("x", "x.tar")]
)
def test_a_compressed_archive_is_refused_with_a_command(
    tmp_path: Path, name: str, plain: str, kind: str | None
) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(tar(FILES)))
    with pytest.raises(
        SourceError, match=r"is compressed, and only uncompressed tar archives are supported; "
    ) as caught:
        read(str(path), kind=kind)
    subprocess.run(["bash", "-c", str(caught.value).split("`")[1]], check=True)
    assert str(caught.value).endswith(f"and name {tmp_path / plain}")
    assert bytes_of(read(str(tmp_path / plain)).images) == list(FILES.values())


def test_a_zstd_archive_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / "x.tar.zst").write_bytes(pa.compress(tar(FILES), "zstd", asbytes=True))
    with pytest.raises(SourceError, match=r"`zstd -d < .*/x\.tar\.zst > .*/x\.tar`, and name"):
        read(str(tmp_path / "x.tar.zst"))


def test_an_archive_in_a_pipe_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "list.txt").write_bytes(b"s3://b/k\n" * 100)
    with pytest.raises(SourceError, match="corrupt at byte 0"):
        read(str(tmp_path / "list.txt"), kind="tar")
    stdin = tmp_path / "stdin"
    stdin.write_bytes(tar(FILES))
    with stdin.open() as piped:
        monkeypatch.setattr("sys.stdin", piped)
        with pytest.raises(SourceError, match=r"standard input is a tar archive, .* name the file"):
            read("-")


def test_large_members_are_skipped_without_reading_them(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    info = tarfile.TarInfo("huge.png")
    info.size = 3 << 30
    with path.open("wb") as sink:
        sink.write(info.tobuf(tarfile.GNU_FORMAT))
        sink.seek(3 << 30, os.SEEK_CUR)
        sink.write(tar({"a.png": b"A"}))
    tracemalloc.start()
    result = read(str(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20
    assert [(reason := check_limits(image)) and reason.code for image in result.images] == ["TooLarge", None]
    assert bytes_of(result.images[1:]) == [b"A"]


# --- in S3 ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def s3(moto: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, value in aws_env(s3=moto).items():
        monkeypatch.setenv(name, value)
    result = client("s3", moto)
    make_bucket(result, "shards")
    return result


@pytest.mark.parametrize("name", ["x.tar.gz", "X.TGZ", "y.tar"])
def test_a_compressed_archive_in_s3_is_refused_with_a_command(s3: Any, name: str) -> None:
    s3.put_object(Bucket="shards", Key=f"packed/{name}", Body=gzip.compress(tar(FILES)))
    plain = {"x.tar.gz": "x.tar", "X.TGZ": "X.tar", "y.tar": "y-plain.tar"}[name]
    new = f"s3://shards/packed/{plain}"
    command = f"`aws s3 cp s3://shards/packed/{name} - | gunzip | aws s3 cp - {new}`, and name {new}"
    with pytest.raises(SourceError, match=re.escape(command)):
        read(f"s3://shards/packed/{name}", aws=Aws())


def test_an_archive_in_s3_is_read_by_ranges(s3: Any) -> None:
    name = "x.TAR"
    last = os.urandom(3 << 20)
    s3.put_object(Bucket="shards", Key=f"in/{name}", Body=tar(FILES | {"last.png": last}))
    result = read(f"s3://shards/in/{name}", aws=Aws())
    assert [image.uri for image in result.images[:2]] == [f"s3://shards/in/{name}#{each}" for each in NAMES[:2]]
    assert result.checked.buckets == {"shards"}
    assert bytes_of(result.images) == [*FILES.values(), last]
    etag = s3.head_object(Bucket="shards", Key=f"in/{name}")["ETag"].strip('"')
    assert {image.etag for image in result.images} == {etag}
    s3.put_object(Bucket="shards", Key=f"in/{name}", Body=tar({}))
    (changed,) = bytes_of(result.images[:1])
    assert isinstance(changed, ImageError)
    assert changed.code == "ArchiveChanged"
    s3.delete_object(Bucket="shards", Key=f"in/{name}")
    (gone,) = bytes_of(result.images[:1])
    assert isinstance(gone, ImageError)
    assert gone.code == "InvalidS3ObjectException"


def test_a_glob_in_s3_reads_the_archives_in_name_order(s3: Any) -> None:
    for number in (2, 1):
        s3.put_object(Bucket="shards", Key=f"glob/{number}.tar", Body=tar({f"{number}.png": b"x"}))
    result = read("s3://shards/glob/*.tar", aws=Aws())
    assert [image.uri for image in result.images] == [
        "s3://shards/glob/1.tar#1.png",
        "s3://shards/glob/2.tar#2.png",
    ]


def test_an_object_named_like_an_archive_must_be_one(s3: Any) -> None:
    s3.put_object(Bucket="shards", Key="none/x.tar", Body=b"no archive")
    with pytest.raises(SourceError, match=r"none/x\.tar is not a tar archive; .* --source-kind prefix"):
        read("s3://shards/none/x.tar", aws=Aws())
    with pytest.raises(SourceError, match=r"s3://shards/none/y\.tar does not exist"):
        read("s3://shards/none/y.tar", aws=Aws(), kind="tar")
    s3.put_object(Bucket="shards", Key="folder.tar/a.png", Body=b"x")
    assert [image.key for image in read("s3://shards/folder.tar", aws=Aws()).images] == ["folder.tar/a.png"]


def test_many_archives_are_read_concurrently_in_any_order(tmp_path: Path) -> None:
    """There are more concurrent readers than threads."""
    files = {f"{number}.png": bytes([number]) * 3000 for number in range(30)}
    for number in range(6):
        (tmp_path / f"{number}.tar").write_bytes(tar(files))
    images = read(f"{tmp_path}/*.tar").images
    wrong: list[str] = []

    async def main() -> None:
        async with open_reader(Aws(), region=REGION, connections=4) as reader, anyio.create_task_group() as group:

            async def one(image: ImageRef) -> None:
                if await reader.read(image) != files[image.key.rpartition("#")[2]]:
                    wrong.append(image.uri)

            for image in sorted(images, key=lambda image: image.key[::-1]):
                group.start_soon(one, image)

    anyio.run(main)
    assert len(images) == 180
    assert wrong == []
