"""Permanent failures: called for once, counted once, and retried only where `--fit` may help."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import anyio
import pytest

from batchcl.errors import CallError, FatalCallError, ImageError, TooManyFailuresError, TransientError, UsageError
from batchcl.images import ImageRef, SkipReason
from batchcl.lifetime.manager import ModelManager
from batchcl.loaders.base import Prepared
from batchcl.summary import Summary
from observers import RecordingObserver
from sim.fake_world import FakeModelManager, FakeWorld, FaultInjector, FaultKind, OperationKind, run_simulation
from sim.service import Service, image

IMAGES = 20
CORRUPT = {0, 1, 2, 3}
BROKEN = 3
"""A corrupt image that `--fit` can't fix."""


def picture(n: int, **more: Any) -> ImageRef:
    return replace(image(n), etag=f"e{n}", **more)


WEBP = picture(90, uri="s3://b/a.webp", key="a.webp")
NOTES = picture(91, uri="s3://b/notes.txt", key="notes.txt")


class Fitting:
    """A `Preparer` that fixes every image except one."""

    def __init__(self) -> None:
        self.changed: set[str] = set()

    def needs_preparation(self, image: ImageRef) -> bool:
        return image.key.endswith(".webp")

    def may_fix(self, error: ImageError) -> bool:
        return error.code == "InvalidImageFormatException"

    def has_capacity(self) -> bool:
        return True

    async def prepare(self, image: ImageRef) -> Prepared | SkipReason:
        if image.uri == picture(BROKEN).uri:
            return SkipReason("BrokenImage", "it can't be decoded")
        self.changed.add(image.uri)
        return Prepared("changed")

    def release(self, image: ImageRef) -> None:
        self.changed.discard(image.uri)


class CountingWorld(FakeWorld):
    """A world that counts how often sessions start the model."""

    starts = 0

    def model_manager(self, faults: FaultInjector) -> ModelManager:
        night = self

        class Keeper(FakeModelManager):
            async def ensure_running(self) -> None:
                night.starts += 1
                await super().ensure_running()

        return Keeper(faults)


@dataclass(frozen=True)
class SessionEnd:
    """The end of a session, the images that it called for, and how often it started the model."""

    end: Any
    called: set[str]
    starts: int

    @property
    def summary(self) -> Summary:
        assert isinstance(self.end, Summary), repr(self.end)
        return self.end


class Runs:
    """Runs over one output root, with corrupt images and transient failures."""

    def __init__(self, *, incremental: bool = True, max_failures: int | None = None) -> None:
        self.images = [picture(n) for n in range(IMAGES)]
        self.failing: set[str] = set()
        self.corrupt = {picture(n).uri for n in CORRUPT}
        self.observer = RecordingObserver()
        self.fitting = Fitting()
        self.service = Service(fault=self._fault, latency_s=lambda _: 1.0)
        self.files: dict[str, bytes] = {}
        self._settings: dict[str, Any] = {"incremental": incremental, "max_failures": max_failures}

    def _fault(self, each: ImageRef, _call: int, _now: float) -> CallError | None:
        if each.uri in self.failing:
            return TransientError("later", code="InternalServerError", status=500)
        if each.uri in self.corrupt and each.uri not in self.fitting.changed:
            return ImageError("no", code="InvalidImageFormatException", status=400)
        return None

    def night(self, run_id: str, **settings: Any) -> CountingWorld:
        settings = self._settings | {"preparer": self.fitting, "observer": self.observer} | settings
        return CountingWorld(self.images, self.service, files=self.files, run_id=run_id, **settings)

    async def run(self, run_id: str, faults: FaultInjector | None = None, **settings: Any) -> SessionEnd:
        night, before = self.night(run_id, **settings), self.service.calls.copy()
        end = await night.run(faults)
        return SessionEnd(end, set(self.service.calls - before), night.starts)

    async def retry(self, run_id: str, faults: FaultInjector | None = None, **settings: Any) -> SessionEnd:
        night, before = self.night(run_id), self.service.calls.copy()
        end = await night.retry(faults, **settings)
        return SessionEnd(end, set(self.service.calls - before), night.starts)

    def table(self, run_id: str) -> Counter[str]:
        """Number of images of the run by result or last failure."""
        own = {path: data for path, data in self.files.items() if f"/{run_id}-0" in path}
        rows = FakeWorld(self.images, self.service, files=own, run_id=run_id).table().values()
        return Counter(row.get("error_code", "scored") for row in rows)


