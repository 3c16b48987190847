from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcl.images import MAX_BYTES_INLINE, MAX_BYTES_S3, ImageRef, check_limits


def in_s3(key: str, size_bytes: int | None = 10) -> ImageRef:
    return ImageRef(uri=f"s3://b/{key}", bucket="b", key=key, size_bytes=size_bytes)


def on_disk(key: str, size_bytes: int | None = 10) -> ImageRef:
    return ImageRef(uri=key, bucket="", key=key, size_bytes=size_bytes)


def code(image: ImageRef) -> str | None:
    found = check_limits(image)
    return None if found is None else found.code


def test_an_image_without_bucket_is_local() -> None:
    assert on_disk("/a.png").local
    assert not in_s3("a.png").local


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.Jpe", "a.jfif", "dir.txt/a.png", "a.b.c.png", ".hidden.png"])
def test_jpeg_and_png_extensions_are_accepted_in_any_case(name: str) -> None:
    assert code(in_s3(name)) is None


@pytest.mark.parametrize("name", ["a", "a.", "scan 12.05.2026", "img.0001", "x.a b", "x.jpg~", "x.png v2", "ü.größe"])
def test_a_name_without_an_extension_is_accepted(name: str) -> None:
    assert code(in_s3(name)) is None


@pytest.mark.parametrize("name", ["a.gif", "a.TIFF", "a.png.gz", "a.mp4", "a.jp2", ".DS_Store", "d/.gitignore", ".jpg"])
def test_another_type_or_a_hidden_file_is_skipped_by_its_name(name: str) -> None:
    assert code(in_s3(name)) == "UnsupportedExtension"


def test_a_folder_marker_is_skipped_in_spite_of_its_extension() -> None:
    assert code(in_s3("photos/", 0)) == "FolderMarker"
    assert code(in_s3("photos.png/", 0)) == "FolderMarker"


def test_an_empty_file_is_skipped_and_an_unknown_size_is_not() -> None:
    assert code(in_s3("a.png", 0)) == "EmptyFile"
    assert code(in_s3("a.png", None)) is None
    assert code(in_s3("a.png", 1)) is None


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (in_s3("a.png", 15 * 1024 * 1024), None),
        (in_s3("a.png", 15 * 1024 * 1024 + 1), "TooLarge"),
        (on_disk("/a.png", 4 * 1024 * 1024), None),
        (on_disk("/a.png", 4 * 1024 * 1024 + 1), "TooLarge"),
    ],
)
def test_the_limit_is_15_mb_in_s3_and_4_mb_as_bytes(image: ImageRef, expected: str | None) -> None:
    assert code(image) == expected


def test_the_reason_has_the_size_the_limit_and_the_transfer() -> None:
    s3, local = check_limits(in_s3("a.png", MAX_BYTES_S3 + 1)), check_limits(on_disk("/a.png", MAX_BYTES_INLINE + 1))
    assert s3 is not None
    assert s3.message == "15,728,641 bytes; the limit for images read from S3 is 15,728,640 bytes"
    assert local is not None
    assert local.message == "4,194,305 bytes; the limit for images sent as bytes is 4,194,304 bytes"


def test_a_file_name_that_is_not_utf8_is_skipped_with_advice() -> None:
    found = check_limits(on_disk("/a\udcff.png"))
    assert found is not None
    assert found.code == "UndecodableName"
    assert "rename" in found.message
    assert code(on_disk("/ü.png")) is None


@given(st.text(), st.one_of(st.none(), st.integers(min_value=0)))
def test_any_key_and_size_has_a_printable_result(key: str, size_bytes: int | None) -> None:
    found = check_limits(in_s3(key, size_bytes))
    if found is not None:
        assert found.code.isidentifier()
        assert found.message.encode()
