"""`batchcl demo`: its output, and the accuracy of its model."""

from __future__ import annotations

import json
import shutil

import batchcl


def test_the_demo_scores_unseen_digits_well_and_shows_results(cli, cli_process, demo, tmp_path):
    directory = tmp_path / "demo"
    shutil.copytree(demo.state, directory / "emulator")  # already trained, as in a second `make demo`
    done = cli_process("demo", directory)
    assert done.code == 0, done.err
    for heading in ("Labels", "top_label_accuracy", "most confident label", "A few rows"):
        assert heading in done.out
    commands = [line.removeprefix("batchcl:   ") for line in done.err.splitlines() if "batchcl:   " in line][1:]
    assert [command.split()[1] for command in commands] == ["confidence", "query", "run"]
    assert f"wrote {directory / 'report.html'}, " in done.err
    assert (directory / "report.html").read_text().count("<img src=") == 60
    evaluated = cli("evaluate", directory / "out", "--truth", directory / "truth.manifest", "--json")
    assert evaluated.code == 0, evaluated.err
    assert evaluated.json["summary"]["images"] == 300
    assert evaluated.json["summary"]["missing"] == 0
    assert evaluated.json["summary"]["top_label_accuracy"] > 0.9
    rows = batchcl.open_results(str(directory / "out")).images().collect()
    assert rows["uri"].n_unique() == rows.height == 300


def test_training_images_are_not_scored(demo):
    training = {path.read_bytes() for path in (demo.state / "buckets/digits/train").iterdir()}
    scored = {path.read_bytes() for path in demo.data.images.iterdir()}
    assert len(training) == 1000
    assert len(scored) == 300
    assert not training & scored


def test_emulator_runs_need_no_model_or_credentials(cli_process, demo, tmp_path):
    state = tmp_path / "state"
    shutil.copytree(demo.state, state)
    job = ("run", demo.data.images, "--emulator", "--emulator-state", state, "--out", tmp_path / "out")
    done = cli_process(*job, "--limit", 5, "--json", "--log-format", "json")
    assert done.code == 0, done.err
    events = [json.loads(line) for line in done.err.splitlines()]
    assert all(line.keys() >= {"time", "level", "event", "message"} for line in events), "the emulator's lines too"
    assert done.json["scored"] == 5
    assert done.json["model"] == demo.arn
    assert done.json["cost_usd"] is None
    again = cli_process(
        "retry", tmp_path / "out", done.json["run_id"], "--emulator", "--emulator-state", state, "--json"
    )
    assert (again.code, again.json["scored"]) == (0, 5), again.err
