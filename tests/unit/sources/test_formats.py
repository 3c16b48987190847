"""All list formats return their keys exactly, without duplicates, and can be resumed at any image."""

from __future__ import annotations

import datetime as dt
import gzip
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import anyio
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchcl.aws.session import Aws
from batchcl.errors import SourceError
from batchcl.sources.open import open_sources
from unit.sources.lists import BUCKET, FORMATS, HARD_KEYS, VARIANTS, columns, csv_text, keys, read

ALL = FORMATS | VARIANTS
KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200)
EXAMPLES = settings.get_profile("busy machine").max_examples // 3
"""For each of 15 formats."""

ONE_LINE = frozenset({"key list"})
COMPRESSED_INSIDE = frozenset(
    {"CSV inventory", "Parquet inventory", "ORC inventory", "Parquet table", "ORC table", "Parquet table of keys"}
)


def supports(name: str, key: str) -> bool:
    return name not in ONE_LINE or not ("\n" in key or key.endswith("\r"))


@pytest.mark.parametrize("name", ALL)
def test_unusual_keys_are_read_exactly(name: str, tmp_path: Path) -> None:
    wanted = [key for key in HARD_KEYS if supports(name, key)]
    path = tmp_path / "list"
    options = ALL[name](path, wanted)
    images, checked, _ = read(path, **options)
    assert sorted(image.key for image in images) == sorted(wanted)
    assert {(image.bucket, image.uri) for image in images} == {(BUCKET, f"s3://{BUCKET}/{key}") for key in wanted}
    assert checked.buckets == {BUCKET}
    assert (checked.lines, checked.bad_count) == (len(wanted), 0)


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=EXAMPLES)
@given(wanted=st.lists(KEYS, min_size=1, max_size=8))
def test_any_keys_are_read_exactly_and_once(name: str, wanted: list[str]) -> None:
    wanted = [key for key in wanted if supports(name, key)] or ["x"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "list"
        options = ALL[name](path, wanted)
        images, _, repeated = read(path, **options)
        assert sorted(image.key for image in images) == sorted(set(wanted))
        assert repeated == len(wanted) - len(set(wanted))


@pytest.mark.parametrize("name", ALL)
def test_reading_resumes_after_any_image(name: str, tmp_path: Path) -> None:
    path = tmp_path / "list"
    options = ALL[name](path, ["a", "b", "a", "c", "d", "b", "e"])
    images = read(path, **options).images
    assert len(images) == 5
    for count in range(6):
        assert read(path, skip=count, **options).images == images[count:]


@pytest.mark.parametrize("name", [name for name in ALL if name not in COMPRESSED_INSIDE])
def test_compression_is_detected_by_content(name: str, tmp_path: Path) -> None:
    path = tmp_path / "list"
    options = ALL[name](path, ["a b", "c+d"])
    plain = path.read_bytes()
    halves = plain[: len(plain) // 2], plain[len(plain) // 2 :]
    for packed in (
        gzip.compress(plain),
        gzip.compress(halves[0]) + gzip.compress(halves[1]),
        pa.compress(plain, codec="zstd", asbytes=True),
    ):
        path.write_bytes(packed)
        assert keys(path, **options) == ["a b", "c+d"]
        path.write_bytes(packed[:-6])
        with pytest.raises(SourceError, match="the file is truncated or corrupt"):
            read(path, **options)


def test_unsupported_compressions_are_named(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b"BZh91AY&SY")
    with pytest.raises(SourceError, match="compressed with bzip2, which is not supported"):
        read(tmp_path / "list")


def test_a_glob_is_one_list_of_files_of_any_format(tmp_path: Path) -> None:
    (tmp_path / "1.list").write_bytes(b"s3://b/1\ns3://b/2\n")
    (tmp_path / "2.list").write_bytes(gzip.compress(b'{"source-ref":"s3://b/3"}\n{"source-ref":"s3://b/1"}\n'))
    (tmp_path / "3.other").write_bytes(b"s3://b/9\n")
    result = read(tmp_path / "*.list")
    assert [image.key for image in result.images] == ["1", "2", "3"]
    assert (result.duplicates, result.checked.lines) == (1, 4)
    assert keys(tmp_path / "*.list", skip=2) == ["3"]
    (tmp_path / "2.list").write_bytes(b"s3://b/3\nhttp://x\n")
    with pytest.raises(SourceError, match=r"2\.list line 2: this is a web address"):
        read(tmp_path / "*.list")
    with pytest.raises(SourceError, match="no file matches"):
        read(tmp_path / "*.nothing")


def test_a_batch_list_refuses_keys_without_url_encoding(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b"acme-photos,a%20b.jpg\nacme-photos,100%.jpg\n,x\nacme-photos\na b,c\nxyz,%FF\n")
    with pytest.raises(SourceError, match=r"list line 2: the key '100%\.jpg' is not URL-encoded.*--skip-bad-lines"):
        read(tmp_path / "list", kind="batch-csv")
    images, checked, _ = read(tmp_path / "list", kind="batch-csv", skip_bad_lines=True)
    assert [image.key for image in images] == ["a b.jpg"]
    assert [bad.number for bad in checked.bad_lines] == [2, 3, 4, 5, 6]
    assert checked.lines == 1 + checked.bad_count


def test_a_batch_list_may_name_versions(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b"acme-photos,a%2Fb.jpg,v1\nacme-photos,a/b.jpg,v2\nacme-photos,a/b.jpg,\n")
    result = read(tmp_path / "list").images
    assert [(image.key, image.version_id) for image in result] == [
        ("a/b.jpg", "v1"),
        ("a/b.jpg", "v2"),
        ("a/b.jpg", None),
    ]


def test_labels_in_a_csv_are_stored_as_ground_truth(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / "list").write_bytes(b"a.jpg,cat,small,cat\na.jpg,\n../x.jpg,dog\n")
    images, checked, _ = read(tmp_path / "list", kind="label-csv", skip_bad_lines=True)
    assert images[0].key == str(tmp_path / "a.jpg")
    assert images[0].extra is not None
    assert orjson.loads(images[0].extra)["labels-metadata"]["class-map"] == {"0": "cat", "1": "small"}
    assert [bad.number for bad in checked.bad_lines] == [3]


def test_other_columns_and_fields_are_stored_in_extra(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(csv_text([["id", "where", "etag"], ["7", "s3://b/k", "e1"], ["8", "bad", ""]]))
    images, checked, _ = read(tmp_path / "list.csv", columns=columns(uri="where"), skip_bad_lines=True)
    assert [(image.extra, image.etag) for image in images[:1]] == [('{"id":"7"}', "e1")]
    (tmp_path / "list.jsonl").write_bytes(b'{"image":"s3://b/k","id":7}\n{"id":8}\n[]\n{"image":5}\n')
    images, checked, _ = read(tmp_path / "list.jsonl", uri_field="image", skip_bad_lines=True)
    assert [image.extra for image in images] == ['{"id":7}']
    assert [bad.number for bad in checked.bad_lines] == [2, 3, 4]


def test_a_list_that_changes_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_bytes(b"s3://b/1\ns3://b/2\n")

    async def main() -> None:
        with ExitStack() as stack:
            (source,) = await open_sources([str(path)], stack, aws=cast("Aws", None), region="us-east-1")
            await source.check()
            path.write_bytes(b"s3://b/1\n")
            async for _ in source.pages():
                pass

    with pytest.raises(SourceError, match="changed while it was read: it had 2 images and now has 1"):
        anyio.run(main)


@pytest.mark.parametrize(
    ("data", "kinds"),
    [
        (b"s3://b/a.jpg,cat\ns3://b/b.jpg,dog\n", ["keys", "label-csv"]),
        (b"a.jpg,cat\nb.jpg,dog\n", ["keys", "batch-csv", "label-csv"]),
        (b"id,where\n1,s3://b/k\n", ["batch-csv", "--uri-column"]),
        (b'{"image": "s3://b/k"}\n', ["--uri-field", "manifest", "keys"]),
        (b"bucket,key\nacme-photos,a+b.jpg\n", ["batch-csv", "--bucket-column"]),
        (b"Bucket,Key,VersionId\nacme-photos,a.jpg,v1\n", ["batch-csv", "--bucket-column"]),
        (b"s3://b/a.jpg\ns3://b/b.jpg,cat\n", ["keys", "label-csv"]),
        (b"s3://b/a.jpg\tcat\ns3://b/b.jpg\tdog\n", ["tabs", "keys"]),
        (b"uri\ns3://b/a.jpg\ns3://b/b.jpg\n", ["first line of", "'uri', may be a header", "--uri-column", "keys"]),
        (b'[\n{"source-ref": "s3://b/1"}\n]\n', ["'['", "keys"]),
        (b"2026-11-01 02:03:04   12345 a.jpg\n", ["is s3://bucket/key or an existing file", "keys"]),
        (b"# Photos\n\nof the day\n", ["is s3://bucket/key or an existing file", "keys"]),
    ],
)
def test_an_ambiguous_list_is_refused_with_the_possible_kinds(data: bytes, kinds: list[str], tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(data)
    with pytest.raises(SourceError) as caught:
        read(tmp_path / "list")
    assert all(kind in str(caught.value) for kind in kinds)


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"acme-photos,2026/a+b%2Bc.jpg\nacme-photos,x\n", ["2026/a b+c.jpg", "x"]),
        (b'"acme-photos","a.jpg","v1"\n', ["a.jpg"]),
        (b"s3://b/a,b.jpg\ns3://b/c.jpg\n", ["a,b.jpg", "c.jpg"]),
        (b"s3://b/a,b.jpg\ns3://b/c,d.jpg\n", ["a,b.jpg", "c,d.jpg"]),
        (b's3://b/a",b.jpg\ns3://b/c",d.jpg\n', ['a",b.jpg', 'c",d.jpg']),
        (b"s3://b/a\tb.jpg\ns3://b/c.jpg\n", ["a\tb.jpg", "c.jpg"]),
    ],
)
def test_lines_with_commas_are_detected_if_unambiguous(data: bytes, wanted: list[str], tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(data)
    assert keys(tmp_path / "list") == wanted


def test_a_local_file_of_that_name_makes_a_list_ambiguous(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list").write_bytes(b"acme-photos,a.jpg\n")
    (tmp_path / "acme-photos,a.jpg").touch()
    with pytest.raises(SourceError, match="--source-kind keys or --source-kind batch-csv"):
        read("list")


def test_labels_of_existing_files_are_detected(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / "list").write_bytes(b"a.jpg,cat\n")
    assert keys(tmp_path / "list") == [str(tmp_path / "a.jpg")]


def test_column_options_do_not_apply_to_json_lists(tmp_path: Path) -> None:
    (tmp_path / "1.list").write_bytes(b'{"source-ref":"s3://b/1"}\n')
    (tmp_path / "2.list").write_bytes(b"n,where\n1,s3://b/2\n")
    assert keys(tmp_path / "*.list", columns=columns(uri="where")) == ["1", "2"]


@pytest.mark.parametrize("repeated", [0, 1, 1500])
def test_reading_long_tables_resumes_at_any_row(repeated: int, tmp_path: Path) -> None:
    uris = [f"s3://b/{number}" for number in range(2500)]
    pq.write_table(pa.table({"uri": uris[:2000] + uris[:repeated] + uris[2000:]}), tmp_path / "list")
    for count in (0, 1, 999, 1000, 1001, 2000, 2499, 2500):
        assert [image.uri for image in read(tmp_path / "list", skip=count).images] == uris[count:]


def test_typed_columns_describe_images_and_binary_are_dropped(tmp_path: Path) -> None:
    moment = dt.datetime(2026, 11, 1, 2, 3, 4, tzinfo=dt.UTC)
    table = pa.table(
        {
            "bucket": ["acme-photos"],
            "key": ["k"],
            "size_bytes": pa.array([7], pa.int32()),
            "last_modified": pa.array([moment], pa.timestamp("ms", "UTC")),
            "etag": pa.array([5]),
            "pixels": pa.array([b"\xff"]),
            "score": pa.array([0.5]),
        }
    )
    pq.write_table(table, tmp_path / "list")
    (image,) = read(tmp_path / "list").images
    assert (image.size_bytes, image.last_modified, image.etag) == (7, moment, None)
    assert image.extra is not None
    assert orjson.loads(image.extra) == {"etag": 5, "score": 0.5}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"uri": "nothing"}, "has no column nothing, only a, b; name the column"),
        ({}, "has no column bucket or key, only a, b"),
        ({"uri": "b"}, "its column b has the type Int64, not text"),
    ],
)
def test_missing_columns_are_reported_with_the_existing_ones(given: dict[str, str], words: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": ["s3://b/k"], "b": [1]}), tmp_path / "list")
    with pytest.raises(SourceError, match=words):
        read(tmp_path / "list", columns=columns(**given))


def test_two_image_names_are_not_taken_for_a_label(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / "list").write_bytes(b"a.jpg,b.jpg\n")
    with pytest.raises(SourceError, match="its format is ambiguous"):
        read(tmp_path / "list")
