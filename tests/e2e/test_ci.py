"""`.ci/run`, as CI starts it, with commands that succeed, fail and crash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parents[2] / ".ci" / "run"
CRASH = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    (tmp_path / ".ci").mkdir()
    shutil.copy(RUN, tmp_path / ".ci")
    return tmp_path


def run(clone: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"TMPDIR": str(clone), "PYTHON": sys.executable}
    words = [str(clone / ".ci" / "run"), *command]
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("code", [0, 3])
def test_the_exit_code_is_returned_and_no_file_is_left(clone: Path, code: int) -> None:
    done = run(clone, "sh", "-c", f"exit {code}")
    assert (done.returncode, done.stderr) == (code, "")
    assert [path.name for path in (clone / ".ci").iterdir()] == ["run"]


def test_the_core_dump_of_a_crash_is_kept_and_shown(clone: Path) -> None:
    """Also if the command continues, as pytest does after a worker crashed. Not every machine writes core dumps."""
    done = run(clone, "sh", "-c", f"{sys.executable} -c '{CRASH}'; exit 139")
    assert done.returncode == 139
    kept = list((clone / ".ci" / "cores").glob("*.core")) if (clone / ".ci" / "cores").exists() else []
    if not kept:
        assert "no core dump was found" in done.stderr
        return
    assert f"a process crashed; its core dump is .ci/cores/{kept[0].name}" in done.stderr
    assert ("Thread 1" if shutil.which("gdb") else "gdb prints its native stacks") in done.stderr
