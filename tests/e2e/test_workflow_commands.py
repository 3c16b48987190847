"""`batchcl project`, `dataset` and `model`: refusals, confirmations, skipped files and interruptions."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import typer.main
from PIL import Image
from typer.core import TyperGroup

from batchcl.aws import models, waiting
from batchcl.cli.app import app
from batchcl.emulator.digits import write_digits
from commands import run_command
from servers import aws_env, client, make_bucket, wait_for
from unit.emulator.harness import Server, running_server


@pytest.fixture(scope="module")
def server(seaweed) -> Iterator[Server]:
    """An emulator that reads from SeaweedFS with the credentials of its environment."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in aws_env().items():
            environment.setenv(name, value)
        with running_server(s3_endpoint_url=seaweed, train_seconds=0) as running:
            yield running


@pytest.fixture(autouse=True)
def aws(server, seaweed, monkeypatch, tmp_path) -> None:
    """The emulator as AWS, short poll intervals, and an empty directory."""
    for name, value in aws_env(server.endpoint, seaweed).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(waiting, "_PAUSES_S", (0.02,))
    monkeypatch.setattr(models, "LONG_PAUSES_S", (0.02,))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def empty(server, seaweed) -> str:
    """A project without datasets, and an existing bucket."""
    server.client().create_project(ProjectName="empty")
    make_bucket(client("s3", seaweed), "cmd-there")
    return "empty"


@pytest.fixture
def project(request) -> str:
    """A new project's name."""
    name = request.node.name.removeprefix("test_").partition("[")[0][:60].replace("_", "-")
    made = run_command(f"project create {name} --json")
    assert made.json["name"] == name, made.err
    return str(name)


def pictures(folder: Path, labels: str = "ab", number: int = 3) -> Path:
    """A folder per label with images of one colour."""
    for shade, label in enumerate(labels):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for n in range(number):
            Image.new("RGB", (64, 64), (shade * 99, n, 0)).save(folder / label / f"{n}.png")
    return folder


def leaves(group: TyperGroup, before: str = "") -> Iterator[tuple[str, Any]]:
    for verb, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from leaves(command, f"{before}{verb} ")
        else:
            yield f"{before}{verb}", command


def test_every_command_has_json_and_examples():
    top = typer.main.get_command(app)
    assert isinstance(top, TyperGroup)
    found = {name: command for name, command in leaves(top) if name.split()[0] in {"project", "dataset", "model"}}
    assert len(found) == 25
    for name, command in found.items():
        flags = {flag for parameter in command.params for flag in parameter.opts}
        assert {"--json", "--profile", "--region"} <= flags, name
        assert f"batchcl {name} " in (command.help or ""), name


def test_a_deletion_needs_a_confirmation(project):
    run_command(f"dataset create {project}/train")
    nobody = run_command(f"project delete {project}")
    assert nobody.code == 2
    assert f"this deletes the project {project} with the train dataset" in nobody.err
    assert "pass --yes" in nobody.err
    no = run_command(f"dataset delete {project}/train", answer="n")
    assert (no.code, "nothing was deleted" in no.err) == (5, True)
    assert run_command(f"dataset show {project}/train").code == 0
    yes = run_command(f"dataset delete {project}/train --json", answer="y")
    assert (yes.code, yes.json["dataset"]) == (0, f"{project}/train")
    assert "with 0 entries. Continue?" in yes.err
    assert run_command(f"dataset show {project}/train").code == 5
    assert run_command(f"project delete {project} --yes").code == 0
    assert run_command(f"project show {project}").code == 5


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ("project show nope", 5, "there is no project nope in this account and region; see `batchcl project list`"),
        ("project create 'a b'", 5, "creating the project a b failed: InvalidParameterException"),
        ("dataset show nope", 2, "write PROJECT/train, PROJECT/test, or an ARN"),
        ("dataset create P/train photos", 2, "photos is local; name the destination of its images in S3"),
        (
            "dataset create P/train nowhere --upload-to s3://cmd-none/x",
            2,
            "reading nowhere failed: no such directory or file",
        ),
        ("dataset create P/train photos --upload-to cmd", 2, "Expected s3://bucket/prefix"),
        ("dataset create P photos --upload-to s3://cmd-none/x", 2, "split the images with --test-share 0.2"),
        ("project create P", 5, "use it or choose another name"),
        ("dataset create P photos --test-share 2 --upload-to s3://cmd-there/x", 2, "--test-share 2 is out of range"),
        ("dataset create P/train photos --upload-to s3://cmd-none/x", 2, "there is no bucket cmd-none"),
        ("dataset create P/train s3://cmd-there/no.manifest", 5, "the bucket policy lets Custom Labels read it"),
        (
            "dataset create P/train s3://b/k --upload-to s3://b",
            2,
            "need local images, but s3://b/k has none",
        ),
        ("dataset entries P/train --manifest --json", 2, "--manifest and --json exclude each other"),
        ("dataset distribute P", 5, "has no training dataset to distribute"),
        ("model train P --output s3://b", 2, "is not a name of a new model; write PROJECT@VERSION"),
        ("model train P@v1 --output b", 2, "write it like s3://bucket/prefix"),
        ("model train P@v1 --output s3://b --test-manifest s3://b/k", 2, "--test-manifest needs --train-manifest"),
        ("model train P@v1 --output s3://b --tag x", 2, "'x' is not a tag; write KEY=VALUE"),
        ("model evaluate P@v1", 5, "has no model v1; see `batchcl model list --project"),
        ("model wait P@v1 --until HAPPY", 2, "expected RUNNING, STOPPED, TRAINING_COMPLETED, COPYING_COMPLETED"),
        ("model copy P@v1 P --output s3://b", 2, "is not a name of a copy; write PROJECT@VERSION"),
        ("project policy put P p nowhere.json", 2, "reading the policy nowhere.json failed"),
    ],
)
def test_refusals_are_one_sentence_with_what_to_do(empty, tmp_path, command, code, says):
    pictures(tmp_path / "photos")
    ended = run_command(re.sub(r"\bP\b", empty, command))
    assert ended.code == code, ended.err
    assert says in ended.err
    assert "Traceback" not in ended.err
    last = ended.sentence.splitlines()[-1]
    assert last.startswith("batchcl: ")


