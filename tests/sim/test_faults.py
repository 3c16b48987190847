"""A fault at every operation of a run: the next sessions complete it, with one row per image.

At the output root and at calls the kinds of faults take turns, so that together they hit each operation. Each kind is
injected at all of them with `BATCHCL_CONCURRENT_SEEDS=2000 pytest tests/sim/test_faults.py`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any
from unittest import mock

import pytest

from batchcl.errors import (
    BatchclError,
    CallError,
    FatalCallError,
    ImageError,
    OutputError,
    RefusedError,
    RejectedError,
    StoppedError,
)
from batchcl.images import ImageRef
from batchcl.runs.record import read_summary
from batchcl.summary import Summary
from sim.fake_world import RUN, FakeWorld, FaultInjector, FaultKind, FaultyStore, OperationKind, run_simulation
from sim.service import Service, image

IMAGES = 15
SHARD_SIZE = 5
"""Three shards (first, middle, last) cover the same cases as more."""

ERRORS = [FaultKind.ERROR_BEFORE, FaultKind.ERROR_AFTER]
ENDS = [*ERRORS, FaultKind.CANCEL_AFTER]
"""Crashes at the store are tested separately: they leave the files unchanged."""

REQUESTS = [FaultKind.ERROR_BEFORE, FaultKind.CRASH_BEFORE, FaultKind.CANCEL_BEFORE]
"""A request to the list or the model changes nothing here: before it is as after it."""

EVERYWHERE = "BATCHCL_CONCURRENT_SEEDS" in os.environ
EVERY = 1 if EVERYWHERE else 3
"""A fault whose kind is the only one is injected at every third operation."""

FEWER = 20
"""Images of the runs that are retried; a round writes as much per shard as a run."""


def image_or_text(n: int) -> ImageRef:
    """Every seventh image is skipped."""
    return image(n) if n % 7 else replace(image(n), uri=f"s3://b/{n:06}.txt", key=f"{n:06}.txt")


def refused(each: ImageRef, _call: int, _now: float) -> CallError | None:
    """Every fifth image fails unless it is skipped."""
    if int(each.key[:6]) % 5 == 4:
        return ImageError("larger than 4096 pixels", code="ImageTooLargeException", status=400)
    return None


def world(count: int = IMAGES) -> FakeWorld:
    images = [image_or_text(n) for n in range(count)]
    return FakeWorld(images, Service(fault=refused), shard_size=SHARD_SIZE, page=5)


def slow_world() -> FakeWorld:
    """Each call takes 30 s, so that journals are written by age and the lease is renewed."""
    few = [image_or_text(n) for n in range(FEWER)]
    return FakeWorld(few, Service(fault=refused, latency_s=lambda _: 30.0), shard_size=FEWER, max_in_flight=5)


@cache
def expected_table() -> dict[str, dict[str, Any]]:
    async def main() -> dict[str, dict[str, Any]]:
        faultless = world(max(IMAGES, FEWER))
        faultless.assert_exactly_once(await faultless.run_to_end())
        assert Counter(row["table"] for row in faultless.table().values()) == {"results": 14, "failures": 6}
        return faultless.table()

    return run_simulation(main)


@pytest.fixture(autouse=True, scope="module")
def expected_tables() -> None:
    """The expected tables, computed once outside of the scenes' event loops."""
    expected_table()
    for resolved in ROUNDS:
        after_round(resolved=resolved)


async def assert_resumes(troubled: FakeWorld) -> None:
    """Assert that the next session completes the run without repeating journalled calls, with the expected table."""
    journalled, called = troubled.journalled(), troubled.service.calls.copy()
    troubled.assert_exactly_once(await troubled.run_to_end())
    expected = expected_table()
    assert troubled.table() == {each.uri: expected[each.uri] for each in troubled.images}
    assert not journalled & (troubled.service.calls - called).keys()


def inject_everywhere(scene: Callable[[int], bool], *, begin: int = 0, step: int = 1) -> int:
    """Run `scene(n)` for each `step`th n from `begin` until no fault was injected; returns that n."""
    n = begin
    try:
        while scene(n):
            n += step
    except BaseException as error:
        error.add_note(f"fault at operation {n}")
        raise
    return n


def inject_at_each(
    operation: OperationKind,
    kind: FaultKind,
    error: Callable[[], BatchclError] | None = None,
    *,
    start: Callable[[], FakeWorld] = world,
    turns: Sequence[FaultKind] = (),
    step: int = 1,
) -> int:
    """Inject the fault and resume the run; returns the number of operations, which is rounded up.

    At each operation, at those of its turn among the kinds `turns`, or at each `step`th one.
    """

    def scene(n: int) -> bool:
        async def main() -> bool:
            troubled, faults = start(), FaultInjector(operation, n, kind, error=error)
            end = await troubled.run(faults)
            if faults.fired:
                assert_end_is_true(end, troubled, faults)
                await assert_resumes(troubled)
            return faults.fired

        return run_simulation(main)

    return inject_in_turn(scene, kind, turns) if turns else inject_everywhere(scene, step=step)


