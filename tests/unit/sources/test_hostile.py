"""Malicious lists, which try to exhaust memory or to read other files, are refused in bounded memory."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import orc

from batchcl.errors import SourceError
from batchcl.sources.tables import batches
from unit.sources.lists import columns, inventory, keys, read, row

MB = 1024 * 1024

_READ = """
import json, sys
sys.path.insert(0, sys.argv[1])
from unit.sources.lists import read
from batchcl.errors import SourceError
read(sys.argv[2])

def peak():
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(status["VmHWM"].split()[0]) / 1024

kinds = {"keys": "keys", "batch": "batch-csv"}
before, messages = peak(), []
for name in sys.argv[3:]:
    try:
        found = read(name, kind=kinds.get(name.rpartition(".")[2]))
        messages.append(f"{len(found.images)} images, {found.duplicates} repeated")
    except SourceError as error:
        messages.append(str(error))
print(json.dumps({"grown_mb": peak() - before, "messages": messages}))
"""


def bomb(path: Path, codec: str, size: int) -> Path:
    with pa.OSFile(str(path), "wb") as file, pa.CompressedOutputStream(file, codec) as stream:
        stream.write(b"s3://b/first\n")
        for _ in range(size // MB):
            stream.write(b"x" * MB)
    return path


def endless_line(path: Path, start: bytes) -> Path:
    """A sparse file, larger than the memory limit, that occupies no disk space."""
    with path.open("wb") as file:
        file.write(start)
        file.truncate(100 * MB)
    return path


def test_decompression_bombs_are_refused_in_bounded_memory(tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(b"s3://b/1\n")
    (tmp_path / "deep.manifest").write_bytes(
        b'{"source-ref":"s3://b/1"}\n{"source-ref":"s3://b/2","x":' + b"[" * 3 * MB + b"]}\n"
    )
    pq.write_table(pa.table({"uri": same("s3://b/the same", 400_000)}), tmp_path / "same.parquet")
    value = pa.table({"uri": ["s3://b/" + "k" * 72 * MB]})
    pq.write_table(value, tmp_path / "value.parquet", compression="zstd", use_dictionary=False, write_statistics=False)
    expected = {
        endless_line(tmp_path / "line.keys", b"s3://b/1\ns3://b/"): "line 2: longer than 4,194,304 bytes",
        endless_line(tmp_path / "line.batch", b"acme-photos,1\nacme-photos,"): "line 2: not valid CSV: ",
        bomb(tmp_path / "bomb.zst", "zstd", 192 * MB): "bomb.zst decompresses to more than 250 times its size",
        bomb(tmp_path / "bomb.gz", "gzip", 96 * MB): "bomb.gz decompresses to more than 250 times its size",
        tmp_path / "deep.manifest": "line 2: reading a manifest line failed: it is not JSON: depth limit",
        tmp_path / "same.parquet": "1 images, 399999 repeated",
        tmp_path / "value.parquet": "its column uri decompresses to more than 250 times its size",
    }
    done = subprocess.run(
        [sys.executable, "-c", _READ, str(Path(__file__).parents[2]), str(tmp_path / "good"), *map(str, expected)],
        stdout=subprocess.PIPE,
        timeout=120,
        check=True,
    )
    output = json.loads(done.stdout)
    for words, message in zip(expected.values(), output["messages"], strict=True):
        assert words in message
    assert output["grown_mb"] < 90


def test_an_orc_file_of_repeated_values_is_read_in_batches(tmp_path: Path) -> None:
    orc.write_table(pa.table({"uri": same("k" * 1000, 200_000)}), tmp_path / "same.orc", compression="zstd")
    assert (tmp_path / "same.orc").stat().st_size < MB
    assert orc.ORCFile(tmp_path / "same.orc").nstripes == 1
    before, rows, most = pa.total_allocated_bytes(), 0, 0
    for frame in batches(tmp_path / "same.orc", "same.orc"):
        rows += frame.height
        most = max(most, pa.total_allocated_bytes() - before)
    assert rows == 200_000
    assert most < 100 * MB


def same(text: str, rows: int) -> pa.Array:
    return pa.array([text]).take(pa.array([0] * rows))


@pytest.mark.parametrize("ref", ["file:///etc/passwd", "/etc/passwd", "../../etc/passwd"])
def test_untrusted_lists_cannot_name_files_outside_their_folder(ref: str, tmp_path: Path) -> None:
    (tmp_path / "a.manifest").write_text(json.dumps({"source-ref": ref}))
    (tmp_path / "a.jsonl").write_text(json.dumps({"image": ref}))
    (tmp_path / "a.csv").write_text(f"{ref},cat\n")
    pq.write_table(pa.table({"uri": [ref]}), tmp_path / "a.parquet")
    variants: dict[str, dict[str, Any]] = {
        "a.manifest": {},
        "a.jsonl": {"uri_field": "image"},
        "a.csv": {"kind": "label-csv"},
        "a.parquet": {},
    }
    for name, options in variants.items():
        with pytest.raises(SourceError, match=r"line 1: .* is neither s3://bucket/key nor a path below the list"):
            read(tmp_path / name, **options)


@pytest.mark.parametrize("url", ["https://me:secret@host/a.png", "HTTP://host/a.png?X-Amz-Signature=secret"])
def test_web_addresses_are_bad_lines_and_are_not_repeated(url: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"{url}\n")
    (tmp_path / "a.manifest").write_text(json.dumps({"source-ref": url}))
    (tmp_path / "a.jsonl").write_text(json.dumps({"image": url}))
    (tmp_path / "labels.csv").write_text(f"{url},cat\n")
    (tmp_path / "table.csv").write_text(f"uri\n{url}\n")
    pq.write_table(pa.table({"uri": [url]}), tmp_path / "a.parquet")
    variants: dict[str, dict[str, Any]] = {
        "a.txt": {"kind": "keys"},
        "a.manifest": {},
        "a.jsonl": {"uri_field": "image"},
        "labels.csv": {"kind": "label-csv"},
        "table.csv": {"kind": "table"},
        "a.parquet": {},
    }
    for name, options in variants.items():
        with pytest.raises(
            SourceError, match=r"line \d: .*batchcl does not download images from the web; .*aws s3 cp"
        ) as caught:
            read(tmp_path / name, **options)
        assert "secret" not in str(caught.value)
        assert read(tmp_path / name, **options, skip_bad_lines=True).checked.bad_count == 1


@pytest.mark.parametrize("kind", [None, "image", "directory", "keys", "inventory"])
def test_a_web_address_is_not_a_source(kind: str | None) -> None:
    with pytest.raises(
        SourceError, match=r"^a source is a web address, and batchcl does not download images from the web"
    ) as caught:
        read("https://me:secret@example.com/a.png", kind=kind)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("depth", [500, 100_000])
def test_deeply_nested_json_is_a_bad_line(depth: int, tmp_path: Path) -> None:
    deep = "[" * depth + "]" * depth
    (tmp_path / "list").write_text(f'{{"source-ref":"s3://b/1"}}\n{{"source-ref":"s3://b/2","x":{deep}}}\n')
    with pytest.raises(SourceError, match="list line 2: "):
        read(tmp_path / "list")
    (tmp_path / "list").write_text(f'{{"image":"s3://b/1"}}\n{{"image":"s3://b/2","x":{deep}}}\n')
    found = read(tmp_path / "list", uri_field="image", skip_bad_lines=True)
    assert [image.key for image in found.images] == ["1"]
    manifest = inventory(tmp_path, [row("a")])
    manifest.write_text(f'{{"fileSchema":"Key","files":{deep}}}')
    with pytest.raises(SourceError, match=r"manifest\.json"):
        read(manifest)


def test_an_endless_row_in_an_inventory_is_refused(tmp_path: Path) -> None:
    manifest = inventory(tmp_path, [row("a")], files=1)
    (data,) = (tmp_path / "data").iterdir()
    old = hashlib.md5(data.read_bytes()).hexdigest()
    data.write_bytes(gzip.compress(b'"acme-photos","' + b"k" * 20 * MB, compresslevel=1))
    text = manifest.read_text().replace(old, hashlib.md5(data.read_bytes()).hexdigest())
    manifest.write_text(text)
    manifest.with_name("manifest.checksum").write_text(hashlib.md5(text.encode()).hexdigest())
    with pytest.raises(SourceError, match=r"0\.csv\.gz: .*; it is not a CSV file of an S3 Inventory"):
        read(manifest)


def test_an_unclosed_quote_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b'acme-photos,"a\n' + b"acme-photos,b\n" * 50_000)
    with pytest.raises(SourceError, match=r"line \d+: not valid CSV: field larger than field limit"):
        read(tmp_path / "list", kind="batch-csv")


@pytest.mark.parametrize("data", [b"PAR1", b"PAR1" + b"\0" * 100 + b"PAR1", b"ORC\0\0\0\0"])
def test_a_corrupt_table_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(data)
    with pytest.raises(SourceError, match=r"can't read .*list: .*; the file is corrupt or not a table"):
        read(tmp_path / "list")


def test_keys_of_any_length_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b"s3://b/" + b"k" * 5000)
    assert keys(tmp_path / "list") == ["k" * 5000]


MAGIC = [
    b"",
    b"PAR1",
    b"ORC",
    b"\x1f\x8b\x08",
    b"\x28\xb5\x2f\xfd",
    b"\x89PNG",
    b'{"source-ref":',
    b"\xef\xbb\xbf",
    b"s3://b/",
]
VARIANTS: list[dict[str, Any]] = [
    {},
    *({"kind": kind} for kind in ("keys", "manifest", "batch-csv", "label-csv", "tar", "inventory")),
    {"kind": "json-lines", "uri_field": "a.b"},
    {"kind": "table", "columns": columns(uri="uri")},
    {"columns": columns(bucket="b", key="k")},
]


@settings(max_examples=60)
@given(
    st.sampled_from(MAGIC),
    st.binary(max_size=200) | st.text("abk,\"'\\\n\r\t {}[]:%+s3/0\0é", max_size=60).map(str.encode),
    st.sampled_from(VARIANTS),
    st.booleans(),
)
def test_any_list_is_read_or_refused_with_a_source_error(
    start: bytes, rest: bytes, options: dict[str, Any], skip: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "list")
        path.write_bytes(start + rest)
        try:
            found = read(path, skip_bad_lines=skip, **options)
        except SourceError:
            return
        if found.checked.lines is not None:
            left_out = sum(found.checked.ignored.values())
            assert found.checked.lines == (len(found.images) + found.duplicates + found.checked.bad_count + left_out)


@settings(max_examples=25)
@given(st.sampled_from(["CSV", "Parquet", "ORC"]), st.binary(max_size=120), st.booleans())
def test_any_inventory_file_is_read_or_refused(kind: str, data: bytes, skip: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        manifest = inventory(Path(folder), [row("a")], kind, files=1)
        (path,) = (Path(folder) / "data").iterdir()
        old = hashlib.md5(path.read_bytes()).hexdigest()
        path.write_bytes(gzip.compress(data) if kind == "CSV" else data)
        text = manifest.read_text().replace(old, hashlib.md5(path.read_bytes()).hexdigest())
        manifest.write_text(text)
        manifest.with_name("manifest.checksum").write_text(hashlib.md5(text.encode()).hexdigest())
        try:
            found = read(manifest, skip_bad_lines=skip)
        except SourceError:
            return
        assert found.checked.lines == len(found.images) + found.duplicates + found.checked.bad_count
