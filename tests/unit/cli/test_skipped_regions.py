"""What is written about regions that could not be read."""

from __future__ import annotations

import pytest

from batchcl.aws.regions import RegionSkip, SkippedRegion
from batchcl.cli.service import report_skipped
from batchcl.errors import StoppedError


def skipped(region: str, why: RegionSkip) -> SkippedRegion:
    return SkippedRegion(region=region, why=why, message=f"listing models failed: {why}")


def test_disabled_regions_are_one_line_and_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    report_skipped(
        [
            skipped("eu-south-2", RegionSkip.NOT_ENABLED),
            skipped("eu-west-2", RegionSkip.DENIED),
            skipped("il-central-1", RegionSkip.NOT_ENABLED),
            skipped("us-west-1", RegionSkip.REFUSED),
        ]
    )
    assert capsys.readouterr().err.splitlines() == [
        "batchcl: skipped eu-south-2, il-central-1: not enabled for this account, or not with these credentials",
        "batchcl: skipped eu-west-2: listing models failed: denied",
        "batchcl: skipped us-west-1: listing models failed: refused",
    ]


def test_a_region_without_a_response_ends_with_exit_code_4() -> None:
    report_skipped([])
    with pytest.raises(StoppedError, match="some regions did not respond; repeat the command: us-east-2: listing"):
        report_skipped([skipped("us-east-2", RegionSkip.UNREACHABLE)])
