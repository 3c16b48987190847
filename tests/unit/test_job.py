from __future__ import annotations

import datetime as dt
import os
import pydoc
from pathlib import Path
from typing import Any

import orjson
import pytest

from batchcl.arns import ModelArn
from batchcl.choices import SourceKind
from batchcl.errors import UsageError
from batchcl.job import Job, fingerprint, job_of, load_job
from batchcl.options import option_fields
from batchcl.quantities import Tolerance, Units, parse_duration
from batchcl.sources.filters import Sample

ARN = "arn:aws:rekognition:eu-west-1:123456789012:project/dogs/version/v1/1700000000000"
OTHER_ARN = ARN.replace("/v1/", "/v2/")
NOW = dt.datetime(2026, 11, 21, 6, tzinfo=dt.UTC)
BASE: dict[str, Any] = {"sources": ["s3://b/"], "model": ARN, "out": "out"}


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("BATCHCL_")]:
        monkeypatch.delenv(name)


def file(tmp_path: Path, text: str = "") -> Path:
    path = tmp_path / "job.toml"
    path.write_text(f'sources = ["s3://b/"]\nmodel = "{ARN}"\nout = "out"\n{text}\n', encoding="utf-8")
    return path


def test_omitted_keys_have_their_defaults() -> None:
    job = load_job(flags=BASE)
    assert (job.sources, job.model, job.out) == (("s3://b/",), ARN, "out")
    assert (job.min_confidence, job.max_results, job.max_tps, job.limit, job.run_id) == (None,) * 5
    assert (job.max_in_flight, job.shard_size, job.include, job.exclude) == (256, 10_000, (), ())
    assert (job.units, job.deadline, job.tolerance) == (None, None, Tolerance(count=0))


def test_a_job_file_can_set_every_key(tmp_path: Path) -> None:
    job = load_job(
        file(
            tmp_path,
            'min_confidence = 0\nmax_results = 0\nmax_tps = 12.5\ninclude = ["*.png"]\nlimit = 3\n'
            'source_kind = "keys"\nmax_failures = "0.5%"\ndeadline = "1h30m"\nstart_model = "1:3"\nmax_cost = 20',
        )
    )
    assert (job.min_confidence, job.max_results, job.max_tps, job.include, job.limit) == (0, 0, 12.5, ("*.png",), 3)
    assert (job.source_kind, job.tolerance, job.deadline_s(NOW)) == ("keys", Tolerance(percent=0.5), 5400)
    assert (job.units, job.max_cost) == (Units(1, 3), 20)


def test_flags_override_the_environment_and_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file(tmp_path, "max_tps = 1\nlimit = 1\nmax_results = 1")
    monkeypatch.setenv("BATCHCL_MAX_TPS", "2")
    monkeypatch.setenv("BATCHCL_LIMIT", "2")
    job = load_job(path, {"max_tps": 3.0})
    assert (job.max_tps, job.limit, job.max_results) == (3.0, 2, 1)


def test_false_flags_override_and_missing_flags_do_not(tmp_path: Path) -> None:
    path = file(tmp_path, "limit = 1\nkeep_model = true")
    assert load_job(path, {"limit": None, "keep_model": None}) == load_job(path)
    assert not load_job(path, {"keep_model": False}).keep_model
    assert load_job(path, {"min_confidence": 0.0}).min_confidence == 0


def test_the_environment_gives_lists_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHCL_SOURCES", '["a", "b"]')
    monkeypatch.setenv("BATCHCL_OUT", "out")
    monkeypatch.setenv("BATCHCL_MODEL", ARN)
    monkeypatch.setenv("BATCHCL_FIT", "true")
    monkeypatch.setenv("BATCHCL_MAX_FAILURES", "2%")
    monkeypatch.setenv("BATCHCL_SOMETHING_ELSE", "x")
    job = load_job()
    assert job.sources == ("a", "b")
    assert job.fit
    assert job.tolerance == Tolerance(percent=2)


def test_a_list_in_the_environment_is_one_value_or_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHCL_SOURCES", "s3://b/")
    values = {"model": ARN, "out": "out"}
    assert load_job(flags=values).sources == ("s3://b/",)
    monkeypatch.setenv("BATCHCL_SOURCES", '["a"')
    with pytest.raises(UsageError, match=r"BATCHCL_SOURCES '\[\"a\"': not valid JSON: "):
        load_job(flags=values)


