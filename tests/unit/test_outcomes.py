from __future__ import annotations

import dataclasses
import datetime as dt

import pytest

from batchcl.images import ImageRef
from batchcl.outcomes import Detection, Failed, Label, Scored

IMAGE = ImageRef(uri="s3://b/a.png", bucket="b", key="a.png")
AT = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)
VALUES = [
    Label("cat", 90.0),
    Detection((), "r"),
    Scored(image=IMAGE, labels=(Label("cat", 90.0),), attempts=1, latency_ms=1, request_id="r", scored_at=AT),
    Failed(image=IMAGE, status="failed", code="C", message="m", attempts=1, failed_at=AT),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_outcomes_are_immutable(value: Label | Detection | Scored | Failed) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, dataclasses.fields(value)[0].name, "other")
    assert not hasattr(value, "__dict__")
    assert len({value, dataclasses.replace(value)}) == 1


def test_a_label_without_a_box_is_image_level() -> None:
    label = Label("cat", 1.0)
    assert (label.box, label.polygon) == (None, None)
