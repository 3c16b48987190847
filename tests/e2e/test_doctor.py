"""`batchcl doctor`: one line per check, with what to do about warnings and failures."""

from __future__ import annotations

import datetime as dt
import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from PIL import Image

from batchcl.aws import waiting
from batchcl.diagnosis import doctor, target_of
from commands import run_command
from servers import CommandResult, aws_env, client, copied, make_bucket, model_status, start_model
from unit.emulator.harness import Server, running_server

OTHER = "210987654321"
NOBODY = "http://127.0.0.1:1"
BEFORE = ["credentials", "account", "region", "control"]
NAMES = [*BEFORE, "model", "quotas", "clock", "sources", "images", "call", "output"]


@pytest.fixture(scope="module")
def server(seaweed, demo) -> Iterator[Server]:
    """An emulator with the demo's model, which is stopped, and credentials of a second account."""
    others = {"BATCHCL_EMULATOR_CREDENTIALS": f"AKIAOTHER:secret:{OTHER}"}
    with pytest.MonkeyPatch.context() as environment, copied(demo.state) as state:
        for name, value in aws_env().items():
            environment.setenv(name, value)
        with running_server(others, s3_endpoint_url=seaweed, state=state, start_seconds=0, stop_seconds=0) as running:
            yield running


@pytest.fixture(scope="module")
def pictures(seaweed, demo) -> str:
    """A prefix with five images."""
    s3 = client("s3", seaweed)
    make_bucket(s3, "doctor")
    for path in sorted(demo.data.images.iterdir())[:5]:
        s3.put_object(Bucket="doctor", Key=f"in/{path.name}", Body=path.read_bytes())
    return "s3://doctor/in/"


@pytest.fixture(autouse=True)
def aws(server, seaweed, monkeypatch, tmp_path) -> None:
    """Environment variables for all services, and an empty working directory."""
    for service in ("REKOGNITION", "STS", "SERVICE_QUOTAS"):
        monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", server.endpoint)
    for name, value in aws_env(server.endpoint, seaweed).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(waiting, "_PAUSES_S", (0.02,))
    monkeypatch.chdir(tmp_path)


def found(said: CommandResult) -> dict[str, tuple[str, str]]:
    """Status and text of each line, by check."""
    rows = (line.split(maxsplit=2) for line in said.out.splitlines())
    return {check: (status, text) for status, check, text in rows}


@pytest.fixture
def running(server, demo) -> Iterator[None]:
    """The model is RUNNING during the test."""
    start_model(server.endpoint, demo.arn)
    yield
    server.client().stop_project_version(ProjectVersionArn=demo.arn)


@pytest.mark.usefixtures("running")
def test_every_check_is_ok_with_a_running_model(seaweed, demo, pictures, tmp_path):
    said = run_command("doctor", pictures, "--model", demo.arn, "--out", "s3://doctor/out")
    assert said.code == 0, said.out
    lines = found(said)
    assert list(lines) == NAMES
    assert {status for status, _ in lines.values()} == {"ok"}, said.out
    assert "123456789012, as arn:aws:iam::123456789012:user/emulator" in lines["account"][1]
    assert "digits@v1 is RUNNING with 5 inference units, F1 0." in lines["model"][1]
    assert "5 sampled images readable" in lines["images"][1]
    assert lines["call"][1].startswith("DetectCustomLabels returned ")
    assert not client("s3", seaweed).list_objects_v2(Bucket="doctor", Prefix="out").get("Contents"), "nothing is left"
    in_json = run_command("doctor", pictures, "--model", demo.arn, "--out", "s3://doctor/out", "--json")
    assert (in_json.code, in_json.json["status"]) == (0, "ok")
    assert [each["check"] for each in in_json.json["findings"]] == NAMES
    with tarfile.open(tmp_path / "pictures.tar", "w") as archive:
        archive.add(min(demo.data.images.iterdir()), "a.png")
    packed = found(run_command("doctor", "pictures.tar", "--model", demo.arn))
    assert packed["images"] == ("ok", "1 sampled image readable and within the service's limits")
    assert packed["call"][1].startswith("DetectCustomLabels returned ")
    assert "pictures.tar#a.png" in packed["call"][1]


