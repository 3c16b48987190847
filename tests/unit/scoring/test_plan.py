"""What `plan` reports, and what it reports while it reads the sources."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio
import pytest

from batchcl.events import Progress, SilentObserver
from batchcl.images import ArchiveMember, ImageRef
from batchcl.job import Job
from batchcl.scoring.plan import ContentCounter, Plan, plan

MODEL = "arn:aws:rekognition:us-east-1:123456789012:project/p/version/v/1700000000000"


class _LastProgress(SilentObserver):
    def started(self, progress: Progress) -> None:
        self.progress = progress


def test_the_images_so_far_are_reported(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(b"x")
    observer = _LastProgress()
    job = Job(sources=(str(tmp_path),), model=MODEL, out=str(tmp_path / "out"))
    found = anyio.run(partial(plan, job, observer=observer))
    snapshot = observer.progress.snapshot(0.0)
    assert (found.planned, snapshot.planned, snapshot.is_listing) == (3, 3, True)


@pytest.mark.parametrize(
    ("contents", "identical", "repeated"),
    [("", 0, 0), ("a", 0, 0), ("ab", 0, 0), ("aa", 2, 1), ("abcab", 4, 2), ("aaab", 3, 2), ("aaabbc", 5, 3)],
)
def test_objects_with_the_same_etag_and_size_are_counted(contents: str, identical: int, repeated: int) -> None:
    counter = ContentCounter()
    for number, etag in enumerate(contents):
        counter.add(ImageRef(uri=f"s3://b/{number}", bucket="b", key=str(number), etag=etag, size_bytes=7))
    assert counter.count() == (identical, repeated)


def test_images_without_an_etag_of_their_own_share_no_content() -> None:
    counter = ContentCounter()
    member = ArchiveMember("a.tar", 0)
    for number in range(3):
        image = ImageRef(uri=f"s3://b/{number}", bucket="b", key=str(number), size_bytes=7)
        counter.add(image)
        counter.add(replace(image, etag="of the archive", member=member))
        counter.add(replace(image, etag="e", size_bytes=number))
    assert counter.count() == (0, 0)


def plan_of(tmp_path: Path, images: int, **fields: object) -> Plan:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(images):
        (folder / f"{number}.jpg").write_bytes(b"x")
    return anyio.run(plan, Job.model_validate({"sources": str(folder), "model": MODEL, "out": str(tmp_path)} | fields))


def test_a_plan_for_a_time_of_day_has_the_latest_start(tmp_path: Path) -> None:
    at = dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(hours=5)
    found = plan_of(tmp_path, 10, deadline=at.time(), start_model="2")
    assert found.deadline is not None
    assert (found.deadline.units, found.deadline.is_met, found.deadline.is_met_as_requested) == (1, True, True)
    assert found.deadline.start_by is not None
    latest_end = found.deadline.start_by + dt.timedelta(seconds=found.deadline.needed_s)
    assert abs(latest_end - at) < dt.timedelta(seconds=1)
    assert [each.is_requested for each in found.estimates] == [False, True, False, False, False]


def test_a_plan_says_that_a_deadline_is_too_near(tmp_path: Path) -> None:
    found = plan_of(tmp_path, 10, deadline="20m", start_model="auto:3")
    assert found.deadline is not None
    assert (found.deadline.is_met, found.deadline.start_by, found.deadline.is_met_as_requested) == (False, None, None)
    assert found.deadline.needed_s > found.deadline.left_s == 1200


def test_a_plan_has_a_row_for_the_requested_auto_scaling(tmp_path: Path) -> None:
    found = plan_of(tmp_path, 10, start_model="1:3")
    assert [(each.units, each.max_units, each.is_requested) for each in found.estimates[4:]] == [
        (5, None, False),
        (1, 3, True),
    ]
    assert found.deadline is None
