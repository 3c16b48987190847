"""Bad input: one sentence that says what to do, the right exit code, no traceback, and no call."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest

from batchcl.errors import ExitCode
from servers import aws_env, copied
from unit.emulator.harness import running_server, serving_here

UNKNOWN = "arn:aws:rekognition:us-east-1:123456789012:project/digits/version/other/1700000000000"


@pytest.fixture
def refused(cli, service, tmp_path):
    """Run, and check what all refusals have in common."""

    def check(*args: object, code, says, env=None):
        done = cli("run", *args, "--out", tmp_path / "out", env=aws_env(service) if env is None else env)
        assert done.code == code, (done.code, done.err)
        assert says in done.err
        assert "Traceback" not in done.err
        assert done.sentence.count("batchcl: ") == 1
        assert done.out == ""
        assert not list((tmp_path / "out").rglob("*.json")), "a refused run leaves no record"

    return check


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("run --nope", "no such option: --nope"),
        ("labels", "missing argument 'ROOT'; see batchcl labels --help"),
        ("run x --source-kind foo", "invalid value for '--source-kind': 'foo' is not one of 'prefix', "),
        ("run x --model m --out o --min-confidence abc", "--min-confidence 'abc': expected a number"),
        ("detect x --output xml", "; see batchcl detect --help"),
        ("model nope", "no such command 'nope'; see batchcl model --help"),
    ],
)
def test_a_bad_command_line_is_one_sentence(cli, words, says):
    done = cli(*words.split())
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("batchcl: ")
    assert done.err.count("\n") == 1
    assert says in done.err


@pytest.mark.parametrize(
    "out", ["s3:/b/p", "arn:aws:s3:::b/p", "file:/x", "C:\\x", "s3://b//p", "s3://b/../p", "s3://b b/p"]
)
def test_every_command_refuses_a_malformed_output_root(cli, out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = ("run", "x", "--emulator", "--out", out)
    for arguments in (run, ("plan", *run[1:]), ("status", out), ("labels", out), ("retry", out, "night")):
        done = cli(*arguments)
        assert (done.code, done.out) == (2, "")
        assert done.sentence.count("\n") == 1
        assert "the output root" in done.err
        assert not list(tmp_path.iterdir())


def test_a_group_without_a_command_shows_its_help(cli):
    done = cli("model")
    assert done.code == 2
    assert "batchcl: " not in done.err
    assert "Usage: batchcl model" in done.err
    assert "\x1b" not in done.err


def test_an_unknown_model(refused, demo):
    refused(demo.data.images, "--model", UNKNOWN, code=5, says="batchcl model list")


def test_a_malformed_arn(refused, demo):
    refused(demo.data.images, "--model", "arn:aws:x", code=2, says="such as arn:aws:rekognition")


def test_a_malformed_model_name(refused, demo):
    refused(demo.data.images, "--model", "digits@", code=2, says="write PROJECT@VERSION, PROJECT or an ARN")


def test_an_unknown_project_name(refused, demo):
    refused(demo.data.images, "--model", "nothing", code=5, says="there is no project nothing")


def test_no_model(refused, demo):
    refused(demo.data.images, code=2, says="--model is missing: name a trained model")


def test_a_confidence_over_100(refused, demo):
    refused(
        demo.data.images,
        "--model",
        demo.arn,
        "--min-confidence",
        101,
        code=2,
        says="--min-confidence '101': ",
    )


def test_an_empty_directory(refused, demo, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "--model", demo.arn, code=2, says="there is no image to score in")


def test_filters_that_exclude_every_image(refused, demo):
    refused(demo.data.images, "--model", demo.arn, "--include", "*.tiff", code=2, says="by --include")


def test_a_missing_directory(refused, demo, tmp_path):
    refused(tmp_path / "nowhere", "--model", demo.arn, code=2, says="check the path")


def test_bad_manifest_lines_are_reported_and_can_be_skipped(refused, cli, demo, service, tmp_path):
    manifest = demo.data.truth.with_name("bad.manifest")
    lines = demo.data.truth.read_text().splitlines()
    manifest.write_text("\n".join([lines[0], "{oops", lines[1], '{"no": "source"}', lines[2]]))
    refused(manifest, "--model", demo.arn, code=2, says="bad.manifest line 2")
    done = cli(
        "run",
        manifest,
        *("--model", demo.arn, "--out", tmp_path / "out2", "--skip-bad-lines", "--json"),
        env=aws_env(service),
    )
    assert done.code == 0, done.err
    assert done.json | {"planned": 3, "scored": 3, "bad_lines": 2} == done.json
    assert "line 2" in done.err
    assert "line 4" in done.err


def test_manifest_paths_outside_its_directory_are_refused(refused, demo, tmp_path):
    for ref in ("/etc/passwd", "file:///etc/passwd", "../secret.png"):
        (tmp_path / "m.manifest").write_text(json.dumps({"source-ref": ref}))
        refused(tmp_path / "m.manifest", "--model", demo.arn, code=2, says="m.manifest line 1")


def test_no_credentials(refused, demo, service):
    refused(
        demo.data.images,
        *("--model", demo.arn),
        code=5,
        says="no AWS credentials found",
        env={"AWS_ENDPOINT_URL_REKOGNITION": service, "AWS_REGION": "us-east-1"},
    )


def test_unrecognized_credentials(refused, demo, service):
    env = aws_env(service) | {"AWS_ACCESS_KEY_ID": "AKIAUNKNOWN", "AWS_SECRET_ACCESS_KEY": "hush-hush"}
    refused(demo.data.images, "--model", demo.arn, code=5, says="UnrecognizedClientException", env=env)


def test_an_unknown_profile(refused, demo):
    refused(demo.data.images, "--model", demo.arn, "--profile", "nobody", code=5, says="check --profile")


def test_an_unreachable_service(refused, demo):
    refused(demo.data.images, "--model", demo.arn, code=5, says="check the region", env=aws_env("http://127.0.0.1:1"))


def test_an_output_root_that_is_a_file_or_inside_one(cli, demo, service, tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "out", "ftp://x/y"):
        done = cli("run", demo.data.images, "--model", demo.arn, "--out", out, env=aws_env(service))
        assert done.code == (2 if out == "ftp://x/y" else 5), done.err
        assert str(out) in done.err
        assert "Traceback" not in done.err


def test_an_output_root_that_cannot_be_written(cli, demo, service):
    done = cli("run", demo.data.images, "--model", demo.arn, "--out", "/proc/self/out", env=aws_env(service))
    assert done.code == 5
    assert "/proc/self/out" in done.err


def test_bad_job_files_are_refused(refused, demo, tmp_path):
    config = tmp_path / "job.toml"
    refused("--config", config, code=2, says="there is no job file")
    config.write_text("out = ")
    refused("--config", config, code=2, says="not valid TOML")
    config.write_text('sources = ["x"]\nmodle = "x"\n')
    refused("--config", config, "--model", demo.arn, code=2, says="job.toml is unknown; did you mean model?")


def test_no_model_is_started_without_start_model(cli, demo, tmp_path):
    with serving_here(demo.state) as endpoint:
        done = cli("run", demo.data.images, "--model", demo.arn, "--out", tmp_path, env=aws_env(endpoint))
    assert done.code == 5
    assert "not RUNNING; start it with --start-model" in done.err


def test_a_port_in_use(cli):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = cli("emulator", "--port", port)
    assert (done.code, done.out) == (5, "")
    assert f"listening on 127.0.0.1:{port} failed: the port is in use" in done.err
    assert done.sentence.count("\n") == 1


def test_secrets_appear_in_no_output_and_no_file(cli, demo, service, tmp_path):
    keys = {"AWS_ACCESS_KEY_ID": "AKIAKNOWN", "AWS_SECRET_ACCESS_KEY": "hush-hush-9"}
    job = ("run", demo.data.images, "--model", demo.arn, "--out", tmp_path / "out", "--limit", 2, "--start-model", 1)
    refused = cli(*job, env=aws_env(service) | keys)
    with (
        copied(demo.state) as state,
        running_server(
            {"BATCHCL_EMULATOR_CREDENTIALS": "AKIAKNOWN:hush-hush-9"}, state=state, start_seconds=0
        ) as server,
    ):
        done = cli(*job, "--log-format", "json", "--json", env=aws_env(server.endpoint) | keys)
    assert (refused.code, done.code, done.json["scored"]) == (5, 0, 2), done.err
    assert "hush-hush-9" not in refused.out + refused.err + done.out + done.err
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if b"hush-hush-9" in path.read_bytes()]


def test_exit_codes_have_the_documented_values():
    assert {code.name: code.value for code in ExitCode} == {
        "DONE": 0,
        "BUG": 1,
        "USAGE": 2,
        "FAILURES": 3,
        "STOPPED": 4,
        "REFUSED": 5,
        "INTERRUPTED": 130,
    }


def test_a_closed_stdout_gives_no_traceback(clean_env):
    process = subprocess.Popen(
        [sys.executable, "-m", "batchcl", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_env
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate()
    assert b"Traceback" not in err
