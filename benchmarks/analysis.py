"""How long do the reading commands take on many results, compared with the same question in DuckDB?

    python benchmarks/analysis.py [--files 2000] [--rows 10000] [--labels 5] [--truth 200000] [--repeat 3]
                                  [--root DIR] [--only QUESTION ...] [--json]

The script writes a root of ten nights, each of which scores new images and a tenth of the night before again; a
manifest with the true label of some of the images, for `thresholds` and `report`; and for `paired` a root of two
nights that score the same images. It asks the same of batchcl and of DuckDB: the newest row of each image, then the
question. Each answer comes from a process of its own, which may use all cores and all memory, and both answers must be
equal. `report` is asked of batchcl only; its pictures can't be read. The files are in the page cache.

Not claimed: that the work is equal. batchcl's answers have more in them: `thresholds` has bootstrap intervals, curves
and calibration, `compare` has tests, distances and top labels.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from common import MODEL, conditions, cost_of, said_by

from batchcl.analysis.compare import label_changes
from batchcl.analysis.counts import confidence_histogram, label_table
from batchcl.analysis.image_pairs import count_pairs
from batchcl.analysis.results import open_results
from batchcl.analysis.thresholds import choose_thresholds
from batchcl.analysis.truth import read_truth
from batchcl.blocking import write_report_sync
from batchcl.runs.layout import PartName
from batchcl.runs.schema import LABEL, RESULTS, parquet_bytes

NIGHTS = 10
NAMES = 20
SEED = 20261129
AGAIN = 0.1
DAY_US = 86_400_000_000
FIRST_DAY = np.datetime64("2026-11-01", "us")

_NEWEST = """
newest AS (
    SELECT uri, labels FROM read_parquet('{root}/results/*/*/*.parquet', hive_partitioning=true)
    QUALIFY row_number() OVER (PARTITION BY model_arn, uri, version_id ORDER BY scored_at DESC) = 1
),
detections AS (
    SELECT uri, label.name AS label, label.confidence AS confidence
    FROM (SELECT uri, unnest(labels) AS label FROM newest)
)
"""
SQL = {
    "labels": f"""
        WITH {_NEWEST}
        SELECT label, count(DISTINCT uri) AS images, count(*) AS detections, avg(confidence),
               quantile_cont(confidence, [0.1, 0.5, 0.9])
        FROM detections GROUP BY label ORDER BY images DESC, label
    """,
    "confidence": f"""
        WITH {_NEWEST}
        SELECT least(floor(confidence / 5), 19) AS bin, count(*) FROM detections GROUP BY bin ORDER BY bin
    """,
    "compare": f"""
        WITH newest AS (
            SELECT uri, labels, date < DATE '{FIRST_DAY + 5 * DAY_US}' AS is_a
            FROM read_parquet('{{root}}/results/*/*/*.parquet', hive_partitioning=true)
            QUALIFY row_number() OVER (PARTITION BY is_a, model_arn, uri, version_id ORDER BY scored_at DESC) = 1
        ),
        found AS (SELECT uri, is_a, unnest(labels).name AS label FROM newest),
        images AS (SELECT uri, label, bool_or(is_a) AS in_a, bool_or(NOT is_a) AS in_b FROM found GROUP BY uri, label)
        SELECT label, count(*) FILTER (in_a), count(*) FILTER (in_b), count(*) FILTER (in_a AND in_b)
        FROM images GROUP BY label ORDER BY label
    """,
    "paired": f"""
        WITH rows AS (
            SELECT uri, labels, date < DATE '{FIRST_DAY + DAY_US}' AS is_a
            FROM read_parquet('{{root}}/results/*/*/*.parquet', hive_partitioning=true)
            QUALIFY row_number() OVER (PARTITION BY is_a, model_arn, uri, version_id ORDER BY scored_at DESC) = 1
        ),
        pairs AS (
            SELECT list_distinct([each.name FOR each IN a.labels]) AS a,
                   list_distinct([each.name FOR each IN b.labels]) AS b
            FROM (FROM rows WHERE is_a) a JOIN (FROM rows WHERE NOT is_a) b USING (uri)
        ),
        found AS (
            SELECT unnest(a) AS label, 1 AS in_a, 0 AS in_b, 0 AS in_both FROM pairs
            UNION ALL SELECT unnest(b), 0, 1, 0 FROM pairs
            UNION ALL SELECT unnest(list_intersect(a, b)), 0, 0, 1 FROM pairs
        )
        SELECT label, sum(in_a)::BIGINT, sum(in_b)::BIGINT, sum(in_both)::BIGINT
        FROM found GROUP BY label ORDER BY label
    """,
    "thresholds": f"""
        WITH {_NEWEST},
        truth AS (
            SELECT "source-ref" AS uri, "label-metadata"."class-name" AS true_label
            FROM read_json('{{truth}}', format='newline_delimited', columns={{{{
                'source-ref': 'VARCHAR', 'label-metadata': 'STRUCT("class-name" VARCHAR)'
            }}}})
        ),
        positives AS (
            SELECT true_label AS label, count(*) AS positives FROM truth SEMI JOIN newest USING (uri) GROUP BY ALL
        ),
        judged AS (SELECT label, confidence, label = true_label AS correct FROM detections JOIN truth USING (uri)),
        curves AS (
            SELECT label, confidence, count(*) OVER from_here AS found, sum(correct::INT) OVER from_here AS correct
            FROM judged WINDOW from_here AS (PARTITION BY label ORDER BY confidence DESC)
        )
        SELECT DISTINCT ON (label) label, confidence, 2 * correct / (found + positives) AS f1
        FROM curves JOIN positives USING (label) ORDER BY label, f1 DESC, confidence
    """,
}


def _labels(root: str, _truth: str) -> object:
    table = label_table(open_results(root))
    return table.filter(table["detections"] > 0).select("label", "images", "detections").rows()


def _confidence(root: str, _truth: str) -> object:
    return confidence_histogram(open_results(root), bins=20)["detections"].to_list()


def _compare_nights(root: str, _truth: str) -> object:
    """The first five nights and the others."""
    return _shares(root, NIGHTS, is_paired=False)


def _compare_pairs(root: str, _truth: str) -> object:
    """Two nights with the same images."""
    return _shares(root, 2, is_paired=True)


def _shares(root: str, number: int, *, is_paired: bool) -> object:
    """The first half of the nights and the second."""
    results = open_results(root)
    nights = [results.filtered(date=_date(night)).map_batches for night in range(number)]
    half = number // 2
    counts = count_pairs(nights[:half], nights[half:], is_paired=lambda *_: is_paired, examples=1)
    label_changes(counts)
    return [
        [label, counts.a.labels[label], counts.b.labels[label], counts.labels[label]]
        for label in sorted(filter(None, counts.a.labels))
    ]


def _thresholds(root: str, truth: str) -> object:
    labels = choose_thresholds(open_results(root), read_truth(truth)).labels.drop_nulls("threshold")
    return _rounded(labels.select("label", "threshold", "f1").rows())


def _report(root: str, truth: str) -> None:
    with tempfile.TemporaryDirectory(prefix="batchcl-") as folder:
        write_report_sync(root, Path(folder) / "report.html", truth=truth)


def _rounded(rows: list[tuple[Any, ...]]) -> object:
    """Labels, thresholds as 32-bit numbers, and their F1."""
    return [[label, float(np.float32(threshold)), round(f1, 9)] for label, threshold, f1 in rows]


OURS: dict[str, Callable[[str, str], object]] = {
    "labels": _labels,
    "confidence": _confidence,
    "compare": _compare_nights,
    "paired": _compare_pairs,
    "thresholds": _thresholds,
    "report": _report,
}
COMPARABLE: dict[str, Callable[[list[tuple[Any, ...]]], object]] = {
    "labels": lambda rows: [row[:3] for row in rows],
    "confidence": lambda rows: [row[1] for row in rows],
    "compare": lambda rows: rows,
    "paired": lambda rows: rows,
    "thresholds": _rounded,
}


def main() -> None:
    """Write the root, ask, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=200, help="files of results (2000 for 100 million detections)")
    parser.add_argument("--rows", type=int, default=10_000, help="images per file")
    parser.add_argument("--labels", type=int, default=5, help="detections per image")
    parser.add_argument("--truth", type=int, default=200_000, help="images with a true label, at most all")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", choices=list(OURS), nargs="*", default=list(OURS))
    parser.add_argument("--root", type=Path, help="where the root is, or is written to; kept, as is DIR-pairs")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--answer", nargs=4, metavar=("WHO", "QUESTION", "ROOT", "TRUTH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer:
        _answer(*options.answer)
        return
    with tempfile.TemporaryDirectory(prefix="batchcl-") as folder:
        root = options.root or Path(folder) / "root"
        pairs = root.with_name(f"{root.name}-pairs")
        size = {"files": options.files, "rows": options.rows, "labels": options.labels}
        if not (root / "results").exists():
            _write(root, nights=NIGHTS, again=AGAIN, **size)
        if "paired" in options.only and not (pairs / "results").exists():
            _write(pairs, nights=2, again=1.0, **size)
        truth = Path(folder) / "truth.manifest"
        _write_truth(truth, images=options.files * options.rows, most=options.truth)
        found = {
            question: _compare(question, pairs if question == "paired" else root, truth, options.repeat)
            for question in options.only
        }
    report = conditions("polars", "pyarrow", "duckdb") | {
        "detections": options.files * options.rows * options.labels,
        "files": options.files,
        "truth": options.truth,
        "questions": found,
    }
    if options.json:
        print(json.dumps(report, indent=2))
        return
    print(f"{report['detections']:,} detections in {options.files:,} files; {report['versions']}, {report['machine']}")
    print(f"{'question':<12}{'s':>8}{'cpu s':>8}{'MB':>8}{'duckdb s':>10}{'cpu s':>8}{'MB':>8}{'ratio':>8}")
    for question, each in found.items():
        sides = [each[who] for who in ("batchcl", "duckdb") if who in each]
        figures = [f"{side[name]:8.1f}" for side in sides for name in ("seconds", "cpu_seconds", "peak_rss_mb")]
        ratio = f"{each['ratio']:8.2f}" if "ratio" in each else ""
        print(f"{question:<12}{''.join(figures[:3])}{'':2}{''.join(figures[3:])}{ratio}")


