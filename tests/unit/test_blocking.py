"""The blocking forms of the public functions."""

from __future__ import annotations

import inspect
import os
import signal
import sys
import threading
from pathlib import Path

import anyio
import pytest

import batchcl
from batchcl.blocking import _wait
from batchcl.errors import InterruptedRunError
from batchcl.stop_signal import StopSignal

MODEL = "arn:aws:rekognition:eu-west-1:123456789012:project/dogs/version/v1/1700000000000"


@pytest.mark.parametrize("name", ["run", "plan", "retry", "detect", "doctor"])
def test_blocking_and_asynchronous_arguments_are_equal(name: str) -> None:
    asynchronous, blocking = (inspect.signature(getattr(batchcl, each)) for each in (name, f"{name}_sync"))
    described = [
        [(each.name, each.kind, each.annotation.replace("os.", ""), each.default is each.empty) for each in sides]
        for sides in (asynchronous.parameters.values(), blocking.parameters.values())
    ]
    assert described[0] == described[1]
    assert asynchronous.return_annotation == blocking.return_annotation


def planned(root: Path) -> batchcl.Plan:
    job = batchcl.Job(sources=(str(root),), model=MODEL, out=str(root / "out"))
    return batchcl.plan_sync(job)


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"\xff\xd8\xff")
    return folder


def test_a_blocking_call_works_beside_a_running_loop(pictures: Path) -> None:
    async def main() -> int:
        return planned(pictures).images

    assert anyio.run(main) == 1


def test_a_blocking_call_works_in_any_thread(pictures: Path) -> None:
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(planned(pictures).images)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [1, 1]


async def interrupt() -> None:
    """SIGINT, once the main thread waits for a result."""
    while sys._current_frames()[threading.main_thread().ident or 0].f_code.co_name != "wait":
        await anyio.sleep(0)
    os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupt_requests_the_end_of_the_run() -> None:
    stop_signal = StopSignal()
    drained: list[str] = []

    async def work() -> None:
        with stop_signal.interruptible():
            await interrupt()
            await anyio.sleep_forever()

    async def run() -> None:
        try:
            await work()
        finally:
            drained.append("model stopped")

    with pytest.raises(InterruptedRunError):
        _wait(run, stop_signal)
    assert drained == ["model stopped"]


def test_a_second_interrupt_cancels_and_hurries() -> None:
    stop_signal = StopSignal()
    ended: list[str] = []

    async def run() -> None:
        with stop_signal.calling_in_hurry(lambda: ended.append("hurried")):
            requested = anyio.Event()
            with stop_signal.calling(requested.set):
                await interrupt()
                await requested.wait()
            await interrupt()
            try:
                await anyio.sleep_forever()
            finally:
                ended.append("cancelled")

    with pytest.raises(KeyboardInterrupt):
        _wait(run, stop_signal)
    assert sorted(ended) == ["cancelled", "hurried"]
