from __future__ import annotations

import io
import sys
import tempfile
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from batchcl.aws.session import Aws
from batchcl.errors import CredentialsError, SourceError
from batchcl.images import ImageRef
from batchcl.sources.base import BadLine, SourceCheck, s3_image
from batchcl.sources.files import fetch as fetch_text
from batchcl.sources.files import spool_stdin
from batchcl.sources.list_source import ListSource
from batchcl.sources.text_lists import MAX_LINE_BYTES, LinePart, parse_key_line
from unit.sources.lists import selected

NAMES = st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]), min_size=1)


def source(tmp_path: Path, data: bytes, *, skip_bad_lines: bool = False) -> ListSource:
    path = tmp_path / "list.txt"
    path.write_bytes(data)
    return ListSource("list.txt", [LinePart("list.txt", path, parse_key_line)], skip_bad_lines=skip_bad_lines)


def checked(lines: ListSource) -> SourceCheck:
    return anyio.run(lines.check)


def keys(lines: ListSource, *, behind: int = 0) -> list[str]:
    return [image.key for image in anyio.run(partial(selected, lines, behind=behind))[0]]


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
def test_every_kind_of_line_end_gives_the_same_keys(tmp_path: Path, data: bytes) -> None:
    lines = source(tmp_path, data)
    assert checked(lines).buckets == {"b"}
    assert keys(lines) == ["1", "2"]


def test_nothing_but_the_line_end_is_trimmed(tmp_path: Path) -> None:
    assert keys(source(tmp_path, b"s3://b/ 1 \t\ns3://b/2\r\r\n")) == [" 1 \t", "2\r"]


def test_a_check_tells_the_buckets_and_leaves_local_files_out(tmp_path: Path) -> None:
    found = checked(source(tmp_path, b"s3://b/1\n/a/b.png\ns3://c/1\ns3://b/2\n"))
    assert found == SourceCheck(frozenset({"b", "c"}), digest=found.digest, lines=4)


def test_the_first_bad_line_refuses_the_list_with_its_number(tmp_path: Path) -> None:
    lines = source(tmp_path, b"s3://b/1\n\n\r\nhttp://x/2\ns3://b\n")
    with pytest.raises(SourceError, match=r"^list\.txt line 4: it is a web address, .*--skip-bad-lines$"):
        checked(lines)


def test_bad_lines_may_be_left_out_and_are_told(tmp_path: Path) -> None:
    data = b"http://x/1\ns3://b/1\n\nhttp://x/2\ns3://b/2\n\xff"
    lines = source(tmp_path, data, skip_bad_lines=True)
    found = checked(lines)
    assert [bad.number for bad in found.bad_lines] == [1, 4, 6]
    assert found.bad_lines[2] == BadLine(6, "it is not UTF-8 text")
    assert found.bad_count == 3
    assert keys(lines) == ["1", "2"]


def test_a_list_of_bad_lines_alone_names_no_image_and_shows_a_hundred(tmp_path: Path) -> None:
    lines = source(tmp_path, b"http://x\n" * 250, skip_bad_lines=True)
    found = checked(lines)
    assert (len(found.bad_lines), found.bad_count, found.buckets) == (100, 250, frozenset())
    assert keys(lines) == []


