from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from batchcl.emulator.digits import DigitPicture, DigitsDataset, write_digits
from batchcl.emulator.learning.evaluation import HeldOutLabels, average_precision, evaluate
from batchcl.emulator.learning.model import Box, Prediction, select
from batchcl.emulator.learning.training import Example, Task, Trained, TrainingError, load, prepare, save, split, train
from batchcl.groundtruth import GroundTruth, parse_line

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def nothing() -> None:
    """Never aborts."""


def examples(pictures: Sequence[DigitPicture], manifest: Path, task: Task) -> list[Example]:
    found = []
    for number, (picture, line) in enumerate(zip(pictures, manifest.read_bytes().splitlines(), strict=True)):
        with Image.open(picture.path) as image:
            found.append(prepare(number, image.convert("RGB"), image.size, parse_line(line), task))
    return found


def learn(data: DigitsDataset, *, objects: bool = False, seed: int = 0) -> Trained:
    task: Task = "detection" if objects else "classification"
    return train(
        task,
        examples(data.train, data.train_manifest, task),
        examples(data.test, data.test_manifest, task),
        seed=seed,
        check=nothing,
    )


@pytest.fixture(scope="module")
def on_digits(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return learn(write_digits(tmp_path_factory.mktemp("d"), bucket="pictures", train=500, test=300, seed=11))


@pytest.fixture(scope="module")
def on_objects(object_digits: DigitsDataset) -> Trained:
    return learn(object_digits, objects=True)


def test_unseen_digits_are_classified(on_digits: Trained) -> None:
    right = [seen[0].label in e.truth.labels for e, seen in zip(on_digits.test, on_digits.predictions, strict=True)]
    assert len(right) == 300
    assert np.mean(right) >= 0.94


def test_random_labels_are_not_learned(small_digits: DigitsDataset) -> None:
    """With shuffled labels there is nothing to learn: the predictions depend on the pixels."""
    task: Task = "classification"
    honest = examples(small_digits.train, small_digits.train_manifest, task)
    truths = [e.truth for e in honest]
    order = np.random.default_rng(0).permutation(len(truths))
    lying = [Example(e.number, e.source_ref, e.size, e.picture, truths[i]) for e, i in zip(honest, order, strict=True)]
    test = examples(small_digits.test, small_digits.test_manifest, task)
    good, bad = (train(task, e, test, seed=0, check=nothing) for e in (honest, lying))
    share = [
        np.mean([s[0].label in e.truth.labels for e, s in zip(t.test, t.predictions, strict=True)]) for t in (good, bad)
    ]
    assert share[0] > 0.6
    assert share[1] < 0.4


def test_confidences_are_calibrated(on_digits: Trained) -> None:
    pairs = [
        (d.confidence, d.label in e.truth.labels)
        for e, seen in zip(on_digits.test, on_digits.predictions, strict=True)
        for d in seen
    ]
    for low, high in ((0.0, 0.1), (0.1, 0.9), (0.9, 1.0)):
        inside = [(c, right) for c, right in pairs if low <= c <= high]
        assert np.mean([c for c, _ in inside]) == pytest.approx(np.mean([right for _, right in inside]), abs=0.2)


def test_two_labels_of_one_image_can_both_be_likely() -> None:
    rng = np.random.default_rng(0)
    made = []
    for n in range(80):
        picture = rng.integers(0, 90, (96, 96, 3)).astype(np.uint8)
        labels = tuple(name for bit, name in ((1, "red"), (2, "bars")) if n & bit)
        if "red" in labels:
            picture[..., 0] += 150
        if "bars" in labels:
            picture[::8] = 250
        entry = GroundTruth(source_ref="x", labels=labels, task="classification")
        made.append(prepare(n, Image.fromarray(picture), (96, 96), entry, "classification"))
    trained = train("classification", made[:60], made[60:], seed=0, check=nothing)
    for example, seen in zip(trained.test, trained.predictions, strict=True):
        assert {d.label for d in seen if d.confidence > 0.5} == set(example.truth.labels)


def test_unseen_objects_are_found(on_objects: Trained) -> None:
    precision = average_precision([e.truth for e in on_objects.test], on_objects.predictions)
    assert np.mean(list(precision.values())) >= 0.7
    assert all(0 <= d.confidence <= 1 for seen in on_objects.predictions for d in seen)


def test_boxes_are_within_the_image(on_objects: Trained) -> None:
    boxes = [d.box for seen in on_objects.predictions for d in seen]
    assert boxes
    for box in boxes:
        assert box is not None
        assert min(box.left, box.top) >= 0
        assert min(box.width, box.height) > 0
        assert max(box.left + box.width, box.top + box.height) <= 1 + 1e-6


def test_the_same_seed_trains_the_same_model(small_digits: DigitsDataset) -> None:
    first, again, other = (learn(small_digits, seed=seed).model.arrays() for seed in (7, 7, 8))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["slope"], other["slope"])


@pytest.mark.parametrize("kind", ["on_digits", "on_objects"])
def test_a_loaded_model_predicts_the_same(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    trained: Trained = request.getfixturevalue(kind)
    save(tmp_path / "m.npz", trained.model, trained.evaluation.thresholds)
    model, thresholds = load(tmp_path / "m.npz")
    assert thresholds == trained.evaluation.thresholds
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 160, 3)).astype(np.uint8))
    assert model.detect(image) == trained.model.detect(image)


