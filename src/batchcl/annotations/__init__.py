"""Reads and writes the annotation files of labelling tools: COCO, Label Studio, CVAT; writes YOLO, too.

One module per format. `files` detects the format of a file and reads it, `references` finds the images that it names,
`folders` reads a directory with a folder per label.
"""

from batchcl.annotations.base import AnnotatedImage, BadEntry
from batchcl.annotations.files import FORMATS, Format, annotation_format, read_annotations
from batchcl.annotations.folders import LabelledFiles, labelled_files
from batchcl.annotations.references import Matches, match_references, resolve_references

__all__ = [
    "FORMATS",
    "AnnotatedImage",
    "BadEntry",
    "Format",
    "LabelledFiles",
    "Matches",
    "annotation_format",
    "labelled_files",
    "match_references",
    "read_annotations",
    "resolve_references",
]
