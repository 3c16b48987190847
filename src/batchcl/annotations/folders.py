"""A directory with a folder per label, or with such folders in `train` and `test`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from batchcl.annotations.base import AnnotatedImage
from batchcl.errors import ErrorCode, SourceError
from batchcl.groundtruth import GroundTruth
from batchcl.images import EXTENSIONS, FITTABLE_EXTENSIONS, extension_of

__all__ = ["LabelledFiles", "labelled_files", "read_folders"]

_KINDS: Final = {"train": "train", "training": "train", "test": "test", "testing": "test"}
"""Names of the two folders of a directory that is divided into a training and a test dataset."""

_LABEL_DEPTH: Final = 2
"""Parts of the path of an image in a label's folder: `<label>/<image>`."""


@dataclass(frozen=True, slots=True)
class LabelledFile:
    """A file: `kind` is `train` or `test` if the directory is divided; `label` is None outside a label's folder."""

    path: Path
    parts: tuple[str, ...]
    kind: str | None
    label: str | None


@dataclass(frozen=True, slots=True)
class LabelledFiles:
    """The files of a directory, sorted, the number of hidden files and folders, and whether it is divided."""

    files: tuple[LabelledFile, ...]
    hidden: int
    divided: bool


def labelled_files(root: Path) -> LabelledFiles:
    """The files below `root`. The first folder of a path is the label, at any depth; hidden ones are only counted.

    Raises:
        SourceError: a folder can't be read.
    """
    paths, hidden = _files(root)
    relative = [path.relative_to(root).parts for path in paths]
    divided = _is_divided(relative)
    files = []
    for path, parts in zip(paths, relative, strict=True):
        *folders, _ = parts
        kind = _KINDS.get(folders.pop(0).lower()) if divided and folders else None
        files.append(LabelledFile(path, parts, kind, folders[0] if folders else None))
    return LabelledFiles(tuple(files), hidden, divided)


def read_folders(root: Path) -> Iterator[AnnotatedImage]:
    """The images below `root`, labelled by their folder. Files with another extension than images' are ignored."""
    labelled = labelled_files(root)
    for file in labelled.files:
        if file.label is None or extension_of(file.parts[-1]) not in EXTENSIONS | FITTABLE_EXTENSIONS:
            continue
        inside = "/".join(file.parts[-(len(file.parts) - labelled.divided) :])
        below_label = inside.partition("/")[2]
        references = (str(file.path), inside, *([below_label] if "/" in below_label else []))
        truth = GroundTruth(source_ref=references[0], labels=(file.label,), task="classification")
        yield AnnotatedImage(location="/".join(file.parts), references=references, truth=truth)


def _is_divided(paths: Sequence[tuple[str, ...]]) -> bool:
    """Whether images are in `train/<label>` and `test/<label>`, so that the first folder is not a label."""
    inside = [parts for parts in paths if len(parts) > 1 and parts[0].lower() in _KINDS]
    are_labels = any(len(parts) == _LABEL_DEPTH and extension_of(parts[1]) in EXTENSIONS for parts in inside)
    return {_KINDS[parts[0].lower()] for parts in inside} == {"train", "test"} and not are_labels


def _files(root: Path) -> tuple[list[Path], int]:
    """All files below `root`, sorted, and the number of hidden files and folders, which are ignored."""
    files: list[Path] = []
    hidden = 0
    for folder, folders, names in os.walk(root, onerror=_raise_unreadable):
        hidden += sum(name.startswith(".") for name in (*folders, *names))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += (Path(folder, name) for name in sorted(names) if not name.startswith("."))
    return files, hidden


def _raise_unreadable(error: OSError) -> None:
    """`os.walk` would skip the folder, and its images, without an error."""
    raise SourceError(
        f"reading the directory {error.filename} failed: {error.strerror}. Allow reading it, or move it elsewhere.",
        code=ErrorCode.UNREADABLE_SOURCE,
    ) from error
