from __future__ import annotations

import io
import sys
import tempfile
import tracemalloc
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcl.errors import CredentialsError, SourceError
from batchcl.images import ImageRef
from batchcl.sources.base import BadLine, SourceCheck, s3_image
from batchcl.sources.files import fetch as fetch_text
from batchcl.sources.files import spool_stdin
from batchcl.sources.list_source import ListSource
from batchcl.sources.text_lists import MAX_LINE_BYTES, LinePart, ManifestParser, parse_key_line
from fake_s3 import FakeS3, s3_error
from unit.sources.lists import selected

NAMES = st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]), min_size=1)


def source(tmp_path: Path, data: bytes, *, skip_bad_lines: bool = False) -> ListSource:
    path = tmp_path / "list.txt"
    path.write_bytes(data)
    return ListSource("list.txt", [LinePart("list.txt", path, parse_key_line)], skip_bad_lines=skip_bad_lines)


def checked(lines: ListSource) -> SourceCheck:
    return anyio.run(lines.check)


def keys(lines: ListSource, *, skip: int = 0) -> list[str]:
    return [image.key for image in anyio.run(partial(selected, lines, skip=skip))[0]]


@pytest.mark.parametrize(
    "data",
    [
        b"s3://b/1\ns3://b/2\n",
        b"s3://b/1\ns3://b/2",
        b"s3://b/1\r\ns3://b/2\r\n",
        b"s3://b/1\r\ns3://b/2",
        b"\n\ns3://b/1\n\r\n\ns3://b/2\n\n\n",
        b"\xef\xbb\xbfs3://b/1\ns3://b/2\n",
        b"\xef\xbb\xbf\r\ns3://b/1\ns3://b/2\n",
    ],
)
def test_all_kinds_of_line_ends_are_supported(tmp_path: Path, data: bytes) -> None:
    lines = source(tmp_path, data)
    assert checked(lines).buckets == {"b"}
    assert keys(lines) == ["1", "2"]


def test_only_the_line_end_is_stripped(tmp_path: Path) -> None:
    assert keys(source(tmp_path, b"s3://b/ 1 \t\ns3://b/2\r\r\n")) == [" 1 \t", "2\r"]


def test_a_check_reports_the_buckets_of_objects(tmp_path: Path) -> None:
    result = checked(source(tmp_path, b"s3://b/1\n/a/b.png\ns3://c/1\ns3://b/2\n"))
    assert result == SourceCheck(frozenset({"b", "c"}), digest=result.digest, lines=4)


def test_the_first_bad_line_is_reported_with_its_number(tmp_path: Path) -> None:
    lines = source(tmp_path, b"s3://b/1\n\n\r\nhttp://x/2\ns3://b\n")
    with pytest.raises(SourceError, match=r"^list\.txt line 4: this is a web address, .*--skip-bad-lines$"):
        checked(lines)


def test_skipped_bad_lines_are_reported(tmp_path: Path) -> None:
    data = b"http://x/1\ns3://b/1\n\nhttp://x/2\ns3://b/2\n\xff"
    lines = source(tmp_path, data, skip_bad_lines=True)
    result = checked(lines)
    assert [bad.number for bad in result.bad_lines] == [1, 4, 6]
    assert result.bad_lines[2] == BadLine(6, "not UTF-8 text")
    assert result.bad_count == 3
    assert keys(lines) == ["1", "2"]


def test_at_most_a_hundred_bad_lines_are_reported(tmp_path: Path) -> None:
    lines = source(tmp_path, b"http://x\n" * 250, skip_bad_lines=True)
    result = checked(lines)
    assert (len(result.bad_lines), result.bad_count, result.buckets) == (100, 250, frozenset())
    assert keys(lines) == []


