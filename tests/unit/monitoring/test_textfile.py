from __future__ import annotations

import math
import os
import threading
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from batchcl.errors import StoppedError
from batchcl.monitoring import Targets
from batchcl.monitoring.metrics import METRICS, Sample
from batchcl.monitoring.report import Report
from batchcl.monitoring.sender import SendError
from batchcl.monitoring.textfile import MetricsFile, render
from unit.monitoring.runs import ROOT, run, summary

SUCCESS = "batchcl_last_success_timestamp_seconds"


def parsed(path: Path) -> dict[str, float]:
    """The series of a file without the label `task`, by Prometheus' own parser."""
    found = {}
    for family in text_string_to_metric_families(path.read_text()):
        for sample in family.samples:
            labels = {name: value for name, value in sample.labels.items() if name != "task"}
            found[sample.name + "".join(f"[{value}]" for value in labels.values())] = sample.value
    return found


def test_the_file_has_the_counters_the_model_and_the_end(tmp_path):
    path = tmp_path / "nightly.prom"
    run(Targets(metrics_file=str(path)))
    found = parsed(path)
    assert found["batchcl_images_total[scored]"] == 90
    assert (found["batchcl_calls_total"], found["batchcl_throttled_calls_total"]) == (110, 10)
    assert (found["batchcl_pace_calls_per_second"], found["batchcl_capacity_calls_per_second"]) == (9.5, 10.25)
    assert (found["batchcl_calls_in_flight"], found["batchcl_model_cost_dollars_total"]) == (7, 1.25)
    assert (found["batchcl_model_state[RUNNING]"], found["batchcl_model_state[STOPPED]"]) == (1, 0)
    assert found["batchcl_call_duration_seconds_bucket[0.05]"] == 1
    assert found["batchcl_call_duration_seconds_bucket[0.5]"] == 3
    assert found["batchcl_call_duration_seconds_bucket[+Inf]"] == found["batchcl_call_duration_seconds_count"] == 4
    assert math.isclose(found["batchcl_call_duration_seconds_sum"], 70.84)
    assert (found["batchcl_run_in_progress"], found["batchcl_last_exit_code"]) == (0, 0)
    assert found["batchcl_model_left_running"] == 0
    assert f"batchcl_run_info[birds@v1][{ROOT}][0.1.0]" in found
    assert found[SUCCESS] > found["batchcl_last_start_timestamp_seconds"]


def test_each_metric_has_its_help_and_type(tmp_path):
    path = tmp_path / "nightly.prom"
    run(Targets(metrics_file=str(path)))
    families = {family.name: family for family in text_string_to_metric_families(path.read_text())}
    written = {name for name in METRICS if name != "batchcl_models_without_lease"}
    assert {name.removesuffix("_total") for name in written} == set(families)
    for name in written:
        family = families[name.removesuffix("_total")]
        assert (family.documentation, family.type) == (METRICS[name].help, METRICS[name].kind)
        assert name.endswith("_total") == (family.type == "counter")
        assert all(sample.labels["task"] == "nightly" for sample in family.samples)
        labels = {label for sample in family.samples for label in sample.labels} - {"task", "le"}
        assert labels == set(METRICS[name].labels)


def test_the_time_of_the_last_success_survives_runs_that_fail(tmp_path):
    path = tmp_path / "nightly.prom"
    targets = Targets(metrics_file=str(path))
    run(targets)
    success = parsed(path)[SUCCESS]
    run(targets, end=StoppedError("the deadline has passed"))
    run(targets, end=summary(tolerated=False))
    assert parsed(path)[SUCCESS] == success
    assert parsed(path)["batchcl_last_exit_code"] == 3


def test_a_killed_run_leaves_the_last_success_and_is_in_progress(tmp_path):
    path = tmp_path / "nightly.prom"
    run(Targets(metrics_file=str(path)))
    success = parsed(path)[SUCCESS]
    MetricsFile(str(path)).send(Report(stage="sample", samples=(Sample("batchcl_run_in_progress", 1),)))
    assert parsed(path)[SUCCESS] == success
    assert parsed(path)["batchcl_run_in_progress"] == 1


def test_a_file_that_is_not_metrics_is_replaced(tmp_path):
    path = tmp_path / "nightly.prom"
    path.write_bytes(b"\xff\xfe" + f'{SUCCESS}{{task="nightly"}} abc\n'.encode())
    run(Targets(metrics_file=str(path)), end=StoppedError("x"))
    assert SUCCESS not in parsed(path)


def test_values_of_labels_are_escaped():
    text = render([Sample("batchcl_run_info", 1, {"model": 'a"b\\c\nd', "root": "é", "version": ""})], task="x")
    (family,) = text_string_to_metric_families(text)
    assert family.samples[0].labels == {"task": "x", "model": 'a"b\\c\nd', "root": "é", "version": ""}


def test_readers_see_complete_files_that_every_user_can_read(tmp_path):
    path = tmp_path / "nightly.prom"
    texts = [render([Sample("batchcl_calls_total", number)] * 2000, task="nightly") for number in (1, 2)]
    writers = [MetricsFile(str(path)) for _ in range(2)]
    over = threading.Event()

    def write(writer: MetricsFile, number: int) -> None:
        while not over.is_set():
            writer.send(Report(stage="sample", samples=(Sample("batchcl_calls_total", number),) * 2000))

    writers[0].send(Report(stage="sample", samples=(Sample("batchcl_calls_total", 1),) * 2000))
    threads = [threading.Thread(target=write, args=(writer, number)) for number, writer in enumerate(writers, 1)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(50):
            assert path.read_text() in texts
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert os.listdir(tmp_path) == ["nightly.prom"]
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_two_jobs_in_one_directory_never_have_the_same_series(tmp_path):
    for name in ("a", "b"):
        run(Targets(metrics_file=str(tmp_path / f"{name}.prom")))
    series = [
        (sample.name, tuple(sorted(sample.labels.items())))
        for name in ("a", "b")
        for family in text_string_to_metric_families((tmp_path / f"{name}.prom").read_text())
        for sample in family.samples
    ]
    assert len(series) == len(set(series))


def test_a_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "nightly.prom"
    report = Report(stage="sample", samples=(Sample("batchcl_calls_total", 1),))
    MetricsFile(str(path)).send(report)
    (tmp_path / f".nightly.prom.{os.getpid()}-{threading.get_ident()}").symlink_to("/dev/full")
    with pytest.raises(SendError, match="No space left on device"):
        MetricsFile(str(path)).send(Report(stage="sample", samples=(Sample("batchcl_calls_total", 2),)))
    assert os.listdir(tmp_path) == ["nightly.prom"]
    assert parsed(path) == {"batchcl_calls_total": 1}


@pytest.mark.parametrize(("make", "reason"), [(False, "No such file or directory"), (True, "Is a directory")])
def test_a_file_that_cannot_be_written_is_one_warning(tmp_path, make, reason):
    path = tmp_path / "gone" / "nightly.prom"
    if make:
        path.mkdir(parents=True)
    observer = run(Targets(metrics_file=str(path)))
    texts = [each.text for each in observer.notices if each.kind == "monitoring-failed"]
    assert texts == [f"the metrics file {path} failed: {reason}; the run is not affected"]