def test_a_bad_environment_value_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHCL_LIMIT", "many")
    with pytest.raises(UsageError, match=r"^BATCHCL_LIMIT 'many': "):
        load_job(flags=BASE)
    monkeypatch.setenv("BATCHCL_LIMIT", "-3")
    with pytest.raises(UsageError, match=r"^BATCHCL_LIMIT '-3': "):
        load_job(flags=BASE)
    monkeypatch.setenv("BATCHCL_LIMIT", "3")
    with pytest.raises(UsageError, match=r"^--limit 0: "):
        load_job(flags=BASE | {"limit": 0})


@pytest.mark.parametrize(
    ("key", "most"),
    [
        ("limit", 2**63 - 1),
        ("max_results", 2**31 - 1),
        ("sample_seed", 2**63 - 1),
        ("min_size", 2**63 - 1),
        ("max_size", 2**63 - 1),
    ],
)
def test_integers_too_large_to_record_are_refused(key: str, most: int) -> None:
    with pytest.raises(UsageError, match=f"^--{key.replace('_', '-')} {most + 1}: .* {most}"):
        load_job(flags=BASE | {key: most + 1})
    assert fingerprint(load_job(flags=BASE | {key: most}).scored_as(ModelArn.parse(ARN)))


def test_a_flag_of_the_emulator_is_not_a_key(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^emulator in .*job\.toml is not an option of a job; pass --emulator on the"):
        load_job(file(tmp_path, "emulator = true"))


def test_an_unknown_key_is_refused_with_the_most_similar_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the key max_tsp in .*job\.toml is unknown; did you mean max_tps\?$"):
        load_job(file(tmp_path, "max_tsp = 1"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sources", 3),
        ("out", ""),
        ("model", "dogs@"),
        ("model", "dogs/v1"),
        ("model", "arn:aws:rekognition:eu-west-1:123456789012:project/dogs"),
        ("run_id", "a\nb"),
        ("out", "s3:/b/p"),
        ("from_results", "s3://b//p"),
        ("run_id", ""),
        ("min_confidence", -1),
        ("min_confidence", 100.5),
        ("min_confidence", float("nan")),
        ("max_results", -1),
        ("max_results", 1.5),
        ("max_tps", 0),
        ("max_tps", -3),
        ("max_tps", float("inf")),
        ("max_in_flight", 0),
        ("max_in_flight", 10_001),
        ("newer_than", "yesterday"),
        ("newer_than", 24),
        ("older_than", ""),
        ("min_size", "10 elephants"),
        ("min_size", -1),
        ("max_size", "big"),
        ("where", "size > (SELECT 1)"),
        ("from_results", ""),
        ("sample", "0"),
        ("sample", "101%"),
        ("sample", 0.5),
        ("sample_seed", "a"),
        ("limit", 0),
        ("source_kind", "csv"),
        ("max_failures", "some"),
        ("max_failures", "-1"),
        ("max_failures", "1.5"),
        ("max_failures", "101%"),
        ("max_failures", 0.5),
        ("max_failures", True),
        ("max_failures", ""),
        ("deadline", "6"),
        ("deadline", "6x"),
        ("deadline", ""),
        ("grace", "1s"),
        ("grace", "soon"),
        ("deadline", "30s1h"),
        ("max_cost", 0),
        ("max_cost", float("inf")),
        ("shard_size", 0),
        ("start_model", "6"),
        ("start_model", "x"),
        ("keep_model", "perhaps"),
        ("skip_bad_lines", 3),
        ("sources", ("a\udcff/",)),  # bytes of the command line that are not UTF-8
        ("report", "a\udcff.html"),
        ("metrics_file", "a\udcff.prom"),
        ("include", ("a\udcff*",)),
        ("report", ""),
        ("metrics_file", ""),
        ("metrics_file", "s3://tables/nightly.prom"),
    ],
)
def test_each_bad_value_is_reported_with_its_flag(key: str, value: object) -> None:
    with pytest.raises(UsageError) as caught:
        load_job(flags=BASE | {key: value})
    shown = repr(tuple(value)) if isinstance(value, tuple) else repr(value)
    flag = "SOURCE" if key == "sources" else f"--{key.replace('_', '-')}"
    assert str(caught.value).startswith(f"{flag} {shown}")
    assert "\n" not in str(caught.value)
    assert "\udcff" not in str(caught.value), "it could not be logged as JSON"


@pytest.mark.parametrize("key", ["report", "metrics_file"])
@pytest.mark.parametrize("value", ["", "s3://tables/file"])
def test_a_local_file_is_asked_for_as_such(key: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"^--{key.replace('_', '-')} '{value}': expected a local file$"):
        load_job(flags=BASE | {key: value})


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("where", "size > (SELECT 1)", "--where 'size > (SELECT 1)': SELECT is not allowed in a condition on one row"),
        ("min_size", "5XB", "--min-size '5XB': expected a size of at most"),
        ("deadline", "6", "--deadline '6' is neither a duration nor a time of day; write it like 6h"),
        ("deadline", "24:00", "--deadline '24:00' is neither a duration nor a time of day; write it like 6h"),
        ("start_model", "auto:6", "--start-model 'auto:6': the largest number of inference units is 1 to 5"),
        ("start_model", "auto:", "--start-model 'auto:': the largest number of inference units is 1 to 5"),
    ],
)
def test_the_flag_is_named_once_with_what_to_write_instead(key: str, value: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_job(flags=BASE | {key: value})
    assert str(caught.value).startswith(sentence)
    assert str(caught.value).count(f"--{key.replace('_', '-')}") == 1


BATCH: dict[str, Any] = {"min_images": "500", "max_wait": "3d", "incremental": True}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"min_images": None}, "--min-images and --max-wait need each other; use both"),
        ({"max_wait": None}, "--min-images and --max-wait need each other; use both"),
        ({"incremental": None}, "--min-images needs --incremental, by which"),
        ({"newer_than": "72h"}, "--newer-than 72h is not longer than --max-wait 3d: images of a postponed run"),
        ({"min_images": "0"}, "--min-images '0': expected at least 1"),
        ({"max_wait": "soon"}, "--max-wait 'soon' is not a duration"),
    ],
)
def test_a_minimum_batch_that_could_lose_images_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_job(flags=BASE | BATCH | changes)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize("newer_than", [None, "4d", "2026-11-20"])
def test_a_minimum_batch_is_accepted(newer_than: str | None) -> None:
    job = load_job(flags=BASE | BATCH | {"newer_than": newer_than})
    assert (job.min_images, job.max_wait_s) == (500, 3 * 86_400)


