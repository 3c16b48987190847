"""Quotas of an account, and the errors over them.

Running models, inference units and trainings at once: AWS general reference, "Amazon Rekognition endpoints and quotas"
(FACTS.md §1). Tags: the AWS-wide 50 of "Tagging AWS resources". What AWS doesn't publish, or publishes as adjustable
without a figure that we could check, says so below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from batchcl.emulator.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MOST_COPYING", "MOST_POLICIES", "MOST_PROJECTS", "MOST_RUNNING", "MOST_TRAINING", "MOST_UNITS"]
__all__ += ["MOST_VERSIONS", "check_tags", "over_limit", "over_quota"]

MOST_RUNNING: Final = 2
MOST_TRAINING: Final = 2
MOST_UNITS: Final = 5

MOST_PROJECTS: Final = 100
"""Projects of an account in a region: an assumption."""

MOST_VERSIONS: Final = 100
"""Versions of a project: an assumption."""

MOST_COPYING: Final = 5
"""Versions that are copied at once into an account: an assumption."""

MOST_POLICIES: Final = 20
"""Policies of a project: an assumption."""

_MOST_TAGS: Final = 50


def over_limit(message: str) -> ApiError:
    """Too many at a time; it passes when one of them ends."""
    return ApiError("LimitExceededException", message)


def over_quota(message: str) -> ApiError:
    """Too many altogether."""
    return ApiError("ServiceQuotaExceededException", message)


def check_tags(tags: Mapping[str, str]) -> None:
    """Refuse more tags than a resource can have.

    Raises:
        ServiceError: ServiceQuotaExceededException.
    """
    if len(tags) > _MOST_TAGS:
        raise over_quota(f"A resource can have {_MOST_TAGS} tags, and this would make {len(tags)}.")
