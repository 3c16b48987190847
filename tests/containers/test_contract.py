"""The program as a container runs it, in Linux namespaces: see container.py.

The user is unknown, the root file system is read-only without a temporary directory, and there is no HOME. The process
is PID 1, memory is limited to 256 MB, and SIGTERM is followed by SIGKILL after 30 s.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq
import pytest
from common import MODEL, cores, stub

from containers.container import container, memory_limit
from servers import aws_env, client, model_status, wait_for
from unit.emulator.harness import serving_here

IMAGES: Final = int(os.environ.get("BATCHCL_CONTAINER_IMAGES", "2000"))
"""200,000 in `make containers`."""

IS_BUILT: Final = "BATCHCL_CONTAINER_IMAGE" in os.environ
"""Whether the image is that of `make containers`; otherwise, a selection of the cases is run."""

LIMIT_MB: Final = 256
STOPPED: Final = 4
ENDED_BY_SIGTERM: Final = 128 + 15


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def without_numpy(tmp_path: Path) -> Path:
    """For PYTHONPATH: an image without extras has no NumPy, which some methods of pyarrow and polars need."""
    folder = tmp_path / "without_numpy"
    folder.mkdir()
    (folder / "numpy.py").write_text("raise ImportError('not installed')")
    return folder


def uris(volume: Path) -> list[str]:
    parts = (volume / "out" / "results").rglob("*.parquet")
    return [uri for part in parts for uri in pq.ParquetFile(part).read(["uri"])["uri"].to_pylist()]


def has_results(volume: Path) -> bool:
    return any((volume / "out" / "results").rglob("*.parquet"))


def test_a_stopped_run_resumes_within_256_mb(image, volume):
    """The first session is slower, so that it is stopped after its first file and before its last one."""
    flags = f"--out /data/out --run-id night --shard-size {IMAGES // 20}"
    words = ["batchcl", "run", "s3://photos/", "--model", MODEL, *flags.split()]
    with memory_limit(LIMIT_MB * 2**20) as limit, stub("--keys", IMAGES, "--delay-ms", 20, core=cores()[1]) as endpoint:
        env = aws_env() | {"AWS_ENDPOINT_URL": endpoint}
        with container(image, *words, "--max-tps", IMAGES // 20, env=env, volume=volume, limit=limit) as first:
            wait_for(lambda: has_results(volume) or first.has_ended, 120)
            assert first.stop() == STOPPED, first.err
        assert "ended by SIGTERM" in first.err
        assert 0 < len(uris(volume)) < IMAGES
        with container(image, *words, env=env, volume=volume, limit=limit) as second:
            assert second.wait() == 0, second.err
        print(f"{IMAGES:,} images: peak of the control group {limit.peak_bytes / 2**20:.0f} MB of {LIMIT_MB} MB")
    assert Counter(Counter(uris(volume)).values()) == {1: IMAGES}
    assert "Traceback" not in first.err + second.err


@pytest.mark.parametrize("end", ["stop", "kill"] if IS_BUILT else ["stop"])
def test_a_restarted_container_resumes_and_the_model_is_stopped(end, image, volume, demo, without_numpy):
    with serving_here(demo.state, start_seconds=0.2, stop_seconds=0.2, tps_per_unit=1000) as endpoint:

        def status() -> str:
            return model_status(endpoint, demo.arn)

        flags = "--out /data/out --run-id night --start-model 1 --shard-size 10"
        words = ["batchcl", "run", "/images", "--model", demo.arn, *flags.split()]
        env = aws_env(endpoint) | {"PYTHONPATH": "/without_numpy"}
        mounts = {"/images": demo.data.images, "/without_numpy": without_numpy}
        options: dict[str, Any] = {"env": env, "volume": volume, "read_only": mounts}
        with container(image, *words, "--max-tps", 20, **options) as first:
            wait_for(lambda: has_results(volume) or first.has_ended)
            assert status() == "RUNNING"
            assert (first.stop if end == "stop" else first.kill)() == {"stop": STOPPED, "kill": None}[end], first.err
        assert status() in ({"STOPPING", "STOPPED"} if end == "stop" else {"RUNNING"})
        wait_for(lambda: status() != "STOPPING")
        assert 0 < len(uris(volume)) < len(list(demo.data.images.iterdir()))
        with container(image, *words, **options) as second:
            assert second.wait() == 0, second.err
        assert status() in {"STOPPING", "STOPPED"}
        tags = client("rekognition", endpoint).list_tags_for_resource(ResourceArn=demo.arn)["Tags"]
    assert not [tag for tag in tags if tag.startswith("batchcl:lease/")]
    assert sorted(uris(volume)) == sorted(f"/images/{path.name}" for path in demo.data.images.iterdir())


def test_a_signal_before_the_handlers_ends_pid_1(image, volume):
    """The kernel drops a signal that PID 1 does not handle: the run would start its model, and be killed later."""
    program = "import os, batchcl.__main__; os.kill(1, 15)"
    with container(image, f"{image.bin}/python", "-c", program, env={}, volume=volume) as started:
        assert started.wait() == ENDED_BY_SIGTERM, started.err
