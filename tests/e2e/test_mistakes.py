"""Plain mistakes on the command line: one sentence that says what to do, and the right exit code."""

from __future__ import annotations

import shlex
import shutil
from unittest.mock import patch

import pytest
from PIL import Image

from batchcl.cli import query
from batchcl.errors import OutputError, UsageError
from commands import run_command
from servers import aws_env

FAULTS = {"missing": None, "no TOML": "faults = [", "unknown kind": "[[faults]]\nkind = 'sorcery'"}


@pytest.fixture
def told(cli, tmp_path):
    """Run a command in an empty folder, check what every refusal has in common, and return its sentence."""

    def run(*args: object, code: int, env=None) -> str:
        done = cli(*args, env=env, cwd=tmp_path)
        assert done.code == code, (done.code, done.err)
        sentence: str = done.sentence.splitlines()[-1]
        assert sentence.startswith("batchcl: ")
        assert done.sentence.count("batchcl: ") == 1, done.err
        assert "Traceback" not in done.err
        assert done.out == ""
        return sentence

    return run


@pytest.mark.parametrize("text", FAULTS.values(), ids=FAULTS)
def test_a_faults_file_that_cannot_be_used(told, tmp_path, text):
    if text is not None:
        (tmp_path / "faults.toml").write_text(text)
    assert "faults.toml" in told("emulator", "--faults", "faults.toml", code=2)


@pytest.mark.parametrize(
    ("command", "folder"),
    [
        ("plan mix --emulator --emulator-state", "afile"),
        ("plan mix --emulator --emulator-state", "/proc/nope"),
        ("run mix --out out --emulator --emulator-state", "afile"),
        ("run mix --out out --emulator --emulator-state", "/proc/nope"),
        ("demo --pictures", "afile"),
    ],
)
def test_a_folder_that_cannot_be_made(told, tmp_path, command, folder):
    (tmp_path / "afile").touch()
    (tmp_path / "mix").mkdir()
    sentence = told(*command.split(), folder, code=5)
    assert folder in sentence
    assert "Choose a folder that can be written" in sentence


def test_a_refusal_of_the_runs_own_emulator_is_told_once_and_names_no_flag_of_the_emulator(told, demo, tmp_path):
    taken = tmp_path / "taken"
    taken.touch()
    mine = told("run", "mix", "--model", demo.arn, "--out", "out", "--emulator", "--emulator-state", taken, code=5)
    assert "starting the emulator failed: keeping the emulator's state in" in mine
    assert "--state" not in mine


def test_missing_credentials_advise_nothing_that_the_command_lacks(told):
    assert "--emulator" not in told("project", "list", code=5)


def test_errors_in_a_group_are_told_unless_one_of_them_is_a_bug():
    first, second = UsageError("the first"), OutputError("the second")
    group = ExceptionGroup("outer", [ExceptionGroup("inner", [first]), second])
    with patch.object(query, "check_format", side_effect=group):
        refused = run_command("query out 'SELECT 1'")
    assert (refused.code, refused.err) == (2, "batchcl: the first\n")
    with patch.object(query, "check_format", side_effect=ExceptionGroup("outer", [first, KeyError("oops")])):
        bug = run_command("query out 'SELECT 1'")
    assert bug.code == 1
    assert "KeyError" in bug.err


@pytest.mark.parametrize(
    "command", ["runs pictures", "status pictures", "status pictures night", "export parquet pictures --out copy"]
)
def test_a_folder_that_is_no_output_root(told, tmp_path, command):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "1.jpg").touch()
    assert "pictures is not an output root" in told(*command.split(), code=5)
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["1.jpg"], "nothing is left there"


def test_a_run_that_is_not_there(told, tmp_path):
    (tmp_path / "out" / "runs").mkdir(parents=True)
    assert told("status", "out", code=2) == "batchcl: there is no run in out yet"
    assert "there is no run 'night' in out; `batchcl runs out` lists them" in told("status", "out", "night", code=2)


@pytest.mark.parametrize("run_id", ["", "x" * 256, "a\nb", "a\udcffb"])
@pytest.mark.parametrize("command", ["status", "retry", "labels", "failures", "confidence"])
def test_a_run_id_that_cannot_be_one(told, tmp_path, command, run_id):
    (tmp_path / "out" / "runs").mkdir(parents=True)
    flag = ["--run"] if command not in {"status", "retry"} else []
    sentence = told(command, "out", *flag, run_id, code=2)
    assert f"{run_id!r} is not a valid run id; use 1 to 255 bytes of printable text" in sentence


@pytest.mark.parametrize("command", ["status", "retry"])
def test_commands_in_messages_can_be_pasted(told, tmp_path, command):
    (tmp_path / "my $out" / "runs").mkdir(parents=True)
    assert told(command, "my $out", "no such", code=2) == (
        "batchcl: there is no run 'no such' in my $out; `batchcl runs 'my $out'` lists them"
    )


def test_commands_after_a_run_can_be_pasted(cli, demo, service, tmp_path):
    (pictures := tmp_path / "pictures").mkdir()
    shutil.copy(demo.data.images / "00001.jpg", pictures)
    Image.new("RGB", (80, 80)).save(pictures / "bad.jpg", "GIF")
    job = ["--model", demo.arn, "--out", "it's out", "--run-id", "night of 1; ls"]
    done = cli("run", "pictures", *job, env=aws_env(service), cwd=tmp_path)
    assert done.code == 3, done.err
    root = shlex.quote(str(tmp_path / "it's out"))
    assert f"`batchcl failures {root}`" in done.err
    assert f"`batchcl retry {root} 'night of 1; ls' --fit` to retry 1 image" in done.err
    assert f"`batchcl labels {root}`" in done.err


@pytest.mark.parametrize(
    "command",
    [
        "run s3://b/x --model p@v --out out",
        "plan s3://b/x --model p@v --out out",
        "doctor s3://b/x --model p@v --out out",
        "detect s3://b/x.jpg --model p@v",
        "model list",
        *("status s3://b/out", "runs s3://b/out", "labels s3://b/out", "retry s3://b/out r"),
        "export parquet s3://b/out --out copy",
    ],
)
def test_a_malformed_endpoint_ends_every_command_by_its_name(told, command):
    env = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "us-east-1"}
    sentence = told(*command.split(), env=env | {"AWS_ENDPOINT_URL": "127.0.0.1:8333"}, code=5)
    assert "AWS_ENDPOINT_URL is not a URL: Invalid endpoint: 127.0.0.1:8333; write it like https://host" in sentence


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--out out --sse AES256", "--sse AES256 needs an output root in S3, but --out is a directory"),
        ("--out s3://b/out --sse-kms-key-id k", "--sse-kms-key-id needs --sse aws:kms or --sse aws:kms:dsse"),
        ("--out s3://b/out --sse AES256 --sse-kms-key-id k", "--sse-kms-key-id needs --sse aws:kms"),
    ],
)
def test_an_encryption_that_cannot_be(told, flags, said):
    assert said in told("run", "s3://b/x", "--model", "p@v", *flags.split(), code=2)
