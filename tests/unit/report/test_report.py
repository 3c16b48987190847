"""The file that `write_report` writes: hostile text, its size, and the numbers in it."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import anyio
import polars as pl
import pytest
from PIL import Image

import batchcl
from batchcl.errors import OutputError, UsageError
from batchcl.outcomes import Label, Scored
from batchcl.report.contents import nights, throughput
from batchcl.report.gallery import Chosen, GalleryPicture, choose_pictures, fit_pictures
from batchcl.report.page import visible
from batchcl.report.pictures import Picture
from batchcl.sources.base import local_image
from reports import IMAGES, LABELS, LONG, NIGHTS, PICTURES, SCRIPT, TURNED, HostileReport
from unit.analysis.conftest import NOON, Root, failed, scored

NOW = dt.datetime(2026, 11, 24, tzinfo=dt.UTC)
VOID = {"meta", "link", "img", "input", "br"}


@dataclass
class Page(HTMLParser):
    """The elements, attributes and text of a page; fails at tags that aren't closed in order."""

    html: str
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    isolated: list[str] = field(default_factory=list)
    scripts: list[str] = field(default_factory=list)
    styles: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "bdi":
            self.isolated.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if "bdi" in self.open:
            self.isolated[-1] += data
        for kind, texts in (("script", self.scripts), ("style", self.styles)):
            if self.open[-1:] == [kind]:
                texts.append(data)


@pytest.fixture(scope="module")
def root(hostile: HostileReport) -> Root:
    return hostile.root


@pytest.fixture(scope="module")
def page(hostile: HostileReport) -> Page:
    return Page(hostile.path.read_text(encoding="utf-8"))


def test_a_report_has_its_counts(hostile: HostileReport) -> None:
    size_bytes = hostile.path.stat().st_size
    expected = batchcl.Report(path=str(hostile.path), size_bytes=size_bytes, pictures=23, unreadable=1, omitted=0)
    assert hostile.written == expected


def test_text_of_users_is_never_markup(page: Page) -> None:
    names = {tag for tag, _ in page.tags}
    assert names.isdisjoint({"b", "iframe", "object", "base"})
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert len(page.scripts) == len(page.styles) == 1
    assert page.scripts[0] == (files("batchcl.report") / "templates" / "report.js").read_text()
    for label in LABELS:
        assert visible(label) in page.isolated
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x09\x0b-\x1f]", page.html)


def test_the_page_may_only_use_its_own_script_and_style(page: Page) -> None:
    policy = next(each["content"] for _, each in page.tags if each.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    for kind, text in (("script", page.scripts[0]), ("style", page.styles[0])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}';" in policy
    assert "default-src 'none'" in policy
    assert not [tag for tag, attributes in page.tags if "style" in attributes]


def test_the_page_refers_to_nothing_outside_itself(page: Page) -> None:
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "action", "poster", "srcset"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    assert "url(" not in page.html.partition("</style>")[0]
    assert "@import" not in page.html.partition("</style>")[0]


def test_targets_of_links_and_labels_exist_once(page: Page) -> None:
    ids = [each["id"] for _, each in page.tags if each.get("id")]
    assert len(ids) == len(set(ids))
    used = [each["href"] or "" for tag, each in page.tags if tag == "a"]
    used += [f"#{each['aria-labelledby']}" for _, each in page.tags if "aria-labelledby" in each]
    assert {name.removeprefix("#") for name in used} <= set(ids)


def test_the_numbers_are_those_of_the_commands(page: Page, root: Root) -> None:
    rows = batchcl.open_results(str(root)).images().collect()
    text = " ".join(re.sub("<[^>]*>", " ", page.html.partition("<main")[0]).split())
    without = rows.filter(pl.col("labels").list.len() == 0).height
    assert f"Images scored {NIGHTS * IMAGES}" in text
    assert f"Without a label {without} {without / rows.height:.1%}" in text
    assert "Failed 2" in text


def test_each_picture_has_the_command_that_shows_it(page: Page, root: Root) -> None:
    shown = re.findall(r"<details><summary>Full size</summary><code>(batchcl show [^<]*)</code>", page.html)
    assert len(shown) == PICTURES
    assert all(f" {root} " in command or f" '{root}' " in command for command in shown)
    missing = [text for text in page.isolated if "No such file" in text or "no such file" in text.lower()]
    assert missing, "the reason is in the place of the picture"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("dog", "dog"),
        ("שלום, مرحبا, 日本, é", "שלום, مرحبا, 日本, é"),
        ("👩\u200d🔬", "👩\u200d🔬"),
        ("a\tb\x1b\x00", r"a\tb\x1b\x00"),
        (TURNED, r"\u202egpj.exe"),
        ("\ud800", r"\ud800"),
        ("a\u2028b", r"a\u2028b"),
    ],
)
def test_invisible_characters_are_shown_as_escapes(text: str, shown: str) -> None:
    assert visible(text) == shown