def test_without_arguments_only_the_account_is_checked():
    lines = found(run_command("doctor"))
    assert list(lines) == [*BEFORE, "quotas", "clock"]
    assert {status for status, _ in lines.values()} == {"ok"}
    assert lines["region"][1] == "us-east-1, from the AWS settings"
    assert lines["control"][1].endswith("1 model in us-east-1")
    assert lines["quotas"][1] == "1e+06 calls a second, 5 units a model, 2 running models"


def test_checking_a_job_file_starts_and_leaves_nothing(server, demo, pictures, tmp_path):
    config = tmp_path / "job.toml"
    config.write_text(f'sources = ["{pictures}"]\nmodel = "{demo.arn}"\nout = "new/out"\nstart_model = "1:2"\n')
    said = run_command("doctor", "--config", config)
    assert said.code == 0, said.out
    lines = found(said)
    assert "a run starts it with 1:2 inference units" in lines["model"][1]
    assert "permissions to tag, start and stop the model can't be tested" in lines["control"][1]
    assert lines["call"][1].startswith("no call was made: the model is ")
    assert lines["output"][0] == "ok"
    assert not (tmp_path / "new").exists()
    assert model_status(server.endpoint, demo.arn) != "RUNNING"


def test_each_refusal_of_a_run_is_a_failure_with_what_to_do(demo, pictures, tmp_path):
    (tmp_path / "file").touch()
    said = run_command("doctor", f"{pictures}none/", "--model", demo.arn, "--out", tmp_path / "file")
    assert said.code == 5
    lines = found(said)
    assert lines["model"][0] == "fail"
    assert "start it with --start-model" in lines["model"][1]
    assert lines["sources"][0] == "fail"
    assert "check the prefix" in lines["sources"][1]
    assert lines["output"][0] == "fail"
    assert "it is a file; pass a directory" in lines["output"][1]
    assert "images" not in lines
    assert "call" not in found(run_command("doctor", pictures, "--model", demo.arn)), "the model's state says it"
    run = run_command("run", pictures, "--model", demo.arn, "--out", tmp_path / "out")
    assert run.code == 5, "the run agrees"


def test_without_credentials_no_other_check_runs(monkeypatch, demo):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "/nowhere")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    said = run_command("doctor", "--model", demo.arn)
    assert said.code == 5
    assert list(found(said)) == ["credentials"]
    assert "set AWS_PROFILE" in said.out


def test_credentials_of_another_account_fail(monkeypatch, demo):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAOTHER")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    said = run_command("doctor", "--model", demo.arn)
    assert said.code == 5
    lines = found(said)
    assert lines["account"][0] == "fail"
    assert f"of account {OTHER}, and the model is in account 123456789012; assume a role there" in lines["account"][1]
    assert "secret" not in said.out


def test_unknown_credentials_fail_where_they_are_needed(monkeypatch, demo):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAUNKNOWN")
    said = run_command("doctor", "--model", demo.arn)
    assert said.code == 5
    lines = found(said)
    assert lines["account"][0] == "warn", "an emulator's keys mean nothing to STS"
    assert "InvalidClientTokenId" in lines["account"][1]
    assert lines["control"][0] == "fail"
    assert "check the profile and its keys" in lines["control"][1]


def test_checks_that_are_not_possible_are_warnings(monkeypatch, demo, pictures):
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", NOBODY)
    monkeypatch.setenv("AWS_ENDPOINT_URL_SERVICE_QUOTAS", NOBODY)
    said = run_command("doctor", pictures, "--model", demo.arn, "--start-model", "1")
    assert said.code == 0
    lines = found(said)
    assert {check for check, (status, _) in lines.items() if status == "warn"} == {"account", "quotas"}
    assert "AWS's defaults are 50 calls a second, 5 units a model, 2 running models" in lines["quotas"][1]


def test_quotas_below_the_jobs_units_or_rate(server, demo):
    with server.limited_to(units=2):
        lines = found(run_command("doctor", "--model", demo.arn, "--start-model", "1:3"))
    assert lines["quotas"][0] == "fail"
    assert "--start-model 1:3 needs 3 units; use fewer, or request an increase in Service Quotas" in lines["quotas"][1]
    lines = found(run_command("doctor", "--model", demo.arn, "--start-model", "1:2", "--max-tps", "2000000"))
    assert lines["quotas"][0] == "warn"
    assert "--max-tps 2e+06 is more than the quota" in lines["quotas"][1]