def test_unfit_files_are_refused_before_the_upload_or_skipped(seaweed, project, tmp_path):
    photos = pictures(tmp_path / "photos")
    (photos / "a" / "notes.txt").write_text("x")
    (photos / "b" / "small.png").write_bytes(b"")
    create = f"dataset create {project}/train photos --upload-to s3://cmd-unfit/x --create-bucket"
    refused = run_command(create)
    assert refused.code == 2
    assert "2 files or lines can't be used: photos/a/notes.txt: .txt is not a PNG or JPEG name" in refused.err
    assert "cmd-unfit" not in [each["Name"] for each in client("s3", seaweed).list_buckets()["Buckets"]]
    made = run_command(f"{create} --skip-invalid --json")
    assert made.code == 0, made.err
    assert made.json["uploaded"] == {
        "total": 6,
        "there": 0,
        "sent": 6,
        "sent_bytes": sum(path.stat().st_size for path in photos.glob("*/[0-9].png")),
    }
    assert [each["code"] for each in made.json["skipped"]] == ["UnsupportedExtension", "EmptyFile"]
    assert made.json["manifests"] == ["s3://cmd-unfit/x/train.manifest"]
    assert [each["entries"] for each in made.json["datasets"]] == [6]
    assert "skipped photos/a/notes.txt" in made.err
    again = run_command(f"{create} --skip-invalid")
    assert again.code == 5
    assert f"already has a train dataset; add to it with `batchcl dataset update {project}/train`" in again.err
    assert "uploaded" not in again.err


def test_an_interrupted_upload_is_resumed(project, tmp_path):
    photos = pictures(tmp_path / "photos")
    to = "--upload-to s3://cmd-resume/x --create-bucket"
    run_command(f"dataset create {project}/test photos {to}")
    pictures(tmp_path / "photos", number=5)
    made = run_command(f"dataset create {project}/train {photos} {to}")
    assert "4 images to upload, 6 of 10 are already in S3" in made.err
    assert "4 images uploaded" in made.err


def test_a_dataset_can_be_copied_and_distributed(project, tmp_path):
    pictures(tmp_path / "photos", number=5)
    run_command(f"dataset create {project}/train photos --upload-to s3://cmd-copy/x --create-bucket")
    other = f"{project}-2"
    run_command(f"project create {other}")
    copied = run_command(f"dataset create {other}/train {project}/train --json")
    assert (copied.code, copied.json["datasets"][0]["entries"]) == (0, 10)
    twice = run_command(f"dataset create {other}/train {project}/train")
    assert (twice.code, f"add to it with `batchcl dataset update {other}/train`" in twice.err) == (5, True)
    shared = run_command(f"dataset distribute {other} --json")
    assert shared.code == 0, shared.err
    assert [(each["kind"], each["entries"]) for each in shared.json] == [("train", 8), ("test", 2)]
    again = run_command(f"dataset distribute {other}")
    assert (again.code, "is not empty" in again.err) == (5, True)
    assert "may still be" not in twice.err + again.err, "they were refused"
    manifest = run_command(f"dataset entries {other}/test --manifest").out
    assert len(manifest.splitlines()) == 2
    (tmp_path / "corrected.manifest").write_text(manifest.replace('"class-name":"a"', '"class-name":"c"'))
    changed = run_command(f"dataset update {other}/test corrected.manifest")
    assert changed.code == 0, changed.err
    assert "2 of 2 entries are in" in changed.err
    labels = {each["label"]: each["entries"] for each in run_command(f"dataset labels {other}/test --json").json}
    assert sum(labels.values()) == 2
    assert "a" not in labels


