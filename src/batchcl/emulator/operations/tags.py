"""TagResource, UntagResource, ListTagsForResource."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from batchcl.emulator.errors import invalid_parameter
from batchcl.emulator.limits import check_tags
from batchcl.emulator.protocol import pattern_of

if TYPE_CHECKING:
    from batchcl.emulator.records import StoredDataset, StoredProject, StoredVersion
    from batchcl.emulator.service import Call

__all__ = ["list_tags_for_resource", "tag_resource", "untag_resource"]

_KINDS: Final = ("ProjectVersionArn", "DatasetArn", "ProjectArn")


async def tag_resource(call: Call, parameters: dict[str, Any]) -> dict[str, Any]:
    """Add tags, or give them other values."""
    resource = _resource(call, parameters["ResourceArn"])
    tags = {**resource.tags, **parameters["Tags"]}
    check_tags(tags)
    resource.tags = tags
    call.service.state.save()
    return {}


async def untag_resource(call: Call, parameters: dict[str, Any]) -> dict[str, Any]:
    """Remove tags; those that aren't there are no error."""
    resource = _resource(call, parameters["ResourceArn"])
    unwanted = set(parameters["TagKeys"])
    resource.tags = {key: value for key, value in resource.tags.items() if key not in unwanted}
    call.service.state.save()
    return {}


async def list_tags_for_resource(call: Call, parameters: dict[str, Any]) -> dict[str, Any]:
    """Every tag of a resource."""
    return {"Tags": _resource(call, parameters["ResourceArn"]).tags}


def _resource(call: Call, arn: str) -> StoredProject | StoredDataset | StoredVersion:
    """The caller's version, dataset or project: all of them take tags when they are made."""
    kind = next((kind for kind in _KINDS if re.fullmatch(pattern_of(kind), arn)), None)
    if kind is None:
        raise invalid_parameter("ResourceArn is not the ARN of a project, a dataset or a project version.")
    if kind == "ProjectVersionArn":
        return call.version(arn)
    return call.dataset(arn) if kind == "DatasetArn" else call.project(arn)
