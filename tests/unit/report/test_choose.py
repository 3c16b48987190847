"""Which images are chosen to be looked at, and the reasons given."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

from batchcl.analysis.truth import Truth
from batchcl.errors import UsageError
from batchcl.report import choose
from batchcl.sources.where import Condition

LABEL = pl.Struct(
    {"name": pl.String()} | {name: pl.Float32() for name in ["confidence", "left", "top", "width", "height"]}
)
SCHEMA = {
    "uri": pl.String(),
    "version_id": pl.String(),
    "labels": pl.List(LABEL),
    "min_confidence": pl.Float32(),
    "scored_at": pl.Datetime("us", "UTC"),
    "key": pl.String(),
}
CHOOSERS: list[Callable[[pl.DataFrame], pl.DataFrame]] = [
    lambda images: choose.most_uncertain(images, limit=7),
    lambda images: choose.by_confidence(images, limit=7, descending=False),
    lambda images: choose.by_confidence(images, limit=7, descending=True),
    lambda images: choose.without_label(images, limit=7),
    lambda images: choose.newest(images, limit=7),
    lambda images: choose.random(images, limit=7),
    lambda images: choose.wrong(images, truth(**{f"i{n:02}": ["cat"] for n in range(40)}), limit=7),
]


def label(name: str, confidence: float, *, box: bool = False) -> dict[str, object]:
    return {"name": name, "confidence": confidence} | dict.fromkeys(
        ("left", "top", "width", "height"), 0.1 if box else None
    )


def table(**labels: list[dict[str, object]]) -> pl.DataFrame:
    """One image for each argument, scored a minute apart."""
    times = [dt.datetime(2026, 11, 21, 12, n % 60, tzinfo=dt.UTC) for n in range(len(labels))]
    return pl.DataFrame(
        {
            "uri": list(labels),
            "version_id": [None] * len(labels),
            "labels": list(labels.values()),
            "min_confidence": [None] * len(labels),
            "scored_at": times,
            "key": [f"{name}.jpg" for name in labels],
        },
        schema=SCHEMA,
    )


def truth(**labels: list[str]) -> Truth:
    images = {"uri": list(labels), "detection": [False] * len(labels), "labels": list(labels.values())}
    return Truth(pl.DataFrame(images, schema_overrides={"labels": pl.List(pl.String)}), pl.DataFrame())


def reasons(chosen: pl.DataFrame) -> dict[str, str]:
    return dict(chosen.select("uri", "reason").iter_rows())


def random_images(count: int = 40) -> pl.DataFrame:
    chance = np.random.default_rng(5)
    names = ["dog", "cat", "cow"]
    return table(
        **{
            f"i{n:02}": [
                label(names[at], float(chance.uniform(20, 99)), box=bool(chance.integers(2)))
                for at in range(chance.integers(4))
            ]
            for n in range(count)
        }
    )


def test_the_smallest_margin_is_the_most_uncertain() -> None:
    images = table(
        near=[label("dog", 50.5)],
        tied=[label("dog", 90.0), label("cat", 89.75)],
        sure=[label("dog", 99.0), label("cat", 49.9)],
        box=[label("dog", 99.0, box=True), label("cat", 47.0, box=True)],
        empty=[],
    )
    assert reasons(choose.most_uncertain(images, limit=9)) == {
        "tied": "dog 90.0 and cat 89.8 differ by 0.25",
        "near": "dog 50.5 is 0.5 above 50.0",
        "box": "cat 47.0 is 3.0 below 50.0",
        "sure": "dog 99.0 is 49.0 above 50.0",
    }
    assert choose.most_uncertain(images, limit=2)["rank"].to_list() == [0.25, 0.5]


def test_boxes_of_one_image_do_not_compete() -> None:
    boxes = table(a=[label("dog", 90.0, box=True), label("cat", 90.0, box=True)])
    assert reasons(choose.most_uncertain(boxes, limit=1)) == {"a": "cat 90.0 is 40.0 above 50.0"}


def test_known_thresholds_replace_the_assumed_one() -> None:
    images = table(dog=[label("dog", 72.0)], cat=[label("cat", 52.0)])
    assert reasons(choose.most_uncertain(images, limit=1, thresholds={"dog": 71.25})) == {
        "dog": "dog 72.0 is 0.75 above 71.25"
    }
    assert list(reasons(choose.most_uncertain(images, limit=2, default_threshold=70.0))) == ["dog", "cat"]
    scored_with = images.with_columns(pl.lit(71.0, pl.Float32).alias("min_confidence"))
    assert list(reasons(choose.most_uncertain(scored_with, limit=2))) == ["dog", "cat"]
    all_returned = images.with_columns(pl.lit(0.0, pl.Float32).alias("min_confidence"))
    assert list(reasons(choose.most_uncertain(all_returned, limit=2))) == ["cat", "dog"]


def test_images_are_sorted_by_the_confidence_of_their_top_label() -> None:
    images = table(a=[label("cat", 60.0), label("dog", 80.0)], b=[label("dog", 70.0)], c=[])
    assert reasons(choose.by_confidence(images, limit=9, descending=False)) == {"b": "dog 70.0", "a": "dog 80.0"}
    assert list(reasons(choose.by_confidence(images, limit=9, descending=True))) == ["a", "b"]


def test_each_label_has_its_least_and_most_confident_images() -> None:
    images = table(
        **{f"d{n}": [label("dog", 50.0 + n), label("dog", 51.0 + n, box=True)] for n in range(9)},
        c=[label("cat", 70.0)],
    )
    chosen = choose.extremes_per_label(images, per_label=2)
    assert chosen.select("label", "uri", "reason").rows() == [
        ("cat", "c", "most confident cat: 70.0"),
        ("dog", "d8", "most confident dog: 59.0"),
        ("dog", "d7", "most confident dog: 58.0"),
        ("dog", "d0", "least confident dog: 51.0"),
        ("dog", "d1", "least confident dog: 52.0"),
    ]
    every = choose.extremes_per_label(random_images(), per_label=1000)
    assert every.select("label", "uri").is_unique().all()


def test_images_without_labels_are_found_the_newest_first() -> None:
    assert choose.without_label(table(a=[], b=[label("dog", 70.0)], c=[]), limit=9)["uri"].to_list() == ["c", "a"]


def test_a_changed_top_label_is_reported_with_the_former_one() -> None:
    now = table(
        same=[label("dog", 60.0)], weak=[label("cat", 60.0)], strong=[label("cat", 55.0)], gone=[], new=[], only=[]
    )
    before = table(
        same=[label("dog", 99.0)],
        weak=[label("dog", 61.0)],
        strong=[label("dog", 99.0)],
        gone=[label("dog", 70.0)],
        new=[],
    )
    assert list(reasons(choose.changed(now, before, limit=9)).items()) == [
        ("strong", "cat 55.0, before: dog 99.0"),
        ("gone", "(none), before: dog 70.0"),
        ("weak", "cat 60.0, before: dog 61.0"),
    ]
    other_version = before.with_columns(pl.lit("v2").alias("version_id"))
    assert choose.changed(now, other_version, limit=9).is_empty()


def test_wrong_images_are_the_most_confident_ones_first() -> None:
    images = table(
        right=[label("dog", 99.0)], bad=[label("dog", 80.0)], worse=[label("cat", 90.0)], none=[], fine=[], other=[]
    )
    known = truth(right=["cat", "dog"], bad=["cat", "cow"], worse=[], none=["dog"], fine=[])
    assert list(reasons(choose.wrong(images, known, limit=9)).items()) == [
        ("worse", "cat 90.0, true: (none)"),
        ("bad", "dog 80.0, true: cat, cow"),
        ("none", "(none), true: dog"),
    ]


def test_the_same_seed_gives_the_same_sample() -> None:
    images = random_images()
    one, again = (choose.random(each, limit=9, seed=1)["uri"].to_list() for each in (images, images.reverse()))
    assert one == again
    assert one != choose.random(images, limit=9, seed=2)["uri"].to_list()


@pytest.mark.parametrize("chooser", CHOOSERS)
def test_a_choice_in_parts_equals_that_from_the_whole(chooser: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    images = random_images()
    whole = chooser(images)
    parts = choose.best([images.clear(), images[:13], images[13:]], chooser, limit=7)
    assert whole.equals(parts)
    assert whole.columns == [*images.columns, "reason", "rank"]
    assert chooser(images.clear()).is_empty()


@pytest.mark.parametrize(
    ("condition", "found"),
    [
        ("label = 'dog' AND confidence < 65", {"a": ["dog"]}),
        ("confidence > 0", {"a": ["cat", "dog"], "b": ["dog", "dog"]}),
        ("label = 'dog' AND confidence > 75", {"b": ["dog"]}),
        ("top_confidence > 75", {"a": ["cat", "dog"], "b": ["dog", "dog"]}),
        ("label IS NULL", {"c": []}),
        ("label_count = 0", {"c": []}),
        ("key LIKE 'b%' AND status = 'scored'", {"b": ["dog", "dog"]}),
        ("uri = 'none'", {}),
    ],
)
def test_a_condition_selects_images_and_their_labels(condition: str, found: dict[str, list[str]]) -> None:
    images = table(
        a=[label("cat", 90.0), label("dog", 60.0)], b=[label("dog", 80.0, box=True), label("dog", 70.0, box=True)], c=[]
    )
    rows = choose.matching(images, Condition(condition)).select("uri", "labels").iter_rows()
    assert {uri: [each["name"] for each in labels] for uri, labels in rows} == found


def test_a_condition_can_not_read_files() -> None:
    with pytest.raises(UsageError, match="the function read_csv is not allowed"):
        Condition("uri IN (read_csv('/etc/passwd'))")
