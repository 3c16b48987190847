from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import anyio
import obstore
import pytest
from obstore.store import MemoryStore

from batchcl.errors import OutputError, StoppedError, UsageError
from batchcl.runs.store import Store, StoredFile, _translate_errors


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store.memory() if request.param == "memory" else Store.open(str(tmp_path / "out"), create=True)


def test_objects_are_written_and_replaced(store: Store) -> None:
    async def main() -> None:
        assert await store.get("runs/r/run.json") is None
        await store.put("runs/r/run.json", b"one")
        assert await store.get("runs/r/run.json") == b"one"
        await store.put("runs/r/run.json", b"")
        assert await store.get("runs/r/run.json") == b""

    anyio.run(main)


def test_writes_sync_content_and_name_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forced: list[Path] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        forced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    root = tmp_path / "out"

    async def main() -> None:
        store = Store.open(str(root), create=True)
        for put in (store.put, store.put_new, partial(store.put_exclusive, what="it")):
            forced.clear()
            await put("runs/r/model=birds@v1/0", b"x")
            name = root / "runs/r/model=birds@v1/0"
            staged, *folders = forced
            assert staged.parent == root / "runs/.staging", "the content is synced before the name exists"
            assert folders == list(name.parents)[: len(folders)]
            assert folders[-1] == root
            await store.delete("runs/r/model=birds@v1/0")

    anyio.run(main)


def test_disk_errors_are_reported_with_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)

    async def main() -> None:
        store = Store.open(str(tmp_path), create=True)
        mine = partial(store.put_exclusive, what="it")
        for put, path in ((store.put, "a/1"), (store.put_new, "a/2"), (mine, "a/3"), (mine, "a/3")):
            with pytest.raises(OutputError, match=rf"{path} failed: .*Input/output error"):
                await put(path, b"x")

    anyio.run(main)


def test_exactly_one_of_many_callers_creates_an_object(store: Store) -> None:
    async def main() -> None:
        for race in range(20):
            won: list[int] = []

            async def create(number: int, path: str = f"runs/race-{race}", won: list[int] = won) -> None:
                if await store.put_new(path, str(number).encode()):
                    won.append(number)

            async with anyio.create_task_group() as group:
                for number in range(16):
                    group.start_soon(create, number)
            assert len(won) == 1
            assert await store.get(f"runs/race-{race}") == str(won[0]).encode()

    anyio.run(main)


