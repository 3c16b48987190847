"""From labelled images to a trained and evaluated model, and from a model to its file and back.

What travels is small: an image is reduced to what its model looks at as soon as it is read, so the memory of a
training grows with a few tens of kilobytes an image.
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
    "FEWEST_LABELS",
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
FEWEST_LABELS: Final[dict[Task, int]] = {"classification": 2, "detection": 1}
"""Custom Labels guide, "Guidelines and quotas"."""


class TrainingError(BatchclError):
    """The data can't train a model; the message becomes the version's StatusMessage."""


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One image, reduced to what its model looks at, and what is on it.

    `number` is its place in the list of entries that it came from; `size` the upright image's width and height.
    """

    number: int
    source_ref: str
    size: tuple[int, int]
    picture: NDArray[np.uint8]
    truth: HeldOutLabels


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """A model and how it did on its test set; `seen` has what it saw on each of the `test` examples."""

    model: Predictor
    evaluation: EvaluationResults
    train: tuple[Example, ...]
    test: tuple[Example, ...]
    seen: tuple[tuple[Prediction, ...], ...]


def prepare(number: int, image: Image, size: tuple[int, int], entry: GroundTruth, task: Task) -> Example:
    """Reduce one image; `size` is its upright width and height, in whose pixels the entry's boxes are.

    Blocking; call it from a worker thread. Boxes are cut at the rim; those that lie outside are dropped.
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
    """Learn and evaluate. The same arguments give the same model.

    Blocking, for seconds; call it from a worker thread.

    Args:
        task: what to learn.
        examples: the training set.
        test: the test set; images with other labels than the training set's are not looked at.
        seed: of everything that is drawn.
        check: called now and then; raises to stop.

    Raises:
        TrainingError: too few or too many labels, or nothing to learn from.
    """
    labels = {label for e in examples for label in e.truth.labels}
    fewest = FEWEST_LABELS[task]
    if len(labels) < fewest:
        raise TrainingError(f"The training dataset has {len(labels)} labels; at least {fewest} are needed.")
    if len(labels) > _MAX_LABELS:
        raise TrainingError(f"The training dataset has {len(labels)} labels; at most {_MAX_LABELS} are allowed.")
    known = [e for e in test if set(e.truth.labels) <= labels]
    if not any(e.truth.labels for e in known):
        raise TrainingError("The test dataset has no labeled images with labels of the training dataset.")
    with _one_thread():
        model = _learn(task, examples, seed, check)
        seen = []
        for example in known:
            check()
            seen.append(tuple(_look(model, example.picture)))
    evaluation = evaluate(model.labels, [e.truth for e in known], seen)
    return Trained(model, evaluation, tuple(examples), tuple(known), tuple(seen))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Linear algebra in this thread alone: its own threads, on matrices this small, mostly wait for each other."""
    import sklearn.linear_model  # noqa: F401 - brings a library of its own, which must be loaded to be limited
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1, user_api="blas"):
        yield


def _learn(task: Task, examples: Sequence[Example], seed: int, check: Callable[[], None]) -> Predictor:
    if task == "classification":
        truths = [frozenset(e.truth.labels) for e in examples]
        return train_classifier([e.picture for e in examples], truths, seed=seed, check=check)
    return train_locator([_labelled(e) for e in examples], seed=seed, check=check)


def save(path: Path, model: Predictor, thresholds: dict[str, float]) -> None:
    """Write a model and its labels' assumed thresholds; after a crash the file is whole or not there."""
    facts = {"locates": model.locates, "labels": model.labels, "thresholds": thresholds}
    partial = path.with_name(f"{path.name}.part")
    with partial.open("wb") as file:
        arrays: dict[str, Any] = {"facts": np.frombuffer(orjson.dumps(facts), np.uint8), **model.arrays()}
        np.savez(file, **arrays)
    partial.replace(path)


def load(path: Path) -> tuple[Predictor, dict[str, float]]:
    """Read back what `save` wrote. Nothing in the file is executed: it holds numbers and JSON."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    facts = orjson.loads(arrays.pop("facts").tobytes())
    kind = Locator if facts["locates"] else Classifier
    return kind(labels=tuple(facts["labels"]), **arrays), facts["thresholds"]


def _look(model: Predictor, picture: NDArray[np.uint8]) -> list[Prediction]:
    if isinstance(model, Locator):
        return model.judge(picture)
    assert isinstance(model, Classifier)
    return model.judge(describe(picture))


def _labelled(example: Example) -> LabelledPicture:
    height, width = example.picture.shape
    boxes = [(b.left, b.top, b.left + b.width, b.top + b.height) for b in example.truth.boxes or ()]
    pixels = np.asarray(boxes, np.float32).reshape(-1, 4) * np.asarray([width, height, width, height], np.float32)
    return LabelledPicture(example.picture, example.truth.labels, pixels)


def split(examples: Sequence[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """A fifth for the test set, drawn within each (first) label so that rare ones are on both sides."""
    groups = [e.truth.labels[0] if e.truth.labels else "" for e in examples]
    drawn = held_out(groups, share=_TEST_SHARE, seed=seed)
    return [e for n, e in enumerate(examples) if n not in drawn], [examples[n] for n in sorted(drawn)]


def held_out(groups: Sequence[str], *, share: float, seed: int) -> frozenset[int]:
    """Places of a `share` of the members, drawn so that each group gives its part and keeps at least one.

    The largest remainders decide where a group's part is not a whole number, so the total is right to one member
    unless groups of one are in the way. The same arguments give the same places.

    Args:
        groups: each member's group, such as its label.
        share: 0 to 1.
        seed: of the draw.
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
