"""What a user would write with boto3: list, score in a pool of threads around one client, write the table."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3
from botocore.config import Config
from table import asked, row, write


def score(config: Config) -> None:
    arguments = asked()
    s3 = boto3.client("s3")
    rekognition = boto3.client("rekognition", config=config)

    def detect(entry: dict[str, Any]) -> dict[str, Any]:
        image = {"S3Object": {"Bucket": arguments.bucket, "Name": entry["Key"]}}
        sent_at = time.perf_counter()
        answer = rekognition.detect_custom_labels(ProjectVersionArn=arguments.model, Image=image)
        return row(arguments.model, arguments.bucket, entry, answer, time.perf_counter() - sent_at)

    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=arguments.bucket, Prefix=arguments.prefix)
    with ThreadPoolExecutor(arguments.concurrency) as pool:
        rows = list(pool.map(detect, [entry for page in pages for entry in page.get("Contents", [])]))
    write(arguments.out, rows)


if __name__ == "__main__":
    score(Config(max_pool_connections=64))
