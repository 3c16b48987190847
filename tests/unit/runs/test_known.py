"""Which image versions have a result: the same version once, another version again."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import replace
from typing import BinaryIO

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcl.aws.arn import ModelArn
from batchcl.errors import OutputError
from batchcl.failure_codes import FAILURE_CODES
from batchcl.images import ImageRef
from batchcl.runs.journal import Chunk
from batchcl.runs.known import KnownVersions
from batchcl.runs.parts import PartSpec, publish_chunk
from batchcl.runs.store import Store
from batchcl.scoring.outcome import Failed, Outcome, Scored
from tables import columns

NOW = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)


def image(key: str, **more: object) -> ImageRef:
    values: dict[str, object] = {"uri": f"s3://b/{key}", "bucket": "b", "key": key, "etag": "e1"} | more
    return ImageRef(**values)  # type: ignore[arg-type]


def arn_of(model: str) -> ModelArn:
    """Of `project@version`, or of `project@version/stamp` for one that was trained again under the same name."""
    project, _, version = model.partition("@")
    version, _, stamp = version.partition("/")
    return ModelArn.parse(
        f"arn:aws:rekognition:eu-west-1:123456789012:project/{project}/version/{version}/{stamp or 1700000000000}"
    )


def scored(each: ImageRef) -> Scored:
    return Scored(image=each, labels=(), attempts=1, latency_ms=1.0, request_id="", scored_at=NOW)


def failed(each: ImageRef, code: str = "InvalidImageFormatException") -> Failed:
    return Failed(image=each, status="failed", code=code, message="no", attempts=1, failed_at=NOW)


async def publish(
    store: Store,
    run: str,
    outcomes: Sequence[Outcome],
    *,
    model: str = "m@1",
    day: int = 20,
    fit: bool = False,
) -> None:
    arn = arn_of(model)
    spec = PartSpec(run_id=run, model=arn.name, model_arn=arn.text, date=dt.date(2026, 11, day))
    rows, entries = columns(outcomes, fit=fit)
    await publish_chunk(store, spec, 0, Chunk(0, entries), rows)


def fresh(published: list[ImageRef], asked: list[ImageRef], *, model: str = "m@1") -> list[bool]:
    async def main() -> list[bool]:
        store = Store.memory()
        if published:
            await publish(store, "r", [scored(each) for each in published])
        return [each is None for each in await KnownVersions(store, arn_of(model)).known(asked)]

    return anyio.run(main)


def test_without_results_everything_is_fresh():
    assert fresh([], [image("a")]) == [True]


def test_the_same_etag_is_known_and_another_is_fresh():
    assert fresh([image("a"), image("b")], [image("a"), image("b", etag="e2"), image("c")]) == [False, True, True]


def test_a_version_id_decides_alone():
    old = image("a", version_id="v1")
    assert fresh([old], [old, image("a", version_id="v2"), image("a", version_id="v1", etag=None)]) == [
        False,
        True,
        False,
    ]


def test_a_local_file_is_known_by_size_and_time():
    local = ImageRef(uri="/x/a.png", bucket="", key="/x/a.png", size_bytes=5, last_modified=NOW)
    changed = [local, replace(local, size_bytes=6), replace(local, last_modified=NOW + dt.timedelta(seconds=1))]
    assert fresh([local], changed) == [False, True, True]


def test_an_image_of_which_nothing_is_told_is_never_known():
    untold = image("a", etag=None)
    assert fresh([untold], [untold]) == [True]


@pytest.mark.parametrize("model", ["m@2", "m@1/1800000000000"], ids=["another-version", "trained-again"])
def test_another_model_knows_nothing(model):
    assert fresh([image("a")], [image("a")], model=model) == [True]


def test_every_night_counts_and_all_are_read_once_with_pauses(monkeypatch: pytest.MonkeyPatch):
    opened: list[str] = []
    pauses: list[int] = []
    open_file = Store.open_file

    def counted(store: Store, path: str) -> BinaryIO:
        opened.append(path)
        return open_file(store, path)

    monkeypatch.setattr(Store, "open_file", counted)

    async def pause(images: int) -> None:
        pauses.append(images)

    async def main() -> None:
        store = Store.memory()
        for night in range(1, 4):
            outcomes = [scored(image(f"{night}/{n:03}")) for n in range(48)]
            await publish(store, f"n{night}", outcomes, day=night)
        known = KnownVersions(store, arn_of("m@1"), pause=pause)
        for n in range(48):
            across = [image(f"{night}/{n:03}") for night in (1, 3, 4)]
            found = await known.known([*across, image("2/000", etag="e2")])
            assert found == ["already_scored", "already_scored", None, None]

    anyio.run(main)
    assert len(set(opened)) == len(opened) == 3
    assert pauses == [6, 6, 6]


def known(
    outcomes: Sequence[Outcome], asked: ImageRef, *, failed_with: bool = False, fit: bool = False, again: bool = False
) -> str | None:
    """What a job with `fit` and `retry_failed` knows of `asked` after a run that had the `--fit` of `failed_with`."""

    async def main() -> str | None:
        store = Store.memory()
        await publish(store, "r", outcomes, fit=failed_with)
        (found,) = await KnownVersions(store, arn_of("m@1"), fit=fit, retry_failed=again).known([asked])
        return found

    return anyio.run(main)


@pytest.mark.parametrize("code", ["InternalServerError", "InvalidS3ObjectException", *FAILURE_CODES])
def test_a_permanent_failure_of_a_version_is_known(code):
    outcomes = [failed(image("a"), code)]
    about = FAILURE_CODES.get(code)
    expected = "already_failed" if about is not None and about.permanent else None
    assert known(outcomes, image("a")) == expected
    assert known(outcomes, image("a", etag="e2")) is None
    assert known(outcomes, image("a"), again=True) is None


def test_a_permanent_failure_of_an_unknown_version_is_not_known():
    untold = image("a", etag=None)
    assert known([failed(untold)], untold) is None


@pytest.mark.parametrize("failed_with", [False, True])
def test_a_permanent_failure_counts_for_the_same_fit_setting(failed_with):
    outcomes = [failed(image("a"))]
    assert known(outcomes, image("a"), failed_with=failed_with, fit=failed_with) == "already_failed"
    assert known(outcomes, image("a"), failed_with=failed_with, fit=not failed_with) is None


def test_a_version_that_failed_and_was_scored_is_scored():
    assert known([failed(image("a")), scored(image("a"))], image("a")) == "already_scored"


def is_known(old: ImageRef, new: ImageRef) -> bool:
    """The rule, for one image."""
    if old.uri != new.uri:
        return False
    by_time = new.local and None not in (new.size_bytes, new.last_modified)
    return (
        (new.version_id is not None and old.version_id == new.version_id)
        or (new.version_id is None and new.etag is not None and old.etag == new.etag)
        or (by_time and (old.size_bytes, old.last_modified) == (new.size_bytes, new.last_modified))
    )


@given(st.data())
def test_a_version_is_known_by_its_id_else_its_tag_else_size_and_time(data: st.DataObject):
    texts = st.sampled_from(["a", "b", None])
    uris = ("s3://b/x", "s3://b/y", "/x/x")

    def drawn() -> ImageRef:
        uri = data.draw(st.sampled_from(uris))
        bucket, key = ("b", uri[-1]) if uri.startswith("s3") else ("", uri)
        times = st.sampled_from([NOW, NOW + dt.timedelta(microseconds=1), None])
        return ImageRef(
            uri=uri,
            bucket=bucket,
            key=key,
            version_id=data.draw(texts),
            etag=data.draw(texts),
            size_bytes=data.draw(st.sampled_from([1, 12, None])),
            last_modified=data.draw(times),
        )

    published = [drawn() for _ in range(data.draw(st.integers(1, 6)))]
    asked = [*published, *(drawn() for _ in range(6))]
    assert fresh(published, asked) == [not any(is_known(old, new) for old in published) for new in asked]


def test_a_damaged_part_is_named_with_what_to_do():
    async def main() -> None:
        store = Store.memory()
        await publish(store, "r1", [scored(image("a"))])
        (part,) = [file.path for file in await store.list_all("results")]
        data = await store.get(part)
        assert data is not None
        await store.put(part, data[:-20])
        with pytest.raises(
            OutputError, match=r"r1-00000-00000.parquet is damaged: .*; restore it, or run without --incr"
        ):
            await KnownVersions(store, arn_of("m@1")).known([image("a")])

    anyio.run(main)
