"""Tags of projects, datasets and models. Each function takes an open Rekognition client and an ARN."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from batchcl.aws.errors import translate_errors

__all__ = ["list_tags", "tag", "untag"]


async def list_tags(client: Any, arn: str) -> dict[str, str]:
    """The resource's tags."""
    with translate_errors(f"listing the tags of {arn}"):
        response = await client.list_tags_for_resource(ResourceArn=arn)
    return dict(response.get("Tags", {}))


async def tag(client: Any, arn: str, tags: Mapping[str, str]) -> None:
    """Add tags, or replace the values of existing keys; other tags are kept."""
    with translate_errors(f"tagging {arn}"):
        await client.tag_resource(ResourceArn=arn, Tags=dict(tags))


async def untag(client: Any, arn: str, keys: Collection[str]) -> None:
    """Remove the tags with these keys; missing keys are ignored."""
    with translate_errors(f"untagging {arn}"):
        await client.untag_resource(ResourceArn=arn, TagKeys=list(keys))
