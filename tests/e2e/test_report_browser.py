"""The report in a real browser: nothing is loaded, nothing executes, and people can use it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from reports import PICTURES, SCRIPT, HostileReport

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium")
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")


@pytest.fixture
def report(hostile: HostileReport) -> Path:
    return hostile.path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright  # slow to import, and one worker needs it

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


class Opened:
    """A page of the report, what it requested and what it logged."""

    def __init__(self, browser: Browser, report: Path, **context: Any) -> None:
        self.context = browser.new_context(**({"viewport": DESKTOP} | context))
        self.page: Page = self.context.new_page()
        self.requested: list[str] = []
        self.logged: list[str] = []
        self.page.on("request", lambda request: self.requested.append(request.url))
        self.page.on("console", lambda message: self.logged.append(message.text))
        self.page.on("pageerror", lambda error: self.logged.append(str(error)))
        self.page.on("dialog", lambda dialog: self.logged.append(dialog.message))
        self.page.goto(report.as_uri())


@pytest.fixture
def opened(browser: Browser, report: Path) -> Iterator[Any]:
    contexts = []

    def open_report(**context: Any) -> Opened:
        contexts.append(Opened(browser, report, **context))
        return contexts[-1]

    yield open_report
    for each in contexts:
        each.context.close()


def test_nothing_is_requested_and_nothing_of_the_names_executes(opened: Any, report: Path) -> None:
    each = opened()
    images = "[...document.images].every(image => image.complete && image.naturalWidth > 0)"
    each.page.wait_for_function(images)
    assert [url for url in each.requested if not url.startswith("data:")] == [report.as_uri()]
    assert each.logged == []
    assert each.page.evaluate("typeof window.attacked") == "undefined"
    assert each.page.title() == "cats@v1 – batchcl report"  # noqa: RUF001 - a dash


def test_the_policy_blocks_an_injected_script_and_request(opened: Any) -> None:
    each = opened()
    each.page.evaluate(
        """() => {
          const script = document.createElement("script");
          script.textContent = "window.attacked = true";
          document.body.append(script);
          const image = document.createElement("img");
          image.src = "http://127.0.0.1:9/x.png";
          document.body.append(image);
        }"""
    )
    assert each.page.evaluate("typeof window.attacked") == "undefined"
    assert len([text for text in each.logged if "Content Security Policy" in text]) == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(opened: Any, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    each = opened(color_scheme=scheme, viewport=PHONE if scheme == "dark" else DESKTOP)
    found = Axe().run(each.page).response["violations"]
    serious = [violation for violation in found if violation["impact"] in {"serious", "critical"}]
    assert [(v["id"], [node["html"][:200] for node in v["nodes"][:3]]) for v in serious] == []


def test_a_dark_page_is_dark_and_prints_on_white(opened: Any) -> None:
    page = opened(color_scheme="dark").page
    background = "getComputedStyle(document.body).backgroundColor"
    bar = "getComputedStyle(document.querySelector('#confidence figure svg path[fill]')).fill"
    dark = page.evaluate(f"[{background}, {bar}]")
    page.emulate_media(media="print", color_scheme="dark")
    printed = page.evaluate(f"[{background}, {bar}]")
    assert dark == ["rgb(18, 22, 27)", "rgb(111, 177, 242)"]
    assert printed == ["rgb(255, 255, 255)", "rgb(10, 93, 171)"]
    assert not page.locator("nav").is_visible()
    assert not page.locator("#filters").is_visible()


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_needs_no_horizontal_scrolling(opened: Any, width: int) -> None:
    page = opened(viewport={"width": width, "height": 800}).page
    assert page.evaluate("document.documentElement.scrollWidth") == width


def shown(page: Page) -> list[str]:
    return [item.get_attribute("data-labels") or "" for item in page.locator("[data-labels]:visible").all()]


def test_filters_select_pictures_by_label_confidence_and_reason(opened: Any) -> None:
    page = opened().page
    everything = shown(page)
    assert len(everything) == PICTURES
    assert page.locator("#found").inner_text() == f"{PICTURES} of {PICTURES} pictures"
    page.locator("select[name=label]").select_option(label=SCRIPT)
    number = page.locator("select[name=label]").input_value()
    of_label = [labels for labels in everything if any(pair.startswith(f"{number}:") for pair in labels.split())]
    assert shown(page) == of_label
    assert 0 < len(of_label) < PICTURES
    page.locator("select[name=label]").select_option("")
    page.locator("input[name=low]").fill("80")
    above = [labels for labels in everything if any(float(pair.split(":")[1]) >= 80 for pair in labels.split())]
    assert shown(page) == above
    assert page.locator("#found").inner_text() == f"{len(above)} of {PICTURES} pictures"
    page.get_by_role("button", name="Show all").click()
    page.wait_for_function(f"document.getElementById('found').textContent === '{PICTURES} of {PICTURES} pictures'")
    page.locator("select[name=label]").select_option("none")
    assert shown(page) == [labels for labels in everything if not labels]
    page.get_by_role("button", name="Show all").click()
    page.locator("select[name=reason]").select_option(label="Most uncertain")
    assert page.locator("h3:visible", has_text="Most uncertain").count() == 1
    assert page.locator("h3:visible", has_text="Without a label").count() == 0


def test_every_control_is_reached_and_used_by_keyboard(opened: Any) -> None:
    page = opened().page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    seen = []
    for _ in range(60):
        page.keyboard.press("Tab")
        tag, name, outline = page.evaluate(
            """() => {
              const each = document.activeElement;
              return [each.tagName, each.name || "", getComputedStyle(each).outlineStyle];
            }"""
        )
        seen.append(f"{tag} {name}".strip())
        assert outline != "none", seen
        if tag == "SUMMARY":
            break
    assert [each for each in seen if each.startswith(("SELECT", "INPUT", "BUTTON"))] == [
        "SELECT label",
        "INPUT low",
        "INPUT high",
        "SELECT reason",
        "BUTTON",
    ]
    page.keyboard.press("Enter")
    command = page.locator("details[open] code")
    assert command.count() == 1
    assert command.inner_text().startswith("batchcl show ")


def test_without_javascript_everything_but_the_filters_is_there(opened: Any) -> None:
    page = opened(java_script_enabled=False).page
    assert page.locator("[data-labels]").count() == PICTURES
    assert page.locator("[data-labels]").last.is_visible()
    assert not page.locator("#filters").is_visible()
    assert page.get_by_role("cell").count() > 50
    assert page.get_by_role("rowheader", name="dog", exact=True).count() >= 2
