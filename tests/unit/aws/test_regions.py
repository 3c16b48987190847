"""Work in many regions at once, some of which refuse."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from batchcl.aws.errors import translate_errors
from batchcl.aws.regions import RegionOutcome, RegionSkip, in_regions, rekognition_regions
from batchcl.aws.session import Aws
from batchcl.errors import BatchclError, CredentialsError, UnreachableError, UsageError
from fake_rekognition import refused

ERRORS: dict[str, Exception] = {
    "ap-south-1": refused("ThrottlingException"),
    "eu-south-2": refused("UnrecognizedClientException"),
    "il-central-1": refused("UnrecognizedClientException"),
    "eu-west-2": refused("AccessDeniedException"),
    "us-west-1": refused("InvalidParameterException"),
}


class Session(Aws):
    """A session whose clients are the names of their regions."""

    def __init__(self, *, region: str = "us-east-1") -> None:
        self.renewing: set[bool] = set()
        self.at_once = 0
        self.most_at_once = 0
        self._region = region

    @property
    def region(self) -> str:
        return self._region

    async def check_credentials(self) -> None:
        """Credentials are found."""

    @asynccontextmanager
    async def rekognition(self, *, region: str | None = None, renews: bool = True, **_: Any) -> AsyncIterator[Any]:
        self.renewing.add(renews)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            yield region
        finally:
            self.at_once -= 1


def read(regions: list[str], session: Session | None = None) -> RegionOutcome[str]:
    async def work(client: Any, region: str) -> str:
        assert client == region
        await anyio.lowlevel.checkpoint()
        with translate_errors("listing models"):
            if region in ERRORS:
                raise ERRORS[region]
        return region.upper()

    async def main() -> RegionOutcome[str]:
        return await in_regions(session or Session(), regions, work)

    return anyio.run(main)


def test_regions_that_refuse_do_not_end_the_others() -> None:
    session = Session()
    outcome = read(["us-east-1", *ERRORS, "eu-west-1"], session)
    assert outcome.results == {"eu-west-1": "EU-WEST-1", "us-east-1": "US-EAST-1"}
    assert {each.region: each.why for each in outcome.skipped} == {
        "ap-south-1": RegionSkip.UNREACHABLE,
        "eu-south-2": RegionSkip.NOT_ENABLED,
        "eu-west-2": RegionSkip.DENIED,
        "il-central-1": RegionSkip.NOT_ENABLED,
        "us-west-1": RegionSkip.REFUSED,
    }
    assert all(each.message.startswith("listing models failed: ") for each in outcome.skipped)
    assert session.renewing == {False}, "a disabled region must not drop the keys of the others"


def test_if_all_regions_refuse_the_sessions_own_error_is_raised() -> None:
    with pytest.raises(CredentialsError, match="AccessDenied"):
        read(list(ERRORS), Session(region="eu-west-2"))
    with pytest.raises(UnreachableError, match="Throttling"):
        read(list(ERRORS))


def test_a_single_region_renews_its_keys() -> None:
    session = Session()
    assert read(["us-east-1"], session).results == {"us-east-1": "US-EAST-1"}
    assert session.renewing == {True}


def test_the_regions_are_read_concurrently_and_bounded() -> None:
    session = Session()
    read([f"x-{number}" for number in range(40)], session)
    assert session.most_at_once == 8


def test_other_errors_end_everything() -> None:
    async def work(_: Any, region: str) -> str:
        raise UsageError(f"bad in {region}")

    async def main() -> object:
        return await in_regions(Session(), ["us-east-1", "eu-west-1"], work)

    with pytest.raises(BatchclError, match="bad in"):
        anyio.run(main)


def test_the_regions_are_those_of_the_partition() -> None:
    commercial = rekognition_regions("eu-west-1")
    assert {"us-east-1", "eu-west-1", "il-central-1"} <= set(commercial)
    assert not [each for each in commercial if "gov" in each or "fips" in each or each.startswith("cn-")]
    assert rekognition_regions("us-gov-west-1") == ["us-gov-west-1"]
    assert "eu-central-2" in rekognition_regions("eu-central-2"), "a region that botocore does not list"
