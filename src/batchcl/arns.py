"""Parses the ARNs of projects, datasets and trained models (project versions).

Source of the patterns: the service model of the operations that take these ARNs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from batchcl.errors import ErrorCode, UsageError

__all__ = ["DatasetArn", "ModelArn", "ProjectArn", "validate_role_arn"]

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
    """A model's ARN and its parts."""

    text: str
    region: str
    account: str
    project: str
    version: str

    @classmethod
    def parse(cls, text: str) -> ModelArn:
        """Parse `text`; raises `UsageError`."""
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise UsageError(
                f"{text!r} is not the ARN of a Custom Labels model, such as {_EXAMPLE}; list yours with "
                "`batchcl model list`",
                code=ErrorCode.INVALID_NAME,
            )
        return cls(text, match["region"], match["account"], match["project"], match["version"])

    @property
    def name(self) -> str:
        """`<project>@<version>`: the model's name in tables and partitions."""
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
        """Parse `text`; raises `UsageError`."""
        match = _PROJECT_PATTERN.fullmatch(text)
        if match is None:
            raise UsageError(
                f"{text!r} is not the ARN of a Custom Labels project; list yours with `batchcl project list`, "
                "or use the project's name",
                code=ErrorCode.INVALID_NAME,
            )
        return cls(text, match["region"], match["account"], match["project"])

    @property
    def name(self) -> str:
        """The project's name."""
        return self.project

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class DatasetArn:
    """A dataset's ARN and its parts; `kind` is `train` or `test`. It does not contain its project's ARN."""

    text: str
    region: str
    account: str
    project: str
    kind: str

    @classmethod
    def parse(cls, text: str) -> DatasetArn:
        """Parse `text`; raises `UsageError`."""
        match = _DATASET_PATTERN.fullmatch(text)
        if match is None:
            raise UsageError(
                f"{text!r} is not the ARN of a Custom Labels dataset; list them with `batchcl project show PROJECT`, "
                "or write PROJECT/train or PROJECT/test",
                code=ErrorCode.INVALID_NAME,
            )
        return cls(text, match["region"], match["account"], match["project"], match["kind"])

    @property
    def name(self) -> str:
        """`<project>/train` or `<project>/test`."""
        return f"{self.project}/{self.kind}"

    def __str__(self) -> str:
        return self.text


def validate_role_arn(text: str) -> str:
    """Return `text` if it is the ARN of an IAM role; else raise `UsageError`."""
    if not _ROLE.fullmatch(text):
        raise UsageError(
            f"{text!r} is not the ARN of a role; write it like arn:aws:iam::123456789012:role/NAME",
            code=ErrorCode.INVALID_NAME,
        )
    return text
