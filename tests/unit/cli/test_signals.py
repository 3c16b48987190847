"""The error of a run that a second signal cancels."""

from __future__ import annotations

import signal

import anyio
import pytest

from batchcl.cli.signals import run_until_signalled
from batchcl.errors import StoppedError
from batchcl.stop_signal import StopSignal


def cancelled_by_a_second_signal(message: str) -> str:
    async def work(stop_signal: StopSignal) -> None:
        stop_signal.on_abandoned = lambda: message
        signal.raise_signal(signal.SIGTERM)
        with stop_signal.calling(lambda: signal.raise_signal(signal.SIGTERM)):
            await anyio.sleep_forever()

    with pytest.raises(StoppedError) as caught:
        run_until_signalled(work, grace_s=60)
    return str(caught.value)


def test_a_second_signal_does_not_hide_who_stops_the_model():
    assert cancelled_by_a_second_signal("the model may be RUNNING") == "ended by SIGTERM; the model may be RUNNING"
    assert cancelled_by_a_second_signal("") == "ended by SIGTERM"
