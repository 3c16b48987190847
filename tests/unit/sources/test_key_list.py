from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcl.errors import SourceError
from batchcl.sources.text_lists import parse_key_line


@pytest.mark.parametrize(
    "key",
    ["a b+c%2F é.jpg", " leading and trailing ", "a//b/../c/./d", "%", "+", "a\tb", "#x?y=z", "s3://x/y", "a\\b", "/"],
)
def test_keys_are_taken_literally(key: str) -> None:
    image = parse_key_line(f"s3://buck.et/{key}".encode())
    assert (image.uri, image.bucket, image.key) == (f"s3://buck.et/{key}", "buck.et", key)
    assert (image.version_id, image.size_bytes, image.extra) == (None, None, None)


@given(st.text(min_size=1))
def test_any_key_comes_back_letter_by_letter(key: str) -> None:
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
def test_bytes_that_are_no_utf8_are_refused(line: bytes) -> None:
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


def test_a_missing_file_is_an_image_that_fails_later() -> None:
    image = parse_key_line(b"/nowhere/a.png")
    assert (image.key, image.size_bytes, image.last_modified) == ("/nowhere/a.png", None, None)


def test_a_list_that_is_not_on_this_machine_names_no_files_on_it() -> None:
    with pytest.raises(SourceError, match="'/etc/passwd' is not s3://bucket/key, and a list in S3 names no files"):
        parse_key_line(b"/etc/passwd", may_be_local=False)
    assert parse_key_line(b"s3://b/k", may_be_local=False).key == "k"
