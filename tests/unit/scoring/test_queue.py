from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchcl.images import ImageRef
from batchcl.scoring.queue import QueueStatistics, WorkItem, WorkQueue
from virtual import run_virtual


def item(name: str) -> WorkItem:
    return WorkItem(ImageRef(uri=f"s3://b/{name}", bucket="b", key=name), shard=0, position=0)


async def filled(names: str, capacity: int = 100) -> WorkQueue:
    queue = WorkQueue(capacity)
    for name in names:
        assert await queue.put(item(name))
    return queue


async def drained(queue: WorkQueue, settle: Callable[[WorkItem], object] | None = None) -> str:
    """Take all images, settle each (or call `settle`), and return their names in order."""
    names = ""
    while await queue.ready():
        taken = queue.take()
        names += taken.image.key
        if settle is None or not settle(taken):
            queue.settle()
    return names


def test_fresh_images_keep_their_order() -> None:
    async def main() -> str:
        queue = await filled("abc")
        queue.close()
        return await drained(queue)

    assert run_virtual(main) == "abc"


def test_a_requeued_image_goes_first() -> None:
    async def main() -> str:
        queue = await filled("abcd")
        queue.close()
        first, second = queue.take(), queue.take()
        queue.requeue(first)
        queue.requeue(second)
        return await drained(queue)

    assert run_virtual(main) == "abcd"


def test_a_delayed_image_is_taken_at_its_time() -> None:
    async def main() -> tuple[str, float]:
        queue = await filled("ab")
        queue.close()
        queue.requeue_at(queue.take(), due_at=5.0)
        names = await drained(queue)
        return names, anyio.current_time()

    names, now = run_virtual(main)
    assert names == "ba"
    assert now == pytest.approx(5.0, abs=0.001)


def test_delayed_images_are_ordered_by_time_then_arrival() -> None:
    async def main() -> str:
        queue = await filled("abcd")
        queue.close()
        for due_at in (3.0, 1.0, 2.0, 1.0):
            queue.requeue_at(queue.take(), due_at)
        return await drained(queue)

    assert run_virtual(main) == "bdca"


def test_a_due_image_precedes_fresh_and_follows_requeued_ones() -> None:
    async def main() -> str:
        queue = await filled("abcd")
        queue.close()
        late, back = queue.take(), queue.take()
        queue.requeue_at(late, 1.0)
        queue.requeue(back)
        await anyio.sleep(2)
        return await drained(queue)

    assert run_virtual(main) == "bacd"


async def settles(queue: WorkQueue) -> None:
    queue.settle()


async def returns(queue: WorkQueue) -> None:
    queue.requeue(item("b"))


@pytest.mark.parametrize(("act", "more"), [(settles, False), (returns, True)])
def test_the_end_waits_for_outstanding_images(act: Callable[[WorkQueue], Awaitable[None]], *, more: bool) -> None:
    async def main() -> tuple[bool, float]:
        queue = await filled("a")
        queue.take()
        queue.close()

        async def later() -> None:
            await anyio.sleep(7)
            await act(queue)

        async with anyio.create_task_group() as group:
            group.start_soon(later)
            ready = await queue.ready()
        return ready, anyio.current_time()

    ready, now = run_virtual(main)
    assert ready is more
    assert now == pytest.approx(7, abs=0.001)


def test_an_empty_list_ends_at_once_when_it_is_closed() -> None:
    async def main() -> bool:
        queue = WorkQueue(1)
        queue.close()
        return await queue.ready()

    assert not run_virtual(main)


def test_a_consumer_waits_for_the_producer() -> None:
    async def main() -> tuple[str, float]:
        queue = WorkQueue(10)

        async def produce() -> None:
            await anyio.sleep(3)
            await queue.put(item("a"))
            await anyio.sleep(3)
            queue.close()

        async with anyio.create_task_group() as group:
            group.start_soon(produce)
            names = await drained(queue)
        return names, anyio.current_time()

    names, now = run_virtual(main)
    assert names == "a"
    assert now == pytest.approx(6, abs=0.001)


def test_the_producer_waits_for_capacity() -> None:
    async def main() -> list[int]:
        queue = WorkQueue(3)
        waiting = []

        async def produce() -> None:
            for number in range(10):
                assert await queue.put(item(str(number)))
            queue.close()

        async with anyio.create_task_group() as group:
            group.start_soon(produce)
            while await queue.ready():
                await anyio.sleep(1)
                waiting.append(queue.statistics().waiting)
                queue.take()
                queue.settle()
        return waiting

    waiting = run_virtual(main)
    assert len(waiting) == 10
    assert max(waiting) == 3


def test_taking_images_frees_capacity() -> None:
    async def main() -> int:
        queue = await filled("ab", capacity=2)

        async def produce() -> None:
            for name in "cd":
                await queue.put(item(name))

        with anyio.move_on_after(10):
            async with anyio.create_task_group() as group:
                group.start_soon(produce)
                await anyio.sleep(1)
                queue.take()
                await anyio.sleep(1)
                queue.take()
        return queue.statistics().waiting

    assert run_virtual(main) == 2


def test_requeued_images_need_no_capacity() -> None:
    async def main() -> QueueStatistics:
        queue = await filled("a", capacity=1)
        taken = queue.take()
        await queue.put(item("b"))
        queue.requeue(taken)
        return queue.statistics()

    assert run_virtual(main) == QueueStatistics(waiting=2, delayed=0, outstanding=0)


def test_after_stop_nothing_is_put_or_taken() -> None:
    async def main() -> tuple[bool, bool, bool]:
        queue = await filled("ab")
        queue.requeue_at(queue.take(), 1.0)
        queue.stop()
        return await queue.ready(), await queue.put(item("c")), queue.stopped

    assert run_virtual(main) == (False, False, True)


def test_stop_wakes_the_producer_and_the_consumer() -> None:
    async def main() -> list[bool]:
        full, empty = await filled("a", capacity=1), WorkQueue(1)
        answers = []

        async def produce() -> None:
            answers.append(await full.put(item("b")))

        async def consume() -> None:
            answers.append(await empty.ready())

        async with anyio.create_task_group() as group:
            group.start_soon(produce)
            group.start_soon(consume)
            await anyio.sleep(1)
            full.stop()
            empty.stop()
        return answers

    assert run_virtual(main) == [False, False]


def test_statistics_count_images_by_state() -> None:
    async def main() -> QueueStatistics:
        queue = await filled("abcde")
        for _ in range(4):
            first = queue.take()
        queue.requeue(first)
        queue.requeue_at(item("b"), 9.0)
        return queue.statistics()

    assert run_virtual(main) == QueueStatistics(waiting=2, delayed=1, outstanding=2)


@settings(max_examples=50)
@given(st.lists(st.sampled_from(["settle", "back", "later"]), max_size=60), st.integers(1, 5), st.integers(0, 30))
def test_each_image_is_settled_exactly_once(fates: list[str], capacity: int, images: int) -> None:
    async def main() -> list[str]:
        queue = WorkQueue(capacity)
        settled: list[str] = []
        left = list(fates)

        async def produce() -> None:
            for number in range(images):
                await queue.put(item(str(number)))
            queue.close()

        async with anyio.create_task_group() as group:
            group.start_soon(produce)
            while await queue.ready():
                taken = queue.take()
                fate = left.pop() if left else "settle"
                if fate == "back":
                    queue.requeue(taken)
                elif fate == "later":
                    queue.requeue_at(taken, anyio.current_time() + 3)
                else:
                    settled.append(taken.image.key)
                    queue.settle()
        return settled

    assert sorted(run_virtual(main), key=int) == [str(number) for number in range(images)]