def _compare(question: str, root: Path, truth: Path, repeat: int) -> dict[str, Any]:
    """Medians of each side, and the ratio of the seconds."""
    answers: dict[str, list[dict[str, Any]]] = {
        who: [] for who in ("batchcl", "duckdb") if who == "batchcl" or question in SQL
    }
    env = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    for _ in range(repeat):
        for who, said in answers.items():
            command = [__file__, "--answer", who, question, root, truth]
            said.append(said_by(command, env=env | {"AWS_EC2_METADATA_DISABLED": "true"}))
    if len({json.dumps(one.pop("answer")) for said in answers.values() for one in said}) != 1:
        raise SystemExit(f"{question}: the answers differ")
    medians: dict[str, Any] = {
        who: {name: statistics.median(one[name] for one in said) for name in said[0]} for who, said in answers.items()
    }
    if "duckdb" in medians:
        medians["ratio"] = medians["batchcl"]["seconds"] / medians["duckdb"]["seconds"]
    return medians


def _answer(who: str, question: str, root: str, truth: str) -> None:
    """Ask one side and print its answer and cost as JSON."""
    if who == "batchcl":
        answer, cost = cost_of(lambda: OURS[question](root, truth))
    else:
        import duckdb

        sql = SQL[question].format(root=root, truth=truth)
        answer, cost = cost_of(lambda: COMPARABLE[question](duckdb.connect().execute(sql).fetchall()))
    print(json.dumps({"answer": answer, **cost}))