def many_pictures(folder: Path, count: int) -> Root:
    """A root with `count` images of detailed photographs, which need many bytes."""
    root = Root(folder / "out")
    root.path.mkdir()
    drawn = folder / "picture.jpg"
    Image.effect_noise((900, 600), 90).convert("RGB").save(drawn, quality=90)
    rows = []
    for number in range(count):
        os.link(drawn, folder / f"{number}.jpg")
        image = local_image(str(folder / f"{number}.jpg"))
        labels = () if number % 5 == 4 else (Label(f"label {number % 7}", 50 + number % 50, (0.1, 0.1, 0.5, 0.5)),)
        rows.append(
            Scored(image=image, labels=labels, attempts=1, latency_ms=80, request_id="r", scored_at=NOON),
        )
    root.results(*rows)
    return root


def test_pictures_are_shrunk_until_the_file_fits(tmp_path: Path) -> None:
    root = many_pictures(tmp_path, 40)
    written = batchcl.write_report_sync(str(root), tmp_path / "report.html", gallery=36, max_mb=1)
    assert 300_000 < written.size_bytes == (tmp_path / "report.html").stat().st_size <= 1_000_000
    assert (written.pictures, written.omitted) == (36, 0)


def test_a_large_root_with_long_names_stays_within_the_limit(tmp_path: Path) -> None:
    root = Root(tmp_path / "out")
    root.path.mkdir()
    names = [f"{number:03d}" + "&" * 997 for number in range(250)]
    for night in range(2):
        rows = (
            scored(f"s3://bucket/{number}-{names[number % 250]}", Label(names[number % 250], 70))
            for number in range(500)
        )
        root.results(*rows, run_id=f"night-{night}", date=f"2026-11-{21 + night}")
    written = batchcl.write_report_sync(str(root), tmp_path / "report.html", gallery=0, max_mb=1)
    assert written.size_bytes <= 1_000_000
    assert "less frequent labels are not shown" in (tmp_path / "report.html").read_text()


def a_picture(category: str, size_bytes: int) -> GalleryPicture:
    chosen = Chosen(category=category, reason="", also=(), row={})
    return GalleryPicture(chosen=chosen, picture=Picture(row=0, jpeg=b"", error="x" * size_bytes))


def test_what_can_not_be_shrunk_is_left_out_of_each_category() -> None:
    pictures = [a_picture(category, 100) for category in ("wrong",) * 20 + ("uncertain",) * 10 + ("unlabelled",) * 2]

    def size_of(shown: Sequence[GalleryPicture]) -> int:
        return 500 + sum(len(each.picture.error) for each in shown)

    async def fit() -> list[GalleryPicture]:
        return await fit_pictures(pictures, size_of=size_of, max_bytes=1_500)

    kept = anyio.run(fit)
    assert 8 <= len(kept) <= 10
    order = [next(n for n, each in enumerate(pictures) if each.chosen is one.chosen) for one in kept]
    assert order == sorted(order)
    assert {each.chosen.category for each in kept} == {"wrong", "uncertain", "unlabelled"}


def test_each_image_is_chosen_once_and_each_reason_in_turn(root: Root) -> None:
    results = batchcl.open_results(str(root))
    chosen = choose_pictures(results, limit=20, frequent=LABELS)
    uris = [each.row["uri"] for each in chosen]
    assert len(uris) == len(set(uris)) == 20
    by_category = {each.category: sum(one.category == each.category for one in chosen) for each in chosen}
    assert by_category == {"uncertain": 5, "least": 5, "most": 5, "unlabelled": 5}
    both = next(each for each in choose_pictures(results, limit=90, frequent=LABELS) if each.also)
    assert both.title not in both.also
    assert choose_pictures(results, limit=0, frequent=LABELS) == []


