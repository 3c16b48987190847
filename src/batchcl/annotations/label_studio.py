"""Label Studio: a JSON list of tasks with `data` and `annotations`, or `predictions` for import.

Source: Label Studio's documentation, "Import pre-annotated data" and "Export annotations and data". Boxes are in
percent of the image's sides; each result of an annotation has the image's size (`original_width`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from batchcl.annotations.base import AnnotatedImage, BadEntry, BadLabelError, annotated, make_box, pixels, shown
from batchcl.annotations.scored import ScoredImage, ScoredLabel, check_xml, json_text, xml
from batchcl.errors import ErrorCode, SourceError
from batchcl.groundtruth import TruthBox
from batchcl.images import EXTENSIONS, FITTABLE_EXTENSIONS, extension_of

__all__ = ["LabelStudioWriter", "is_label_studio", "read_label_studio"]

_SHAPES: Final = frozenset(
    {
        "brush", "brushlabels", "ellipse", "ellipselabels", "keypoint", "keypointlabels", "polygon", "polygonlabels",
        "bitmask", "bitmasklabels", "vector", "vectorlabels",
    }
)  # fmt: skip
"""Types of results for other shapes than boxes."""

_LOCAL_FILES: Final = "/data/local-files/"

_SIDES: Final = ("x", "y", "width", "height")


def is_label_studio(document: Any) -> bool:
    """Whether a JSON list has tasks."""
    return isinstance(document, list) and all(isinstance(task, dict) and "data" in task for task in document[:1])


def read_label_studio(document: Any, name: str) -> Iterator[AnnotatedImage | BadEntry]:
    """The images of a parsed export in the format JSON, or of one task.

    Of several annotations of a task, the one marked as ground truth is used, else the one changed last; cancelled ones
    and predictions are not used. A task without annotations is not labelled.

    Raises:
        SourceError: the document is another format of Label Studio, or not Label Studio's.
    """
    tasks = [document] if isinstance(document, dict) else document
    if not tasks or not is_label_studio(tasks):
        what = "an empty list" if not tasks else f"a list of {shown(tasks[0])}"
        raise SourceError(
            f"reading {name} failed: it is not a list of Label Studio tasks with data and annotations, but {what}; "
            "export the project in the format JSON, not JSON-MIN",
            code=ErrorCode.INVALID_ANNOTATIONS,
        )
    task_kind = "detection" if any(_is_rectangle(each) for each in _all_results(tasks)) else "classification"
    for at, task in enumerate(tasks):
        task_id = task.get("id") if isinstance(task, dict) else None
        location = f"task {task_id if isinstance(task_id, int) else at}"
        data = task.get("data") if isinstance(task, dict) else None
        if not isinstance(data, dict):
            yield BadEntry(location, "it has no data")
            continue
        try:
            results = _results(task)
            names = _image_names(data, results or ())
        except BadLabelError as error:
            yield BadEntry(location, str(error))
            continue
        if results is None:
            yield annotated(location, names, task=None)
            continue
        boxes: list[TruthBox] = []
        labels: list[str] = []
        bad: list[str] = []
        for result in results:
            try:
                boxes += _boxes(result)
                labels += _choices(result)
            except BadLabelError as error:
                bad.append(f"{location}: {error}")
        sizes = [size for result in results if (size := _size(result)) is not None]
        yield annotated(
            location,
            names,
            boxes=boxes,
            labels=labels,
            size=sizes[0] if sizes else None,
            task="detection" if task_kind == "detection" else "classification",
            bad_labels=bad,
        )


def _all_results(tasks: Sequence[Any]) -> Iterator[Mapping[str, Any]]:
    for task in tasks:
        annotations = task.get("annotations") if isinstance(task, dict) else None
        for annotation in annotations if isinstance(annotations, list) else ():
            results = annotation.get("result") if isinstance(annotation, dict) else None
            yield from (each for each in results if isinstance(each, dict)) if isinstance(results, list) else ()


def _results(task: Mapping[str, Any]) -> list[Mapping[str, Any]] | None:
    """The results of the annotation to use; None if the task has none. Raises `BadLabelError`."""
    annotations = task.get("annotations")
    if annotations is None:
        annotations = task.get("completions", [])  # before version 1.0
    if not isinstance(annotations, list) or not all(isinstance(each, dict) for each in annotations):
        raise BadLabelError("its annotations are not a list of objects")
    given = [each for each in annotations if not each.get("was_cancelled")]
    if not given:
        return None
    chosen = max(
        enumerate(given),
        key=lambda item: (
            item[1].get("ground_truth") is True,
            str(item[1].get("updated_at") or item[1].get("created_at") or ""),
            item[0],
        ),
    )[1]
    results = chosen.get("result")
    if not isinstance(results, list) or not all(isinstance(each, dict) for each in results):
        raise BadLabelError("the result of its annotation is not a list of objects")
    return results


def _image_names(data: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The URI and the image of a task; raises `BadLabelError` if several fields could be the image."""
    targets = {str(each.get("to_name")) for each in results if _is_rectangle(each) or each.get("type") == "choices"}
    texts = {key: value for key, value in data.items() if isinstance(value, str) and value}
    fields = [key for key in texts if key == "image" or key in targets]
    if not fields:
        fields = [key for key, value in texts.items() if _is_image(value)]
    if len(fields) > 1:
        raise BadLabelError(f"several fields of its data can be the image: {', '.join(map(shown, fields))}")
    return [*([texts["uri"]] if "uri" in texts else []), *(texts[key] for key in fields)]


