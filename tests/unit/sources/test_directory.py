from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from batchcl.errors import SourceError
from batchcl.images import ImageRef, Position, check_limits
from batchcl.sources import base
from batchcl.sources.base import Source, local_image
from batchcl.sources.directory import DirectorySource


def read(source: Source, after: Position | None = None) -> list[ImageRef]:
    async def main() -> list[ImageRef]:
        pages: AsyncIterator[list[ImageRef]] = source.pages(after)
        return [image async for page in pages for image in page]

    return anyio.run(main)


def make(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345")
    return root


def names(source: Source, root: Path, after: Position | None = None) -> list[str]:
    return [os.path.relpath(image.key, root) for image in read(source, after)]


def test_files_are_listed_with_size_and_time_recursively(tmp_path: Path) -> None:
    make(tmp_path, "b.png", "a/c.png", "a/a/d.jpg", ".hidden/e.png", ".f.png", "notes.txt")
    os.utime(tmp_path / "b.png", (1_700_000_000, 1_700_000_000.25))
    images = {os.path.relpath(image.key, tmp_path): image for image in read(DirectorySource(str(tmp_path)))}
    assert set(images) == {"b.png", "a/c.png", "a/a/d.jpg", ".hidden/e.png", ".f.png", "notes.txt"}
    image = images["b.png"]
    assert (image.uri, image.bucket, image.size_bytes) == (str(tmp_path / "b.png"), "", 5)
    assert image.last_modified is not None
    assert image.last_modified.timestamp() == 1_700_000_000.25


def test_the_order_does_not_depend_on_the_file_system(tmp_path: Path) -> None:
    make(tmp_path, "b/x.png", "z.png", "a/y.png", "a/b/q.png", "c.png", "B.png")
    assert names(DirectorySource(str(tmp_path)), tmp_path) == [
        "B.png",
        "c.png",
        "z.png",
        "a/y.png",
        "a/b/q.png",
        "b/x.png",
    ]


@pytest.mark.parametrize("spelling", ["absolute", "relative", "dots"])
def test_reading_resumes_after_an_image_even_if_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    make(tmp_path / "p", "a.png", "m.png", "a/a.png", "a/b/c.png", "a/z.png", "b/a.png", "a.png.d/x.png", "é/x.png")
    monkeypatch.chdir(tmp_path)
    source = DirectorySource({"absolute": str(tmp_path / "p"), "relative": "p", "dots": "p/../p"}[spelling])
    images = read(source)
    assert len(images) == 8
    for count, image in enumerate(images, 1):
        position = Position(count, image.key)
        assert read(source, position) == images[count:]
        Path(image.key).rename(tmp_path / "aside")
        assert read(source, position) == images[count:]
        (tmp_path / "aside").rename(image.key)


def test_links_to_files_are_followed_but_not_to_directories(tmp_path: Path) -> None:
    make(tmp_path, "in/a.png", "out/b.png")
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "out" / "b.png")
    (tmp_path / "in" / "circle").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "broken.png").symlink_to(tmp_path / "nowhere")
    images = read(DirectorySource(str(tmp_path / "in")))
    assert [(Path(image.key).name, image.size_bytes) for image in images] == [
        ("a.png", 5),
        ("broken.png", None),
        ("link.png", 5),
    ]


def test_a_name_that_is_not_utf8_is_listed_and_skipped(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.png")).write_bytes(b"1")
    (image,) = read(DirectorySource(str(tmp_path)))
    assert image.uri.encode() == os.fsencode(tmp_path) + b"/a\\udcff.png"
    assert Path(image.key).read_bytes() == b"1"
    reason = check_limits(image)
    assert reason is not None
    assert reason.code == "UndecodableName"


@pytest.mark.parametrize("spelling", ["photos", "photos/../photos", "./photos/"])
@pytest.mark.parametrize("out", ["photos/out", "photos/../photos/out", "photos/a/out"])
def test_the_output_root_is_excluded_however_it_is_spelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str, out: str
) -> None:
    make(tmp_path / "photos", "a.png", "a/b.png", "outside/c.png")
    make(tmp_path / out, "results/x.parquet")
    monkeypatch.chdir(tmp_path)
    source = DirectorySource(spelling, leave_out=[Path(out).absolute()])
    assert names(source, tmp_path / "photos") == ["a.png", "a/b.png", "outside/c.png"]


def test_files_come_in_pages(tmp_path: Path) -> None:
    make(tmp_path, *(f"{number:04}.png" for number in range(base.PAGE + 1)))
    source = DirectorySource(str(tmp_path))

    async def main() -> list[int]:
        return [len(page) async for page in source.pages()]

    assert anyio.run(main) == [base.PAGE, 1]


def test_a_missing_directory_is_refused_by_the_check(tmp_path: Path) -> None:
    for name in ("missing", "file"):
        (tmp_path / "file").touch()
        with pytest.raises(SourceError, match=rf"can't read the directory .*/{name}: .*; check the path"):
            anyio.run(DirectorySource(str(tmp_path / name)).check)


def test_an_output_root_behind_a_link_is_excluded(tmp_path: Path) -> None:
    make(tmp_path / "photos", "a.png", "out/results/x.parquet")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    source = DirectorySource(str(tmp_path / "photos"), leave_out=[tmp_path / "link" / "out"])
    assert names(source, tmp_path / "photos") == ["a.png"]


def test_an_unreadable_folder_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a/x.png", "b/y.png")
    scan = os.scandir

    def refusing(path: Any) -> Any:
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(SourceError, match=r"/b: Permission denied; change its permissions"):
        read(DirectorySource(str(tmp_path)))


def test_a_directory_may_name_paths_below_it_only(tmp_path: Path) -> None:
    make(tmp_path, "in/a.png", "in/d/b.png", "inside/c.png", "far/e.png")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "far")
    source = DirectorySource(str(tmp_path / "in"))
    assert all(anyio.run(source.may_name, read(source)))
    for name, expected in {"in/later.png": True, "in/linked/e.png": True, "inside/c.png": False, "in": False}.items():
        assert anyio.run(source.may_name, [local_image(str(tmp_path / name))]) == [expected], name
    assert anyio.run(source.may_name, [ImageRef(uri="s3://b/k", bucket="b", key=f"{tmp_path}/in/a.png")]) == [False]
    assert anyio.run(DirectorySource("/").may_name, [local_image("/a.png")]) == [True]