def test_policies_come_from_a_file_or_stdin(project, tmp_path):
    arn = run_command(f"project show {project} --json").json["arn"]
    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": "arn:aws:iam::210987654321:root"},
        "Action": "rekognition:CopyProjectVersion",
        "Resource": f"{arn.rpartition('/')[0]}/version/*/*",
    }
    (tmp_path / "policy.json").write_text(json.dumps({"Version": "2012-10-17", "Statement": [statement]}))
    put = run_command(f"project policy put {project} sharing policy.json --json")
    assert put.code == 0, put.err
    (found,) = run_command(f"project policy list {arn} --json").json
    assert (found["name"], found["revision"]) == ("sharing", put.json["revision"])
    assert json.loads(found["document"])["Statement"] == [statement]
    assert put.json["revision"] in run_command(f"project policy list {project}").out
    assert run_command(f"project policy delete {project} sharing").code == 2
    assert run_command(f"project policy delete {project} sharing --yes --json").json["policy"] == "sharing"
    assert run_command(f"project policy list {project} --json").json == []


def test_boxes_are_kept_and_a_locating_model_is_evaluated(project, tmp_path):
    data = write_digits(tmp_path / "digits", bucket="all", train=50, test=20, seed=5, objects=True)
    parts = (("train", data.train_manifest, data.train), ("test", data.test_manifest, data.test))
    for kind, manifest, shown in parts:
        lines = [orjson.loads(line) for line in manifest.read_bytes().splitlines()]
        local = [
            orjson.dumps(line | {"source-ref": f"{kind}/{picture.path.name}"})
            for line, picture in zip(lines, shown, strict=True)
        ]
        manifest.write_bytes(b"\n".join(local))
        made = run_command(
            f"dataset create {project}/{kind}", manifest, "--upload-to=s3://cmd-boxes/x", "--create-bucket"
        )
        assert made.code == 0, made.err
    boxed = sum(len(picture.labels) for picture in data.test)
    assert sum(each["boxed"] for each in run_command(f"dataset labels {project}/test --json").json) == boxed
    (entry,) = run_command(f"dataset entries {project}/test --containing 00003 --json").json
    assert entry["source-ref"] == "s3://cmd-boxes/x/test/00003.jpg"
    assert [(box["left"], box["top"]) for box in entry["digits"]["annotations"]] == [
        (box.left, box.top) for box in data.test[3].boxes
    ]
    trained = run_command(f"model train {project}@v1 --output s3://cmd-boxes/out --description 'a b'")
    assert trained.code == 0, trained.err
    evaluation = run_command(f"model evaluate {project}@v1 --json --mistakes 1").json
    assert evaluation["confusion"] is None
    assert 0 < evaluation["average_precision"] <= 1
    assert len(evaluation["mistakes"]) == min(1, evaluation["wrong"])
    for each in evaluation["labels"]:
        right, wrong, missed = (each[f"{kind}s"] for kind in ("true_positive", "false_positive", "false_negative"))
        assert each["recall"] == pytest.approx(right / max(1, right + missed))
        assert each["precision"] == pytest.approx(right / max(1, right + wrong))
    table = run_command(f"model evaluate {project}@v1").out
    assert "average_precision" in table
    assert "confident label" not in table
    refused = run_command(f"project delete {project} --yes")
    assert (refused.code, f"still has the models {project}@v1" in refused.err) == (5, True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 4)])
