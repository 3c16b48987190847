"""What a user would write with aioboto3: list, score by gather under a semaphore, write the table."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aioboto3
from aiobotocore.config import AioConfig
from table import asked, row, write


async def main() -> None:
    arguments = asked()
    session = aioboto3.Session()
    semaphore = asyncio.Semaphore(arguments.concurrency)
    config = AioConfig(max_pool_connections=arguments.concurrency)
    async with session.client("s3") as s3, session.client("rekognition", config=config) as rekognition:

        async def detect(entry: dict[str, Any]) -> dict[str, Any]:
            image = {"S3Object": {"Bucket": arguments.bucket, "Name": entry["Key"]}}
            async with semaphore:
                sent_at = time.perf_counter()
                answer = await rekognition.detect_custom_labels(ProjectVersionArn=arguments.model, Image=image)
            return row(arguments.model, arguments.bucket, entry, answer, time.perf_counter() - sent_at)

        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=arguments.bucket, Prefix=arguments.prefix)
        entries = [entry async for page in pages for entry in page.get("Contents", [])]
        rows = await asyncio.gather(*(detect(entry) for entry in entries))
    write(arguments.out, rows)


if __name__ == "__main__":
    asyncio.run(main())
