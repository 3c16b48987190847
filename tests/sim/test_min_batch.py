"""`--min-images` and `--max-wait`: nights with few new images are postponed, and nothing is lost."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import anyio
import pytest

from batchcl.errors import SourceError
from batchcl.images import ImageRef
from batchcl.runs.record import read_record
from batchcl.runs.status import list_runs
from batchcl.summary import Summary
from observers import RecordingObserver
from sim.fake_world import FakeWorld, FaultInjector, FaultKind, OperationKind, run_simulation, utcnow
from sim.service import Service, image
from sim.test_left_model import WorldWithModel

NIGHT_S = 86_400


def world(**more: Any) -> WorldWithModel:
    settings: dict[str, Any] = {"incremental": True, "min_images": 20, "max_wait": "3d"} | more
    return WorldWithModel([], Service(latency_s=lambda _: 1.0), page=6, **settings)


def versioned(n: int) -> ImageRef:
    return replace(image(n), etag=f'"{n}"')


def images(count: int) -> list[ImageRef]:
    return [versioned(n) for n in range(count)]


async def night(world: FakeWorld, number: int, count: int) -> Summary:
    """Night `number`, at which there are `count` images."""
    await anyio.sleep(number * NIGHT_S - anyio.current_time())
    end = await replace(world, run_id=f"night-{number}", images=images(count)).run()
    assert isinstance(end, Summary), repr(end)
    return end


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        pytest.param([3, 5, 30], ["done 3", "postponed 2", "done 27"], id="enough-images"),
        pytest.param([3, 5, 7, 9], ["done 3", "postponed 2", "postponed 4", "done 6"], id="the-longest-wait"),
        pytest.param([30, 30, 30, 30, 30], ["done 30", *["postponed 0"] * 2, *["done 0"] * 2], id="nothing-new"),
        pytest.param([30, 50], ["done 30", "done 20"], id="exactly-the-minimum"),
    ],
)
def test_a_night_is_postponed_until_it_reaches_a_bound(counts, expected):
    async def main() -> list[str]:
        nights = world()
        ends = [await night(nights, number, count) for number, count in enumerate(counts, 1)]
        runs = await list_runs(nights.store(), now=utcnow())
        assert [run.state for run in runs] == ["done" for end in ends if end.status == "done"]
        starts = sum(call == "start cats@v1" for call in nights.models.calls)
        assert starts == sum(end.scored > 0 for end in ends), "no model is started for a postponed night"
        assert set(nights.service.calls.values()) == {1}
        return [f"{end.status} {end.scored if end.status == 'done' else end.planned}" for end in ends]

    assert run_simulation(main) == expected


def test_a_postponed_night_leaves_its_run_id_free_and_says_why():
    async def main() -> None:
        nights = world(observer=RecordingObserver())
        await night(nights, 1, 30)
        before = dict(nights.files)
        end = await night(nights, 2, 34)
        assert nights.files == before
        assert (end.planned, end.already_scored, end.tolerated, end.calls) == (4, 30, True, 0)
        why = "4 images need a call, and --min-images is 20; the last run that scored began 1 d 00:00 ago, and"
        assert end.reason is not None
        assert end.reason.startswith(why)
        assert nights.observer.kinds.count("postponed") == 1  # type: ignore[attr-defined]
        later = await replace(nights, run_id="night-2", images=images(60)).run()
        assert isinstance(later, Summary)
        assert (later.status, later.scored) == ("done", 30)

    run_simulation(main)


@pytest.mark.parametrize("operation", [OperationKind.CALL, OperationKind.PAGE])
def test_a_resumed_run_is_never_postponed(operation):
    async def main() -> None:
        nights = world()
        await night(nights, 1, 30)
        killed = replace(nights, run_id="killed", images=images(100))
        assert await killed.run(FaultInjector(operation, 20, FaultKind.CRASH_BEFORE)) is None
        end = await replace(killed, min_images=1000).run_to_end()
        assert (end.status, end.planned, end.scored) == ("done", 70, 70)

    run_simulation(main)


def test_a_run_that_died_counts_as_the_last_one_that_scored():
    async def main() -> None:
        nights = world(max_in_flight=2)
        dead = replace(nights, run_id="dead", images=images(30))
        assert await dead.run(FaultInjector(OperationKind.CALL, 25, FaultKind.CRASH_BEFORE)) is None
        assert (await night(nights, 1, 10)).status == "postponed"
        assert (await night(nights, 2, 40)).status == "done", "the rest of its images are still to be scored"
        assert set(nights.table()) == {each.uri for each in images(40)}

    run_simulation(main)


def test_runs_of_other_models_do_not_count():
    async def main() -> None:
        nights = world()
        await night(nights, 1, 30)
        record = await read_record(nights.store(), "night-1")
        assert record is not None
        for path, data in nights.files.items():
            if path.startswith("runs/night-1/") and path.endswith(".json"):
                nights.files[path] = data.replace(b"version/v1/", b"version/v0/")
        assert (await night(nights, 2, 33)).status == "done"

    run_simulation(main)


def test_an_empty_list_is_an_error_as_without_a_minimum():
    async def main() -> None:
        nights = world()
        await night(nights, 1, 30)
        assert isinstance(await replace(nights, run_id="empty", images=[]).run(), SourceError)

    run_simulation(main)


@pytest.mark.parametrize("count", [70, 40])
def test_images_are_listed_once(count):
    async def pages(**more: Any) -> int:
        nights, faults = world(), FaultInjector()
        await night(nights, 1, 20)
        end = await replace(nights, run_id="night-2", images=images(count), **more).run(faults)
        assert isinstance(end, Summary)
        assert (end.status, end.scored) == ("done", count - 20)
        return faults.counts[OperationKind.PAGE]

    assert run_simulation(pages) == run_simulation(partial(pages, min_images=None, max_wait=None))
