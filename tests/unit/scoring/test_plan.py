"""What `plan` reports while it reads the sources."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import anyio

from batchcl.events import Progress, SilentObserver
from batchcl.job import Job
from batchcl.scoring.plan import plan

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
