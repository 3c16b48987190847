"""batchcl from Python, against the emulator."""

from __future__ import annotations

import threading

import pytest

import batchcl
from servers import aws_env


@pytest.fixture
def in_env(service, monkeypatch, clean_env):
    for name, value in (clean_env | aws_env(service)).items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("in_env")
def test_two_runs_in_one_process(demo, tmp_path):
    summaries: dict[str, batchcl.Summary] = {}

    def score(name: str) -> None:
        job = batchcl.Job(sources=(str(demo.data.images),), model=demo.arn, out=str(tmp_path / name), limit=30)
        summaries[name] = batchcl.run_sync(job)

    threads = [threading.Thread(target=score, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(name, summaries[name].scored) for name in ("a", "b")] == [("a", 30), ("b", 30)]
    for name in ("a", "b"):
        assert batchcl.open_results(str(tmp_path / name)).images().collect().height == 30


@pytest.mark.usefixtures("in_env")
def test_a_stop_signal_from_another_thread_ends_a_run(demo, tmp_path):
    stop_signal = batchcl.StopSignal()

    class Impatient:
        def started(self, progress: batchcl.Progress) -> None:
            threading.Thread(target=stop_signal.request, args=("enough for today",)).start()

        def notice(self, notice: batchcl.Notice) -> None:
            pass

    job = batchcl.Job(sources=(str(demo.data.images),), model=demo.arn, out=str(tmp_path / "out"), max_tps=5)
    with pytest.raises(batchcl.StoppedError, match="enough for today") as stopped:
        batchcl.run_sync(job, observer=Impatient(), stop_signal=stop_signal)
    assert stopped.value.exit_code == batchcl.ExitCode.STOPPED
