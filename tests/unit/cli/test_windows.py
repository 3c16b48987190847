"""What Windows lacks is refused in one sentence, and needed by no other command."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import batchcl.cli.signals
from batchcl.errors import UsageError

READING = """
import sys
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
from batchcl.cli.app import app
for command in ("labels", "confidence", "failures", "compare", "query", "evaluate", "thresholds", "runs", "status"):
    app([*command.split(), "--help"], prog_name="batchcl", standalone_mode=False)
import batchcl.analysis.compare, batchcl.analysis.query, batchcl.analysis.thresholds, batchcl.runs.status
"""


def test_a_command_that_needs_signals_is_refused_on_windows(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(UsageError, match="run it in WSL"):
        importlib.reload(batchcl.cli.signals)


def test_reading_commands_import_no_module_that_windows_lacks():
    done = subprocess.run([sys.executable, "-c", READING], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