def _is_image(value: str) -> bool:
    return extension_of(value.partition("?")[0].rpartition("/")[2]) in EXTENSIONS | FITTABLE_EXTENSIONS


def _is_rectangle(result: Mapping[str, Any]) -> bool:
    return result.get("type") in {"rectanglelabels", "rectangle"}


def _size(result: Mapping[str, Any]) -> tuple[int, int] | None:
    return pixels(result.get("original_width"), result.get("original_height"))


def _value(result: Mapping[str, Any]) -> Mapping[str, Any]:
    value = result.get("value")
    if not isinstance(value, dict):
        raise BadLabelError(f"a result of the type {shown(result.get('type'))} has no value")
    return value


def _boxes(result: Mapping[str, Any]) -> list[TruthBox]:
    """The boxes of a result in pixels; without the image's size none can be made."""
    kind = result.get("type")
    if kind in _SHAPES:
        raise BadLabelError(f"the shape {kind} is not supported; use rectangles")
    if kind not in {"rectanglelabels", "labels"}:
        return []
    value = _value(result)
    labels = value.get(str(kind))
    if not isinstance(labels, list) or not labels or not all(isinstance(each, str) and each for each in labels):
        raise BadLabelError("a rectangle has no label")
    if kind == "labels" and "x" not in value:
        raise BadLabelError("a region with labels is not a rectangle")
    size = _size(result)
    if size is None:
        raise BadLabelError(f"a rectangle of {shown(labels[0])} has no original_width and original_height")
    if value.get("rotation") or result.get("image_rotation"):
        raise BadLabelError(f"a rectangle of {shown(labels[0])} is rotated; rectangles must be upright")
    box = make_box(labels[0], *(value.get(side) for side in _SIDES))
    across, down = size[0] / 100, size[1] / 100
    return [
        TruthBox(label, box.left * across, box.top * down, box.width * across, box.height * down) for label in labels
    ]


def _choices(result: Mapping[str, Any]) -> list[str]:
    """The labels of the whole image in a result; choices about a region are not."""
    if result.get("type") != "choices":
        return []
    value = _value(result)
    if "x" in value:
        return []
    choices = value.get("choices")
    if not isinstance(choices, list) or not all(isinstance(each, str) and each for each in choices):
        raise BadLabelError("its choices are not a list of names")
    return choices


class LabelStudioWriter:
    """Writes `tasks.json`, with the results as predictions, and `config.xml`, the labelling interface for them.

    An image in S3 keeps its URI, which needs a storage of the project. A local file becomes a path below
    LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT, which must be the folder that names are relative to.
    """

    def __init__(self, folder: Path, labels: Sequence[str], *, has_boxes: bool, has_choices: bool) -> None:
        check_xml(labels)
        self._file = (folder / "tasks.json").open("w", encoding="utf-8", newline="\n")
        self._count = 0
        config = ["<View>", '  <Image name="image" value="$image"/>']
        if has_boxes:
            config.append('  <RectangleLabels name="label" toName="image">')
            config += [f"    <Label value={xml(label)}/>" for label in labels]
            config.append("  </RectangleLabels>")
        if has_choices or not has_boxes:
            config.append('  <Choices name="choice" toName="image" choice="multiple">')
            config += [f"    <Choice value={xml(label)}/>" for label in labels]
            config.append("  </Choices>")
        (folder / "config.xml").write_text("\n".join([*config, "</View>", ""]), encoding="utf-8")

    def add(self, rows: Sequence[ScoredImage]) -> None:
        """See `ImageWriter`."""
        first = rows[0]
        image = first.uri
        if not image.startswith("s3://"):
            image = f"{_LOCAL_FILES}?d={quote(first.name.lstrip('/'))}"
        task = {
            "data": {"image": image, "uri": first.uri, "model_arn": first.model_arn},
            "predictions": [_prediction(each) for each in rows],
        }
        self._file.write(f"{',' if self._count else '['}\n{json_text(task)}")
        self._count += 1

    def close(self) -> None:
        """See `ImageWriter`."""
        self._file.write("\n]\n" if self._count else "[]\n")
        self._file.close()


def _prediction(image: ScoredImage) -> dict[str, Any]:
    results: list[dict[str, Any]] = []
    choices = [label for label in image.labels if label.box is None]
    if choices:
        value: dict[str, Any] = {"choices": [label.name for label in choices]}
        results.append(_result("choice", "choices", choices[0], value))
    for label in image.labels:
        if label.box is not None:
            left, top, width, height = label.box.scaled((100, 100), decimals=4)
            value = {"x": left, "y": top, "width": width, "height": height, "rotation": 0}
            results.append(_result("label", "rectanglelabels", label, value | {"rectanglelabels": [label.name]}))
    for number, result in enumerate(results):
        result["id"] = f"batchcl-{number}"
    score = max((label.score for label in image.labels), default=0.0)
    return {"model_version": image.model, "score": score, "result": results}


def _result(control: str, kind: str, label: ScoredLabel, value: dict[str, Any]) -> dict[str, Any]:
    return {"from_name": control, "to_name": "image", "type": kind, "score": label.score, "value": value}
