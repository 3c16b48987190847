"""How long do the reading commands take on many results, compared with the same question in DuckDB?

    python benchmarks/analysis.py [--files 2000] [--rows 10000] [--labels 5] [--repeat 3] [--root DIR] [--json]

The script writes a root of ten nights, each of which scores new images and a tenth of the night before again, and asks
the same of batchcl and of DuckDB: the newest row of each image, then the question. Each answer comes from a process of
its own, which may use all cores and all memory, and both answers must be equal. The files are in the page cache.
"""

from __future__ import annotations

import argparse
import json
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
}


def _labels(root: str) -> object:
    table = label_table(open_results(root))
    return table.filter(table["detections"] > 0).select("label", "images", "detections").rows()


def _confidence(root: str) -> object:
    return confidence_histogram(open_results(root), bins=20)["detections"].to_list()


def _compare_nights(root: str) -> object:
    """The first five nights and the others; with more than the question: confidences, top labels and tests."""
    results = open_results(root)
    nights = [results.filtered(date=str(FIRST_DAY + night * DAY_US)[:10]).map_batches for night in range(NIGHTS)]
    counts = count_pairs(nights[:5], nights[5:], is_paired=lambda *_: False, examples=1)
    label_changes(counts)
    return [
        [label, counts.a.labels[label], counts.b.labels[label], counts.labels[label]]
        for label in sorted(filter(None, counts.a.labels))
    ]


OURS: dict[str, Callable[[str], object]] = {"labels": _labels, "confidence": _confidence, "compare": _compare_nights}
COMPARABLE: dict[str, Callable[[list[tuple[Any, ...]]], object]] = {
    "labels": lambda rows: [row[:3] for row in rows],
    "confidence": lambda rows: [row[1] for row in rows],
    "compare": lambda rows: rows,
}


def main() -> None:
    """Write the root, ask, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=200, help="files of results (2000 for 100 million detections)")
    parser.add_argument("--rows", type=int, default=10_000, help="images per file")
    parser.add_argument("--labels", type=int, default=5, help="detections per image")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", choices=sorted(OURS), nargs="*", default=sorted(OURS))
    parser.add_argument("--root", type=Path, help="where the root is, or is written to; kept")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--answer", nargs=3, metavar=("WHO", "QUESTION", "ROOT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer:
        _answer(*options.answer)
        return
    with tempfile.TemporaryDirectory(prefix="batchcl-") as folder:
        root = options.root or Path(folder)
        if not (root / "results").exists():
            _write(root, files=options.files, rows=options.rows, labels=options.labels)
        found = {question: _compare(question, root, options.repeat) for question in options.only}
    report = conditions("polars", "pyarrow", "duckdb") | {
        "detections": options.files * options.rows * options.labels,
        "files": options.files,
        "questions": found,
    }
    if options.json:
        print(json.dumps(report, indent=2))
        return
    print(f"{report['detections']:,} detections in {options.files:,} files; {report['versions']}, {report['machine']}")
    print(f"{'question':<12}{'s':>8}{'cpu s':>8}{'MB':>8}{'duckdb s':>10}{'cpu s':>8}{'MB':>8}{'ratio':>8}")
    for question, each in found.items():
        own, other = each["batchcl"], each["duckdb"]
        figures = [f"{side[name]:8.1f}" for side in (own, other) for name in ("seconds", "cpu_seconds", "peak_rss_mb")]
        print(f"{question:<12}{''.join(figures[:3])}{'':2}{''.join(figures[3:])}{each['ratio']:8.2f}")


def _compare(question: str, root: Path, repeat: int) -> dict[str, Any]:
    """Medians of each side, and the ratio of the seconds."""
    answers: dict[str, list[dict[str, Any]]] = {"batchcl": [], "duckdb": []}
    for _ in range(repeat):
        for who, said in answers.items():
            said.append(said_by([__file__, "--answer", who, question, root]))
    if len({json.dumps(one.pop("answer")) for said in answers.values() for one in said}) != 1:
        raise SystemExit(f"{question}: the answers differ")
    medians: dict[str, Any] = {
        who: {name: statistics.median(one[name] for one in said) for name in said[0]} for who, said in answers.items()
    }
    return medians | {"ratio": medians["batchcl"]["seconds"] / medians["duckdb"]["seconds"]}


def _answer(who: str, question: str, root: str) -> None:
    """Ask one side and print its answer and cost as JSON."""
    if who == "batchcl":
        answer, cost = cost_of(lambda: OURS[question](root))
    else:
        import duckdb

        sql = SQL[question].format(root=root)
        answer, cost = cost_of(lambda: COMPARABLE[question](duckdb.connect().execute(sql).fetchall()))
    print(json.dumps({"answer": answer, **cost}))


def _write(root: Path, *, files: int, rows: int, labels: int) -> None:
    """A root of `NIGHTS` nights with `files` files of `rows` images, each with `labels` detections."""
    chance = np.random.default_rng(SEED)
    names = pa.array([f"label-{number:02}" for number in range(NAMES)])
    per_night = max(files // NIGHTS, 1)
    again = int(per_night * rows * AGAIN)
    for night in range(NIGHTS):
        first = night * (per_night * rows - again)
        date = FIRST_DAY + night * DAY_US
        folder = root / "results" / "model=stub@v1" / f"date={str(date)[:10]}"
        folder.mkdir(parents=True, exist_ok=True)
        for shard in range(per_night):
            images = np.arange(first + shard * rows, first + (shard + 1) * rows)
            table = _table(chance, images, names, labels, run=f"night-{night}", at=date)
            data = parquet_bytes(table, run_id=f"night-{night}", model_arn=MODEL)
            (folder / str(PartName(f"night-{night}", shard, 0))).write_bytes(data)


def _table(
    chance: np.random.Generator, images: np.ndarray, names: pa.Array, labels: int, *, run: str, at: np.datetime64
) -> pa.Table:
    rows, detections = len(images), len(images) * labels
    keys = [f"photos/2026/camera-{image % 97:02}/{image:012}.jpg" for image in images]
    keys.sort()
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
        "uri": pa.array([f"s3://acme-photos/{key}" for key in keys]),
        "bucket": pa.array(["acme-photos"] * rows),
        "key": pa.array(keys),
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
