"""The fake store behaves like the real one, and faults are injected as specified."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import anyio
import pytest

from batchcl.errors import OutputError
from batchcl.runs.store import Store
from sim.fake_world import Crash, FaultInjector, FaultKind, FaultyStore, OperationKind

PATHS = ["a/b", "a/.b/c", "a/b/c", "a/bc", "a/b-c/d", "a/b/c/e", "z"]
PREFIXES = ["a", "a/b", "z", "none", "a/b/c"]


def test_the_fake_store_behaves_like_the_real_one():
    rng = random.Random(4)
    faulty, real = FaultyStore({}), Store.memory()

    async def same(name: str, *args: Any) -> None:
        answers = [await getattr(store, name)(*args) for store in (faulty, real)]
        if name == "list_all":  # each has entity tags of its own
            answers = [[replace(file, etag=None) for file in files] for files in answers]
        assert answers[0] == answers[1], (name, args)

    async def main() -> None:
        for n in range(400):
            path = rng.choice(PATHS)
            await same(rng.choice(["put", "put_new"]), path, str(n).encode())
            await same(rng.choice(["get", "exists", "delete"]), path)
            await same(rng.choice(["list_all", "children"]), rng.choice(PREFIXES))

    anyio.run(main)


@pytest.mark.parametrize("kind", FaultKind, ids=lambda kind: kind.value)
def test_a_fault_is_injected_once_before_or_after_the_effect(kind):
    files: dict[str, bytes] = {}
    trouble = FaultInjector(OperationKind.STORE, 1, kind)
    store = FaultyStore(files, trouble)

    async def main() -> None:
        with anyio.CancelScope() as trouble.scope:
            await store.put("0", b"")
            await store.put("1", b"")

    try:
        anyio.run(main)
    except OutputError:
        assert "ERROR" in kind.name
    except Crash:
        assert "CRASH" in kind.name
        with pytest.raises(Crash):
            anyio.run(store.put, "2", b"")
    assert trouble.fired
    assert ("1" in files) == kind.after
    assert "2" not in files