def test_running_models_that_exhaust_the_quota(server, demo, tmp_path):
    for label, colour in (("red", "#f00"), ("blue", "#00f")):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for n in range(4):
            Image.new("RGB", (64, 64 + n), colour).save(tmp_path / "photos" / label / f"{n}.png")
    run_command("project create second")
    run_command("dataset create second photos --test-share 0.5 --upload-to s3://doctor-second --create-bucket")
    trained = run_command("model train second@v1 --output s3://doctor-second/out --json")
    assert trained.code == 0, trained.err
    start_model(server.endpoint, demo.arn, 1)
    with server.limited_to(running=1):
        said = run_command("doctor", "--model", trained.json["arn"], "--start-model", "1")
    server.client().stop_project_version(ProjectVersionArn=demo.arn)
    run_command("project delete second --everything --yes")
    assert said.code == 5
    status, text = found(said)["quotas"]
    assert status == "fail"
    assert "(digits@v1); stop one with `batchcl model stop digits@v1`" in text


@pytest.mark.parametrize(("seconds", "status"), [(30, "ok"), (-100, "warn"), (400, "fail")])
def test_an_offset_of_the_clock_is_reported(seconds, status):
    found = anyio.run(
        lambda: doctor(target_of(), utcnow=lambda: dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds))
    )
    (finding,) = (each for each in found.findings if each.check == "clock")
    assert finding.status == status
    if status != "ok":
        assert f" s {'ahead of' if seconds > 0 else 'behind'} the service's" in finding.text
        assert "set the clock" in finding.text


def test_bad_lines_and_unusable_images_are_warnings(demo, tmp_path):
    good = min(demo.data.images.iterdir())
    shutil.copy(good, tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    (tmp_path / "list.manifest").write_text(
        '{"source-ref": "good.png"}\n{"source-ref": "bad.png"}\n{"source-ref": "gone.png"}\n{"oops": 1}\n'
    )
    refused = found(run_command("doctor", tmp_path / "list.manifest", "--model", demo.arn, "--start-model", "1"))
    assert refused["sources"][0] == "fail"
    assert "list.manifest line 4" in refused["sources"][1]
    said = run_command(
        "doctor", tmp_path / "list.manifest", "--model", demo.arn, "--start-model", "1", "--skip-bad-lines"
    )
    assert said.code == 0, said.out
    lines = found(said)
    assert lines["sources"][0] == "warn"
    assert "1 bad line; first " in lines["sources"][1]
    assert lines["images"][0] == "warn"
    assert "2 of 3 sampled images will fail: " in lines["images"][1]
    assert "1 InvalidImageFormatException" in lines["images"][1]
    assert "1 NoSuchFile" in lines["images"][1]


def test_a_run_starts_no_model_for_missing_images(demo, pictures, tmp_path):
    (tmp_path / "keys.txt").write_text("".join(f"{pictures}gone-{n}.png\n" for n in range(25)))
    arguments = ("keys.txt", "--model", demo.arn, "--out", "out", "--start-model", "1")
    run = run_command("run", *arguments)
    assert run.code == 5, run.err
    assert "sampled images do not exist, such as s3://doctor/in/gone-0.png; check the keys" in run.err
    assert "STARTING" not in run.err
    assert not list(tmp_path.rglob("run.json")), "a refused run leaves no record"
    assert found(run_command("doctor", *arguments))["images"][0] == "fail"


def test_the_documentation_lists_every_check():
    rows = re.findall(r"^\| `(\w+)` \|", (Path(__file__).parents[2] / "docs" / "doctor.md").read_text(), re.MULTILINE)
    assert rows == [*NAMES, "monitoring"]


def test_an_invalid_argument_is_a_usage_error():
    said = run_command("doctor --model digits@")
    assert said.code == 2
    assert "write PROJECT@VERSION, PROJECT or an ARN" in said.err
