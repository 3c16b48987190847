"""If all images are missing the run is refused, unless none of them needs a call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from batchcl.errors import RefusedError
from batchcl.images import ImageRef
from batchcl.summary import Summary
from sim.fake_world import FakeWorld, run_simulation
from sim.service import Service, image


async def gone(images: Sequence[ImageRef], *, is_all: bool) -> None:
    if is_all:
        raise RefusedError(f"all {len(images)} images are not there")


def world(count: int) -> FakeWorld:
    images = [replace(image(n), etag=f"e{n}") for n in range(count)]
    return FakeWorld(images=images, service=Service(), incremental=True)


def test_a_short_list_of_missing_images_is_refused_before_a_call() -> None:
    async def main() -> None:
        asked = world(6)
        asked.check_readable = gone
        assert isinstance(await asked.run(), RefusedError)
        assert asked.service.calls == {}

    run_simulation(main)


def test_missing_images_that_are_already_scored_do_not_refuse() -> None:
    async def main() -> None:
        asked = world(6)
        assert isinstance(await asked.run(), Summary)
        calls = asked.service.calls.total()
        asked.run_id, asked.check_readable = "next", gone
        end = await asked.run()
        assert isinstance(end, Summary), end
        assert (end.planned, asked.service.calls.total()) == (0, calls)

    run_simulation(main)


def test_only_a_sample_of_a_long_list_is_read() -> None:
    async def main() -> None:
        asked = world(60)
        asked.check_readable = gone
        assert isinstance(await asked.run(), Summary)

    run_simulation(main)
