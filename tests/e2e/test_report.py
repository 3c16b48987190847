"""`batchcl report`, and `run --report`, which never changes a run's result."""

from __future__ import annotations

import json
import re
import shlex
from html import unescape

import pytest

from servers import aws_env
from unit.emulator.harness import serving_here


@pytest.fixture
def env(service):
    return aws_env(service)


def test_a_run_writes_its_report_after_stopping_the_model(cli, demo, tmp_path):
    report = tmp_path / "report.html"
    with serving_here(demo.state) as endpoint:
        job = ("run", demo.data.images, "--model", demo.arn, "--out", tmp_path / "out", "--limit", 6, "--run-id", "r")
        done = cli(*job, "--start-model", 1, "--report", report, env=aws_env(endpoint))
    assert done.code == 0, done.err
    assert done.err.index("billing has ended") < done.err.index(f"wrote the report {report}")
    html = report.read_text()
    assert '<th scope="row" class="id"><bdi>r</bdi></th>' in html
    assert f"batchcl labels {tmp_path / 'out'} --run r<" in html
    assert html.count("<img src=") == 6
    assert re.search(r"<dt>Model cost</dt><dd>\$0\.0", html)


def test_a_report_that_fails_is_logged_and_changes_nothing_else(cli, demo, env, tmp_path):
    report = tmp_path / f"{'x' * 300}.html"
    job = ("run", demo.data.images, "--model", demo.arn, "--out", tmp_path / "out", "--limit", 3)
    done = cli(*job, "--report", report, "--json", "--log-format", "json", env=env)
    assert done.code == 0, done.err
    assert done.json | {"status": "done", "scored": 3} == done.json
    events = [json.loads(line) for line in done.err.splitlines()]
    failed = next(each for each in events if each["event"] == "report-failed")
    assert failed["level"] == "warning"
    assert (
        f"writing the report {report} failed: File name too long; name another file. Write it with `batchcl report "
        in failed["message"]
    )


def test_a_run_that_stops_early_has_a_report_and_its_exit_code(cli, demo, env, tmp_path):
    report = tmp_path / "report.html"
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        (images / f"{number}.jpg").write_bytes(b"\xff\xd8\xff broken")
    job = ("run", images, "--model", demo.arn, "--out", tmp_path / "out", "--max-failures", 0)
    without = cli(*job, "--run-id", "a", env=env)
    done = cli(*job, "--run-id", "b", "--report", report, env=env)
    assert done.code == without.code == 3
    assert "InvalidImageFormatException" in report.read_text()
    assert "What helps:" in report.read_text()


@pytest.mark.parametrize(
    ("path", "reason"),
    [("none/report.html", "does not exist"), ("", "is a directory"), ("out/report.html", "is in the output root")],
)
def test_a_report_without_a_directory_is_refused_before_a_call(cli, demo, env, tmp_path, path, reason):
    out = tmp_path / "out"
    done = cli("run", demo.data.images, "--model", demo.arn, "--out", out, "--report", tmp_path / path, env=env)
    assert done.code == 2
    assert f"--report {tmp_path / path}" in done.err
    assert reason in done.err
    assert not out.exists()


def test_two_nights_are_compared_and_evaluated(cli, demo, env, tmp_path):
    out, report = tmp_path / "out", tmp_path / "report.html"
    for run_id, more in (("first", ()), ("second", ("--min-confidence", 60))):
        job = ("run", demo.data.images, "--model", demo.arn, "--out", out, "--limit", 120, "--run-id", run_id)
        assert cli(*job, *more, env=env).code == 0
    done = cli("report", out, "--out", report, "--truth", demo.data.truth, "--gallery", 12, "--json", env=env)
    assert done.code == 0, done.err
    assert done.json == {
        "path": str(report),
        "size_bytes": report.stat().st_size,
        "pictures": 12,
        "unreadable": 0,
        "omitted": 0,
    }
    html = report.read_text()
    assert "Not compared: <bdi>the sides were scored with the model&#39;s own thresholds" in html
    evaluated = cli("evaluate", out, "--truth", demo.data.truth, "--json", env=env).json
    assert f"<dt>Top label correct</dt><dd>{evaluated['summary']['top_label_accuracy']:.3f}</dd>" in html
    assert html.count("Precision and recall of") == 10
    options = ("--baseline", "first", "--min-confidence", 60, "--gallery", 12)
    assert cli("report", out, "--out", report, *options, env=env).code == 0
    html = report.read_text()
    compared = cli("compare", out, "first", "second", "--min-confidence", 60, "--json", env=env).json
    assert "Run second compared with run first: 120 images in both, 0 only now, 0 only in the baseline." in html
    changed = compared["images"]["top_changed"]
    assert f"The most confident label differs in {changed} images." in html
    assert ("Changed since the baseline" in re.findall("<h3>([^<]*)</h3>", html)) == (changed > 0)
    commands = [shlex.split(unescape(each)) for each in re.findall('<p class="command"><code>([^<]*)</code>', html)]
    names = [words[1] for words in commands]
    assert names == ["compare", "runs", "labels", "confidence", "report"]
    show = shlex.split(unescape(re.findall("<summary>Full size</summary><code>([^<]*)</code>", html)[0]))
    for words in (*commands[:-1], show):
        done = cli(*words[1:], env=env, cwd=tmp_path)
        assert (done.code, bool(done.out)) == (0, True), (words, done.err)
    refused = cli("report", out, "--out", report, "--baseline", "never", env=env)
    assert refused.code == 2
    assert "never" in refused.err
