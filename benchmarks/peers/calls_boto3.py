"""What a user would write with boto3: a thread pool around one client. Prints what the calls took, as JSON."""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor

import boto3
from botocore.config import Config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--calls", type=int, required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    arguments = parser.parse_args()
    config = Config(max_pool_connections=arguments.concurrency)
    client = boto3.client("rekognition", endpoint_url=arguments.endpoint, region_name="us-east-1", config=config)

    def detect(number: int) -> int:
        image = {"S3Object": {"Bucket": "photos", "Name": f"2026/frame-{number:09}.jpg"}}
        answer = client.detect_custom_labels(ProjectVersionArn=arguments.model, Image=image)
        return len([(label["Name"], label["Confidence"]) for label in answer["CustomLabels"]])

    with ThreadPoolExecutor(arguments.concurrency) as pool:
        warm = sum(pool.map(detect, range(arguments.concurrency * 2)))
        assert warm == arguments.concurrency * 4
        wall, cpu = time.perf_counter(), time.process_time()
        labels = sum(pool.map(detect, range(arguments.calls)))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(json.dumps({"labels": labels, "wall_s": wall, "cpu_s": cpu}))


if __name__ == "__main__":
    main()
