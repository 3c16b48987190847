from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

import anyio
import orjson
import pytest

from batchcl.errors import OutputError
from batchcl.runs.record import RunRecord, describe_differences, read_record, read_summary, write_summary
from batchcl.runs.store import Store
from batchcl.summary import Summary

AT = dt.datetime(2026, 11, 21, 23, 30, tzinfo=dt.timezone(dt.timedelta(hours=-3)))
RECORD = RunRecord(
    run_id="r",
    model="arn:aws:rekognition:eu-west-1:123456789012:project/dogs/version/v1/1700000000000",
    fingerprint="f",
    scored_as={"sources": ["s3://b/é"], "limit": None},
    settings={"max_tps": 2.5},
    started_at=AT,
    version="0.1",
    lists={"list.txt": "0123"},
)
SUMMARY = Summary(
    run_id="r",
    status="stopped",
    planned=10,
    scored=5,
    failed=2,
    skipped=1,
    calls=9,
    throttled=2,
    seconds=1.5,
    images_per_second=3.25,
    out="out",
    model=RECORD.model,
    started_at=AT.astimezone(dt.UTC),
    ended_at=AT.astimezone(dt.UTC) + dt.timedelta(seconds=2),
    tolerated=False,
    cost_usd=0.25,
    reason="SIGTERM",
)


def test_a_record_is_created_once_and_read_back() -> None:
    async def main() -> None:
        store = Store.memory()
        assert await read_record(store, "r") is None
        assert await RECORD.create(store)
        other = dataclasses.replace(RECORD, fingerprint="other")
        assert not await other.create(store)
        assert await read_record(store, "r") == RECORD

    anyio.run(main)


def test_the_last_summary_is_read_back() -> None:
    async def main() -> None:
        store = Store.memory()
        assert await read_summary(store, "r") is None
        await write_summary(store, SUMMARY)
        assert await read_summary(store, "r") == SUMMARY
        done = dataclasses.replace(SUMMARY, status="done", reason=None, cost_usd=None)
        await write_summary(store, done)
        assert await read_summary(store, "r") == done

    anyio.run(main)


def test_documents_are_indented_json_in_utc() -> None:
    async def main() -> bytes | None:
        store = Store.memory()
        await write_summary(store, SUMMARY)
        return await store.get("runs/r/summary.json")

    data = anyio.run(main)
    assert data is not None
    assert orjson.loads(data)["started_at"] == "2026-11-22T02:30:00Z"
    assert set(orjson.loads(data)) == {field.name for field in dataclasses.fields(Summary)} == set(SUMMARY.as_dict())


def test_partition_values_are_the_utc_date_and_the_model() -> None:
    assert RECORD.date == dt.date(2026, 11, 22)
    assert RECORD.model_name == "dogs@v1"


def load(document: bytes) -> RunRecord | None:
    async def main() -> RunRecord | None:
        store = Store.memory()
        await store.put("runs/r/run.json", document)
        return await read_record(store, "r")

    return anyio.run(main)


def as_json(**changes: Any) -> bytes:
    values = dataclasses.asdict(RECORD) | changes
    return orjson.dumps({name: value for name, value in values.items() if value is not ...})


def test_unknown_keys_are_ignored_and_missing_ones_have_defaults() -> None:
    assert load(as_json(later="x")) == RECORD
    assert load(as_json(lists=...)) == dataclasses.replace(RECORD, lists={})


@pytest.mark.parametrize(
    "document",
    [b"", b"{", b"\xff", b"5", b"null", b"[]", b'"x"', b"{}", as_json(started_at="soon"), as_json(started_at=5)],
)
def test_a_corrupt_document_is_refused_with_its_path(document: bytes) -> None:
    with pytest.raises(OutputError, match=r"^memory/runs/r/run.json is corrupt: .*restore it") as caught:
        load(document)
    assert "\n" not in str(caught.value)


def test_differences_list_exactly_the_changed_keys() -> None:
    old = {"limit": None, "sources": ["a"], "gone": 1, "same": 2}
    new = {"limit": 5, "sources": ["a", "b"], "same": 2, "new": 0}
    assert describe_differences(old, new) == (
        "gone was 1 and is not set, limit was not set and is 5, new was not set and is 0, "
        "sources was ['a'] and is ['a', 'b']"
    )
    assert describe_differences(old, dict(old)) == ""
