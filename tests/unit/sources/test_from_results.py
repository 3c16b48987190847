"""Results and failures of earlier runs as a source."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import pytest

from batchcl.aws.session import Aws
from batchcl.errors import OutputError, UsageError
from batchcl.images import ImageRef
from batchcl.outcomes import Label, Scored
from batchcl.sources.from_results import open_published_images
from batchcl.sources.where import Condition
from unit.analysis.conftest import NOON, Root, failed, scored
from unit.sources.lists import HARD_KEYS, selected

CAT, DOG, UNSURE = Label("cat", 95), Label("dog", 80, (0, 0, 0.5, 0.5)), Label("cat", 40)


def read(root: object, where: str | None = None, *, run: str | None = None) -> tuple[list[ImageRef], int, int]:
    """(the images, number of excluded rows, number of duplicates)."""

    async def main() -> tuple[list[ImageRef], int, int]:
        condition = None if where is None else Condition(where)
        source = await open_published_images(str(root), aws=Aws(), where=condition, exclude_run=run)
        checked = await source.check()
        images, repeated = await selected(source)
        excluded = sum(checked.ignored.values())
        assert checked.lines == len(images) + excluded + repeated
        return images, excluded, repeated

    return anyio.run(main)


def names(root: object, where: str | None = None, **more: str) -> list[str]:
    return sorted(image.key for image in read(root, where, **more)[0])


@pytest.fixture
def filled(tmp_path: Path) -> Root:
    root = Root(tmp_path / "out")
    root.results(scored("s3://b/sure", CAT), scored("s3://b/both", CAT, UNSURE), scored("s3://b/none"))
    root.results(scored("s3://b/old", DOG), model="dogs@v2", date="2026-11-19", run_id="r0")
    root.failures([failed("s3://b/throttled", "Throttled"), failed("s3://b/text.txt", "NotAnImage", skipped=True)])
    return root


@pytest.mark.parametrize(
    "where",
    [
        "confidence >= 70.1",
        "NOT top_confidence < 70.1",
        "confidence IN (12, 70.1)",
        "confidence = 70.0999984741211",
        "width = 0.3",
    ],
)
def test_thresholds_are_compared_as_32_bit_numbers(tmp_path: Path, where: str) -> None:
    root = Root(tmp_path / "out")
    root.results(scored("s3://b/at", Label("cat", 70.1, (0, 0, 0.3, 0.3))), scored("s3://b/under", Label("cat", 70.09)))
    assert names(root, where) == ["at"]


@pytest.mark.parametrize("run", [None, "another"])
def test_rows_of_an_exported_copy_are_read(filled: Root, run: str | None) -> None:
    folder = next((filled.path / "results" / "model=dogs@v2").iterdir())
    (part,) = folder.iterdir()
    part.rename(folder / "part-00000.parquet")
    assert "old" in [image.key for image in read(filled, run=run)[0]]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (None, ["both", "none", "old", "sure", "text.txt", "throttled"]),
        ("confidence < 60", ["both"]),
        ("top_confidence < 90", ["old"]),
        ("top_confidence < 90 OR label_count = 0", ["none", "old"]),
        ("label = 'cat' AND confidence > 90", ["both", "sure"]),
        ("label IS NULL AND status = 'scored'", ["none"]),
        ("width > 0.4", ["old"]),
        ("status = 'failed'", ["throttled"]),
        ("status = 'skipped'", ["text.txt"]),
        ("status <> 'scored'", ["text.txt", "throttled"]),
        ("code = 'Throttled'", ["throttled"]),
        ("error_code LIKE 'Not%' AND message LIKE '%text%'", ["text.txt"]),
        ("model = 'dogs@v2'", ["old"]),
        ("date >= '2026-11-20' AND status = 'scored'", ["both", "none", "sure"]),
        ("run_id = 'r0'", ["old"]),
        ("attempts > 3", []),
        ("scored_at >= '2026-11-21T12:00:00Z'", ["both", "none", "old", "sure"]),
        ("key LIKE '%o%' AND latency_ms < 100", ["both", "none", "old"]),
    ],
)
def test_conditions_may_use_all_columns_and_labels(filled: Root, where: str | None, expected: list[str]) -> None:
    images, excluded, _ = read(filled, where)
    assert sorted(image.key for image in images) == expected
    assert excluded == 6 - len(expected)


def test_an_image_with_several_matching_rows_counts_once(tmp_path: Path) -> None:
    root = Root(tmp_path)
    root.results(scored("s3://b/x", UNSURE, UNSURE, CAT))
    root.results(scored("s3://b/x", UNSURE), date="2026-11-20", run_id="r0")
    root.failures([failed("s3://b/x")], date="2026-11-19", run_id="r")
    images, excluded, repeated = read(root, "confidence < 60")
    assert ([image.key for image in images], excluded, repeated) == (["x"], 1, 1)


def test_size_and_etag_are_those_of_the_latest_run(tmp_path: Path) -> None:
    root = Root(tmp_path)
    for date, etag in (("2026-11-19", "old"), ("2026-11-21", "new"), ("2026-11-20", "between")):
        image = ImageRef(
            uri="s3://b/x", bucket="b", key="x", etag=etag, size_bytes=3, last_modified=NOON, extra='{"a":1}'
        )
        root.results(
            Scored(image=image, labels=(), attempts=1, latency_ms=1, request_id="r", scored_at=NOON),
            date=date,
            run_id=f"r-{date}",
        )
    (found,) = read(root)[0]
    assert (found.etag, found.size_bytes, found.last_modified, found.extra) == ("new", 3, NOON, '{"a":1}')
    assert found.any_extension, "it was scored, whatever its name"


def test_versions_are_separate_images(tmp_path: Path) -> None:
    root = Root(tmp_path)
    root.results(scored("s3://b/x", version_id="1"), scored("s3://b/x", version_id="2"), scored("s3://b/x"))
    assert sorted(str(image.version_id) for image in read(root)[0]) == ["1", "2", "None"]


def test_keys_are_exact(tmp_path: Path) -> None:
    root = Root(tmp_path)
    root.results(*(scored(f"s3://b/{key}") for key in HARD_KEYS))
    images = read(root)[0]
    assert {image.key for image in images} == set(HARD_KEYS)
    assert {image.uri for image in images} == {f"s3://b/{key}" for key in HARD_KEYS}


def test_local_images_have_their_current_size_and_time(tmp_path: Path) -> None:
    picture = tmp_path / "x.png"
    picture.write_bytes(b"1234")
    local = ImageRef(uri=str(picture), bucket="", key=str(picture), size_bytes=1, extra='{"a":1}')
    root = Root(tmp_path / "out")
    root.results(
        Scored(image=local, labels=(), attempts=1, latency_ms=1, request_id="r", scored_at=NOON), scored("s3://b/y")
    )
    found = {image.key: image for image in read(root)[0]}
    assert found.keys() == {str(picture), "y"}
    again = found[str(picture)]
    assert (again.local, again.size_bytes, again.extra) == (True, 4, '{"a":1}')


def test_members_of_archives_are_excluded_and_counted(tmp_path: Path) -> None:
    root = Root(tmp_path)
    root.results(scored("s3://b/x#1.png"), scored("s3://b/shard.tar#1.png"), scored("s3://b/shard.TAR#a/b.png"))
    images, excluded, _ = read(root)
    assert ([image.key for image in images], excluded) == (["x#1.png"], 2)


def test_a_run_does_not_read_its_own_rows(filled: Root) -> None:
    assert names(filled, run="r1") == ["old"]
    assert names(filled, run="r") == names(filled)


def test_a_missing_root_or_invalid_condition_is_refused(filled: Root, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"opening the output root .* failed: it does not exist"):
        read(tmp_path / "nowhere")
    (tmp_path / "photos").mkdir()
    with pytest.raises(OutputError, match="is not an output root"):
        read(tmp_path / "photos")
    with pytest.raises(UsageError, match=r'column "score"; the columns are run_id, model_arn, .* top_confidence'):
        read(filled, "score < 3")


def test_a_corrupt_file_is_named(filled: Root) -> None:
    (part, *_) = filled.path.rglob("r0-*.parquet")
    os.truncate(part, 100)
    with pytest.raises(Exception, match=rf"can't read .*{part.name}"):
        read(filled, "confidence < 60")
