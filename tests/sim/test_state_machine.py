"""Any order of sessions, retries, exports, crashes and races: no step loses, repeats or changes a row.

For a longer search: HYPOTHESIS_STEPS=40 HYPOTHESIS_EXAMPLES=5000 pytest tests/sim/test_state_machine.py
"""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar
from unittest import mock

import anyio
import anyio.lowlevel
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from batchcl.analysis.export import copy_tables
from batchcl.errors import CallError, ImageError
from batchcl.images import ImageRef
from batchcl.runs.lease import RunLeaseHolder
from batchcl.runs.record import read_summary
from batchcl.summary import Summary
from sim.fake_world import EPOCH, RUN, FakeWorld, FaultInjector, FaultKind, FaultyStore, OperationKind, run_simulation
from sim.service import Service, image

T = TypeVar("T")

IMAGES = 15


def drawn_faults(most: int) -> st.SearchStrategy[tuple[OperationKind, int, FaultKind] | None]:
    """No fault, or any kind at one of the first `most` operations."""
    sorts = st.sampled_from([OperationKind.STORE, OperationKind.STORE, OperationKind.CALL, OperationKind.PAGE])
    return st.one_of(st.none(), st.tuples(sorts, st.integers(0, most), st.sampled_from(FaultKind)))


Pause = Callable[[], Awaitable[None]]


def _trouble(
    drawn: tuple[OperationKind, int, FaultKind] | None, *, pause: Pause = anyio.lowlevel.checkpoint
) -> FaultInjector:
    return FaultInjector(pause=pause) if drawn is None else FaultInjector(*drawn, pause=pause)


class Nights(RuleBasedStateMachine):
    """One run in one output root, and everything that can be done with it."""

    def __init__(self) -> None:
        super().__init__()
        images = [
            image(n) if n % 7 else replace(image(n), uri=f"s3://b/{n:06}.txt", key=f"{n:06}.txt") for n in range(IMAGES)
        ]
        self.refused = {4, 5, 9}
        self.world = FakeWorld(
            images, Service(fault=self._fault), shard_size=5, page=4, max_in_flight=3, segment_entries=2
        )
        self.clock_s = 0.0
        self.tables: dict[str, bytes] = {}

    def _fault(self, each: ImageRef, _call: int, _now: float) -> CallError | None:
        n = int(each.key[:6])
        code = "ImageTooLargeException" if n % 2 else "InvalidImageFormatException"
        return ImageError("no", code=code, status=400) if n in self.refused else None

    def _play(self, scene: Callable[[], Awaitable[T]]) -> T:
        async def main() -> T:
            await anyio.sleep(60)  # until the lease of a killed process has expired
            result = await scene()
            self.clock_s = anyio.current_time()
            return result

        return run_simulation(main, start_s=self.clock_s)

    def _summary(self) -> Summary | None:
        async def scene() -> Summary | None:
            return await read_summary(self.world.store(), RUN)

        return self._play(scene)

    def _is_done(self) -> bool:
        """Whether the run can be retried."""
        summary = self._summary()
        return summary is not None and (summary.status == "done" or summary.round > 0)

    @rule(drawn=drawn_faults(60))
    def run(self, drawn: tuple[OperationKind, int, FaultKind] | None) -> None:
        self._play(lambda: self.world.run(_trouble(drawn)))

    @rule(drawn=drawn_faults(60), codes=st.sampled_from([(), ("ImageTooLargeException",)]))
    def retry(self, drawn: tuple[OperationKind, int, FaultKind] | None, codes: tuple[str, ...]) -> None:
        if self._is_done():
            self._play(lambda: self.world.retry(_trouble(drawn), codes=codes))

    @initialize(drawn=drawn_faults(60))
    def begin(self, drawn: tuple[OperationKind, int, FaultKind] | None) -> None:
        """Usually start with a complete run, so that there is something to retry and export."""
        self.run(drawn)

    @rule(n=st.sampled_from([4, 5, 9]))
    @precondition(lambda self: self.refused)
    def mend(self, n: int) -> None:
        """An image that was refused is accepted from now on."""
        self.refused.discard(n)

    @rule(seed=st.integers(0, 1000), again=st.booleans(), drawn=drawn_faults(60))
    def race(self, seed: int, again: bool, drawn: tuple[OperationKind, int, FaultKind] | None) -> None:
        """Two processes at once that both hold the lease, one of them with a fault."""
        rng = random.Random(seed)
        session = self.world.retry if again and self._is_done() else self.world.run

        async def pause() -> None:
            await anyio.sleep(rng.expovariate(20.0))

        async def granted(_self: RunLeaseHolder, **_: object) -> None:
            await anyio.lowlevel.checkpoint()

        async def kept(_self: RunLeaseHolder) -> None:
            await anyio.sleep_forever()

        async def scene() -> None:
            async with anyio.create_task_group() as group:
                group.start_soon(session, FaultInjector(pause=pause))
                await anyio.sleep(rng.uniform(0, 2))
                group.start_soon(session, _trouble(drawn, pause=pause))

        with mock.patch.multiple(RunLeaseHolder, acquire=granted, keep=kept, check=granted):
            self._play(scene)

    @rule(before=st.booleans())
    @precondition(lambda self: self.world.store().list_sync(""))
    def export(self, before: bool) -> None:
        """An export has the rows that a reader sees and does not change the root."""
        files = dict(self.world.files)
        copied: dict[str, bytes] = {}
        day = EPOCH.date() if before else None
        self._play(lambda: copy_tables(self.world.store(), FaultyStore(copied, root="copy:"), before=day))
        assert self.world.files == files
        rows = FakeWorld(self.world.images, self.world.service, files=copied).rows()
        assert sorted(map(repr, rows)) == sorted(map(repr, [] if before else self.world.rows()))

    @invariant()
    def files_of_the_tables_are_never_changed_or_deleted(self) -> None:
        tables = {path: data for path, data in self.world.files.items() if path.startswith(("results/", "failures/"))}
        assert self.tables.items() <= tables.items()
        self.tables = tables

    @invariant()
    def no_row_is_twice_and_none_that_was_published_is_lost(self) -> None:
        assert set(self.world.table()) >= self.world.published()

    def teardown(self) -> None:
        """Without more faults, one session completes the run, another the retry, and each image has one row."""

        async def scene() -> None:
            await self.world.run_to_end()
            await self.world.retry_to_end()  # the first call may resume a retry of some codes only
            summary = await self.world.retry_to_end()
            self.world.assert_exactly_once(summary)
            assert summary.failed == len(self.refused)

        self._play(scene)


TestNights = Nights.TestCase
TestNights.settings = settings(
    max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "10")),
    stateful_step_count=int(os.environ.get("HYPOTHESIS_STEPS", "8")),
    suppress_health_check=list(HealthCheck),
)