def _date(night: int) -> str:
    return str(FIRST_DAY + night * DAY_US)[:10]


def _uri(image: int) -> str:
    return f"s3://acme-photos/photos/2026/camera-{image % 97:02}/{image:012}.jpg"


def _write_truth(path: Path, *, images: int, most: int) -> None:
    """A manifest with a random label for `most` images, evenly spaced among those of the root."""
    chance = np.random.default_rng(SEED)
    every = int(images * (1 - AGAIN)) + 1
    chosen = np.unique(np.linspace(0, every - 1, min(every, most)).astype(int))
    with path.open("w") as file:
        for image, code in zip(chosen, chance.integers(0, NAMES, chosen.size), strict=True):
            about = {
                "class-name": f"label-{code:02}",
                "confidence": 1.0,
                "type": "groundtruth/image-classification",
                "human-annotated": "yes",
                "creation-date": "2026-11-01T00:00:00",
                "job-name": "truth",
            }
            line = {"source-ref": _uri(image), "label": int(code), "label-metadata": about}
            file.write(json.dumps(line) + "\n")


def _write(root: Path, *, nights: int, again: float, files: int, rows: int, labels: int) -> None:
    """A root with `files` files of `rows` images, each with `labels` detections.

    Each night scores the share `again` of the images of the night before again.
    """
    chance = np.random.default_rng(SEED)
    names = pa.array([f"label-{number:02}" for number in range(NAMES)])
    per_night = max(files // nights, 1)
    repeated = int(per_night * rows * again)
    for night in range(nights):
        first = night * (per_night * rows - repeated)
        folder = root / "results" / "model=stub@v1" / f"date={_date(night)}"
        folder.mkdir(parents=True, exist_ok=True)
        for shard in range(per_night):
            images = np.arange(first + shard * rows, first + (shard + 1) * rows)
            table = _table(chance, images, names, labels, run=f"night-{night}", at=FIRST_DAY + night * DAY_US)
            data = parquet_bytes(table, run_id=f"night-{night}", model_arn=MODEL)
            (folder / str(PartName(f"night-{night}", shard, 0))).write_bytes(data)


def _table(
    chance: np.random.Generator, images: np.ndarray, names: pa.Array, labels: int, *, run: str, at: np.datetime64
) -> pa.Table:
    rows, detections = len(images), len(images) * labels
    uris = sorted(map(_uri, images))
    # an image has each of its labels once
    start = chance.integers(0, NAMES, rows)
    codes = ((start[:, None] + np.arange(labels)) % NAMES).ravel()
    values = {
        "name": names.take(pa.array(codes)),
        "confidence": pa.array(chance.uniform(0, 100, detections).astype(np.float32)),
    }
    structs = pa.StructArray.from_arrays(
        [values[field.name] if field.name in values else pa.nulls(detections, field.type) for field in LABEL],
        fields=list(LABEL),
    )
    columns = {
        "run_id": pa.array([run] * rows),
        "model_arn": pa.array([MODEL] * rows),
        "uri": pa.array(uris),
        "bucket": pa.array(["acme-photos"] * rows),
        "key": pa.array([uri.removeprefix("s3://acme-photos/") for uri in uris]),
        "labels": pa.ListArray.from_arrays(pa.array(np.arange(0, detections + 1, labels, dtype=np.int32)), structs),
        "attempts": pa.array(np.ones(rows, np.int16)),
        "latency_ms": pa.array(chance.uniform(50, 200, rows).astype(np.float32)),
        "request_id": pa.array([f"{image:032x}" for image in images]),
        "scored_at": pa.array(at + np.arange(rows) * 1000).cast(pa.timestamp("us", tz="UTC")),
        "min_confidence": pa.array(np.zeros(rows, np.float32)),
    }
    arrays = [columns[field.name] if field.name in columns else pa.nulls(rows, field.type) for field in RESULTS]
    return pa.table(arrays, schema=RESULTS)


if __name__ == "__main__":
    main()