def test_all_findings_are_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_job(file(tmp_path, "limit = 0\nnope = 1"), {"max_tps": 0})
    path = tmp_path / "job.toml"
    for words in (f"limit in {path} 0: expected at least 1", "--max-tps 0: ", f"the key nope in {path} is unknown"):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("left_out", "words"), [("sources", "SOURCE is missing: .* --from-results"), ("out", "--out is missing")]
)
def test_what_is_missing_is_asked_for(left_out: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load_job(flags={key: value for key, value in BASE.items() if key != left_out})


def test_a_missing_model_is_named_with_the_emulator() -> None:
    with pytest.raises(UsageError, match=r"--model is missing: .* PROJECT@VERSION .*; with --emulator, .* needs none"):
        load_job(flags={"sources": ["a"], "out": "out"})


def test_an_unreadable_job_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no job file .*missing\.toml; check --config"):
        load_job(tmp_path / "missing.toml")
    with pytest.raises(UsageError, match=r"reading the job file .* failed"):
        load_job(tmp_path)
    bad = tmp_path / "bad.toml"
    for data in (b"limit = ", b"\xff\xfe"):
        bad.write_bytes(data)
        with pytest.raises(UsageError, match=r"bad\.toml is not valid TOML: ."):
            load_job(bad)


@pytest.mark.parametrize(
    ("text", "failed", "scored", "exceeded"),
    [
        ("0", 0, 10, False),
        ("0", 1, 10, True),
        ("20", 20, 0, False),
        ("20", 21, 10**6, True),
        ("0.5%", 5, 995, False),
        ("0.5%", 6, 994, True),
        ("0%", 0, 0, False),
        ("0%", 1, 10**6, True),
        ("100%", 10, 0, False),
        ("50%", 0, 0, False),
    ],
)
def test_a_tolerance_is_a_count_or_a_share_of_called_images(
    text: str, failed: int, scored: int, *, exceeded: bool
) -> None:
    assert Tolerance.parse(text).exceeded(failed=failed, scored=scored) is exceeded


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("6h", 21_600), ("90m", 5_400), ("45s", 45), ("1h30m", 5_400), ("0.5h", 1_800)],
)
def test_durations_are_hours_minutes_and_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


def scored_as(**changes: Any) -> str:
    job = load_job(flags=BASE | changes)
    assert job.model is not None
    return fingerprint(job.scored_as(ModelArn.parse(job.model)))


