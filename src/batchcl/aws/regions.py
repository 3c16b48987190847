"""The regions with Rekognition, and work in many of them at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Generic, TypeVar

from botocore.session import Session

from batchcl.aws.session import Aws
from batchcl.concurrency import gather
from batchcl.errors import CredentialsError, RefusedError, UnreachableError

__all__ = ["RegionOutcome", "RegionSkip", "SkippedRegion", "in_regions", "rekognition_regions"]

_AT_ONCE: Final = 8

T = TypeVar("T")


class RegionSkip(StrEnum):
    """Why a region was skipped."""

    NOT_ENABLED = "not enabled"
    """It refuses the credentials that other regions accept: it was not enabled for the account."""
    DENIED = "denied"
    """The identity lacks a permission there."""
    UNREACHABLE = "unreachable"
    """It did not respond, or is overloaded; the same call may succeed later."""
    REFUSED = "refused"
    """It refuses for another reason, such as a region without Custom Labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedRegion:
    """A region in which the work failed.

    Attributes:
        region: its name.
        why: the kind of failure.
        message: the error, one sentence.
    """

    region: str
    why: RegionSkip
    message: str


@dataclass(frozen=True, slots=True)
class RegionOutcome(Generic[T]):
    """The results by region, and the regions without one."""

    results: dict[str, T]
    skipped: tuple[SkippedRegion, ...] = ()


def rekognition_regions(region: str) -> list[str]:
    """The regions with Rekognition in the partition of `region`, by botocore's endpoint data, and `region` itself.

    AWS publishes no such data about Custom Labels, which some of these regions lack.
    """
    session = Session()
    partition = session.get_partition_for_region(region)
    return sorted({region, *session.get_available_regions("rekognition", partition_name=partition)})


async def in_regions(aws: Aws, regions: Sequence[str], work: Callable[[Any, str], Awaitable[T]]) -> RegionOutcome[T]:
    """Call `work` with a Rekognition client of each region and its name, several at a time.

    A region that refuses or doesn't respond does not end the work in the others.

    Raises:
        RefusedError: every region failed; it is the error of the session's region, if it is among them.
    """
    errors: dict[str, RefusedError] = {}
    results: dict[str, T] = {}

    async def one(region: str) -> None:
        try:
            async with aws.rekognition(region=region, renews=len(regions) == 1) as client:
                results[region] = await work(client, region)
        except RefusedError as error:
            errors[region] = error

    await aws.check_credentials()
    await gather(one, regions, at_once=_AT_ONCE)
    if errors and not results:
        raise errors.get(aws.region) or errors[min(errors)]
    skipped = (SkippedRegion(region=each, why=_why(errors[each]), message=str(errors[each])) for each in sorted(errors))
    return RegionOutcome({each: results[each] for each in sorted(results)}, tuple(skipped))


def _why(error: RefusedError) -> RegionSkip:
    if isinstance(error, CredentialsError):
        return RegionSkip.DENIED if error.is_access_denied else RegionSkip.NOT_ENABLED
    return RegionSkip.UNREACHABLE if isinstance(error, UnreachableError) else RegionSkip.REFUSED
