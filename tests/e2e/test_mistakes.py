"""Plain mistakes on the command line: one sentence that says what to do, and the right exit code."""

from __future__ import annotations

from unittest.mock import patch

import pytest

from batchcl.cli import query
from batchcl.errors import OutputError, UsageError
from typed import typed

FAULTS = {"missing": None, "no TOML": "faults = [", "unknown kind": "[[faults]]\nkind = 'sorcery'"}


@pytest.fixture
def told(cli, tmp_path):
    """Run a command in an empty folder, check what every refusal has in common, and return its sentence."""

    def run(*args: object, code: int, env=None) -> str:
        done = cli(*args, env=env, cwd=tmp_path)
        assert done.code == code, (done.code, done.err)
        sentence: str = done.err.splitlines()[-1]
        assert sentence.startswith("batchcl: ")
        assert done.err.count("batchcl: ") == 1, done.err
        assert "Traceback" not in done.err
        assert done.out == ""
        return sentence

    return run


@pytest.mark.parametrize("text", FAULTS.values(), ids=FAULTS)
def test_a_faults_file_that_cannot_be_used(told, tmp_path, text):
    if text is not None:
        (tmp_path / "faults.toml").write_text(text)
    assert "faults.toml" in told("emulator", "--faults", "faults.toml", code=2)


@pytest.mark.parametrize("folder", ["afile", "/proc/nope"])
@pytest.mark.parametrize(
    "command",
    ["plan mix --emulator --emulator-state", "run mix --out out --emulator --emulator-state", "demo --pictures"],
)
def test_a_folder_that_cannot_be_made(told, tmp_path, command, folder):
    (tmp_path / "afile").touch()
    (tmp_path / "mix").mkdir()
    sentence = told(*command.split(), folder, code=5)
    assert folder in sentence
    assert "name a writable one" in sentence


def test_a_refusal_of_the_runs_own_emulator_is_told_once_and_names_no_flag_of_the_emulator(told, demo, tmp_path):
    taken = tmp_path / "taken"
    taken.touch()
    mine = told("run", "mix", "--model", demo.arn, "--out", "out", "--emulator", "--emulator-state", taken, code=5)
    assert "the emulator did not start: can't keep the emulator's state in" in mine
    assert "--state" not in mine


def test_missing_credentials_advise_nothing_that_the_command_lacks(told):
    assert "--emulator" not in told("project", "list", code=5)


def test_errors_in_a_group_are_told_unless_one_of_them_is_a_bug():
    first, second = UsageError("the first"), OutputError("the second")
    group = ExceptionGroup("outer", [ExceptionGroup("inner", [first]), second])
    with patch.object(query, "check_format", side_effect=group):
        refused = typed("query out 'SELECT 1'")
    assert (refused.code, refused.err) == (2, "batchcl: the first\n")
    with patch.object(query, "check_format", side_effect=ExceptionGroup("outer", [first, KeyError("oops")])):
        bug = typed("query out 'SELECT 1'")
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
