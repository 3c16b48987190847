from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import anyio
import polars as pl
import pytest

from batchcl.errors import UsageError
from batchcl.images import ImageRef
from batchcl.sources.base import Source
from batchcl.sources.filters import Filters
from batchcl.sources.select import Selection
from batchcl.sources.where import Condition, ImageCondition, condition_on
from unit.sources.lists import FakeSource

NOON = dt.datetime(2026, 11, 20, 12, tzinfo=dt.UTC)
SCHEMA: dict[str, pl.DataType] = {
    "size": pl.Int64(),
    "key": pl.String(),
    "last_modified": pl.Datetime("us", "UTC"),
    "lens used": pl.Float64(),
}


def image(key: str = "a.png", *, size: int | None = None, extra: Any = None) -> ImageRef:
    entry = None if extra is None else json.dumps(extra)
    return ImageRef(uri=f"s3://b/{key}", bucket="b", key=key, size_bytes=size, last_modified=NOON, extra=entry)


@pytest.mark.parametrize(
    ("condition", "fits"),
    [
        ("size > 10", [False, True, False]),
        ("size IS NULL", [False, False, True]),
        ("NOT size > 10", [True, False, False]),
        ("key LIKE 'a/%' AND size BETWEEN 10 AND 20", [True, True, False]),
        ("key IN ('a/x', 'it''s')", [True, False, True]),
        ("key ~ '^a/\\w$'", [True, True, False]),
        ("last_modified >= '2026-11-20T12:00:00Z'", [True, True, False]),
        ("CAST(last_modified AS DATE) = '2026-11-20'", [True, True, False]),
        ("date_part('hour', last_modified) < 13", [True, True, False]),
        ("\"lens used\" < 2.5 OR upper(key) = 'IT''S'", [True, False, True]),
        ("CASE WHEN size = 10 THEN true ELSE key IS NULL END", [True, False, False]),
        ("TRY_CAST(key AS INT) > 3", [False, False, False]),
        ("true", [True, True, True]),
        ("null", [False, False, False]),
        ("coalesce(size, 0) + 1 = 1", [False, False, True]),
    ],
)
def test_a_condition_is_sql_and_null_does_not_match(condition: str, fits: list[bool]) -> None:
    rows = {
        "size": [10, 20, None],
        "key": ["a/x", "a/y", "it's"],
        "last_modified": [NOON, NOON, None],
        "lens used": [1.5, 2.5, None],
    }
    parsed = Condition(condition)
    parsed.check(SCHEMA)
    assert parsed.matches(pl.DataFrame(rows, schema=SCHEMA)).to_list() == fits


