"""Processes that are forked for tests have what ordinary ones have."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from processes import Batchcl

SIGNALS = ("SigBlk", "SigIgn", "SigCgt")
STANDARD = (1 << 31) - 1
"""The other signals are for threads: the C library handles them once there was one."""


def state_of(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """What the kernel reports about an emulator once it listens."""
    assert process.stdout is not None
    assert process.stdout.readline()
    folder = Path(f"/proc/{process.pid}")
    lines = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    descriptors = sorted((folder / "fd").iterdir(), key=lambda path: int(path.name))
    return {name: int(lines[name], 16) & STANDARD for name in SIGNALS} | {
        "parent": lines["PPid"],
        "mask": lines["Umask"],
        "groups": os.getpgid(process.pid) == os.getsid(process.pid) == process.pid,
        "directory": (folder / "cwd").readlink(),
        "limits": (folder / "limits").read_text(),
        "descriptors": [(path.name, str(path.readlink()).partition(":")[0]) for path in descriptors][:6],
    }


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")
def test_a_forked_process_is_like_an_ordinary_one(clean_env, tmp_path):
    states = {}
    for kind, env in (("processes.py", clean_env), ("-m\0batchcl", clean_env | {"PYTHONHASHSEED": "0"})):
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
        with Batchcl("emulator", env=env, cwd=tmp_path, start_new_session=True, **streams) as process:
            assert kind in Path(f"/proc/{process.pid}/cmdline").read_text()
            states[kind] = state_of(process)
            process.kill()
            assert process.wait() == -signal.SIGKILL
    forked, ordinary = states.values()
    assert forked == ordinary
    assert forked["groups"]
    assert forked["directory"] == tmp_path
