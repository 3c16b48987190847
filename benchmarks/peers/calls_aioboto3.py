"""What a user would write with aioboto3: gather and a semaphore. Prints what the calls took, as JSON."""

from __future__ import annotations

import argparse
import asyncio
import json
import time

import aioboto3
from aiobotocore.config import AioConfig


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--calls", type=int, required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    arguments = parser.parse_args()
    config = AioConfig(max_pool_connections=arguments.concurrency)
    semaphore = asyncio.Semaphore(arguments.concurrency)
    session = aioboto3.Session(region_name="us-east-1")
    async with session.client("rekognition", endpoint_url=arguments.endpoint, config=config) as client:

        async def detect(number: int) -> int:
            image = {"S3Object": {"Bucket": "photos", "Name": f"2026/frame-{number:09}.jpg"}}
            async with semaphore:
                answer = await client.detect_custom_labels(ProjectVersionArn=arguments.model, Image=image)
            return len([(label["Name"], label["Confidence"]) for label in answer["CustomLabels"]])

        warm = sum(await asyncio.gather(*(detect(number) for number in range(arguments.concurrency * 2))))
        assert warm == arguments.concurrency * 4
        wall, cpu = time.perf_counter(), time.process_time()
        labels = sum(await asyncio.gather(*(detect(number) for number in range(arguments.calls))))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(json.dumps({"labels": labels, "wall_s": wall, "cpu_s": cpu}))


if __name__ == "__main__":
    asyncio.run(main())
