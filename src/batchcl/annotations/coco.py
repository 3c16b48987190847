"""COCO: one JSON file with `images`, `annotations` and `categories`; results in a list of their own.

Source: the data format and the results format of cocodataset.org. Boxes are [left, top, width, height] in pixels. An
annotation without a box and a segmentation is a label of the whole image, which COCO itself doesn't have but its
readers accept.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from batchcl.annotations.base import AnnotatedImage, BadEntry, BadLabelError, annotated, make_box, pixels, shown
from batchcl.annotations.scored import ScoredImage, json_text
from batchcl.errors import ErrorCode, SourceError
from batchcl.groundtruth import TruthBox

__all__ = ["CocoWriter", "is_coco", "read_coco"]

_NAMES: Final = ("file_name", "path", "coco_url", "flickr_url")
_BOX_NUMBERS: Final = 4


def is_coco(document: Mapping[str, Any]) -> bool:
    """Whether a JSON object has COCO's lists."""
    return isinstance(document.get("images"), list) or (
        isinstance(document.get("annotations"), list) and isinstance(document.get("categories"), list)
    )


def read_coco(document: Any, name: str) -> Iterator[AnnotatedImage | BadEntry]:
    """The images of a parsed instances file.

    An image without annotations is labelled as empty. Annotations with a segmentation but without a box, and those of
    groups (`iscrowd`), are reported as bad labels.

    Raises:
        SourceError: the document is not an instances file.
    """
    images, annotations, categories = (
        document.get(key) if isinstance(document, dict) else None for key in ("images", "annotations", "categories")
    )
    if not isinstance(images, list) or not isinstance(annotations, list) or not isinstance(categories, list):
        raise SourceError(
            f'reading {name} failed: COCO needs the lists "images", "annotations" and "categories"; use the file of '
            "instances, not one of results or captions",
            code=ErrorCode.INVALID_ANNOTATIONS,
        )
    names = _category_names(categories, name)
    by_image: defaultdict[Any, list[Any]] = defaultdict(list)
    for at, annotation in enumerate(annotations):
        image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
        if not isinstance(image_id, int | str):
            yield BadEntry(f"annotation {at}", "it has no image_id")
        else:
            by_image[image_id].append(annotation)
    is_detection = any(_has_box(each) for group in by_image.values() for each in group)
    seen: set[Any] = set()
    for at, image in enumerate(images):
        image_id = image.get("id") if isinstance(image, dict) else None
        location = f"image {image_id if isinstance(image_id, int) else at}"
        if not isinstance(image_id, int | str):
            yield BadEntry(location, "it has no id")
        elif image_id in seen:
            yield BadEntry(location, f"another image has the id {shown(image_id)}, too")
        else:
            seen.add(image_id)
            yield _image(location, image, by_image.pop(image_id, []), names, is_detection=is_detection)
    for image_id in by_image:
        yield BadEntry(f"annotations of image {shown(image_id)}", "there is no image with this id")


def _image(
    location: str, image: Mapping[str, Any], group: list[Any], names: Mapping[Any, str], *, is_detection: bool
) -> AnnotatedImage | BadEntry:
    boxes: list[TruthBox] = []
    labels: list[str] = []
    bad: list[str] = []
    for annotation in group:
        try:
            found = _label(annotation, names)
        except BadLabelError as error:
            bad.append(f"{location}: {error}")
            continue
        if isinstance(found, TruthBox):
            boxes.append(found)
        else:
            labels.append(found)
    return annotated(
        location,
        [image.get(key) for key in _NAMES],
        boxes=boxes,
        labels=labels,
        size=pixels(image.get("width"), image.get("height")),
        task="detection" if is_detection else "classification",
        bad_labels=bad,
    )


def _has_box(annotation: Mapping[str, Any]) -> bool:
    return annotation.get("bbox") not in (None, [])