def test_the_assumed_threshold_is_where_f1_is_best() -> None:
    truths = [HeldOutLabels(("a",))] * 4 + [HeldOutLabels(("b",))] * 4
    confidences = (0.9, 0.8, 0.7, 0.3, 0.75, 0.2, 0.1, 0.1)
    score = evaluate(["a"], truths, [[Prediction("a", c)] for c in confidences]).scores[0]
    assert 0.2 < score.threshold <= 0.3
    assert (score.precision, score.recall) == (0.8, 1.0)
    perfect = evaluate(["a"], truths, [[Prediction("a", c)] for c in (0.9,) * 4 + (0.1,) * 4]).scores[0]
    assert (perfect.threshold, perfect.f1) == (0.5, 1.0)


def test_average_precision_is_the_area_by_hand() -> None:
    box, far = Box(0.1, 0.1, 0.2, 0.2), Box(0.7, 0.7, 0.2, 0.2)
    truths = [HeldOutLabels(("a", "a"), (box, far))]
    seen = [[Prediction("a", 0.9, box), Prediction("a", 0.8, box), Prediction("a", 0.7, far)]]
    # right, a second box on the same object is wrong, right: 1/2 * 1 + 1/2 * 2/3
    assert average_precision(truths, seen)["a"] == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_equal_confidences_are_one_step_of_the_curve() -> None:
    box, far = Box(0.1, 0.1, 0.2, 0.2), Box(0.7, 0.7, 0.2, 0.2)
    seen = [Prediction("a", 0.9, box), Prediction("a", 0.9, far)]
    for order in (seen, seen[::-1]):
        assert average_precision([HeldOutLabels(("a",), (box,))], [order])["a"] == 0.5


def test_overlap_is_intersection_over_union() -> None:
    assert Box(0, 0, 2, 2).overlap(Box(1, 1, 2, 2)) == pytest.approx(1 / 7)
    assert Box(0, 0, 1, 1).overlap(Box(1, 0, 1, 1)) == 0


def test_min_confidence_replaces_all_thresholds() -> None:
    seen = [Prediction("a", 0.4), Prediction("b", 0.9), Prediction("c", 0.0)]
    chosen: dict[str, Any] = {"thresholds": {"a": 0.3, "b": 0.95, "c": 0.5}, "max_results": None}
    assert [d.label for d in select(seen, min_confidence=None, **chosen)] == ["a"]
    assert [d.label for d in select(seen, min_confidence=50, **chosen)] == ["b"]
    assert [d.label for d in select(seen, min_confidence=0, **chosen)] == ["b", "a", "c"]
    assert [d.label for d in select(seen, min_confidence=0, **(chosen | {"max_results": 1}))] == ["b"]


def test_data_that_cannot_be_trained_is_an_error(small_digits: DigitsDataset) -> None:
    all_given = examples(small_digits.train, small_digits.train_manifest, "classification")
    one = [e for e in all_given if e.truth.labels == ("1",)]
    with pytest.raises(TrainingError, match="at least 2"):
        train("classification", one, one, seed=0, check=nothing)


def test_without_a_test_set_a_fifth_is_split_off(small_digits: DigitsDataset) -> None:
    given = examples(small_digits.train, small_digits.train_manifest, "classification")
    trained = train("classification", *split(given, 0), seed=0, check=nothing)
    assert len(trained.test) == pytest.approx(12, abs=5)
    assert {e.number for e in trained.train} | {e.number for e in trained.test} == set(range(60))
    assert not {e.number for e in trained.train} & {e.number for e in trained.test}


def test_training_can_be_aborted(small_digits: DigitsDataset) -> None:
    given = examples(small_digits.train, small_digits.train_manifest, "classification")

    class EndError(Exception):
        pass

    def check() -> None:
        raise EndError

    with pytest.raises(EndError):
        train("classification", *split(given, 0), seed=0, check=check)


def test_one_label_alone_can_be_located(object_digits: DigitsDataset) -> None:
    task: Task = "detection"
    given = [
        Example(
            e.number, e.source_ref, e.size, e.picture, HeldOutLabels(("digit",) * len(e.truth.labels), e.truth.boxes)
        )
        for e in examples(object_digits.train, object_digits.train_manifest, task)[:60]
    ]
    trained = train(task, *split(given, 0), seed=0, check=nothing)
    assert average_precision([e.truth for e in trained.test], trained.predictions)["digit"] > 0.8


def test_written_digits_are_reproducible_and_never_in_both_sets(tmp_path: Path) -> None:
    one, two = (write_digits(tmp_path / d, bucket="pictures", train=20, test=10, seed=1) for d in ("a", "b"))
    assert [p.path.read_bytes() for p in one.train + one.test] == [p.path.read_bytes() for p in two.train + two.test]
    assert one.train[0].uri == "s3://pictures/train/00000.png"
    truths = [parse_line(line) for line in one.train_manifest.read_bytes().splitlines()]
    assert [t.labels for t in truths] == [p.labels for p in one.train]