@pytest.mark.parametrize("put", ["put", "put_new"])
def test_an_interrupted_write_leaves_nothing_in_the_tables(
    put: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a kill at any moment before the rename."""

    async def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(obstore, "rename_async", killed)
    store = Store.open(str(tmp_path), create=True)
    with pytest.raises(KeyboardInterrupt):
        anyio.run(getattr(store, put), "results/model=m/a.parquet", b"1")
    assert [path.relative_to(tmp_path).parts[:2] for path in tmp_path.rglob("*") if path.is_file()] == [
        ("runs", ".staging")
    ]


def test_existing_objects_are_not_created_again(store: Store) -> None:
    async def main() -> None:
        await store.put("a/b", b"old")
        assert not await store.put_new("a/b", b"new")
        assert await store.get("a/b") == b"old"
        await store.delete("a/b")
        assert await store.put_new("a/b", b"new")

    anyio.run(main)


def test_exclusive_writes_can_be_repeated_by_the_same_writer(store: Store) -> None:
    async def main() -> None:
        for _ in range(2):
            await store.put_exclusive("runs/r/s", b"me", what="a segment")
        with pytest.raises(StoppedError, match=r"another process .* has written a segment \(.*runs/r/s\)"):
            await store.put_exclusive("runs/r/s", b"you", what="a segment")
        assert await store.get("runs/r/s") == b"me"

    anyio.run(main)


def test_deleting_a_missing_object_is_fine(store: Store) -> None:
    async def main() -> None:
        await store.put("a", b"1")
        for _ in range(2):
            await store.delete("a")
        assert await store.get("a") is None

    anyio.run(main)


def test_listings_are_sorted_and_complete(store: Store) -> None:
    async def main() -> list[StoredFile]:
        for number in reversed(range(120)):
            await store.put(f"results/m/{number:03d}", b"x" * number)
        await store.put("resultsother/x", b"")
        return await store.list_all("results")

    files = anyio.run(main)
    assert [(file.path, file.size_bytes) for file in files] == [(f"results/m/{n:03d}", n) for n in range(120)]
    assert len({file.etag for file in files} - {None}) == 120
    assert store.list_sync("results") == files
    assert store.list_sync("nothing") == []


def test_children_are_the_folders_directly_below(store: Store) -> None:
    async def main() -> None:
        for path in ("runs/b/run.json", "runs/a/x/y", "runs/a/run.json", "runs/file", "other/c/d"):
            await store.put(path, b"")
        assert await store.children("runs") == ["a", "b"]
        assert await store.children("nothing") == []

    anyio.run(main)


@pytest.mark.parametrize("run_id", ["2026-11-21T10:00:00+00:00", "a@b", "a..b", "A_1."])
def test_folder_names_are_not_changed(store: Store, run_id: str) -> None:
    async def main() -> None:
        await store.put(f"runs/{run_id}/run.json", b"1")
        assert await store.children("runs") == [run_id]
        assert [file.path for file in await store.list_all("runs")] == [f"runs/{run_id}/run.json"]

    anyio.run(main)
    if not store.root.startswith("memory"):
        assert Path(store.uri(f"runs/{run_id}/run.json")).read_bytes() == b"1"


def test_a_file_is_read_in_pieces(store: Store) -> None:
    data = os.urandom(300_000)
    anyio.run(store.put, "a/file", data)
    with store.open_file("a/file") as file:
        file.seek(-10, os.SEEK_END)
        assert file.read() == data[-10:]
        file.seek(100_000)
        assert file.read(70_000) == data[100_000:170_000]
        assert file.tell() == 170_000


def test_the_check_for_write_access_leaves_no_file(store: Store) -> None:
    anyio.run(store.check_writable)
    assert store.list_sync("") == []


def test_stores_without_conditional_writes_are_refused() -> None:
    class Overwriting(Store):
        async def put_new(self, path: str, data: bytes) -> bool:
            await self.put(path, data)
            return True

    store = Overwriting("memory", MemoryStore())

    async def main() -> None:
        with pytest.raises(OutputError, match="--single-writer"):
            await store.check_writable()
        await store.check_writable(single_writer=True)

    anyio.run(main)
    assert store.list_sync("") == []


def test_uris_can_be_opened_by_other_tools(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path), create=True)
    assert store.uri("results/a.parquet") == f"{tmp_path}/results/a.parquet"
    assert store.uri("") == str(tmp_path)
    assert not store.is_s3


def test_a_relative_root_survives_a_change_of_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store.open("out", create=True)
    monkeypatch.chdir("/")
    anyio.run(store.put, "a", b"1")
    assert (tmp_path / "out" / "a").read_bytes() == b"1"


def test_a_root_is_created_only_on_request(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"opening the output root .* failed: it does not exist"):
        Store.open(str(tmp_path / "a" / "b"))
    assert not (tmp_path / "a").exists()
    Store.open(str(tmp_path / "a" / "b"), create=True)
    assert Store.open(str(tmp_path / "a" / "b")).root == str(tmp_path / "a" / "b")


def test_a_file_is_refused_as_root(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="it is a file; pass a directory"):
        Store.open(str(tmp_path / "file"), create=True)
    with pytest.raises(OutputError, match="creating the output root"):
        Store.open(str(tmp_path / "file" / "out"), create=True)


def test_system_errors_become_output_errors(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="name too long"):
        Store.open(str(tmp_path / ("x" * 300)), create=True)


@pytest.mark.parametrize("root", ["gs://bucket/x", "http://host/x", "file:///tmp/x"])
def test_other_kinds_of_roots_are_refused(root: str) -> None:
    with pytest.raises(UsageError, match="neither s3://bucket/prefix nor clearly a directory"):
        Store.open(root, create=True)


def test_a_root_in_s3_needs_a_session() -> None:
    with pytest.raises(UsageError, match="requires an AWS session"):
        Store.open("s3://bucket/x")


@pytest.mark.parametrize(
    ("doing", "act"),
    [
        ("writing", lambda store: store.put("file/x", b"1")),
        ("creating", lambda store: store.put_new("file/x", b"1")),
        ("reading", lambda store: store.get("file/x")),
    ],
)
def test_errors_state_operation_path_and_reason(
    doing: str, act: Callable[[Store], Awaitable[object]], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError) as caught:
        anyio.run(act, Store.open(str(tmp_path)))
    message = str(caught.value)
    assert message.startswith(f"{doing} {tmp_path}/file/x failed: ")
    assert "Not a directory" in message
    assert "\n" not in message
    assert "Debug source" not in message


def test_errors_are_reported_in_one_line() -> None:
    with (
        pytest.raises(OutputError, match=r"^writing s3://b/x failed: refused because of this; check"),
        _translate_errors("writing", "s3://b/x"),
    ):
        raise OSError("refused\nbecause of this\n\nDebug source:\nError { .. }")


def test_s3_errors_are_reported_without_xml() -> None:
    document = '<?xml version="1.0"?> <Error><Code>NoSuchBucket</Code><Message>It is not there</Message></Error>'
    with (
        pytest.raises(
            OutputError, match=r"^listing s3://b/x failed: 404 Not Found: NoSuchBucket: It is not there; check"
        ),
        _translate_errors("listing", "s3://b/x"),
    ):
        raise OSError(f"404 Not Found: {document}")