def _label(annotation: Mapping[str, Any], names: Mapping[Any, str]) -> TruthBox | str:
    """A box, or a label of the image; raises `BadLabelError`."""
    category = annotation.get("category_id")
    label = names.get(category) if isinstance(category, int | str) else None
    if label is None:
        raise BadLabelError(f"there is no category with the id {shown(category)}")
    if annotation.get("iscrowd") == 1:
        raise BadLabelError(f"{shown(label)} marks a group of objects (iscrowd)")
    if not _has_box(annotation):
        if annotation.get("segmentation"):
            raise BadLabelError(f"{shown(label)} has a segmentation, but no bbox")
        return label
    box = annotation["bbox"]
    if not isinstance(box, list) or len(box) != _BOX_NUMBERS:
        raise BadLabelError(f"the bbox of {shown(label)} is not a list of four numbers")
    return make_box(label, *box)


def _category_names(categories: list[Any], name: str) -> dict[Any, str]:
    names: dict[Any, str] = {}
    for category in categories:
        category_id, label = (category.get(key) if isinstance(category, dict) else None for key in ("id", "name"))
        if not isinstance(category_id, int | str) or not isinstance(label, str) or not label:
            raise SourceError(
                f"reading {name} failed: a category has no id and name: {shown(category)}",
                code=ErrorCode.INVALID_ANNOTATIONS,
            )
        if names.setdefault(category_id, label) != label:
            raise SourceError(
                f"reading {name} failed: two categories have the id {category_id}: {shown(names[category_id])} and "
                f"{shown(label)}; number them differently",
                code=ErrorCode.INVALID_ANNOTATIONS,
            )
    return names


class CocoWriter:
    """Writes `instances.json`, with the detections as annotations, and lists of results into a directory.

    `results.json` has the boxes and `results-labels.json` the labels of whole images; one that would be empty is not
    written, unless both would be. Images are numbered in the order in which they are added.
    """

    def __init__(self, folder: Path, labels: Sequence[str]) -> None:
        self._folder = folder
        self._numbers = {label: number for number, label in enumerate(labels, 1)}
        self._images = _JsonList(folder / "instances.json")
        self._annotations = _JsonList(folder / "annotations.part")
        self._boxes = _JsonList(folder / "results.json")
        self._labels = _JsonList(folder / "results-labels.json")
        categories = json_text([{"id": number, "name": label} for label, number in self._numbers.items()])
        self._images.file.write(f'{{"categories":{categories},"images":')

    def add(self, rows: Sequence[ScoredImage]) -> None:
        """See `ImageWriter`."""
        (image,) = rows
        assert image.size is not None
        image_id = self._images.count + 1
        width, height = image.size
        entry = {"id": image_id, "file_name": image.name, "width": width, "height": height, "coco_url": image.uri}
        self._images.append({**entry, "model": image.model, "model_arn": image.model_arn})
        for label in image.labels:
            result: dict[str, Any] = {"image_id": image_id, "category_id": self._numbers[label.name]}
            shape: dict[str, Any] = {"iscrowd": 0}
            if label.box is not None:
                result["bbox"] = label.box.scaled(image.size)
                shape["area"] = round(result["bbox"][2] * result["bbox"][3], 2)
            result["score"] = label.score
            if label.box is None:  # pycocotools numbers only boxes
                self._labels.append({"id": self._labels.count + 1, **result})
            else:
                self._boxes.append(result)
            self._annotations.append({"id": self._annotations.count + 1, **result, **shape})

    def close(self) -> None:
        """See `ImageWriter`."""
        self._images.close(keep_open=True)
        self._annotations.close()
        self._images.file.write(',"annotations":')
        part = self._folder / "annotations.part"
        with part.open(encoding="utf-8") as annotations:
            shutil.copyfileobj(annotations, self._images.file)
        part.unlink()
        self._images.file.write("}\n")
        self._images.file.close()
        for results, others in ((self._boxes, 0), (self._labels, 1)):
            results.close()
            if not results.count and (others or self._labels.count):
                Path(results.file.name).unlink()


class _JsonList:
    """A file with a JSON list, one item a line."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("w", encoding="utf-8", newline="\n")
        self.count = 0

    def append(self, item: object) -> None:
        self.file.write(f"{',' if self.count else '['}\n{json_text(item)}")
        self.count += 1

    def close(self, *, keep_open: bool = False) -> None:
        self.file.write("\n]" if self.count else "[]")
        if not keep_open:
            self.file.close()
