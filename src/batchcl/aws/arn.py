"""The ARN of a trained model (a project version), and what can be read from it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from batchcl.errors import UsageError

__all__ = ["ModelArn"]

_PATTERN: Final = re.compile(
    r"arn:[a-z\d-]+:rekognition:(?P<region>[a-z\d-]+):(?P<account>\d{12}):"
    r"project/(?P<project>[a-zA-Z0-9_.\-]{1,255})/version/(?P<version>[a-zA-Z0-9_.\-]{1,255})/(?P<stamp>[0-9]+)"
)
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
