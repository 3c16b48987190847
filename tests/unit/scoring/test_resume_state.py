"""The state of a run before a session begins."""

from __future__ import annotations

import datetime as dt

import anyio

from batchcl.arns import ModelArn
from batchcl.events import SilentObserver
from batchcl.job import load_job
from batchcl.runs.store import Store
from batchcl.scoring.run import find_resume_state
from batchcl.scoring.source_checks import CheckedSources
from batchcl.sources.filters import Filters
from batchcl.sources.select import Selection

MODEL = ModelArn.parse("arn:aws:rekognition:us-east-1:123456789012:project/p/version/v/1700000000000")


def test_filters_use_the_runs_first_start_when_it_is_resumed() -> None:
    asked: list[dt.datetime] = []

    async def check(at: dt.datetime) -> CheckedSources:
        asked.append(at)
        return CheckedSources(Selection([], Filters()), 0, {})

    async def main() -> dt.datetime:
        store = Store.memory()
        job = load_job(flags={"sources": ("s3://b/",), "out": "memory", "model": MODEL.text, "run_id": "r"})
        first = await find_resume_state(job, MODEL, store, check=check, observer=SilentObserver())
        await first.record.create(store)
        await find_resume_state(job, MODEL, store, check=check, observer=SilentObserver())
        return first.record.started_at

    began = anyio.run(main)
    assert asked == [began, began]
