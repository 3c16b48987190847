from __future__ import annotations

import dataclasses
import datetime as dt

import pytest

from batchcl.images import ImageRef
from batchcl.outcomes import Detection, Failed, Label, Scored

IMAGE = ImageRef(uri="s3://b/a.png", bucket="b", key="a.png")
AT = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)
THINGS = [
    Label("cat", 90.0),
    Detection((), "r"),
    Scored(image=IMAGE, labels=(Label("cat", 90.0),), attempts=1, latency_ms=1, request_id="r", scored_at=AT),
    Failed(image=IMAGE, status="failed", code="C", message="m", attempts=1, failed_at=AT),
]


@pytest.mark.parametrize("thing", THINGS, ids=lambda thing: type(thing).__name__)
def test_what_became_of_an_image_never_changes(thing: Label | Detection | Scored | Failed) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(thing, dataclasses.fields(thing)[0].name, "other")
    assert not hasattr(thing, "__dict__")
    assert len({thing, dataclasses.replace(thing)}) == 1


def test_a_label_without_a_box_is_of_the_whole_image_and_a_failure_of_the_run_itself() -> None:
    label, failure = Label("cat", 1.0), THINGS[3]
    assert (label.box, label.polygon) == (None, None)
    assert isinstance(failure, Failed)
