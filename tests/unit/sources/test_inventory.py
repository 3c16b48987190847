from __future__ import annotations

import datetime as dt
import gzip
import hashlib
import shutil
from pathlib import Path
from typing import Any

import orjson
import pytest

from batchcl.errors import SourceError
from batchcl.sources.inventory import parse_as_of
from unit.sources.lists import BUCKET, FIELDS, inventory, keys, read, row

KINDS = ["CSV", "Parquet", "ORC"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_columns_of_an_inventory_are_read(kind: str, tmp_path: Path) -> None:
    rows = [row("a.jpg", VersionId="v1", ETag='"e1"'), row("b.jpg", VersionId="null"), row("c.jpg", Size=0)]
    images, checked, repeated = read(inventory(tmp_path, rows, kind, files=1))
    assert [(image.key, image.version_id, image.size_bytes) for image in images] == [
        ("a.jpg", "v1", 1234),
        ("b.jpg", None, 1234),
        ("c.jpg", None, 0),
    ]
    assert images[0].etag == "e1"
    assert {image.last_modified for image in images} == {dt.datetime(2026, 11, 1, 2, 3, 4, tzinfo=dt.UTC)}
    assert (checked.lines, repeated, checked.ignored) == (3, 0, {})


@pytest.mark.parametrize("kind", KINDS)
def test_delete_markers_and_old_versions_are_excluded(kind: str, tmp_path: Path) -> None:
    rows = [
        row("a", VersionId="v2"),
        row("a", VersionId="v1", IsLatest=False),
        row("gone", VersionId="v4", IsDeleteMarker=True, Size=None),
        row("gone", VersionId="v3", IsLatest=False),
        row("old", VersionId="null", IsLatest=False),
    ]
    manifest = inventory(tmp_path, rows, kind, files=1)
    result = read(manifest)
    assert [(image.key, image.version_id) for image in result.images] == [("a", "v2")]
    assert (result.checked.ignored, result.checked.lines) == ({"delete markers": 1, "older versions": 3}, 5)
    result = read(manifest, all_versions=True)
    assert [(image.key, image.version_id) for image in result.images] == [
        ("a", "v2"),
        ("a", "v1"),
        ("gone", "v3"),
        ("old", "null"),
    ]
    assert result.checked.ignored == {"delete markers": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_inventory_columns_may_be_missing_or_reordered(kind: str, tmp_path: Path) -> None:
    few = inventory(tmp_path, [row("a b"), row("c")], kind, fields=("Key", "Bucket"), files=1)
    image, _ = read(few).images
    assert (image.key, image.version_id, image.etag, image.size_bytes, image.last_modified) == ("a b",) + (None,) * 4
    shutil.rmtree(few.parent)
    more = inventory(
        tmp_path, [row("a", StorageClass="GLACIER")], kind, fields=("StorageClass", *FIELDS[::-1]), files=1
    )
    assert [(image.bucket, image.key) for image in read(more).images] == [(BUCKET, "a")]


@pytest.mark.parametrize("kind", KINDS)
def test_versions_without_is_latest_require_all_versions(kind: str, tmp_path: Path) -> None:
    rows = [row("a", VersionId="v1"), row("a", VersionId="v2")]
    manifest = inventory(tmp_path, rows, kind, fields=("Bucket", "Key", "VersionId"), files=1)
    with pytest.raises(SourceError, match="not which are the latest; score all with --all-versions"):
        read(manifest)
    assert [image.version_id for image in read(manifest, all_versions=True).images] == ["v1", "v2"]


def test_the_newest_complete_inventory_is_chosen_up_to_a_day(tmp_path: Path) -> None:
    for day in (18, 19, 20, 21):
        inventory(tmp_path, [row(f"{day}.jpg")], date=f"2026-11-{day}T01-00Z")
    (tmp_path / "2026-11-21T01-00Z" / "manifest.checksum").unlink()
    assert keys(tmp_path) == ["20.jpg"]
    assert keys(tmp_path, kind="inventory", as_of="2026-11-19") == ["19.jpg"]
    assert keys(tmp_path, as_of="2026-11-18T01-00Z") == ["18.jpg"]
    with pytest.raises(SourceError, match=r"no inventory of 2026-11-17 or earlier .* is complete"):
        read(tmp_path, as_of="2026-11-17")
    with pytest.raises(SourceError, match="with --as-of, name the folder"):
        read(tmp_path / "2026-11-20T01-00Z" / "manifest.json", as_of="2026-11-20")


def test_parent_folders_are_searched_for_inventories(tmp_path: Path) -> None:
    (tmp_path / "b" / "daily").mkdir(parents=True)
    inventory(tmp_path / "b" / "daily", [row("a")])
    assert keys(tmp_path, kind="inventory") == keys(tmp_path, as_of="2026-11-20") == ["a"]
    (tmp_path / "b" / "weekly").mkdir()
    inventory(tmp_path / "b" / "weekly", [row("b")])
    with pytest.raises(SourceError, match=r"contains several inventories: .*/b/daily, .*/b/weekly; name one"):
        read(tmp_path, kind="inventory")
    with pytest.raises(SourceError, match="contains no S3 Inventory"):
        read(tmp_path / "b" / "daily" / "data", kind="inventory")


def test_a_symlink_file_leads_to_the_manifest_of_its_day(tmp_path: Path) -> None:
    inventory(tmp_path, [row("a b")])
    link = tmp_path / "hive" / "dt=2026-11-20-01-00" / "symlink.txt"
    link.parent.mkdir(parents=True)
    link.write_text("s3://acme-inventories/inv/data/2026-11-20T01-00Z-0.csv.gz\n")
    assert keys(link) == ["a b"]
    shutil.rmtree(tmp_path / "2026-11-20T01-00Z")
    with pytest.raises(SourceError, match=r"does not describe the columns of its files.*name a manifest\.json"):
        read(link)


def test_a_symlink_file_of_parquet_needs_no_manifest(tmp_path: Path) -> None:
    inventory(tmp_path, [row("a b"), row("c")], "Parquet")
    shutil.rmtree(tmp_path / "2026-11-20T01-00Z")
    link = tmp_path / "hive" / "dt=2026-11-20-01-00" / "symlink.txt"
    link.parent.mkdir(parents=True)
    names = sorted(path.name for path in (tmp_path / "data").iterdir())
    link.write_text("".join(f"s3://acme-inventories/inv/data/{name}\n" for name in names))
    assert keys(link) == ["a b", "c"]


@pytest.mark.parametrize("what", ["data", "manifest.json", "manifest.checksum"])
def test_a_wrong_checksum_is_refused_before_reading(what: str, tmp_path: Path) -> None:
    manifest = inventory(tmp_path, [row("a")], files=1)
    path = next((tmp_path / "data").iterdir()) if what == "data" else manifest.with_name(what)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(SourceError, match=r"is corrupt: its MD5 is .*; download it again"):
        read(manifest)


def test_missing_inventory_files_are_named(tmp_path: Path) -> None:
    manifest = inventory(tmp_path, [row("a")], files=1)
    (data,) = (tmp_path / "data").iterdir()
    data.unlink()
    with pytest.raises(
        SourceError, match=rf"lists the data file inv/.*/{data.name}, which is not at .*copy it as well"
    ):
        read(manifest)
    manifest.with_name("manifest.checksum").unlink()
    with pytest.raises(SourceError, match=r"is not complete: there is no manifest\.checksum"):
        read(manifest)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fileFormat": "XML"}, "its fileFormat is 'XML'"),
        ({"fileSchema": 3}, "fileSchema or files field is missing"),
        ({"fileSchema": "Key, Key"}, "has duplicate columns"),
        ({"fileSchema": "Size, ETag"}, "has no columns for bucket and key"),
        ({"files": [3]}, "no key or no MD5checksum"),
        ({"files": [{"key": "a/..", "MD5checksum": "x"}]}, "of a data file is not valid"),
        ({"files": [{"key": "../../../etc/passwd", "MD5checksum": "x"}]}, r"which is not at .*/data/passwd"),
    ],
)
def test_an_invalid_inventory_manifest_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    manifest = inventory(tmp_path, [row("a")], files=1)
    data = orjson.dumps(orjson.loads(manifest.read_bytes()) | change)
    manifest.write_bytes(data)
    manifest.with_name("manifest.checksum").write_text(hashlib.md5(data).hexdigest())
    with pytest.raises(SourceError, match=words):
        read(manifest, kind="inventory")


