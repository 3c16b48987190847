"""For all kinds of list, each line is either planned or counted with the reason why it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchcl.errors import SourceError
from batchcl.job import Job
from batchcl.scoring.plan import Plan, plan
from servers import REGION, aws_env, client, make_bucket
from unit.sources.lists import BUCKET, FORMATS, read

MODEL = f"arn:aws:rekognition:{REGION}:123456789012:project/p/version/v/1700000000000"
NO_KEY = ""
NAMES = ("a.jpg", "b.jpg", "a.jpg", NO_KEY, "notes.txt", "x/c.png", "a.jpg", "d.jpg", NO_KEY, "e.jpg")


@pytest.fixture
def in_s3(moto: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in aws_env(s3=moto).items():
        monkeypatch.setenv(name, value)
    make_bucket(client("s3", moto), BUCKET)


def planned(name: str, path: Path, **more: Any) -> Plan:
    options = FORMATS[name](path, NAMES)
    named = options.pop("columns", None)
    fields = {"source_kind": options.pop("kind", None), **options, **more}
    if named is not None:
        fields |= {"uri_column": named.uri, "bucket_column": named.bucket, "key_column": named.key}
    return anyio.run(plan, Job(sources=(str(path),), model=MODEL, out=str(path.parent / "out"), **fields))


@pytest.mark.usefixtures("in_s3")
@pytest.mark.parametrize("name", FORMATS)
def test_all_lines_are_counted_in_a_plan(name: str, tmp_path: Path) -> None:
    result = planned(name, tmp_path / "list", exclude=("*.png",), skip_bad_lines=True)
    assert (result.lines, result.planned, result.filtered, result.duplicates, result.bad_lines) == (10, 5, 1, 2, 2)
    assert result.planned == result.calls + sum(result.skipped.values()) == 4 + 1


@pytest.mark.usefixtures("in_s3")
@pytest.mark.parametrize("name", ["key list", "ORC table", "CSV inventory"])
def test_lines_after_the_limit_are_reported_as_unread(name: str, tmp_path: Path) -> None:
    result = planned(name, tmp_path / "list", limit=2, skip_bad_lines=True)
    assert (result.lines, result.planned, result.bad_lines) == (10, 2, 2)
    assert result.unread == 10 - 2 - 2 - result.duplicates >= 5


@pytest.mark.parametrize("name", FORMATS)
def test_a_bad_line_is_an_error_with_its_number(name: str, tmp_path: Path) -> None:
    options = FORMATS[name](tmp_path / "list", NAMES)
    with pytest.raises(SourceError, match=r" line \d+: .*; fix the line, or skip such lines with --skip-bad"):
        read(tmp_path / "list", **options)


@pytest.mark.usefixtures("in_s3")
def test_an_image_is_planned_if_any_of_its_rows_passes(tmp_path: Path) -> None:
    rows = {"a.jpg": (0.2, 0.9, 0.8), "b.jpg": (0.1, 0.3), "c.jpg": (0.7,)}
    uris = [f"s3://{BUCKET}/{key}" for key, scores in rows.items() for _ in scores]
    scores = [score for each in rows.values() for score in each]
    pq.write_table(pa.table({"uri": uris, "score": scores}), tmp_path / "list.parquet")
    job = Job(sources=(str(tmp_path / "list.parquet"),), model=MODEL, out=str(tmp_path / "out"), where="score > 0.5")
    result = anyio.run(plan, job)
    assert (result.lines, result.planned, result.filtered, result.duplicates) == (6, 2, 3, 1)