def test_after_a_signal_the_message_states_the_cost(seaweed, tmp_path, monkeypatch, number, code):
    pictures(tmp_path / "photos", number=5)
    with running_server(s3_endpoint_url=seaweed, train_seconds=3600) as slow:
        monkeypatch.setenv("AWS_ENDPOINT_URL_REKOGNITION", slow.endpoint)
        run_command("project create long")
        made = run_command("dataset create long photos --test-share 0.4 --upload-to s3://cmd-long/x --create-bucket")
        assert made.code == 0, made.err

        def interrupt() -> None:
            wait_for(lambda: "long@v1 is TRAINING_IN_PROGRESS" in getattr(sys.stderr, "getvalue", str)())
            os.kill(os.getpid(), number)

        thread = threading.Thread(target=interrupt)
        thread.start()
        ended = run_command("model train long@v1 --output s3://cmd-long/out")
        thread.join()
        assert ended.code == code, ended.err
        last = ended.sentence.splitlines()[-1]
        assert "the training of long@v1 continues in AWS at $1.00 an hour" in last
        assert "`batchcl model wait long@v1 --until TRAINING_COMPLETED`" in last
        late = run_command("model wait long@v1 --until TRAINING_COMPLETED --timeout 0")
        assert (late.code, "was still TRAINING_IN_PROGRESS" in late.err) == (4, True)
        assert "only the waiting has ended" in late.err
        refused = run_command("project delete long --everything --yes")
        assert (refused.code, "long@v1 is TRAINING_IN_PROGRESS and can't be deleted" in refused.err) == (5, True)


def test_a_failed_training_is_reported_with_its_reason(seaweed, project, tmp_path):
    photos = pictures(tmp_path / "photos", number=5)
    run_command(f"dataset create {project} photos --test-share 0.4 --upload-to s3://cmd-fail/x --create-bucket")
    server = client("s3", seaweed)
    for path in photos.glob("*/*"):
        server.delete_object(Bucket="cmd-fail", Key=f"x/{path.relative_to(photos)}")
    failed = run_command(f"model train {project}@v1 --output s3://cmd-fail/out")
    assert failed.code == 5
    last = failed.sentence.splitlines()[-1]
    assert f"{project}@v1 is TRAINING_FAILED" in last
    assert "the errors of each entry are in s3://cmd-fail/out/" in last
    assert "continues in AWS" not in last
    again = run_command(f"model train {project}@v1 --output s3://cmd-fail/out")
    assert (again.code, f"(`batchcl model list --project {project}`), choose another name" in again.err) == (5, True)
    evaluated = run_command(f"model evaluate {project}@v1")
    assert (evaluated.code, "has no evaluation because it is TRAINING_FAILED" in evaluated.err) == (5, True)
    shutil.rmtree(photos)
    assert run_command(f"model delete {project}@v1 --yes --json").json["model"] == f"{project}@v1"


def test_boxes_from_cvat_correct_a_dataset(project, seaweed):
    s3 = client("s3", seaweed)
    make_bucket(s3, "cmd-boxes")
    for name in ("1.png", "2.png"):
        Image.new("RGB", (200, 100)).save(name)
    s3.put_object(Bucket="cmd-boxes", Key="x/1.png", Body=Path("1.png").read_bytes())
    assert run_command(f"dataset create {project}/train").code == 0

    def export(left: int, shape: str = "") -> None:
        box = f'<box label="cat" xtl="{left}" ytl="20" xbr="90.2" ybr="80"/>'
        first, second = (f'<image name="{n}.png" width="200" height="100">{box}' for n in (1, 2))
        Path("cvat.xml").write_text(f"<annotations>{first}</image>{second}{shape}</image></annotations>")

    update = f"dataset update {project}/train --from cvat.xml --upload-to s3://cmd-boxes/x --json"
    export(10)
    planned = run_command(f"{update} --dry-run")
    assert (planned.code, planned.json["new"], "dataset" in planned.json) == (0, 2, False), planned.err
    done = run_command(update)
    assert (done.code, done.json["new"], done.json["entries"]) == (0, 2, 2), done.err
    assert (done.json["uploaded"]["there"], done.json["uploaded"]["sent"]) == (1, 1)
    assert (done.json["dataset"]["labeled"], done.json["dataset"]["errors"]) == (2, 0)
    export(11)
    again = run_command(update)
    assert (again.json["unchanged"], again.json["entries"], again.json["changes"]) == (2, 0, [])
    export(30)
    assert run_command(update).json["changed"] == 2
    entries = run_command(f"dataset entries {project}/train --manifest").out.splitlines()
    assert [json.loads(line)["bounding-box"]["annotations"][0]["left"] for line in entries] == [30, 30]
    export(40, '<polygon label="cat" points="1,2;3,4;5,6"/>')
    refused = run_command(update)
    assert refused.code == 2
    assert "1 files or lines can't be used: cvat.xml, image 1: the shape polygon is not supported" in refused.err
    skipped = run_command(f"{update} --skip-invalid")
    assert (skipped.code, skipped.json["changed"], len(skipped.json["skipped"])) == (0, 1, 1)