def test_bad_rows_are_counted_with_their_file_and_row(tmp_path: Path) -> None:
    rows = [row("a"), row("b"), row("c"), row("d", Bucket="")]
    manifest = inventory(tmp_path, rows, "Parquet", files=2)
    with pytest.raises(
        SourceError, match=r"2026-11-20T01-00Z-1\.parquet line 2: '' and 'd' are not a bucket and a key"
    ):
        read(manifest)
    result = read(manifest, skip_bad_lines=True)
    assert [(bad.number, bad.file[-9:]) for bad in result.checked.bad_lines] == [(2, "1.parquet")]
    assert result.checked.lines == 4 == len(result.images) + result.checked.bad_count


def test_an_empty_inventory_file_is_accepted(tmp_path: Path) -> None:
    rows = [row("a"), row("b")]
    manifest = inventory(tmp_path, rows, files=3)
    assert sorted(keys(manifest)) == ["a", "b"]


def test_the_digest_of_an_inventory_depends_on_its_rows_only(tmp_path: Path) -> None:
    for name, rows in (("1", [row("a"), row("b")]), ("2", [row("a"), row("b")]), ("3", [row("a"), row("c")])):
        (tmp_path / name).mkdir()
        inventory(tmp_path / name, rows, "Parquet")
    digests = [read(tmp_path / name).checked.digest for name in "123"]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01", "20T01"])
def test_an_invalid_day_is_refused(text: str) -> None:
    with pytest.raises(SourceError, match="is not a day; write it as 2026-11-20"):
        parse_as_of(text)


def test_invalid_utf8_makes_only_its_row_a_bad_line(tmp_path: Path) -> None:
    manifest = inventory(tmp_path, [row("a")], fields=("Bucket", "Key"), files=1)
    (data,) = (tmp_path / "data").iterdir()
    old = hashlib.md5(data.read_bytes()).hexdigest()
    good = '"acme-photos","caf\u00e9"\n"acme-photos","caf%C3%A9+2"\n'.encode()
    data.write_bytes(gzip.compress(b'"acme-photos","\xff"\n' + good + b'"acme-photos"\n\xe9,1,2\n"acme-photos","z"\n'))
    text = manifest.read_text().replace(old, hashlib.md5(data.read_bytes()).hexdigest())
    manifest.write_text(text)
    manifest.with_name("manifest.checksum").write_text(hashlib.md5(text.encode()).hexdigest())
    with pytest.raises(SourceError, match="line 1: not UTF-8 text"):
        read(manifest)
    result = read(manifest, skip_bad_lines=True)
    assert [image.key for image in result.images] == ["caf\u00e9", "caf\u00e9 2", "z"]
    assert (result.checked.lines, result.checked.bad_count) == (6, 3)
