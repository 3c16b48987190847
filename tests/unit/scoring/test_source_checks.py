"""Errors for sources without an image to score."""

from __future__ import annotations

import datetime as dt
from contextlib import ExitStack
from pathlib import Path

import anyio
import pytest

from batchcl.arns import ModelArn
from batchcl.aws.session import Aws
from batchcl.errors import SourceError
from batchcl.events import SilentObserver
from batchcl.job import Job
from batchcl.outcomes import Label
from batchcl.scoring.source_checks import check_sources, first_page
from unit.analysis.conftest import Root, scored

ARN = "arn:aws:rekognition:us-east-1:123456789012:project/cats/version/v1/1700000000000"


def refusal(**job: object) -> str:
    """The error of `run` and `plan` for a job without images."""

    async def look() -> str:
        job_ = Job.model_validate({"model": ARN, "out": "out", **job})
        with ExitStack() as files:
            at = dt.datetime.now(dt.UTC)
            listing = await check_sources(job_, Aws(), ModelArn.parse(ARN), files, at, observer=SilentObserver())
            with pytest.raises(SourceError) as refused:
                await first_page(listing.selection.pages(), listing, job_)
        return str(refused.value)

    return anyio.run(look)


def test_an_empty_folder(tmp_path: Path) -> None:
    assert refusal(sources=[str(tmp_path)]) == f"there is no image to score in {tmp_path}; check the prefix or path"


def test_filters_that_exclude_every_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    error = refusal(sources=[str(tmp_path)], include=["*.tiff"])
    assert error == f"there is no image to score in {tmp_path} (excluded: 1 by --include); check the filters"


def test_results_of_archives_only(tmp_path: Path) -> None:
    Root(tmp_path).results(scored("s3://b/a.tar#1.png"), scored("s3://b/a.tar#2.png"))
    assert refusal(from_results=str(tmp_path)) == (
        f"there is no image to score in {tmp_path} (not images to score: 2 members of archives); "
        "name the archives themselves as SOURCE"
    )


def test_results_that_do_not_match_the_condition(tmp_path: Path) -> None:
    Root(tmp_path).results(scored("s3://b/1.png", Label("cat", 90)))
    error = refusal(from_results=str(tmp_path), where="confidence < 50")
    assert error.endswith("(excluded: 1 by --where); check the filters")


def test_results_of_a_run_that_has_published_nothing(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    error = refusal(from_results=str(tmp_path))
    assert "no run has published a row there" in error
    assert f"`batchcl runs {tmp_path}`" in error
