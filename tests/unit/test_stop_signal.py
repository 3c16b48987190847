from __future__ import annotations

from threading import Thread

import anyio
import pytest

from batchcl.errors import ExitCode, InterruptedRunError, StoppedError
from batchcl.stop_signal import StopSignal
from virtual import run_virtual


def test_without_a_request_there_is_no_error() -> None:
    assert StopSignal().error is None


@pytest.mark.parametrize(
    ("by_user", "kind", "exit_code"),
    [
        (False, StoppedError, ExitCode.STOPPED),
        (True, InterruptedRunError, ExitCode.INTERRUPTED),
    ],
)
def test_the_request_decides_the_error_and_its_exit_code(
    *, by_user: bool, kind: type[StoppedError], exit_code: ExitCode
) -> None:
    stop_signal = StopSignal()
    stop_signal.request("SIGTERM came", by_user=by_user)
    assert type(stop_signal.error) is kind
    assert stop_signal.error.exit_code is exit_code
    assert str(stop_signal.error) == "SIGTERM came"


def test_only_the_first_request_counts() -> None:
    stop_signal, told = StopSignal(), []
    with stop_signal.calling(lambda: told.append("now")):
        stop_signal.request("first")
        stop_signal.request("second", by_user=True)
    assert told == ["now"]
    assert str(stop_signal.error) == "first"
    assert not isinstance(stop_signal.error, InterruptedRunError)


def test_a_late_callback_is_called_at_once() -> None:
    stop_signal, told = StopSignal(), []
    stop_signal.request("stop")
    with stop_signal.calling(lambda: told.append("now")):
        assert told == ["now"]


def test_after_its_block_a_callback_is_not_called() -> None:
    stop_signal, told = StopSignal(), []
    with (
        stop_signal.calling(lambda: told.append("request")),
        stop_signal.calling_on_hurry(lambda: told.append("hurry")),
    ):
        pass
    stop_signal.request("stop")
    stop_signal.hurry()
    assert told == []


def test_hurry_and_request_have_separate_callbacks() -> None:
    stop_signal, told = StopSignal(), []
    with (
        stop_signal.calling(lambda: told.append("request")),
        stop_signal.calling_on_hurry(lambda: told.append("hurry")),
    ):
        stop_signal.request("stop")
        assert told == ["request"]
        stop_signal.hurry()
        assert told == ["request", "hurry"]
    with stop_signal.calling_on_hurry(lambda: told.append("late")):
        assert told[-1] == "late"


def test_a_callback_may_end_its_block() -> None:
    stop_signal, told = StopSignal(), []
    inner = stop_signal.calling(lambda: told.append("inner"))

    def leave() -> None:
        told.append("outer")
        inner.__exit__(None, None, None)

    with stop_signal.calling(leave):
        inner.__enter__()
        stop_signal.request("stop")
    assert told[0] == "outer"


def test_an_interruptible_block_raises_the_error_of_the_request() -> None:
    stop_signal = StopSignal()

    async def main() -> float:
        async def later() -> None:
            await anyio.sleep(3)
            stop_signal.request("deadline")

        async with anyio.create_task_group() as group:
            group.start_soon(later)
            with pytest.raises(StoppedError, match="deadline"), stop_signal.interruptible():
                await anyio.sleep(100)
        return anyio.current_time()

    assert run_virtual(main) == pytest.approx(3, abs=0.001)


def test_an_interruptible_block_after_the_request_ends_at_once() -> None:
    stop_signal = StopSignal()
    stop_signal.request("stop", by_user=True)

    async def main() -> None:
        with stop_signal.interruptible():
            await anyio.sleep(100)

    with pytest.raises(InterruptedRunError):
        run_virtual(main, max_s=10)


def test_a_block_that_ended_before_the_request_continues() -> None:
    stop_signal = StopSignal()

    async def main() -> str:
        with stop_signal.interruptible():
            await anyio.sleep(1)
        stop_signal.request("stop")
        await anyio.sleep(1)
        return "done"

    assert run_virtual(main) == "done"


def test_an_error_in_the_block_is_raised() -> None:
    async def main() -> None:
        with StopSignal().interruptible():
            await anyio.sleep(1)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run_virtual(main)


def test_a_request_from_another_thread_reaches_the_run() -> None:
    stop_signal = StopSignal()

    async def main() -> None:
        thread = Thread(target=stop_signal.request, args=("enough",), kwargs={"limit_s": 10.0})
        try:
            with stop_signal.interruptible():
                thread.start()
                await anyio.sleep_forever()
        finally:
            thread.join()
            ends_at.append(stop_signal.ends_at(1.0) - anyio.current_time())

    ends_at: list[float] = []
    with pytest.raises(StoppedError, match="enough"):
        anyio.run(main)
    assert 0 < ends_at[0] <= 10.0


def test_a_thread_may_ask_after_the_run_has_ended() -> None:
    stop_signal = StopSignal()

    async def main() -> None:
        with stop_signal.calling(lambda: None):
            pass

    anyio.run(main)
    thread = Thread(target=stop_signal.request, args=("late",))
    thread.start()
    thread.join()
    assert str(stop_signal.error) == "late"