@pytest.mark.parametrize(
    "change",
    [
        {"sources": ["s3://b"]},
        {"sources": ["s3://b/", "c"]},
        {"source_kind": "prefix"},
        {"include": ["*.png"]},
        {"exclude": ["*.png"]},
        {"limit": 10},
        {"incremental": True},
        {"model": OTHER_ARN},
        {"min_confidence": 0},
        {"max_results": 0},
        {"newer_than": "24h"},
        {"older_than": "2026-11-20"},
        {"min_size": "10KB"},
        {"max_size": "10KB"},
        {"sample": "10"},
        {"sample": "10", "sample_seed": 1},
        {"where": "size > 3"},
        {"cross_region": True},
        {"fit": True},
        {"retry_failed": True},
    ],
)
def test_other_images_or_scoring_change_the_fingerprint(change: dict[str, Any]) -> None:
    assert scored_as(**change) != scored_as()


@pytest.mark.parametrize(
    "change",
    [
        {"out": "elsewhere"},
        {"run_id": "r"},
        {"max_tps": 1.0},
        {"max_in_flight": 3},
        {"fit": False},
        {"skip_bad_lines": True},
        {"max_failures": "5%"},
        {"deadline": "6h"},
        {"max_cost": 5},
        {"single_writer": True},
        {"start_model": "2"},
        {"keep_model": True},
        {"profile": "p"},
        {"region": "eu-west-1"},
    ],
)
def test_pace_output_and_profile_keep_the_fingerprint(change: dict[str, Any]) -> None:
    assert scored_as(**change) == scored_as()


def test_source_order_changes_the_fingerprint() -> None:
    assert scored_as(sources=["a", "b"]) != scored_as(sources=["b", "a"])
    assert scored_as(min_confidence=50) == scored_as(min_confidence=50.0)


def test_a_fingerprint_is_stable_and_ignores_key_order() -> None:
    assert fingerprint({"a": 1, "b": [None, "é"]}) == fingerprint({"b": [None, "é"], "a": 1}) == "0d0af69a31cfe64c"


def test_from_results_replaces_sources() -> None:
    job = load_job(flags=BASE | {"sources": [], "from_results": "out", "where": "confidence < 60"})
    recorded = orjson.loads(orjson.dumps(job.scored_as(ModelArn.parse(ARN))))
    assert recorded["from_results"] == "out"
    assert job_of(recorded, orjson.loads(orjson.dumps(job.model_dump(mode="json"))), {}) == job
    with pytest.raises(UsageError, match=r"SOURCE is missing: .* use --from-results"):
        load_job(flags=BASE | {"sources": []})
    with pytest.raises(UsageError, match="SOURCE and --from-results exclude each other"):
        load_job(flags=BASE | {"from_results": "out"})


def test_the_seed_changes_the_fingerprint_only_with_a_sample() -> None:
    assert scored_as(sample_seed=1) == scored_as()
    assert scored_as(sample="5%", sample_seed=1) != scored_as(sample="5%")


@pytest.mark.parametrize(
    ("written", "size"), [("10KB", 10_000), ("4MiB", 4 * 1024 * 1024), ("1.5 kb", 1500), (300, 300), ("300", 300)]
)
def test_sizes_have_units_of_1000_and_of_1024(written: object, size: int) -> None:
    assert load_job(flags=BASE | {"min_size": written}).filters(NOW).min_size_bytes == size


def test_toml_dates_and_integers_are_accepted(tmp_path: Path) -> None:
    job = load_job(
        file(tmp_path, "newer_than = 2026-11-20\nolder_than = 2026-11-20T06:00:00Z\nsample = 1000\nsample_seed = 7")
    )
    filters = job.filters(NOW)
    assert filters.newer_than == dt.datetime(2026, 11, 20, tzinfo=dt.UTC)
    assert filters.older_than == dt.datetime(2026, 11, 20, 6, tzinfo=dt.UTC)
    assert filters.sample == Sample(count=1000, seed=7)


def test_durations_are_relative_to_the_runs_start() -> None:
    job = load_job(flags=BASE | {"newer_than": "24h", "older_than": "1h"})
    filters = job.filters(NOW)
    assert (filters.newer_than, filters.older_than) == (NOW - dt.timedelta(hours=24), NOW - dt.timedelta(hours=1))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"min_size": "2KB", "max_size": 1999}, "--min-size 2000 is more than --max-size 1999"),
        ({"include": ("*.jpg",), "exclude": ("*",)}, "--include alone selects what it matches"),
    ],
)
def test_filters_that_exclude_everything_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load_job(flags=BASE | values)


def test_times_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(UsageError, match="newer_than 1h is not before older_than 2d"):
        load_job(flags=BASE | {"newer_than": "1h", "older_than": "2d"}).filters(NOW)


