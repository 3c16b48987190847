"""The ARNs of projects, datasets and trained models (project versions), and what can be read from them.

Source of the patterns: the service model of the operations that take them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from batchcl.errors import UsageError

__all__ = ["DatasetArn", "ModelArn", "ProjectArn", "valid_role"]

_PROJECT: Final = (
    r"arn:[a-z\d-]+:rekognition:(?P<region>[a-z\d-]+):(?P<account>\d{12}):project/(?P<project>[a-zA-Z0-9_.\-]{1,255})"
)
_PATTERN: Final = re.compile(_PROJECT + r"/version/(?P<version>[a-zA-Z0-9_.\-]{1,255})/(?P<stamp>[0-9]+)")
_PROJECT_PATTERN: Final = re.compile(_PROJECT + r"/(?P<stamp>[0-9]+)")
_DATASET_PATTERN: Final = re.compile(_PROJECT + r"/dataset/(?P<kind>train|test)/(?P<stamp>[0-9]+)")
_ROLE: Final = re.compile(r"arn:aws(-[a-z]+)*:iam::\d{12}:role/[\w+=,.@/-]+")
_EXAMPLE: Final = "arn:aws:rekognition:us-east-1:123456789012:project/NAME/version/VERSION/1700000000000"


@dataclass(frozen=True, slots=True)
class ModelArn:
    """A model's ARN and its parts. Source of the pattern: the service model of DetectCustomLabels."""

    text: str
    region: str
    account: str
    project: str
    version: str

    @classmethod
    def parse(cls, text: str) -> ModelArn:
        """Read `text`; raises `UsageError` with an example where it isn't a model's ARN."""
        found = _PATTERN.fullmatch(text)
        if found is None:
            raise UsageError(
                f"{text!r} is not the ARN of a Custom Labels model; it looks like {_EXAMPLE} "
                "and `batchcl model list` shows yours"
            )
        return cls(text, found["region"], found["account"], found["project"], found["version"])

    @property
    def name(self) -> str:
        """`<project>@<version>`: how tables and partitions call the model."""
        return f"{self.project}@{self.version}"

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class ProjectArn:
    """A project's ARN and its parts."""

    text: str
    region: str
    account: str
    project: str

    @classmethod
    def parse(cls, text: str) -> ProjectArn:
        """Read `text`; raises `UsageError` where it isn't a project's ARN."""
        found = _PROJECT_PATTERN.fullmatch(text)
        if found is None:
            raise UsageError(
                f"{text!r} is not the ARN of a Custom Labels project; `batchcl project list` shows yours, "
                "and the project's name will do too"
            )
        return cls(text, found["region"], found["account"], found["project"])

    @property
    def name(self) -> str:
        """The project's name."""
        return self.project

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class DatasetArn:
    """A dataset's ARN and its parts; `kind` is `train` or `test`. It does not hold the ARN of its project."""

    text: str
    region: str
    account: str
    project: str
    kind: str

    @classmethod
    def parse(cls, text: str) -> DatasetArn:
        """Read `text`; raises `UsageError` where it isn't a dataset's ARN."""
        found = _DATASET_PATTERN.fullmatch(text)
        if found is None:
            raise UsageError(
                f"{text!r} is not the ARN of a Custom Labels dataset; `batchcl project show PROJECT` shows them, "
                "and PROJECT/train or PROJECT/test will do too"
            )
        return cls(text, found["region"], found["account"], found["project"], found["kind"])

    @property
    def name(self) -> str:
        """`<project>/train` or `<project>/test`."""
        return f"{self.project}/{self.kind}"

    def __str__(self) -> str:
        return self.text


def valid_role(text: str) -> str:
    """`text` itself, which is the ARN of an IAM role; raises `UsageError` where it isn't."""
    if not _ROLE.fullmatch(text):
        raise UsageError(f"{text!r} is not the ARN of a role; it looks like arn:aws:iam::123456789012:role/NAME")
    return text
