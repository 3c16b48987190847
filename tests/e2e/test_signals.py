"""Signals while something hangs: the process ends within its grace period."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time

import pytest

from processes import Batchcl
from servers import aws_env, copied

GRACE_S = 3
LATEST_S = GRACE_S + 10
"""When a process must have ended, on a busy machine too; below the default grace period and any timeout of a call."""


@pytest.fixture
def silent():
    """The endpoint of a server that accepts connections and never responds; the first connection sets `accepted`."""
    accepted, connections = threading.Event(), []
    server = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                connections.append(server.accept())
            except OSError:
                return
            accepted.set()

    threading.Thread(target=accept, daemon=True).start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}", accepted
    server.close()
    for connection, _ in connections:
        connection.close()


def seconds_to_end(process, number) -> float:
    begun = time.monotonic()
    process.send_signal(number)
    process.wait(GRACE_S + 20)
    return time.monotonic() - begun


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_an_unresponsive_store_does_not_delay_a_signal(running, demo, service, silent, number):
    endpoint, accepted = silent
    env = aws_env(service) | {"AWS_ENDPOINT_URL_S3": endpoint}
    words = (demo.data.images, "--model", demo.arn, "--out", "s3://tables/labels", "--grace", f"{GRACE_S}s")
    with running(*words, env=env) as process:
        assert accepted.wait(60)
        assert seconds_to_end(process, number) < LATEST_S
        assert process.returncode == (130 if number is signal.SIGINT else 4)
        err = process.stderr.read().decode()
    assert ("interrupted by ^C" if number is signal.SIGINT else number.name) in err
    assert "Traceback" not in err


def test_hanging_calls_are_abandoned_within_the_grace_period(running, demo, service, silent, tmp_path):
    endpoint, accepted = silent
    env = aws_env(service) | {"AWS_ENDPOINT_URL_REKOGNITION": endpoint}
    words = (demo.data.images, "--model", demo.arn, "--out", tmp_path / "out", "--grace", f"{GRACE_S}s")
    with running(*words, env=env) as process:
        assert accepted.wait(60)
        assert seconds_to_end(process, signal.SIGTERM) < LATEST_S
        assert process.returncode == 4
        assert "Traceback" not in process.stderr.read().decode()


def test_an_endless_list_on_stdin_does_not_delay_a_signal(demo, service, clean_env, tmp_path):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    words = f"run - --model {demo.arn} --out {tmp_path}/out".split()
    env = clean_env | aws_env(service) | {"TMPDIR": str(temporary)}
    with Batchcl(*words, env=env, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        for _ in range(600):
            if list(temporary.iterdir()):
                break
            time.sleep(0.1)  # until it reads
        assert seconds_to_end(process, signal.SIGTERM) < LATEST_S
        assert process.returncode == 4
        assert process.stderr is not None
        assert b"ended by SIGTERM" in process.stderr.read()
    assert list(temporary.iterdir()) == []


def test_the_emulator_survives_ctrl_c_until_its_model_stops(demo, clean_env, tmp_path):
    words = f"run {demo.data.images} --emulator --emulator-state {demo.state} --model {demo.arn} --out {tmp_path}/out"
    with (
        copied(demo.state) as state,
        Batchcl(
            *words.replace(str(demo.state), str(state)).split(),
            *("--max-tps", "5"),
            env=clean_env,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as process,
    ):
        assert process.stderr is not None
        for line in process.stderr:
            if b"is RUNNING" in line:
                break
        begun = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        err = process.stderr.read().decode()
        assert process.wait(60) == 130
    assert time.monotonic() - begun < 20
    assert "is stopped" in err
