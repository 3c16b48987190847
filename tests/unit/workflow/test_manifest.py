from __future__ import annotations

import datetime as dt

import orjson

from batchcl.groundtruth import parse_line
from batchcl.workflow.manifest import manifest_line

CREATED = dt.datetime(2026, 11, 21, 13, 5, 6, 789000, tzinfo=dt.timezone(dt.timedelta(hours=1)))


def test_a_line_says_what_our_own_reader_reads():
    line = manifest_line("s3://b/a b+%41.png", labels=("cat", "in box"), attributes=None, created=CREATED)
    truth = parse_line(line)
    assert (truth.source_ref, truth.labels, truth.task) == ("s3://b/a b+%41.png", ("cat", "in box"), "classification")


def test_each_label_is_an_attribute_as_the_guide_has_it():
    line = orjson.loads(manifest_line("s3://b/a.png", labels=("cat",), attributes=None, created=CREATED))
    assert line == {
        "source-ref": "s3://b/a.png",
        "label-0": 1,
        "label-0-metadata": {
            "class-name": "cat",
            "confidence": 1,
            "type": "groundtruth/image-classification",
            "job-name": "labeling-job/label-0",
            "human-annotated": "yes",
            "creation-date": "2026-11-21T12:05:06.789",
        },
    }


def test_what_a_line_said_before_stays():
    line = manifest_line("s3://b/a.png", labels=("cat",), attributes={"x": {"y": [1.5]}}, created=CREATED)
    assert orjson.loads(line) == {"source-ref": "s3://b/a.png", "x": {"y": [1.5]}}