def test_corrupt_images_cost_later_runs_nothing():
    async def main() -> None:
        runs = Runs(max_failures=3)
        first = await runs.run("n1")
        assert isinstance(first.end, TooManyFailuresError), repr(first.end)
        second = await runs.run("n2")
        assert not second.called & runs.corrupt
        assert (second.summary.tolerated, second.summary.failed, second.summary.already_failed) == (True, 0, 4)
        quiet = await runs.run("n3")
        assert (quiet.called, quiet.starts, quiet.summary.tolerated) == (set(), 0, True)
        assert (quiet.summary.planned, quiet.summary.already_scored, quiet.summary.already_failed) == (0, IMAGES - 4, 4)
        runs.images.append(picture(IMAGES))
        new = await runs.run("n4")
        assert (new.called, new.starts, new.summary.tolerated) == ({picture(IMAGES).uri}, 1, True)

    run_simulation(main)


def test_changed_images_and_unknown_versions_are_called_again():
    async def main() -> None:
        runs = Runs()
        runs.images[1] = replace(picture(1), etag=None)
        await runs.run("n1")
        runs.images[0] = replace(picture(0), etag="mended")
        runs.corrupt.remove(picture(0).uri)
        night = await runs.run("n2")
        assert night.called == {picture(0).uri, picture(1).uri}
        assert runs.table("n2") == {"scored": 1, "InvalidImageFormatException": 1}

    run_simulation(main)


@pytest.mark.parametrize("settings", [{"retry_failed": True}, {"incremental": False}, {"fit": True}])
def test_permanent_failures_are_retried_on_request(settings: dict[str, Any]):
    async def main() -> None:
        runs = Runs()
        await runs.run("n1")
        night = await runs.run("n2", **settings)
        assert runs.corrupt <= night.called
        assert night.summary.already_failed == 0

    run_simulation(main)


def test_skipped_images_are_excluded_by_later_runs():
    async def main() -> None:
        runs = Runs()
        runs.images = [NOTES, WEBP]
        first = await runs.run("n1")
        assert (first.summary.skipped, first.starts) == (2, 0)
        assert (await runs.run("n2")).summary.already_failed == 2
        night = await runs.run("n3", fit=True)
        assert (night.called, night.summary.skipped, night.summary.already_failed) == ({WEBP.uri}, 1, 0)

    run_simulation(main)


def test_a_resumed_run_excludes_failures_of_another_run():
    async def main() -> None:
        runs = Runs()
        begun = await runs.run("n1", FaultInjector(OperationKind.CALL, 9, FaultKind.CRASH_BEFORE))
        assert begun.end is None
        other = (await runs.run("n2")).summary
        assert other.status == "done"
        resumed = await runs.run("n1")
        assert (resumed.called, resumed.starts) == (set(), 0)
        table, summary = runs.table("n1"), resumed.summary
        assert summary.planned == summary.scored + summary.failed == table.total()
        assert (summary.scored, summary.failed) == (table["scored"], table["InvalidImageFormatException"])
        assert summary.planned + summary.already_scored + summary.already_failed == IMAGES
        assert summary.already_failed + summary.failed == len(CORRUPT)

    run_simulation(main)


@pytest.mark.parametrize("incremental", [False, True])
def test_a_retry_of_permanent_failures_only_says_why_not(incremental: bool):
    async def main() -> None:
        runs = Runs(incremental=incremental)
        runs.images.append(NOTES)
        run = (await runs.run("n1")).summary
        assert (run.tolerated, run.failed, run.retryable, run.fittable) == (False, 4, 0, 4)
        retried = await runs.retry("n1")
        assert (retried.called, retried.starts) == (set(), 0)
        assert retried.summary == replace(run, tolerated=True)
        assert runs.observer.fields_of("not-retried") == [
            {"code": "InvalidImageFormatException", "images": 4, "fit_may_help": 4},
            {"code": "UnsupportedExtension", "images": 1, "fit_may_help": 0},
        ]
        assert not any("/rounds/" in path for path in runs.files)

    run_simulation(main)


def test_a_retry_scores_and_counts_only_what_may_succeed():
    async def main() -> None:
        runs = Runs(max_failures=5)
        runs.failing = {picture(7).uri, picture(8).uri}
        run = (await runs.run("n1", max_failures=None)).summary
        assert (run.failed, run.retryable, run.fittable) == (6, 2, 4)
        runs.failing = {picture(8).uri}
        first = await runs.retry("n1")
        assert first.called == {picture(7).uri, picture(8).uri}
        assert (first.summary.failed, first.summary.retryable, first.summary.tolerated) == (5, 1, False)
        runs.failing = set()
        second = await runs.retry("n1")
        assert second.called == {picture(8).uri}
        assert (second.summary.failed, second.summary.retryable, second.summary.tolerated) == (4, 0, True)
        assert runs.table("n1") == {"scored": IMAGES - 4, "InvalidImageFormatException": 4}

    run_simulation(main)