def test_shares_over_the_nights_have_a_row_for_each_night(root: Root) -> None:
    results = batchcl.open_results(str(root), all_runs=True)
    images = results.images()
    found = nights(results, labels=["dog", SCRIPT])
    assert found.columns == ["model", "label", "date", "images", "scored", "share"]
    assert found.height == 2 * NIGHTS
    first = images.filter(pl.col("date") == dt.date(2026, 11, 21)).collect()
    dogs = first.filter(pl.col("labels").list.eval(pl.element().struct.field("name") == "dog").list.any()).height
    row = found.filter((pl.col("label") == "dog") & (pl.col("date") == dt.date(2026, 11, 21))).row(0, named=True)
    assert (row["images"], row["scored"], row["share"]) == (dogs, IMAGES, dogs / IMAGES)


def test_throughput_has_no_gaps_and_all_images() -> None:
    at = [NOON + dt.timedelta(seconds=second) for second in (*range(100), *range(400, 500))]
    seconds = pl.DataFrame({"second": at, "images": 1}, schema={"second": pl.Datetime("us", "UTC"), "images": pl.Int64})
    found = throughput(seconds, "r")
    assert found is not None
    assert found.interval_s == 5
    assert found.intervals.height == 100
    assert found.intervals["images_per_second"].sum() * found.interval_s == 200
    assert (found.intervals["images_per_second"] == 0).sum() == 60
    assert throughput(seconds.clear(), "r") is None


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"gallery": -1}, "the number must be 0 to 2,000"),
        ({"max_mb": 0.5}, "the limit must be 1 or more"),
        ({"max_mb": float("nan")}, "the limit must be 1 or more"),
    ],
)
def test_limits_out_of_range_are_refused(root: Root, tmp_path: Path, options: dict[str, float], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        batchcl.write_report_sync(str(root), tmp_path / "report.html", **options)  # type: ignore[arg-type]


def test_a_file_that_can_not_be_written_is_refused(tmp_path: Path) -> None:
    root = Root(tmp_path / "out")
    root.results(scored("s3://bucket/1.jpg"))
    with pytest.raises(UsageError, match="is a directory"):
        batchcl.write_report_sync(str(root), tmp_path)
    with pytest.raises(UsageError, match="is in the output root"):
        batchcl.write_report_sync(str(root), root.path / "report.html")
    with pytest.raises(UsageError, match=r"s3://bucket/report.html is in S3; name a local file"):
        batchcl.write_report_sync(str(root), "s3://bucket/report.html")
    with pytest.raises(UsageError, match="does not exist; create it first"):
        batchcl.write_report_sync(str(root), tmp_path / "none" / "report.html")
    with pytest.raises(UsageError, match=r"s3://b/report\.html is in S3; name a local file"):
        batchcl.write_report_sync(str(root), "s3://b/report.html")
    with pytest.raises(OutputError, match="File name too long"):
        batchcl.write_report_sync(str(root), tmp_path / f"{'x' * 300}.html", gallery=0)
    assert list(tmp_path.iterdir()) == [root.path]


def test_without_credentials_a_report_has_no_pictures_and_says_why(
    tmp_path: Path, clean_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in set(os.environ) - set(clean_env):
        monkeypatch.delenv(name)
    for name, value in clean_env.items():
        monkeypatch.setenv(name, value)
    root = Root(tmp_path / "out")
    root.path.mkdir()
    root.results(*(scored(f"s3://bucket/{number}.jpg", Label("dog", 70)) for number in range(3)))
    written = batchcl.write_report_sync(str(root), tmp_path / "report.html")
    assert (written.pictures, written.unreadable) == (0, 3)
    html = (tmp_path / "report.html").read_text()
    assert html.count("no AWS credentials found") == 1
    assert html.count('<p class="message">No picture<bdi></bdi></p>') == 3


def test_a_root_without_images_has_a_report(tmp_path: Path) -> None:
    root = Root(tmp_path / "out")
    root.path.mkdir()
    root.failures([failed("s3://bucket/1.jpg")])
    written = batchcl.write_report_sync(str(root), tmp_path / "report.html")
    assert written.pictures == 0
    assert "No image has a label." in (tmp_path / "report.html").read_text()


def test_long_names_are_complete(page: Page) -> None:
    assert LONG in page.isolated