def test_an_overlong_line_is_bad_keeps_the_numbering_and_bounds_memory(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    with path.open("wb") as file:
        file.write(b"s3://b/1\n")
        for _ in range(20):
            file.write(b"x" * MAX_LINE_BYTES)
        file.write(b"\ns3://b/3\nhttp://x\n")
    lines = ListSource("list.txt", [LinePart("list.txt", path, parse_key_line)], skip_bad_lines=True)
    tracemalloc.start()
    try:
        found = checked(lines)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [bad.number for bad in found.bad_lines] == [2, 4]
    assert "longer than" in found.bad_lines[0].reason
    assert keys(lines) == ["1", "3"]
    assert peak < 5 * MAX_LINE_BYTES


@pytest.mark.parametrize(("more", "bad"), [(0, 0), (1, 1)])
@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_the_longest_line_is_whole(tmp_path: Path, more: int, bad: int, end: bytes) -> None:
    line = b"s3://b/".ljust(MAX_LINE_BYTES + more, b"k")
    lines = source(tmp_path, b"s3://b/1\n" + line + end, skip_bad_lines=True)
    assert checked(lines).bad_count == bad
    assert len(keys(lines)) == 2 - bad


def test_an_image_that_a_list_names_twice_comes_once_at_its_first_place(tmp_path: Path) -> None:
    lines = source(tmp_path, b"s3://b/2\ns3://b/1\ns3://b/2\ns3://b/3\ns3://b/2\ns3://b/1\n")
    checked(lines)
    assert anyio.run(selected, lines)[1] == 3
    assert keys(lines) == ["2", "1", "3"]
    assert keys(lines) == ["2", "1", "3"]


def test_reading_goes_on_by_the_count_of_images(tmp_path: Path) -> None:
    data = b"s3://b/1\ns3://b/1\nhttp://bad\ns3://b/2\n\ns3://b/1\ns3://b/3\n"
    lines = source(tmp_path, data, skip_bad_lines=True)
    checked(lines)
    for count in range(4):
        assert keys(lines, behind=count) == ["1", "2", "3"][count:]


def test_a_list_may_name_what_it_names_in_any_version(tmp_path: Path) -> None:
    lines = source(tmp_path, b"s3://b/1\n/x/a.png\n")
    asked = [s3_image("s3://b/1"), s3_image("s3://b/2"), parse_key_line(b"/x/a.png")]
    version = ImageRef(uri="s3://b/1", bucket="b", key="1", version_id="v")
    assert anyio.run(lines.may_name, [*asked, version]) == [True, False, True, True]
    assert anyio.run(lines.may_name, []) == []


def test_the_digest_is_that_of_the_images_and_their_order(tmp_path: Path) -> None:
    digests = [
        checked(source(tmp_path, data)).digest
        for data in (b"s3://b/1\ns3://b/2\n", b"s3://b/1\r\n\r\ns3://b/2", b"s3://b/2\ns3://b/1\n", b"s3://b/1\n")
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_long_lists_come_in_pages(tmp_path: Path) -> None:
    lines = source(tmp_path, b"".join(b"s3://b/%d\n" % number for number in range(2001)))

    async def main() -> list[int]:
        return [len(page) async for page in lines.pages()]

    assert anyio.run(main) == [1000, 1000, 1]


def test_a_list_that_can_not_be_read_is_refused_with_its_name(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(SourceError, match=r"can't read my list: .*; check the path"):
            checked(ListSource("my list", [LinePart("my list", path, parse_key_line)]))


@given(st.lists(NAMES, max_size=30))
def test_any_list_of_keys_is_read_back_each_key_once(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        lines = source(Path(folder), "".join(f"s3://b/{name}\n" for name in names).encode())
        checked(lines)
        assert keys(lines) == list(dict.fromkeys(names))
        assert anyio.run(selected, lines)[1] == len(names) - len(set(names))


def test_standard_input_is_kept_to_be_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"s3://b/1\r\n\xff")))
    path = spool_stdin(ExitStack())
    assert path.read_bytes() == b"s3://b/1\r\n\xff"
    path.unlink()


class FakeS3:
    def __init__(self, answer: bytes | Exception) -> None:
        self.answer = answer

    @asynccontextmanager
    async def s3(self, *, region: str) -> AsyncIterator[FakeS3]:
        assert region == "eu-west-1"
        yield self

    async def get_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:
        assert (Bucket, Key) == ("b", "lists/a b.txt")
        if isinstance(self.answer, Exception):
            raise self.answer
        return {"Body": _Body(self.answer)}


class _Body:
    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    async def read(self, size: int) -> bytes:
        return self._data.read(min(size, 1000))


def fetch(answer: bytes | Exception) -> Path:
    async def main() -> Path:
        return await fetch_text("s3://b/lists/a b.txt", cast("Aws", FakeS3(answer)), region="eu-west-1")

    return anyio.run(main)


def test_a_list_in_s3_is_copied_whole() -> None:
    path = fetch(b"s3://b/1\n" * 1000)
    assert path.read_bytes() == b"s3://b/1\n" * 1000
    path.unlink()


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        ("NoSuchKey", SourceError, "there is no s3://b/lists/a b.txt; check the key"),
        ("NoSuchBucket", SourceError, "there is no bucket b"),
        ("AccessDenied", CredentialsError, "reading s3://b/lists/a b.txt failed: access denied"),
    ],
)
def test_a_list_that_s3_refuses_is_explained_and_leaves_no_copy(
    code: str, kind: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(kind) as caught:
        fetch(ClientError(cast("Any", {"Error": {"Code": code}}), "GetObject"))
    assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []
