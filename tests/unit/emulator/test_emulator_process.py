from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import boto3
import pytest

from batchcl.emulator import Emulator, EmulatorSettings, running
from batchcl.emulator.demo import demo_model, ensure_model
from batchcl.emulator.process import running_emulator
from batchcl.errors import ModelError, RefusedError
from processes import Batchcl
from servers import Demo, already_trained, copied, run_process

if TYPE_CHECKING:
    from batchcl.emulator.digits import DigitsDataset

PAGE = Path(__file__).parents[3] / "docs" / "emulator.md"


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie doesn't."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int, *, within: float = 10) -> bool:
    end = time.monotonic() + within
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(pid)


def test_it_runs_during_a_block_and_trains_once(small_digits: DigitsDataset) -> None:
    async def go() -> int:
        settings = EmulatorSettings(buckets=small_digits.directory, train_seconds=0, control_tps=1000)
        async with running_emulator(settings) as emulator:
            arn = await ensure_model(emulator.endpoint_url, bucket="small")
            assert f":{emulator.account}:project/digits/version/v1/" in arn
            assert await ensure_model(emulator.endpoint_url, bucket="small") == arn
            (small_digits.directory / "small/none.manifest").write_text('{"source-ref":"s3://small/x"}\n')
            with pytest.raises(ModelError, match="too few labels"):
                await ensure_model(
                    emulator.endpoint_url,
                    bucket="small",
                    project="bad",
                    train_manifest="none.manifest",
                    test_manifest=None,
                )
            return emulator.pid

    assert gone(anyio.run(go))


def project_names(emulator: Emulator) -> list[str]:
    """The projects that a client with the emulator's environment lists."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT_URL_REKOGNITION")
    key_id, secret, region, endpoint_url = (emulator.environment[name] for name in names)
    session = boto3.Session(aws_access_key_id=key_id, aws_secret_access_key=secret, region_name=region)
    found = session.client("rekognition", endpoint_url=endpoint_url).describe_projects()["ProjectDescriptions"]
    return [each["ProjectArn"].split("/")[1] for each in found]


def test_running_works_with_async_with(demo: Demo) -> None:
    async def go(state: Path) -> Emulator:
        async with running(EmulatorSettings(state=state)) as emulator:
            assert emulator.model is None
            assert await anyio.to_thread.run_sync(project_names, emulator) == ["digits"]
            return emulator

    with copied(demo.state) as state:
        assert gone(anyio.run(go, state).pid)


def test_running_works_with_with_beside_an_event_loop(demo: Demo) -> None:
    async def go(state: Path) -> int:
        with running(EmulatorSettings(state=state), demo_model=True) as emulator:
            assert emulator.model == demo.arn
            assert "secret" not in repr(emulator)
            return emulator.pid

    with copied(demo.state) as state:
        (state / "buckets").symlink_to(demo.state / "buckets")
        assert gone(anyio.run(go, state))


def test_a_trained_demo_model_is_found_without_its_images(demo: Demo) -> None:
    with copied(demo.state) as state:
        assert anyio.run(demo_model, state) == demo.arn
        assert not (state / "buckets").exists()


def test_a_demo_model_that_failed_is_not_used(demo: Demo) -> None:
    with copied(demo.state) as state:
        (state / "buckets").symlink_to(demo.state / "buckets")
        text = (state / "state.json").read_text()
        assert text.count('"TRAINING_COMPLETED"') == 1
        (state / "state.json").write_text(text.replace('"TRAINING_COMPLETED"', '"TRAINING_FAILED"'))
        with pytest.raises(ModelError, match=r"training .* failed"):
            anyio.run(demo_model, state)


def test_an_interrupted_block_leaves_no_process() -> None:
    pids = []

    def interrupted() -> None:
        with running() as emulator:
            pids.append(emulator.pid)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert gone(pids[0])


def test_running_raises_what_the_emulator_refuses() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(RefusedError, match=r"starting the emulator failed: .* the port is in use"),
        running(EmulatorSettings(port=taken.getsockname()[1])),
    ):
        pass


def test_the_python_examples_of_the_page_run(tmp_path: Path, demo: Demo) -> None:
    section = PAGE.read_text().split("\n## From Python\n")[1]
    script = already_trained(demo) + "\n".join(re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "BATCHCL_"))}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "20 images scored"


def test_a_cancelled_block_leaves_no_process(tmp_path: Path) -> None:
    pids = []

    async def go() -> None:
        with anyio.move_on_after(30) as scope:
            async with running_emulator(EmulatorSettings(buckets=tmp_path)) as emulator:
                pids.append(emulator.pid)
                scope.cancel()
                await anyio.sleep(30)

    anyio.run(go)
    assert gone(pids[0])


def test_a_taken_port_is_one_sentence_and_exit_code_5() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_process("emulator", "--port", port, env=os.environ)

        async def go() -> None:
            async with running_emulator(EmulatorSettings(port=port)):
                pass

        with pytest.raises(RefusedError, match="the port is in use"):
            anyio.run(go)
    assert done.code == 5
    assert done.out == ""
    assert "the port is in use" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_exit_code_0(number: signal.Signals) -> None:
    with Batchcl("emulator", env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        announced = json.loads(process.stdout.readline())
        assert announced["pid"] == process.pid
        process.send_signal(number)
        out, err = process.communicate(timeout=15)
    assert (process.returncode, out, err) == (0, b"", b"")


def test_it_ends_with_its_parent() -> None:
    """A shell starts an emulator and is killed."""
    script = f"{sys.executable} -m batchcl emulator --exit-with-parent & wait"
    with subprocess.Popen(["/bin/sh", "-c", script], stdout=subprocess.PIPE) as shell:
        assert shell.stdout is not None
        pid = json.loads(shell.stdout.readline())["pid"]
        assert pid != shell.pid
        os.kill(shell.pid, signal.SIGKILL)
        assert gone(pid)


def test_a_host_that_is_not_loopback_is_refused() -> None:
    done = run_process("emulator", "--host", "0.0.0.0", env=os.environ)
    assert done.code == 2
    assert "loopback" in done.err