def inject_in_turn(scene: Callable[[int], bool], kind: FaultKind, kinds: Sequence[FaultKind]) -> int:
    """`inject_everywhere` at the operations at which it is the turn of `kind`."""
    if EVERYWHERE:
        return inject_everywhere(scene)
    return inject_everywhere(scene, begin=kinds.index(kind), step=len(kinds))


def assert_end_is_true(end: Summary | BatchclError | None, troubled: FakeWorld, faults: FaultInjector) -> None:
    """Assert that a summary says done only if it is, and an error says refused only if no call was answered."""
    if isinstance(end, Summary):
        troubled.assert_exactly_once(end)
    elif troubled.service.answered:
        assert not isinstance(end, RefusedError), f"{end!r} after {faults.counts}"
    if isinstance(end, BatchclError) and end.summary is not None and end.summary.round:
        told = end.summary
        assert told.planned == told.scored + told.failed + told.skipped, "of the whole run, however the retry ended"


@pytest.mark.parametrize("kind", [*ENDS, FaultKind.CANCEL_BEFORE], ids=lambda kind: kind.value)
def test_the_output_root_fails_at_any_operation(kind):
    count = inject_at_each(OperationKind.STORE, kind, turns=[*ENDS, FaultKind.CANCEL_BEFORE])
    assert count > 5 * IMAGES / SHARD_SIZE


@pytest.mark.parametrize("kind", ENDS, ids=lambda kind: kind.value)
def test_the_output_root_fails_at_any_operation_of_a_slow_run(kind):
    assert inject_at_each(OperationKind.STORE, kind, start=slow_world, turns=ENDS) > FEWER


def test_the_process_is_killed_between_any_two_operations():
    """A kill leaves the files as they are: one run shows all states."""
    moments: list[tuple[dict[str, bytes], set[str]]] = []

    async def watch() -> None:
        faultless = world()

        async def remember() -> None:
            if not moments or moments[-1][0] != faultless.files:
                moments.append((dict(faultless.files), faultless.journalled()))

        await faultless.run(FaultInjector(pause=remember))

    async def resume(files: dict[str, bytes]) -> None:
        killed = world()
        killed.files = files
        await assert_resumes(killed)

    run_simulation(watch)
    assert len({frozenset(journalled) for _, journalled in moments}) > IMAGES / SHARD_SIZE, "a journal grew in between"
    for files, _ in moments:
        run_simulation(resume, files)
    assert len(moments) > 5 * IMAGES / SHARD_SIZE, "its list, its journal, two parts and the marker"


def test_the_process_is_killed_at_any_call():
    end = inject_at_each(OperationKind.CALL, FaultKind.CRASH_AFTER, start=slow_world, step=EVERY)
    assert 17 <= end < 17 + EVERY


@pytest.mark.parametrize("kind", FaultKind, ids=lambda kind: kind.value)
def test_any_call_fails_or_loses_its_answer(kind):
    assert inject_at_each(OperationKind.CALL, kind, turns=list(FaultKind)) >= 12


def test_a_fatal_error_at_any_call_ends_the_run_resumably():
    def error() -> FatalCallError:
        return FatalCallError("denied", code="AccessDeniedException", status=400)

    end = inject_at_each(OperationKind.CALL, FaultKind.ERROR_BEFORE, error, start=slow_world, step=EVERY)
    assert 17 <= end < 17 + EVERY


@pytest.mark.parametrize("kind", REQUESTS, ids=lambda kind: kind.value)
@pytest.mark.parametrize("operation", [OperationKind.PAGE, OperationKind.MODEL], ids=lambda operation: operation.value)
def test_the_list_or_the_model_fails_at_any_request(operation, kind):
    assert inject_at_each(operation, kind) >= 3


# ---- retries

ROUNDS = [False, True]
"""Whether the retry resolves all failures or only some."""


def fewer(*, fails: Callable[[int], bool]) -> FakeWorld:
    def fault(each: ImageRef, _call: int, _now: float) -> CallError | None:
        return refused(each, 1, 0.0) if fails(int(each.key[:6])) else None

    return FakeWorld([image_or_text(n) for n in range(FEWER)], Service(fault=fault), shard_size=10)


@cache
def first_round() -> dict[str, bytes]:
    """The files of a run in which 4, 9 and 19 failed."""

    async def main() -> dict[str, bytes]:
        faultless = fewer(fails=lambda _: True)
        assert (await faultless.run_to_end()).failed == 3
        return faultless.files

    return run_simulation(main)


def retried(files: dict[str, bytes], *, resolved: bool) -> FakeWorld:
    """A world in which all failures are resolved, or all but 9 and 19."""
    again = fewer(fails=lambda n: not resolved and n % 10 == 9)
    again.files = dict(files)
    return again


@cache
def after_round(*, resolved: bool) -> dict[str, dict[str, Any]]:
    files = first_round()

    async def main() -> dict[str, dict[str, Any]]:
        faultless = retried(files, resolved=resolved)
        summary = await faultless.retry_to_end()
        faultless.assert_exactly_once(summary)
        assert summary.failed == (0 if resolved else 2)
        return faultless.table()

    return run_simulation(main)