def test_an_overlong_line_is_bad_and_is_not_loaded_whole(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    with path.open("wb") as file:
        file.write(b"s3://b/1\n")
        for _ in range(20):
            file.write(b"x" * MAX_LINE_BYTES)
        file.write(b"\ns3://b/3\nhttp://x\n")
    lines = ListSource("list.txt", [LinePart("list.txt", path, parse_key_line)], skip_bad_lines=True)
    tracemalloc.start()
    try:
        result = checked(lines)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [bad.number for bad in result.bad_lines] == [2, 4]
    assert "longer than" in result.bad_lines[0].reason
    assert keys(lines) == ["1", "3"]
    assert peak < 5 * MAX_LINE_BYTES


@pytest.mark.parametrize(("more", "bad"), [(0, 0), (1, 1)])
@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_a_line_of_the_maximum_length_is_accepted(tmp_path: Path, more: int, bad: int, end: bytes) -> None:
    line = b"s3://b/".ljust(MAX_LINE_BYTES + more, b"k")
    lines = source(tmp_path, b"s3://b/1\n" + line + end, skip_bad_lines=True)
    assert checked(lines).bad_count == bad
    assert len(keys(lines)) == 2 - bad


def test_a_duplicate_in_a_list_is_read_once(tmp_path: Path) -> None:
    lines = source(tmp_path, b"s3://b/2\ns3://b/1\ns3://b/2\ns3://b/3\ns3://b/2\ns3://b/1\n")
    checked(lines)
    assert anyio.run(selected, lines)[1] == 3
    assert keys(lines) == ["2", "1", "3"]
    assert keys(lines) == ["2", "1", "3"]


def test_reading_resumes_after_a_number_of_images(tmp_path: Path) -> None:
    data = b"s3://b/1\ns3://b/1\nhttp://bad\ns3://b/2\n\ns3://b/1\ns3://b/3\n"
    lines = source(tmp_path, data, skip_bad_lines=True)
    checked(lines)
    for count in range(4):
        assert keys(lines, skip=count) == ["1", "2", "3"][count:]


def test_a_list_may_name_its_images_in_any_version(tmp_path: Path) -> None:
    lines = source(tmp_path, b"s3://b/1\n/x/a.png\n")
    images = [s3_image("s3://b/1"), s3_image("s3://b/2"), parse_key_line(b"/x/a.png")]
    version = ImageRef(uri="s3://b/1", bucket="b", key="1", version_id="v")
    assert anyio.run(lines.may_name, [*images, version]) == [True, False, True, True]
    assert anyio.run(lines.may_name, []) == []


def test_the_digest_depends_on_the_images_and_their_order(tmp_path: Path) -> None:
    digests = [
        checked(source(tmp_path, data)).digest
        for data in (b"s3://b/1\ns3://b/2\n", b"s3://b/1\r\n\r\ns3://b/2", b"s3://b/2\ns3://b/1\n", b"s3://b/1\n")
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_long_lists_are_read_in_pages(tmp_path: Path) -> None:
    lines = source(tmp_path, b"".join(b"s3://b/%d\n" % number for number in range(2001)))

    async def main() -> list[int]:
        return [len(page) async for page in lines.pages()]

    assert anyio.run(main) == [1000, 1000, 1]


def test_an_unreadable_list_is_refused_with_its_name(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(SourceError, match=r"can't read my list: .*; check the path"):
            checked(ListSource("my list", [LinePart("my list", path, parse_key_line)]))


@given(st.lists(NAMES, max_size=30))
def test_any_list_of_keys_is_read_without_duplicates(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        lines = source(Path(folder), "".join(f"s3://b/{name}\n" for name in names).encode())
        checked(lines)
        assert keys(lines) == list(dict.fromkeys(names))
        assert anyio.run(selected, lines)[1] == len(names) - len(set(names))


def test_standard_input_is_copied_to_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"s3://b/1\r\n\xff")))
    path = spool_stdin(ExitStack())
    assert path.read_bytes() == b"s3://b/1\r\n\xff"
    path.unlink()


def fetch(s3: FakeS3) -> Path:
    return anyio.run(partial(fetch_text, "s3://b/lists/a b.txt", s3.aws, region="eu-west-1"))


def test_a_list_in_s3_is_copied_completely() -> None:
    s3 = FakeS3({"b/lists/a b.txt": b"s3://b/1\n" * 1000})
    path = fetch(s3)
    assert path.read_bytes() == b"s3://b/1\n" * 1000
    assert s3.opened[0]["region"] == "eu-west-1"
    path.unlink()


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        ("NoSuchKey", SourceError, "s3://b/lists/a b.txt does not exist; check the key"),
        ("NoSuchBucket", SourceError, "there is no bucket b"),
        ("AccessDenied", CredentialsError, "reading s3://b/lists/a b.txt failed: access denied"),
    ],
)
def test_errors_of_s3_are_explained_and_leave_no_copy(
    code: str, kind: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(kind) as caught:
        fetch(FakeS3(fault=lambda _: s3_error(code)))
    assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "key",
    ["a b+c%2F é.jpg", " leading and trailing ", "a//b/../c/./d", "%", "+", "a\tb", "#x?y=z", "s3://x/y", "a\\b", "/"],
)
def test_keys_are_taken_literally(key: str) -> None:
    image = parse_key_line(f"s3://buck.et/{key}".encode())
    assert (image.uri, image.bucket, image.key) == (f"s3://buck.et/{key}", "buck.et", key)
    assert (image.version_id, image.size_bytes, image.extra) == (None, None, None)


