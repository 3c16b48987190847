"""Splits, trains and evaluates, and saves and loads models.

Each image is reduced to the input of its model as soon as it is read, so a training needs a few tens of kilobytes of
memory per image.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import orjson

from batchcl.emulator.learning.classifier import Classifier, train_classifier
from batchcl.emulator.learning.evaluation import EvaluationResults, HeldOutLabels, evaluate
from batchcl.emulator.learning.features import describe, thumbnail
from batchcl.emulator.learning.locator import LabelledPicture, Locator, train_locator, working_picture
from batchcl.emulator.learning.model import Box, Prediction
from batchcl.errors import BatchclError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from PIL.Image import Image

    from batchcl.emulator.learning.model import Predictor
    from batchcl.groundtruth import GroundTruth

__all__ = [
    "MIN_LABELS",
    "Example",
    "Task",
    "Trained",
    "TrainingError",
    "held_out",
    "load",
    "prepare",
    "save",
    "split",
    "train",
]

Task = Literal["classification", "detection"]

_TEST_SHARE: Final = 0.2
_MAX_LABELS: Final = 250
MIN_LABELS: Final[dict[Task, int]] = {"classification": 2, "detection": 1}
"""Minimum number of labels (Custom Labels guide, "Guidelines and quotas")."""


class TrainingError(BatchclError):
    """The data can't be used to train a model; the message becomes the version's StatusMessage."""


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """An image, reduced to the input of its model, and its ground truth.

    `number` is the index of its manifest line; `size` the width and height of the upright image.
    """

    number: int
    source_ref: str
    size: tuple[int, int]
    picture: NDArray[np.uint8]
    truth: HeldOutLabels


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """A trained model and its evaluation; `predictions` has the predictions for each of the `test` examples."""

    model: Predictor
    evaluation: EvaluationResults
    train: tuple[Example, ...]
    test: tuple[Example, ...]
    predictions: tuple[tuple[Prediction, ...], ...]


def prepare(number: int, image: Image, size: tuple[int, int], entry: GroundTruth, task: Task) -> Example:
    """Reduce an image; `size` is the width and height of the upright image, in pixels, as for the entry's boxes.

    Blocking; call it from a worker thread. Boxes are clipped to the image; those outside are dropped.
    """
    if task == "classification":
        return Example(number, entry.source_ref, size, thumbnail(image), HeldOutLabels(entry.labels))
    width, height = size
    labels, boxes = [], []
    for box in entry.boxes:
        left, right = max(0.0, box.left), min(float(width), box.left + box.width)
        top, bottom = max(0.0, box.top), min(float(height), box.top + box.height)
        if right > left and bottom > top:
            labels.append(box.label)
            boxes.append(Box(left / width, top / height, (right - left) / width, (bottom - top) / height))
    return Example(number, entry.source_ref, size, working_picture(image), HeldOutLabels(tuple(labels), tuple(boxes)))


def train(
    task: Task,
    examples: Sequence[Example],
    test: Sequence[Example],
    *,
    seed: int,
    check: Callable[[], None],
) -> Trained:
    """Train and evaluate. The same arguments give the same model.

    Blocking, for seconds; call it from a worker thread.

    Args:
        task: the use case.
        examples: the training set.
        test: the test set; images with labels that the training set doesn't have are ignored.
        seed: of all random numbers.
        check: called regularly; raises to abort the training.

    Raises:
        TrainingError: too few or too many labels, or no usable test image.
    """
    labels = {label for e in examples for label in e.truth.labels}
    minimum = MIN_LABELS[task]
    if len(labels) < minimum:
        raise TrainingError(f"The training dataset has {len(labels)} labels; at least {minimum} are needed.")
    if len(labels) > _MAX_LABELS:
        raise TrainingError(f"The training dataset has {len(labels)} labels; at most {_MAX_LABELS} are allowed.")
    usable = [e for e in test if set(e.truth.labels) <= labels]
    if not any(e.truth.labels for e in usable):
        raise TrainingError("The test dataset has no labeled images with labels of the training dataset.")
    with _one_thread():
        model = _fit(task, examples, seed, check)
        predictions = []
        for example in usable:
            check()
            predictions.append(tuple(_predict(model, example.picture)))
    evaluation = evaluate(model.labels, [e.truth for e in usable], predictions)
    return Trained(model, evaluation, tuple(examples), tuple(usable), tuple(predictions))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit linear algebra to one thread: with matrices this small, more threads mostly wait for each other."""
    import sklearn.linear_model  # noqa: F401 - loads a library whose threads are limited below
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1, user_api="blas"):
        yield


