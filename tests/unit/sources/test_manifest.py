from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from batchcl.errors import SourceError
from batchcl.images import ImageRef
from batchcl.sources.text_lists import ManifestParser


def line(ref: object, **more: Any) -> bytes:
    return orjson.dumps({"source-ref": ref, **more})


def parsed(text: bytes, folder: Path | None = None) -> ImageRef:
    image = ManifestParser(folder)(text)
    assert isinstance(image, ImageRef)
    return image


def test_an_s3_reference_is_literal_and_the_rest_is_kept() -> None:
    image = parsed(line("s3://b/a b+c%2F é.jpg", patient="Ł"))
    assert (image.uri, image.bucket, image.key) == ("s3://b/a b+c%2F é.jpg", "b", "a b+c%2F é.jpg")
    assert image.extra is not None
    assert orjson.loads(image.extra)["patient"] == "Ł"
    assert parsed(line("s3://b/k")).extra is None


def test_a_relative_reference_is_a_path_beside_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a b.png").write_bytes(b"123")
    image = parsed(line("images/a b.png"), tmp_path)
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
def test_a_manifest_from_somebody_else_leads_nowhere_else(tmp_path: Path, ref: str) -> None:
    with pytest.raises(SourceError, match="neither s3://bucket/key nor a path below the list"):
        ManifestParser(tmp_path)(line(ref))


def test_a_manifest_in_s3_has_no_local_images() -> None:
    with pytest.raises(SourceError, match="neither"):
        ManifestParser(None)(line("images/a.png"))


@pytest.mark.parametrize("ref", ["s3://", "s3://bucket", "s3://bucket/"])
def test_an_s3_reference_without_key_is_refused(ref: str) -> None:
    with pytest.raises(SourceError, match="is not s3://bucket/key"):
        ManifestParser(None)(line(ref))


@pytest.mark.parametrize("text", [b"{", b"[]", b"{}", b'{"source-ref": 3}', b'{"source-ref": null}', b"\xff", b"plain"])
def test_a_line_that_is_no_manifest_line_is_a_source_error(text: bytes) -> None:
    with pytest.raises(SourceError):
        ManifestParser(None)(text)