async def assert_round_resumes(troubled: FakeWorld, *, resolved: bool) -> None:
    """Assert that the next retry completes the round, unless it was already complete."""
    journalled, called = troubled.journalled(1), troubled.service.calls.copy()
    over = f"runs/{RUN}/rounds/001.done" in troubled.files
    summary = await read_summary(troubled.store(), RUN) if over else await troubled.retry_to_end()
    assert summary is not None
    troubled.assert_exactly_once(summary)
    assert troubled.table() == after_round(resolved=resolved)
    assert not journalled & (troubled.service.calls - called).keys()
    assert f"runs/{RUN}/rounds/001.done" in troubled.files
    assert f"runs/{RUN}/rounds/002.json" not in troubled.files


@pytest.mark.parametrize("kind", ENDS, ids=lambda kind: kind.value)
def test_the_output_root_fails_at_any_operation_of_a_retry(kind):
    def scene(n: int) -> bool:
        async def main() -> bool:
            troubled, faults = retried(first_round(), resolved=True), FaultInjector(OperationKind.STORE, n, kind)
            end = await troubled.retry(faults)
            if faults.fired:
                assert_end_is_true(end, troubled, faults)
                await assert_round_resumes(troubled, resolved=True)
            return faults.fired

        return run_simulation(main)

    assert inject_in_turn(scene, kind, ENDS) > (FEWER / 2 if kind.after else FEWER)


@pytest.mark.parametrize("resolved", ROUNDS)
def test_a_retry_is_killed_between_any_two_operations(resolved):
    moments: list[dict[str, bytes]] = []

    async def watch() -> None:
        faultless = retried(first_round(), resolved=resolved)

        async def remember() -> None:
            assert set(faultless.table()) == {each.uri for each in faultless.images}, "never no row of an image"
            if not moments or moments[-1] != faultless.files:
                moments.append(dict(faultless.files))

        await faultless.retry(FaultInjector(pause=remember))

    async def resume(files: dict[str, bytes]) -> None:
        await assert_round_resumes(retried(files, resolved=resolved), resolved=resolved)

    run_simulation(watch)
    for files in moments:
        run_simulation(resume, files)
    assert len(moments) > 10


def test_an_unreachable_store_ends_the_session_resumably():
    async def main() -> None:
        troubled = world()
        end = await troubled.run(FaultInjector(failing=lambda: len(troubled.journalled()) > IMAGES / 3))
        assert isinstance(end, StoppedError), "calls were spent, so the run was not refused"
        assert "503" in str(end)
        await assert_resumes(troubled)

    run_simulation(main)


def test_outcomes_are_journalled_when_publishing_fails():
    class Unpublishable(FaultyStore):
        async def put_new(self, path: str, data: bytes) -> bool:
            if path.startswith("results/"):
                raise OutputError("503 Slow Down")
            return await super().put_new(path, data)

    async def main() -> None:
        troubled = world()
        troubled.service = Service(fault=refused, latency_s=lambda _: 2.0)
        with mock.patch.object(troubled, "store", lambda injector: Unpublishable(troubled.files, injector)):
            end = await troubled.run()
        assert isinstance(end, StoppedError)
        assert "503" in str(end)
        called_for = {uri for uri, answers in troubled.service.answered.items() if answers}
        assert called_for <= troubled.journalled()
        assert any(each.uri in called_for for each in troubled.images[troubled.shard_size :]), "of other shards too"
        await assert_resumes(troubled)

    run_simulation(main)


def missing(each: ImageRef, _call: int, _now: float) -> CallError | None:
    """All images except the first ten."""
    if int(each.key[:6]) < 10:
        return None
    return RejectedError("Unable to get object metadata", code="InvalidS3ObjectException", status=400)


@pytest.mark.parametrize("shard_size", [5, 60])
def test_missing_images_do_not_end_a_run_with_scored_images(shard_size):
    """Whether the first ten are published or only journalled."""

    async def main() -> None:
        images = [image(n) for n in range(60)]
        troubled = FakeWorld(images, Service(fault=missing), shard_size=shard_size, max_in_flight=2)
        denied = FatalCallError("not just now", code="AccessDeniedException")
        assert isinstance(await troubled.run(FaultInjector(OperationKind.CALL, 12, error=lambda: denied)), StoppedError)
        assert bool(troubled.published()) == (shard_size == 5)
        summary = await troubled.run()
        assert isinstance(summary, Summary)
        assert (summary.scored, summary.failed) == (10, 50)
        retried = await troubled.retry()
        assert isinstance(retried, Summary), "nor does a round of them"
        assert (retried.scored, retried.failed) == (10, 50)

    run_simulation(main)


def test_a_resumed_run_without_results_is_judged_by_new_calls():
    async def main() -> None:
        troubled = FakeWorld([image(n) for n in range(100, 200)], Service(fault=missing), max_in_flight=2)
        for session in (1, 2):
            end = await troubled.run()
            assert isinstance(end, RefusedError)
            assert "bucket" in str(end)
            assert sum(troubled.service.calls.values()) < 30 * session

    run_simulation(main)
