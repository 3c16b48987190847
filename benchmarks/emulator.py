"""How many images a second does the emulator answer? Live inference and cached, bytes and S3 objects from a folder.

    python benchmarks/emulator.py [--calls 3000] [--concurrency 32] [--json]

The client runs in this process and the emulator in another one, on the same machine. The model is image-level, over
300 pictures of digits (96 x 96 to 128 x 128 pixels); 200 test pictures are sent again and again. Each quota is out of
the way. What isn't claimed: the service's own speed, which the emulator only imitates by its settings.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import anyio
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from batchcl.emulator import EmulatorSettings
from batchcl.emulator.demo import ensure_model
from batchcl.emulator.digits import write_digits
from batchcl.emulator.process import running_emulator

TARGET = "RekognitionService."
CONTENT = "application/x-amz-json-1.1"


async def _call(session: aiohttp.ClientSession, endpoint: str, operation: str, body: bytes) -> tuple[int, bytes]:
    headers = {"X-Amz-Target": TARGET + operation, "Content-Type": CONTENT}
    request = AWSRequest("POST", f"{endpoint}/", data=body, headers=headers)
    SigV4Auth(Credentials("emulator", "emulator"), "rekognition", "us-east-1").add_auth(request)
    async with session.post(f"{endpoint}/", data=body, headers=dict(request.headers)) as answer:
        return answer.status, await answer.read()


async def _measure(endpoint: str, arn: str, images: list[dict[str, Any]], calls: int, concurrency: int) -> float:
    """Answers a second."""
    bodies = [json.dumps({"ProjectVersionArn": arn, "Image": image}).encode() for image in images]
    queue = iter(range(calls))
    async with aiohttp.ClientSession() as session:

        async def work() -> None:
            for n in queue:
                status, said = await _call(session, endpoint, "DetectCustomLabels", bodies[n % len(bodies)])
                assert status == 200, said

        start = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            for _ in range(concurrency):
                tasks.start_soon(work)
        return calls / (time.perf_counter() - start)


async def _run(calls: int, concurrency: int) -> dict[str, float]:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        data = write_digits(Path(folder), bucket="digits", train=300, test=200, seed=1)
        kinds: dict[str, list[dict[str, Any]]] = {
            "bytes": [{"Bytes": base64.b64encode(p.path.read_bytes()).decode()} for p in data.test],
            "s3": [{"S3Object": {"Bucket": "digits", "Name": p.uri.split("/", 3)[3]}} for p in data.test],
        }
        plenty = {"tps_per_unit": 1e6, "account_tps": 1e6, "control_tps": 1e6, "start_seconds": 0.0}
        for cached in (False, True):
            settings = EmulatorSettings(buckets=Path(folder), cached_inference=cached, **plenty)  # type: ignore[arg-type]
            async with running_emulator(settings) as emulator:
                arn = await ensure_model(emulator.endpoint_url, bucket="digits")
                async with aiohttp.ClientSession() as session:
                    start = json.dumps({"ProjectVersionArn": arn, "MinInferenceUnits": 1}).encode()
                    await _call(session, emulator.endpoint_url, "StartProjectVersion", start)
                for kind, images in kinds.items():
                    # warm up, and fill the cache
                    await _measure(emulator.endpoint_url, arn, images, len(images), concurrency)
                    mode = "cached" if cached else "live"
                    found[f"{mode} {kind}"] = await _measure(emulator.endpoint_url, arn, images, calls, concurrency)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=3000)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    conditions = {
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "calls": arguments.calls,
        "concurrency": arguments.concurrency,
    }
    found = anyio.run(_run, arguments.calls, arguments.concurrency)
    if arguments.json:
        print(json.dumps({"conditions": conditions, "images_per_second": found}))
        return
    print(", ".join(f"{name} {value}" for name, value in conditions.items()))
    for name, rate in found.items():
        print(f"{name:14} {rate:8.0f} images/s")


if __name__ == "__main__":
    main()