def _fit(task: Task, examples: Sequence[Example], seed: int, check: Callable[[], None]) -> Predictor:
    if task == "classification":
        truths = [frozenset(e.truth.labels) for e in examples]
        return train_classifier([e.picture for e in examples], truths, seed=seed, check=check)
    return train_locator([_labelled(e) for e in examples], seed=seed, check=check)


def save(path: Path, model: Predictor, thresholds: dict[str, float]) -> None:
    """Write a model and the assumed thresholds of its labels, atomically."""
    facts = {"locates": model.locates, "labels": model.labels, "thresholds": thresholds}
    partial = path.with_name(f"{path.name}.part")
    with partial.open("wb") as file:
        arrays: dict[str, Any] = {"facts": np.frombuffer(orjson.dumps(facts), np.uint8), **model.arrays()}
        np.savez(file, **arrays)
    partial.replace(path)


def load(path: Path) -> tuple[Predictor, dict[str, float]]:
    """Load what `save` wrote. The file has only arrays and JSON; nothing in it is executed."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    facts = orjson.loads(arrays.pop("facts").tobytes())
    kind = Locator if facts["locates"] else Classifier
    return kind(labels=tuple(facts["labels"]), **arrays), facts["thresholds"]


def _predict(model: Predictor, picture: NDArray[np.uint8]) -> list[Prediction]:
    if isinstance(model, Locator):
        return model.predict(picture)
    assert isinstance(model, Classifier)
    return model.predict(describe(picture))


def _labelled(example: Example) -> LabelledPicture:
    height, width = example.picture.shape
    boxes = [(b.left, b.top, b.left + b.width, b.top + b.height) for b in example.truth.boxes or ()]
    pixels = np.asarray(boxes, np.float32).reshape(-1, 4) * np.asarray([width, height, width, height], np.float32)
    return LabelledPicture(example.picture, example.truth.labels, pixels)


def split(examples: Sequence[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """Split off a fifth for the test set, from each (first) label, so that rare labels are in both parts."""
    groups = [e.truth.labels[0] if e.truth.labels else "" for e in examples]
    drawn = held_out(groups, share=_TEST_SHARE, seed=seed)
    return [e for n, e in enumerate(examples) if n not in drawn], [examples[n] for n in sorted(drawn)]


def held_out(groups: Sequence[str], *, share: float, seed: int) -> frozenset[int]:
    """Choose a `share` of the members at random, proportionally from each group; returns their indices.

    Each group keeps at least one member. Fractions are rounded by the largest remainder method, so the total is exact
    to one member, unless there are many groups of one. The same arguments give the same indices.

    Args:
        groups: group of each member, such as its label.
        share: 0 to 1.
        seed: of the random choice.
    """
    members: dict[str, list[int]] = {}
    for place, group in enumerate(groups):
        members.setdefault(group, []).append(place)
    rng = np.random.default_rng(seed)
    counts = {group: min(int(len(places) * share), len(places) - 1) for group, places in members.items()}
    missing = round(len(groups) * share) - sum(counts.values())
    for group in sorted(members, key=lambda g: (int(len(members[g]) * share) - len(members[g]) * share, g)):
        if missing > 0 and counts[group] + 1 < len(members[group]):
            counts[group] += 1
            missing -= 1
    drawn: set[int] = set()
    for group in sorted(members):
        order = rng.permutation(len(members[group]))
        drawn.update(members[group][n] for n in order[: counts[group]])
    return frozenset(drawn)
