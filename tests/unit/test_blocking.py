"""The blocking forms of the public functions."""

from __future__ import annotations

import inspect
import subprocess
import sys
import threading
from pathlib import Path

import anyio.lowlevel
import pytest

import batchcl
from sim.fake_world import RUN
from sim.test_if_held import Process, night, play

MODEL = "arn:aws:rekognition:eu-west-1:123456789012:project/dogs/version/v1/1700000000000"


@pytest.mark.parametrize(
    "name",
    [
        "run",
        "plan",
        "retry",
        "detect",
        "doctor",
        "running_models",
        "costs",
        "reconcile_costs",
        "show",
        "watch_run",
        "write_report",
    ],
)
def test_blocking_and_asynchronous_arguments_are_equal(name: str) -> None:
    asynchronous, blocking = (inspect.signature(getattr(batchcl, each)) for each in (name, f"{name}_sync"))
    described = [
        [(each.name, each.kind, each.annotation.replace("os.", ""), each.default is each.empty) for each in sides]
        for sides in (asynchronous.parameters.values(), blocking.parameters.values())
    ]
    assert described[0] == described[1]
    assert asynchronous.return_annotation.removeprefix("Async") == blocking.return_annotation


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
        return planned(pictures).planned

    assert anyio.run(main) == 1


def test_a_blocking_call_works_in_any_thread(pictures: Path) -> None:
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(planned(pictures).planned)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [1, 1]


INTERRUPTED = """
import os, signal, sys, threading
from functools import partial
from itertools import pairwise
import anyio
from batchcl.blocking import _wait
from batchcl.errors import InterruptedRunError
from batchcl.stop_signal import StopSignal

signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell inherit that it is ignored

def main_thread_waits():
    frame, names = sys._current_frames()[threading.main_thread().ident], []
    while frame is not None:
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    return ("result", "_wait") in pairwise(names)

async def interrupt():
    while not main_thread_waits():
        await anyio.lowlevel.checkpoint()
    os.kill(os.getpid(), signal.SIGINT)

async def run(stop_signal, interrupts):
    requested = anyio.Event()
    with stop_signal.calling(requested.set), stop_signal.calling_on_hurry(lambda: print("hurried")):
        await interrupt()
        await requested.wait()
        if interrupts == 2:
            await interrupt()
            try:
                await anyio.sleep_forever()
            finally:
                print("cancelled")
    print("model stopped")
    raise stop_signal.error

for interrupts in (1, 2):
    stop_signal = StopSignal()
    try:
        _wait(partial(run, stop_signal, interrupts), stop_signal)
    except (InterruptedRunError, KeyboardInterrupt) as error:
        print(type(error).__name__)
"""
"""Run in a process of its own: interrupts reach the main thread, where a test needn't be."""


def test_an_interrupt_drains_and_a_second_one_cancels() -> None:
    script = [sys.executable, "-c", INTERRUPTED]
    done = subprocess.run(script, capture_output=True, text=True, check=False, timeout=60)
    after_one, after_two = ["model stopped", "InterruptedRunError"], ["hurried", "cancelled", "KeyboardInterrupt"]
    assert (done.stdout.split("\n")[:-1], done.stderr) == ([*after_one, *after_two], "")


def test_watch_run_sync_yields_the_states_of_a_run(tmp_path: Path) -> None:
    world = night()
    process = Process(world)
    play(process)
    for path, data in world.files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    (seen,) = batchcl.watch_run_sync(str(tmp_path))
    assert (seen.run_id, seen.state) == (RUN, "done")
    assert seen.summary == process.end
    with pytest.raises(batchcl.OutputError, match="it does not exist"):
        next(batchcl.watch_run_sync(str(tmp_path / "nope")))