def test_a_failure_that_a_retry_finds_permanent_counts():
    async def main() -> None:
        runs = Runs()
        runs.failing = {picture(0).uri}
        assert (await runs.run("n1")).summary.retryable == 1
        runs.failing = set()
        retried = await runs.retry("n1")
        assert retried.called == {picture(0).uri}
        assert (retried.summary.failed, retried.summary.tolerated) == (4, False)
        assert (await runs.retry("n1")).summary.tolerated

    run_simulation(main)


def test_a_retry_with_fit_scores_skipped_images_too():
    async def main() -> None:
        runs = Runs()
        runs.images += [WEBP, NOTES]
        run = (await runs.run("n1")).summary
        assert (run.scored, run.failed, run.skipped, run.fittable) == (IMAGES - 4, 4, 2, 5)
        fitted = await runs.retry("n1", fit=True)
        assert fitted.called == {*runs.corrupt, WEBP.uri}
        after = fitted.summary
        assert (after.scored, after.failed, after.skipped) == (IMAGES, 1, 1)
        assert (after.planned, after.retryable, after.fittable) == (run.planned, 0, 0)
        expected = {"scored": IMAGES, "BrokenImage": 1, "UnsupportedExtension": 1}
        assert runs.table("n1") == expected
        for fit in (False, True):
            again = await runs.retry("n1", fit=fit)
            assert (again.called, again.starts, again.summary.tolerated) == (set(), 0, True)
        assert (await runs.run("n2", fit=True)).called == set(), "the round's setting is that of its rows"

    run_simulation(main)


@pytest.mark.parametrize("calls", range(6))
def test_an_interrupted_retry_with_fit_resumes_with_fit(calls: int):
    async def main() -> None:
        runs = Runs()
        runs.images += [WEBP, NOTES]
        await runs.run("n1")
        refusal = FatalCallError("denied", code="AccessDeniedException", status=400)
        cut = await runs.retry("n1", FaultInjector(OperationKind.CALL, calls, error=lambda: refusal), fit=True)
        partial = cut.end.summary
        assert isinstance(partial, Summary)
        assert partial.scored + partial.failed + partial.skipped == partial.planned == IMAGES + 2
        table = runs.table("n1")
        skipped = table["UnsupportedExtension"]
        assert (partial.scored, partial.skipped) == (table["scored"], skipped), "early ends publish what there is"
        assert partial.retryable is None
        went_on = (await runs.retry("n1")).summary
        assert (went_on.round, went_on.scored, went_on.failed, went_on.skipped) == (1, IMAGES, 1, 1)
        assert runs.table("n1") == {"scored": IMAGES, "BrokenImage": 1, "UnsupportedExtension": 1}

    run_simulation(main)


def test_a_retry_refuses_a_round_begun_with_another_fit_setting():
    async def main() -> None:
        runs = Runs()
        runs.failing = {picture(7).uri}
        await runs.run("n1")
        runs.failing = set()
        ends: list[SessionEnd] = []

        async def without_fit() -> None:
            ends.append(await runs.retry("n1"))

        async with anyio.create_task_group() as group:
            group.start_soon(
                partial(runs.retry, "n1", FaultInjector(OperationKind.CALL, 0, FaultKind.CRASH_BEFORE), fit=True)
            )
            group.start_soon(without_fit)
        assert "another retry of run n1 was started in the meantime; repeat the command" in str(ends[0].end)
        assert runs.corrupt <= (await runs.retry("n1")).called, "with --fit, as the round was begun"

    run_simulation(main)


def test_a_retry_excludes_failures_that_another_run_found():
    async def main() -> None:
        runs = Runs()
        runs.failing = {picture(0).uri, picture(9).uri}
        assert (await runs.run("n1")).summary.failed == 5
        runs.failing = set()
        assert (await runs.run("n2")).called == {picture(0).uri, picture(9).uri}
        retried = await runs.retry("n1")
        assert (retried.called, retried.starts) == (set(), 0)
        summary = retried.summary
        assert (summary.failed, summary.already_scored, summary.already_failed) == (3, 1, 1)
        assert summary.planned == summary.scored + summary.failed == IMAGES - 2
        assert summary.retryable == 0

    run_simulation(main)


def test_retrying_codes_of_permanent_failures_is_refused():
    async def main() -> None:
        runs = Runs()
        await runs.run("n1")
        refused = (await runs.retry("n1", codes=("InvalidImageFormatException",))).end
        assert isinstance(refused, UsageError)
        assert "can succeed: these failures are permanent; add --fit, or replace the images" in str(refused)
        unknown = (await runs.retry("n1", codes=("Timeout",))).end
        assert "failed with --code Timeout; its codes: InvalidImageFormatException (4)" in str(unknown)
        fitted = await runs.retry("n1", codes=("InvalidImageFormatException",), fit=True)
        assert fitted.called == runs.corrupt

    run_simulation(main)
