"""Confidence thresholds that readers apply to results, for each label or for all.

The file is TOML:

```toml
default = 50.0     # of labels that are not listed; optional
model = "arn:…"    # which the thresholds were chosen for; optional

[labels]
"dog" = 71.25
```
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batchcl.errors import ErrorCode, UsageError

__all__ = ["Thresholds"]

_KEYS = frozenset({"default", "model", "labels"})
_MAX_CONFIDENCE = 100
_MAX_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The lowest confidence, 0 to 100, with which a detection counts.

    Confidences are 32-bit numbers and compared as such: 70.1 keeps a stored 70.1.

    Attributes:
        default: of labels that `labels` doesn't name; None: all their detections count.
        labels: label → threshold.
        model: ARN of the model that they were chosen for, or None.
        origin: the option or file in messages.
    """

    default: float | None = None
    labels: Mapping[str, float] = field(default_factory=dict)
    model: str | None = None
    origin: str = "--min-confidence"

    def __post_init__(self) -> None:
        named = [(f" of the label {name!r}", value) for name, value in self.labels.items()]
        for of, value in [*([] if self.default is None else [("", self.default)]), *named]:
            if not (_is_number(value) and 0 <= value <= _MAX_CONFIDENCE):
                raise UsageError(
                    f"{self.origin}: the threshold {value!r}{of} is not a number from 0 to 100",
                    code=ErrorCode.INVALID_THRESHOLDS,
                )

    @property
    def lowest(self) -> tuple[float, str] | None:
        """The lowest threshold and what it is of (a label, or "labels that are not listed"); None if there is none."""
        by_name = dict(self.labels) if self.default is None else {**self.labels, "": self.default}
        if not by_name:
            return None
        name = min(by_name, key=by_name.__getitem__)
        return by_name[name], repr(name) if name else "labels that are not listed" if self.labels else "all labels"

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Thresholds:
        """Read a `thresholds.toml`.

        Raises:
            UsageError: it can't be read, or is not such a file.
        """
        try:
            with Path(path).open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
        except OSError as error:
            reason = error.strerror or error
            raise UsageError(
                f"reading the thresholds {path} failed: {reason}; check the path", code=ErrorCode.INVALID_THRESHOLDS
            ) from error
        if len(data) > _MAX_BYTES:
            raise UsageError(
                f"reading the thresholds {path} failed: it has more than {_MAX_BYTES // 1024 // 1024} MB",
                code=ErrorCode.INVALID_THRESHOLDS,
            )
        try:
            values = tomllib.loads(data.decode())
        except ValueError as error:  # of tomllib, and of the encoding
            raise UsageError(
                f"reading the thresholds {path} failed: it is not valid TOML: {error}",
                code=ErrorCode.INVALID_THRESHOLDS,
            ) from error
        return cls._parse(values, str(path))

    @classmethod
    def _parse(cls, values: Mapping[str, Any], origin: str) -> Thresholds:
        if unknown := sorted(values.keys() - _KEYS):
            raise UsageError(
                f"{origin} has the unknown key {unknown[0]!r}; its keys are default, model, and a table [labels] with "
                "a threshold for each label",
                code=ErrorCode.INVALID_THRESHOLDS,
            )
        labels, model = values.get("labels", {}), values.get("model")
        if not isinstance(labels, dict):
            raise UsageError(
                f"{origin}: labels must be a table [labels], not {labels!r}", code=ErrorCode.INVALID_THRESHOLDS
            )
        if not isinstance(model, str | None):
            raise UsageError(
                f"{origin}: model must be the text of an ARN, not {model!r}", code=ErrorCode.INVALID_THRESHOLDS
            )
        if not labels and "default" not in values:
            raise UsageError(
                f"{origin} has no threshold; add `default = 50`, or a table [labels]", code=ErrorCode.INVALID_THRESHOLDS
            )
        return cls(values.get("default"), labels, model, origin)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
