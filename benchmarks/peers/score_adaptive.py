"""What a user would write who has read about retries: the pool of threads with botocore's adaptive mode."""

from __future__ import annotations

from botocore.config import Config
from score_boto3 import score

if __name__ == "__main__":
    score(Config(max_pool_connections=64, retries={"mode": "adaptive", "max_attempts": 10}))