@pytest.mark.parametrize(
    "condition",
    [
        "key IN (SELECT * FROM read_csv('FILE'))",
        "key IN (select * from read_csv('FILE'))",
        "size IN (SELECT size FROM read_csv('FILE'))",
        "read_csv('FILE') IS NULL",
        "\"read_csv\"('FILE') IS NULL",
        "key IN read_csv('FILE')",
        "true) FROM read_csv('FILE') --",
        "true) AS fits FROM read_csv('FILE') WHERE (true",
        "EXISTS (FROM read_csv('FILE'))",
        "E'\\' ' = key OR key IN (SELECT * FROM read_csv('FILE')) OR '' = '",
        "$$'$$ = key OR key IN (SELECT * FROM read_csv('FILE')) OR '' = '",
        "key = '' /* ' */ OR key IN (SELECT * FROM read_csv('FILE'))",
        "`'` = key OR key IN (SELECT * FROM read_csv('FILE'))",
        "size = (TABLE images)",
        "size = (VALUES (1))",
        "size > AVG(size)",
        "size = MAX(size)",
        "SUM(size) OVER () > 1",
        "ROW_NUMBER() OVER (ORDER BY key) < 10",
        "COUNT(*) > 1",
        "last_modified < NOW()",
        "CAST(last_modified AS DATE) < CURRENT_DATE",
        "key = E'a'",
        "size > 1 /* x */",
        "size > 1 -- x",
        "COLUMNS('.*') = 1",
        "size > 1; DROP TABLE images",
        "size > 1) OR (true",
        "(size > 1",
        "",
        " ",
        "key = 'a",
        "size >",
        "size",
        "size + 1",
        "size > 'large'",
        "nothing = 1",
    ],
)
def test_sql_that_is_not_a_row_condition_is_refused(condition: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("hidden-word\n1\n")
    with pytest.raises(UsageError) as caught:
        Condition(condition.replace("FILE", str(secret))).check(SCHEMA)
    assert "hidden-word" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_column_is_refused_with_the_existing_ones() -> None:
    with pytest.raises(UsageError, match=r'unable to find column "bytes"; the columns are size, key, last_modified'):
        Condition("bytes > 3").check(SCHEMA)


def condition_for(condition: str, *sources: Source) -> ImageCondition:
    return anyio.run(condition_on, Condition(condition), sources)


def listing(*extras: Any) -> FakeSource:
    source = FakeSource([])
    source.images = [image(f"{number}.png", extra=extra) for number, extra in enumerate(extras)]
    return source


@pytest.mark.parametrize(
    ("condition", "fits"),
    [
        ("camera = 'left'", [True, False, False]),
        ("iso >= 200", [False, True, False]),
        ("outdoors", [True, False, False]),
        ("NOT outdoors", [False, True, False]),
        ("tags LIKE '%cat%'", [True, False, False]),
        ("camera IS NULL", [False, False, True]),
        ("key = 'x'", [False, False, False]),
        ("extra LIKE '%right%'", [False, True, False]),
    ],
)
def test_list_columns_are_numbers_booleans_or_text(condition: str, fits: list[bool]) -> None:
    source = listing(
        {"camera": "left", "iso": 100, "outdoors": True, "tags": ["cat"], "key": "x"},
        {"camera": "right", "iso": 200.5, "outdoors": False},
        None,
    )
    assert condition_for(condition, source)(source.images) == fits


def test_no_page_is_read_for_a_condition_on_image_columns() -> None:
    source = listing({"camera": "left"})
    condition_for("size > 3 AND key LIKE 'a%'", source)
    assert source.pages_read == 0
    condition_for("camera = 'left'", source)
    assert source.pages_read == 1


def test_a_column_of_one_source_is_null_in_the_others() -> None:
    first, second = listing(None), listing({"camera": "left"})
    condition = condition_for("camera = 'left'", first, second)
    assert condition([*first.images, *second.images]) == [False, True]


def test_a_column_that_no_source_has_is_refused() -> None:
    with pytest.raises(UsageError, match=r'column "lens"; the columns are uri, .* size, .* extra, camera, iso'):
        condition_for("lens = 'x'", listing({"camera": "left"}), listing({"iso": 1}))


def test_values_of_a_different_type_are_null() -> None:
    condition = condition_for("iso > 100 OR outdoors", listing({"iso": 1, "outdoors": True}))
    odd = [{"iso": "200", "outdoors": "yes"}, {"iso": True, "outdoors": 1}, {"iso": 1 << 70}, {"iso": [200]}, "text", 7]
    assert condition([image(extra=each) for each in odd]) == [False, False, True, False, False, False]


def test_a_failing_cast_suggests_try_cast() -> None:
    condition = condition_for("CAST(camera AS INT) > 1", listing({"camera": "7"}))
    with pytest.raises(UsageError, match="use TRY_CAST, which returns null for invalid values"):
        condition([image(extra={"camera": "left"})])


def test_a_condition_on_a_name_that_is_not_utf8() -> None:
    assert condition_for("key LIKE '%x%'", FakeSource(["a"]))([image("\udcffx")]) == [True]


def test_the_condition_applies_after_the_other_filters() -> None:
    source = FakeSource([f"{n}.png" for n in range(10)] + ["a.txt"], page=3)

    async def main() -> tuple[list[str], dict[str, int]]:
        where = await condition_on(Condition("key > '6'"), [source])
        selection = Selection([source], Filters(include=("*.png",), where=where))
        return [image.key async for page in selection.pages() for image in page.images], selection.filtered

    assert anyio.run(main) == (["6.png", "7.png", "8.png", "9.png"], {"where": 6, "include": 1})
