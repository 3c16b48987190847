"""File descriptors and memory of a run that lasts minutes don't grow."""

from __future__ import annotations

import os
import time
from pathlib import Path

from crash.harness import new_bucket
from servers import aws_env

SECONDS = float(os.environ.get("BATCHCL_SOAK_S", "4"))
TPS = 40
SAMPLES = 12
MAX_GROWTH_KB = 12 * 1024 if SECONDS >= 300 else 32 * 1024
"""In KB. The limit of short runs is higher: libraries are loaded when the first files are published."""


def resources_of(pid: int) -> tuple[int, int]:
    """Number of open file descriptors, and resident memory in KB."""
    descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    (resident,) = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")]
    return descriptors, int(resident)


def test_file_descriptors_and_memory_stay_constant(running, demo, service, seaweed, tmp_path):
    images = tmp_path / "in"
    images.mkdir()
    picture = next(iter(sorted(demo.data.images.iterdir())))
    for number in range(int((SECONDS + 60) * TPS)):
        os.link(picture, images / f"{number:07}{picture.suffix}")
    out = f"s3://{new_bucket(seaweed)}/out"
    words = (images, "--model", demo.arn, "--out", out, "--max-tps", TPS, "--shard-size", 200)
    samples = []
    with running(*words, env=aws_env(service, seaweed)) as process:
        for line in process.stderr:
            if b"calls start" in line:
                break
        time.sleep(min(60.0, SECONDS / 2))
        for _ in range(SAMPLES):
            time.sleep(SECONDS / SAMPLES)
            samples.append(resources_of(process.pid))
        assert process.poll() is None
        process.terminate()
        assert process.wait(30) == 4
    descriptors, resident = zip(*samples, strict=True)
    assert max(descriptors) - min(descriptors) <= 16, descriptors
    assert max(resident[-3:]) - max(resident[:3]) < MAX_GROWTH_KB, resident