def test_a_recorded_job_can_be_loaded_with_changes() -> None:
    filters = {"min_size": "10KB", "newer_than": "24h", "sample": "2%", "sample_seed": 3}
    job = load_job(flags=BASE | filters | {"limit": 3, "source_kind": "keys", "max_tps": 2.0})
    settings = orjson.loads(orjson.dumps(job.model_dump(mode="json")))
    recorded = orjson.loads(orjson.dumps(job.scored_as(ModelArn.parse(ARN))))
    assert job_of(recorded, settings, {}) == job
    assert job_of(recorded, settings, {"max_tps": 9.0}).max_tps == 9
    assert job_of(recorded, settings | {"of_a_newer_version": 1}, {}) == job
    with pytest.raises(UsageError, match="--max-tps 0: "):
        job_of(recorded, settings, {"max_tps": 0})


def test_a_job_is_immutable() -> None:
    job = Job(**BASE)
    with pytest.raises(ValueError, match="frozen"):
        job.out = "x"  # type: ignore[misc]


def job(**values: Any) -> Job:
    return Job(**{"sources": "s3://b/", "model": ARN, "out": "out"} | values)


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("sources", "s3://b/", ("s3://b/",)),
        ("sources", Path("photos"), ("photos",)),
        ("sources", ["a", Path("b")], ("a", "b")),
        ("out", Path("tables"), "tables"),
        ("include", "*.jpg", ("*.jpg",)),
        ("start_model", 2, "2"),
        ("start_model", "2:4", "2:4"),
        ("start_model", Units(2, 4), "2:4"),
        ("deadline", dt.timedelta(hours=6, minutes=30), "6h30m"),
        ("grace", dt.timedelta(seconds=2.5), "2.5s"),
        ("lease", dt.timedelta(days=1), "1d"),
        ("lease", None, "none"),
        ("newer_than", dt.timedelta(hours=36), "1d12h"),
        ("newer_than", dt.date(2026, 11, 20), "2026-11-20"),
        ("older_than", dt.datetime(2026, 11, 20, 6, tzinfo=dt.UTC), "2026-11-20T06:00:00+00:00"),
        ("as_of", dt.date(2026, 11, 20), "2026-11-20"),
        ("min_size", "10KB", 10_000),
        ("sample", 1000, "1000"),
        ("max_failures", 20, "20"),
        ("source_kind", "keys", SourceKind.KEYS),
    ],
)
def test_python_values_are_accepted(name: str, value: object, kept: object) -> None:
    assert getattr(job(**{name: value}), name) == kept


def test_a_job_of_python_values_equals_one_of_text() -> None:
    assert job(sources=[Path("a")], deadline=dt.timedelta(hours=1), start_model=1) == load_job(
        flags=BASE | {"sources": ["a"], "deadline": "1h", "start_model": "1"}
    )


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"start_model": 9}, "Job.start_model 9: inference units '9' are out of range: 1 <= MIN <= MAX <= 5"),
        ({"limit": 0, "max_tps": "x"}, "Job.limit 0: expected at least 1; Job.max_tps 'x': expected a number"),
        ({"max_tsp": 1}, "there is no Job.max_tsp; did you mean max_tps?"),
        ({"zzz": 1}, "there is no Job.zzz; help(batchcl.Job) lists the options"),
        ({"key_column": "k"}, "Job.bucket_column and Job.key_column need each other; use both"),
        ({"sources": []}, "Job.sources is missing: name the images to score, or use Job.from_results"),
        ({"deadline": dt.timedelta(hours=-1)}, "Job.deadline datetime.timedelta(days=-1, seconds=82800): -1 day"),
    ],
)
def test_errors_name_fields_in_python(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        job(**values)
    assert str(caught.value).startswith(sentence)


def test_errors_name_options_by_where_they_were_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file(tmp_path, 'bucket_column = "b"')
    monkeypatch.setenv("BATCHCL_URI_COLUMN", "u")
    with pytest.raises(UsageError) as caught:
        load_job(path, {"key_column": "k"})
    assert str(caught.value).startswith(f"BATCHCL_URI_COLUMN excludes bucket_column in {path} and --key-column; ")


def test_help_has_one_line_for_each_field() -> None:
    text = pydoc.plain(pydoc.render_doc(Job)).split("Methods defined here")[0]
    for name, each in option_fields().items():
        assert f" {name}: {each.description}\n" in text
    assert "FieldInfo" not in text
    assert "Annotated" not in text
