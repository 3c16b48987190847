"""The live panel of the real command on a pseudo-terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial

from processes import Batchcl
from servers import aws_env
from terminals import LATEST_S, on_terminal


def test_the_panel_of_a_run(demo, service, clean_env, tmp_path):
    words = f"run {demo.data.images} --model {demo.arn} --out {tmp_path}/out --run-id night --max-tps 5".split()
    env = clean_env | aws_env(service)
    with on_terminal(partial(Batchcl, *words), env, columns=100, rows=24, process_group=0) as (terminal, process):
        lines = terminal.await_(lambda text: "/300 images" in text and "/s  capacity" in text).split("\n")
        assert lines[0] == f"run night into {tmp_path}/out"[:100]
        assert lines[-3].startswith("─" * 20)
        assert lines[-1].startswith("model RUNNING")
        assert (terminal.screen.cursor.y, terminal.screen.cursor.x) == (len(lines) - 3, 0)
        assert not terminal.screen.cursor.hidden

        terminal.resize(40, 24)
        lines = terminal.await_(lambda text: "capacity" not in text).split("\n")
        assert "%  " in lines[-1]
        assert "/s  ETA " in lines[-1]
        terminal.resize(100, 24)
        terminal.await_(lambda text: "capacity" in text)

        process.send_signal(signal.SIGTSTP)
        assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
        terminal.await_(lambda text: "images" not in text)
        process.send_signal(signal.SIGCONT)
        terminal.await_(lambda text: "capacity" in text)

        process.send_signal(signal.SIGINT)
        text = terminal.await_(lambda text: "batchcl: interrupted by ^C" in text)
        assert process.wait(LATEST_S) == 130
        assert "capacity" not in text
        assert "images  ETA" not in text
        assert terminal.screen.cursor.x == 0
        assert not terminal.screen.cursor.hidden


_IN_BACKGROUND = """
import fcntl, os, sys, termios
from batchcl.cli import streams
from batchcl.cli.panel import LivePanel
from observers import snapshot

def draw():
    streams.install()
    LivePanel().show(snapshot())
    sys.stderr.flush()

fcntl.ioctl(2, termios.TIOCSCTTY, 0)
if (child := os.fork()) == 0:
    os.setpgid(0, 0)
    draw()
    os.write(2, b"from the background\\n")
    os._exit(0)
os.waitpid(child, 0)
draw()
sys.stdin.read()
"""


def test_a_background_job_draws_nothing(clean_env):
    env = clean_env | {"PYTHONPATH": os.pathsep.join(sys.path)}
    start = partial(subprocess.Popen, [sys.executable, "-c", _IN_BACKGROUND])
    with on_terminal(start, env, columns=100, rows=24, start_new_session=True) as (terminal, _):
        lines = terminal.await_(lambda text: "model RUNNING" in text).split("\n")
    assert lines[0] == "from the background"
    assert len(lines) == 4
