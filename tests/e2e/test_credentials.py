"""Credentials that fail before or during a run: one sentence, the right exit code, and no lost results."""

from __future__ import annotations

import json
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pytest

from servers import (
    KEY,
    REGION,
    SECRET,
    client,
    copied,
    free_ports,
    make_bucket,
    model_status,
    running_seaweed,
    start_model,
    wait_for,
)
from unit.emulator.harness import running_server, serving_here

CONFIG = f"""
[profile sentence]
region = {REGION}
credential_process = /bin/echo Please log in at https://corp/login with {SECRET}key
[profile missing]
region = {REGION}
credential_process = /opt/corp/bin/get-aws-creds --json
[profile sso]
region = {REGION}
sso_session = corp
sso_account_id = 123456789012
sso_role_name = Dev
[sso-session corp]
sso_region = {REGION}
sso_start_url = https://corp.awsapps.com/start
sso_registration_scopes = sso:account:access
"""

COMMANDS = [
    "run s3://pics/ --model {model} --out {out}",
    "run {keys} --model {model} --out s3://out/x --log-format json",
    "plan s3://pics/ --model {model} --out {out}",
    "doctor s3://pics/ --model {model} --out s3://out/x",
    "detect s3://pics/a.png --model {model}",
    "model list",
    "model start {model}",
    "model reap",
    "project list",
    "dataset show digits/train",
    "retry s3://out/x r",
    "status s3://out/x",
    "labels s3://out/x",
    "query s3://out/x SELECT",
    "export parquet s3://out/x --out {out}",
]
REPORTED = {
    "sentence": "its output is not JSON",
    "missing": "No such file or directory: /opt/corp/bin/get-aws-creds",
    "sso": "Token for corp does not exist",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_reports_bad_credentials_in_one_sentence(cli, demo, tmp_path, command):
    (tmp_path / "config").write_text(CONFIG)
    (tmp_path / "keys.txt").write_text("s3://pics/a.png\n")
    values = {"model": demo.arn, "out": tmp_path / "out", "keys": tmp_path / "keys.txt"}
    for profile, reported in REPORTED.items():
        env = {"AWS_CONFIG_FILE": str(tmp_path / "config"), "AWS_PROFILE": profile}
        done = cli(*command.format(**values).split(), env=env)
        output = done.out if command.startswith("doctor") else done.sentence
        assert (done.code, output.count("\n")) == (5, 1), (done.code, done.out, done.err)
        assert f"of profile {profile} with" in output
        assert reported in output
        assert f"{SECRET}key" not in output


@pytest.mark.parametrize("profile", ["sso", "sentence"])
def test_botocore_logs_nothing_of_its_own(cli_process, demo, tmp_path, profile):
    (tmp_path / "config").write_text(CONFIG)
    env = {"AWS_CONFIG_FILE": str(tmp_path / "config"), "AWS_PROFILE": profile}
    done = cli_process("run", "s3://pics/", "--model", demo.arn, "--out", tmp_path, "--log-format", "json", env=env)
    assert (done.code, done.sentence.count("\n")) == (5, 1), done.err


# --- during a run ---------------------------------------------------------------------------------------------------


def write_keys(path: Path, key: str) -> None:
    path.write_text(f"[default]\nregion = {REGION}\naws_access_key_id = {key}\naws_secret_access_key = {key}-secret\n")


def test_rotated_keys_are_used_by_calls_and_storage(demo, running, tmp_path):
    """The old keys become invalid before the file has the new ones, as in a rotation in the wrong order."""
    config, root = tmp_path / "config", "s3://out/x"
    job = (demo.data.images, "--model", demo.arn, "--out", root, "--run-id", "r", "--shard-size", 4, "--limit", 24)
    with copied(demo.state) as state, running_seaweed(tmp_path) as s3, ExitStack() as stack:
        make_bucket(client("s3", s3.endpoint), "out")
        emulated = {"state": state, "port": free_ports(1)[0], "tps_per_unit": 100, "start_seconds": 0}
        with running_server({"BATCHCL_EMULATOR_CREDENTIALS": "OLD:OLD-secret"}, **emulated) as rekognition:
            start_model(rekognition.endpoint, demo.arn)
            inject(rekognition.endpoint, kind="latency", milliseconds=1)
            env = {
                "AWS_CONFIG_FILE": str(config),
                "AWS_ENDPOINT_URL_S3": s3.endpoint,
                "AWS_ENDPOINT_URL_REKOGNITION": rekognition.endpoint,
            }
            write_keys(config, "OLD")
            s3.accept("OLD", "OLD-secret")
            process = stack.enter_context(running(*job, "--max-tps", 4, env=env))
            lines = iter(process.stderr.readline, b"")
            wait_for(lambda: calls(rekognition.endpoint) > 3)
        s3.accept("NEW", "NEW-secret")
        stack.enter_context(running_server({"BATCHCL_EMULATOR_CREDENTIALS": "NEW:NEW-secret"}, **emulated))
        start_model(rekognition.endpoint, demo.arn)
        assert any(b"calls paused: rekognition refuses the AWS credentials: Unrecognized" in line for line in lines)
        write_keys(config, "NEW")
        err = process.communicate(timeout=60)[1].decode()
        assert process.returncode == 0, err
        assert "24 planned = 24 scored + 0 failed" in err


PROCESS = """
if [ -e {folder}/broken ]; then echo Please log in at https://corp/login with {secret}; else
echo '{{"Version": 1, "AccessKeyId": "{key}", "SecretAccessKey": "{secret}"}}'; fi
"""


def test_a_run_survives_a_short_credential_process_failure(demo, running, tmp_path):
    script = tmp_path / "keys.sh"
    script.write_text(PROCESS.format(folder=tmp_path, key=KEY, secret=SECRET))
    (tmp_path / "config").write_text(f"[default]\nregion = {REGION}\ncredential_process = /bin/sh {script}\n")
    job = (demo.data.images, "--model", demo.arn, "--out", tmp_path / "out", "--run-id", "r", "--limit", 24)
    with serving_here(demo.state, start_seconds=0, tps_per_unit=100) as endpoint:
        env = {"AWS_CONFIG_FILE": str(tmp_path / "config"), "AWS_ENDPOINT_URL": endpoint}
        inject(endpoint, kind="latency", milliseconds=1)
        with running(*job, "--start-model", 1, "--max-tps", 6, env=env) as process:
            lines = iter(process.stderr.readline, b"")
            wait_for(lambda: calls(endpoint) > 3)
            (tmp_path / "broken").touch()
            inject(endpoint, kind="expired-credentials", times=1)
            paused = next(line for line in lines if b"calls paused" in line).decode()
            assert "of profile default with credential_process failed: its output is not JSON" in paused
            assert SECRET not in paused
            assert any(b"calls paused" in line for line in lines), "and again"
            (tmp_path / "broken").unlink()
            err = process.communicate(timeout=60)[1].decode()
        assert process.returncode == 0, err
        assert "24 planned = 24 scored + 0 failed" in err
        assert model_status(endpoint, demo.arn) == "STOPPED"


def inject(endpoint: str, **fault: object) -> None:
    rule = {"operation": "DetectCustomLabels", **fault}
    body = json.dumps({"faults": [rule]}).encode()
    request = urllib.request.Request(f"{endpoint}/_emulator/faults", data=body, method="PUT")
    urllib.request.urlopen(request, timeout=10).close()


def calls(endpoint: str) -> int:
    """Model calls since the last `inject`."""
    with urllib.request.urlopen(f"{endpoint}/_emulator/faults", timeout=10) as response:
        return int(json.load(response)["faults"][0]["met"])
