"""Extensions other than .jpg and .png exclude images of prefixes and directories, but not explicitly named ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import anyio
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchcl.choices import SourceKind
from batchcl.images import ImageRef, check_limits
from batchcl.sources.base import Columns
from batchcl.sources.filters import Filters
from batchcl.sources.select import Selection
from unit.sources.test_open import JPEG, PNG, opened

NAMES = ("user.name1", "x.pjpeg", "photo.jpg.orig", "scan.tif.v2", ".hidden", "a.gif")


def selected(*names: str, **options: Any) -> dict[str, str | None]:
    """Name of each image → code of the reason why it is skipped."""

    async def main() -> list[ImageRef]:
        selection = Selection(opened_sources, Filters())
        return [image async for page in selection.pages() for image in page.images]

    opened_sources = opened(*names, **options)
    reasons = {os.path.basename(image.key): check_limits(image) for image in anyio.run(main)}
    return {name: None if reason is None else reason.code for name, reason in reasons.items()}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_bytes(PNG if name.startswith(".") else JPEG)
    return folder


def lines(kind: SourceKind, folder: Path, names: list[str]) -> list[str]:
    """The lines of a list: key lists contain the paths, other lists paths relative to `folder`."""
    below = [os.path.relpath(name, folder) for name in names]
    match kind:
        case SourceKind.MANIFEST:
            return [orjson.dumps({"source-ref": name}).decode() for name in below]
        case SourceKind.JSON_LINES:
            return [orjson.dumps({"image": name}).decode() for name in below]
        case SourceKind.LABEL_CSV:
            return [f"{name},cat" for name in below]
        case _:
            return names


@pytest.mark.parametrize("kind", [SourceKind.KEYS, SourceKind.MANIFEST, SourceKind.LABEL_CSV, SourceKind.JSON_LINES])
def test_listed_files_are_images_by_their_bytes(files: Path, kind: SourceKind) -> None:
    (files / "notes.txt").write_text("no image")
    names = [str(files / name) for name in (*NAMES, "notes.txt")]
    path = files.parent / "list"
    path.write_text("".join(f"{line}\n" for line in lines(kind, files.parent, names)))
    assert selected(str(path), kind=kind, uri_field="image") == {
        **dict.fromkeys(NAMES),
        "notes.txt": "UnsupportedExtension",
    }


def test_listed_objects_are_accepted_with_any_name(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("".join(f"s3://b/{name}\n" for name in (*NAMES, "notes.txt", "._x.jpg")))
    assert selected(str(path)) == {**dict.fromkeys((*NAMES, "notes.txt")), "._x.jpg": "UnsupportedExtension"}
    table = tmp_path / "list.parquet"
    pq.write_table(pa.table({"uri": [f"s3://b/{name}" for name in NAMES]}), table)
    assert selected(str(table), columns=Columns(uri="uri")) == dict.fromkeys(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_given_as_source_is_an_image_by_its_bytes(files: Path, name: str) -> None:
    assert selected(str(files / name)) == {name: None}


def test_extensions_apply_in_directories_unless_any_name(files: Path) -> None:
    (files / "._x.jpg").write_bytes(b"\0\5\x16\7")
    (files / "x.jpg").write_bytes(JPEG)
    (files / "notes.txt").write_text("no image")
    skipped = dict.fromkeys((*NAMES, "._x.jpg", "notes.txt"), "UnsupportedExtension")
    assert selected(str(files)) == {**skipped, "x.jpg": None}
    wanted = {**dict.fromkeys((*NAMES, "x.jpg")), **dict.fromkeys(("._x.jpg", "notes.txt"), "UnsupportedExtension")}
    assert selected(str(files), any_extension=True) == wanted


def test_the_size_limit_applies_with_any_name() -> None:
    image = ImageRef(uri="s3://b/x.bin", bucket="b", key="x.bin", size_bytes=16_000_000, any_extension=True)
    reason = check_limits(image)
    assert reason is not None
    assert reason.code == "TooLarge"
