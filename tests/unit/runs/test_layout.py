from __future__ import annotations

import datetime as dt
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcl.errors import UsageError
from batchcl.runs.layout import PartName, RunPaths, new_run_id, output_root, run_name, shard_and_round, valid_run_id

NOW = dt.datetime(2026, 11, 21, 9, 5, 7, tzinfo=dt.UTC)
DATE = dt.date(2026, 11, 21)


def test_run_ids_are_valid_sort_by_time_and_do_not_collide() -> None:
    made = [new_run_id(NOW + dt.timedelta(seconds=second)) for second in range(0, 100_000, 997)]
    assert made == sorted(made)
    assert all(valid_run_id(run_id) == run_id for run_id in made)
    assert len({new_run_id(NOW) for _ in range(100)}) == 100
    assert new_run_id(NOW).startswith("20261121T090507Z-")


@pytest.mark.parametrize(
    "run_id", ["2026-11-21", "scheduled__2026-11-21T00:00:00+00:00", "a", "A.b_c:d+e@f-g", "a/b", "é è", "x" * 255]
)
def test_run_ids_of_schedulers_are_valid(run_id: str) -> None:
    assert valid_run_id(run_id) == run_id


@pytest.mark.parametrize("run_id", ["", "a\n", "a\0", "\udcff", "x" * 256, "é" * 128])
def test_unprintable_and_long_run_ids_are_refused(run_id: str) -> None:
    with pytest.raises(UsageError, match="is not a valid run id; use 1 to 255 bytes of printable text"):
        valid_run_id(run_id)


@pytest.mark.parametrize(
    ("run_id", "name"),
    [
        ("2026-11-21", "2026-11-21"),
        ("A.b_c-d", "A.b_c-d"),
        ("x" * 100, "x" * 100),
        ("scheduled__2026-11-21T00:00:00+00:00", "scheduled__2026-11-21T00-00-00-00-00-6e4c038b82b0"),
        ("..", "-"),
        (".hidden", "hidden-"),
        ("_x", "x-"),
        ("a/../b", "a-..-b-"),
    ],
)
def test_names_are_safe_in_every_store(run_id: str, name: str) -> None:
    assert run_name(run_id).startswith(name)


@given(st.text(min_size=1, max_size=255))
def test_names_of_runs_are_stable_and_safe(run_id: str) -> None:
    name = run_name(run_id)
    assert re.fullmatch(r"[A-Za-z0-9-][A-Za-z0-9._-]{0,99}", name)
    assert run_name(name) == name


@given(st.lists(st.text(alphabet="a:+/_. é", min_size=1, max_size=8), unique=True, min_size=2, max_size=2))
def test_different_ids_have_different_names(ids: list[str]) -> None:
    one, other = ids
    assert run_name(one) != run_name(other)


@pytest.mark.parametrize(
    ("text", "root"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        ("s3://my-access-point-abc-s3alias/x", "s3://my-access-point-abc-s3alias/x"),
        ("/x/a:b", "/x/a:b"),
        ("/x/../y", "/x/../y"),
    ],
)
def test_output_roots_are_normalized(text: str, root: str) -> None:
    assert output_root(text) == root


def test_a_relative_root_and_one_below_home_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/u")
    assert output_root("out") == f"{tmp_path}/out"
    assert output_root("./a:b") == f"{tmp_path}/a:b"
    assert output_root("~/out") == "/home/u/out"
    assert output_root("./~") == f"{tmp_path}/~"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("s3:/b/p", "for a directory write ./s3:/b/p"),
        ("s3:b/p", "neither s3://bucket/prefix nor clearly a directory"),
        ("S3://b/p", "neither s3://bucket/prefix nor clearly a directory"),
        ("arn:aws:s3:::b/p", "neither s3://bucket/prefix nor clearly a directory"),
        ("file:/x", "neither s3://bucket/prefix nor clearly a directory"),
        ("file:///x", "neither s3://bucket/prefix nor clearly a directory"),
        ("gs://b/p", "neither s3://bucket/prefix nor clearly a directory"),
        ("C:\\x", "neither s3://bucket/prefix nor clearly a directory"),
        ("s3://", "no valid bucket name"),
        ("s3:///p", "no valid bucket name"),
        ("s3://b b/p", "no valid bucket name"),
        ("s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/ap", "use the alias of the access point"),
        ("s3://bucket//p", "contains //, . or .. in its prefix"),
        ("s3://bucket/p//", "contains //, . or .. in its prefix"),
        ("s3://bucket/../p", "contains //, . or .. in its prefix"),
        ("s3://bucket/./p", "contains //, . or .. in its prefix"),
        ("out\n", "control characters"),
        ("s3://bucket/\0", "control characters"),
        ("~nobody-of-this-name/x", "expanding ~nobody-of-this-name in"),
    ],
)
def test_invalid_output_roots_are_refused(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=re.escape(why)):
        output_root(text)


def test_paths_of_a_run() -> None:
    paths = RunPaths("r-1")
    assert paths.record == "runs/r-1/run.json"
    assert paths.summary == "runs/r-1/summary.json"
    assert paths.totals == "runs/r-1/worklist.json"
    assert paths.frozen(3) == "runs/r-1/worklist/00003.parquet"
    assert paths.segment(3, 7) == "runs/r-1/journal/00003/00007.arrow"
    assert paths.sessions == "runs/r-1/sessions"
    assert paths.marker(3, 0) == "runs/r-1/shards/00003.json"


def test_parts_are_hive_partitioned() -> None:
    part = RunPaths("r-1").part("results", model="dogs@v1", date=DATE, shard=12, first=3)
    assert part == "results/model=dogs@v1/date=2026-11-21/r-1-00012-00003.parquet"


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,30}", fullmatch=True), st.integers(0, 10**7), st.integers(0, 10**7))
def test_part_names_survive_a_round_trip(run_id: str, shard: int, first: int) -> None:
    name = PartName(run_id, shard, first)
    assert PartName.parse(str(name)) == name


@pytest.mark.parametrize("name", ["part-00000.parquet", "r-00000.parquet", "00000-00000.parquet", "r-1-2.parquet"])
def test_foreign_file_names_are_not_part_names(name: str) -> None:
    assert PartName.parse(name) is None


@given(st.integers(min_value=0, max_value=10**7), st.integers(min_value=0, max_value=1000))
def test_marker_names_survive_a_round_trip(shard: int, round_: int) -> None:
    assert shard_and_round(RunPaths("a-r7").marker(shard, round_)) == (shard, round_)


@given(st.lists(st.tuples(st.integers(0, 200_000), st.integers(0, 12), st.integers(0, 99)), unique=True, max_size=50))
def test_paths_are_unique(things: list[tuple[int, int, int]]) -> None:
    paths = RunPaths("r")
    names = {paths.segment(shard, number) for shard, _, number in things}
    assert len(names) == len({(shard, number) for shard, _, number in things})
    pairs = {(shard, round_) for shard, round_, _ in things}
    assert len({paths.marker(shard, round_) for shard, round_ in pairs}) == len(pairs)
    parts = {paths.part("results", model="m", date=DATE, shard=shard, first=first) for shard, first in pairs}
    assert len(parts) == len(pairs)