@given(st.text(min_size=1))
def test_any_key_of_a_line_is_read_exactly(key: str) -> None:
    assert parse_key_line(f"s3://b/{key}".encode()).key == key


@pytest.mark.parametrize("line", ["s3://", "s3://bucket", "s3://bucket/", "s3:///key"])
def test_an_s3_line_without_bucket_or_key_is_refused(line: str) -> None:
    with pytest.raises(SourceError, match="is not s3://bucket/key"):
        parse_key_line(line.encode())


@pytest.mark.parametrize("line", ["file:///etc/passwd", "S3://bucket/key", "gs://b/k"])
def test_other_schemes_are_refused(line: str) -> None:
    with pytest.raises(SourceError, match="neither s3://bucket/key nor a path"):
        parse_key_line(line.encode())


@pytest.mark.parametrize("line", [b"\xff\xfe", b"a\xe9.jpg", b"s3://b/\xff"])
def test_invalid_utf8_is_refused(line: bytes) -> None:
    with pytest.raises(SourceError, match="not UTF-8"):
        parse_key_line(line)


def test_a_path_with_a_nul_is_refused() -> None:
    with pytest.raises(SourceError, match="NUL"):
        parse_key_line(b"a\0b")


def test_paths_are_relative_to_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a b+c%2F é.jpg").write_bytes(b"123")
    monkeypatch.chdir(tmp_path)
    image = parse_key_line("a b+c%2F é.jpg".encode())
    assert (image.bucket, image.key, image.size_bytes) == ("", str(tmp_path / "a b+c%2F é.jpg"), 3)
    assert parse_key_line(str(tmp_path / "a b+c%2F é.jpg").encode()) == image


def test_a_missing_file_is_listed_and_fails_later() -> None:
    image = parse_key_line(b"/nowhere/a.png")
    assert (image.key, image.size_bytes, image.last_modified) == ("/nowhere/a.png", None, None)


def test_a_list_in_s3_cannot_name_local_files() -> None:
    with pytest.raises(
        SourceError, match="'/etc/passwd' is not s3://bucket/key, and a list in S3 can't name local files"
    ):
        parse_key_line(b"/etc/passwd", may_be_local=False)
    assert parse_key_line(b"s3://b/k", may_be_local=False).key == "k"


def manifest_line(ref: object, **more: Any) -> bytes:
    return orjson.dumps({"source-ref": ref, **more})


def parsed_line(text: bytes, folder: Path | None = None) -> ImageRef:
    image = ManifestParser(folder)(text)
    assert isinstance(image, ImageRef)
    return image


def test_a_source_ref_is_literal_and_other_fields_are_stored() -> None:
    image = parsed_line(manifest_line("s3://b/a b+c%2F é.jpg", patient="Ł"))
    assert (image.uri, image.bucket, image.key) == ("s3://b/a b+c%2F é.jpg", "b", "a b+c%2F é.jpg")
    assert image.extra is not None
    assert orjson.loads(image.extra)["patient"] == "Ł"
    assert parsed_line(manifest_line("s3://b/k")).extra is None


def test_a_relative_source_ref_is_relative_to_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a b.png").write_bytes(b"123")
    image = parsed_line(manifest_line("images/a b.png"), tmp_path)
    assert (image.bucket, image.key, image.size_bytes) == ("", str(tmp_path / "images" / "a b.png"), 3)


@pytest.mark.parametrize(
    "ref",
    [
        "../x.png",
        "a/../../x.png",
        "a/..",
        "/etc/passwd",
        "//etc/passwd",
        "file:///etc/passwd",
        "ftp://h/x.png",
        "a\0b",
    ],
)
def test_a_source_ref_outside_the_folder_is_refused(tmp_path: Path, ref: str) -> None:
    with pytest.raises(SourceError, match="neither s3://bucket/key nor a path below the list"):
        ManifestParser(tmp_path)(manifest_line(ref))


def test_a_manifest_in_s3_has_no_local_images() -> None:
    with pytest.raises(SourceError, match="neither"):
        ManifestParser(None)(manifest_line("images/a.png"))


@pytest.mark.parametrize("ref", ["s3://", "s3://bucket", "s3://bucket/"])
def test_an_s3_reference_without_key_is_refused(ref: str) -> None:
    with pytest.raises(SourceError, match="is not s3://bucket/key"):
        ManifestParser(None)(manifest_line(ref))


@pytest.mark.parametrize("text", [b"{", b"[]", b"{}", b'{"source-ref": 3}', b'{"source-ref": null}', b"\xff", b"plain"])
def test_an_invalid_manifest_line_is_a_source_error(text: bytes) -> None:
    with pytest.raises(SourceError):
        ManifestParser(None)(text)
