"""The report in a real browser: themes, scripts on and off, a phone's width, print, and nothing refused or logged."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser_support import hard_study, opened, probe
from matplotlib.image import imread

from scalebench.reporting import render


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(render(hard_study()))
    return path


@pytest.fixture(scope="module")
def tab(browser, page: Path) -> Iterator[Any]:
    """One tab for all tests that only look: to load a page takes longer than a test."""
    with opened(browser, page) as shared:
        yield shared


def with_script(page: Path, script: str) -> Path:
    """Return a copy of the page with a script at its end."""
    copy = page.with_name("copy.html")
    copy.write_text(page.read_text().replace("</body>", f"<script>{script}</script></body>"))
    return copy


def console(browser: Any, path: Path) -> list[str]:
    """Return what a page writes to the console while it opens."""
    lines: list[str] = []
    tab = browser.new_page()
    tab.on("console", lambda message: lines.append(message.text))
    tab.goto(path.as_uri())
    tab.wait_for_timeout(50)
    tab.close()
    return lines


@pytest.mark.slow
def test_nothing_is_logged_or_refused(browser, page: Path, tab) -> None:
    assert console(browser, page) == []
    assert tab.evaluate("document.querySelector('h1').textContent") == "A study"


@pytest.mark.slow
def test_policy_refuses_the_network(browser, page: Path) -> None:
    """The same page asked for an image elsewhere has it refused: the silence above is not a deaf test."""
    ask = "document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:9/a.png'}))"
    assert any("Content Security Policy" in line for line in console(browser, with_script(page, ask)))


COLORS = """(() => {
  const of = (selector, name) => getComputedStyle(document.querySelector(selector))[name];
  return {paper: of('html', 'backgroundColor'), ink: of('body', 'color'), text: of('.drawing text', 'fill')};
})()"""


@pytest.mark.slow
def test_dark_theme_reaches_the_drawings(browser, page: Path) -> None:
    clicked = f"(document.getElementById('theme').click(), {COLORS})"
    with opened(browser, page, color_scheme="light") as tab:
        light = tab.evaluate(COLORS)
        tab.emulate_media(color_scheme="dark")
        dark = tab.evaluate(COLORS)
        tab.emulate_media(color_scheme="light")
        assert tab.evaluate(clicked) == dark
    assert brightness(light["paper"]) > 700
    assert brightness(light["ink"]) < 150
    assert brightness(dark["paper"]) < 150
    assert brightness(dark["ink"]) > 600
    assert [light["text"], dark["text"]] == [light["ink"], dark["ink"]]


def brightness(color: str) -> int:
    """Sum the three channels of an rgb() colour."""
    return sum(map(int, re.findall(r"\d+", color)[:3]))


# Of figures and of the figure that a script makes of the trials: pixels, on the screen.
PHONE = """(() => {
  const widths = [document.documentElement.scrollWidth];
  document.querySelectorAll('details').forEach((each) => { each.open = true; });
  document.querySelectorAll('.trials').forEach(showTrials);
  widths.push(document.documentElement.scrollWidth);
  const sizes = [...document.querySelectorAll('.drawing text')].map((text) => {
    const svg = text.closest('svg');
    return parseFloat(getComputedStyle(text).fontSize) * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
  });
  return {window: innerWidth, widths, texts: sizes.length, smallest: Math.min(...sizes)};
})()"""


@pytest.mark.slow
def test_no_overflow_and_legible_text_on_a_phone(browser, page: Path) -> None:
    measured = probe(browser, page, PHONE, size=(390, 844))
    assert measured["window"] == 390
    assert max(measured["widths"]) <= 390
    assert measured["texts"] > 100
    assert measured["smallest"] >= 11


@pytest.mark.slow
def test_page_is_complete_without_scripts(browser, page: Path) -> None:
    picture = page.with_name("page.png")
    with opened(browser, page, java_script_enabled=False, size=(1200, 1600)) as tab:
        tab.screenshot(path=picture)
        assert tab.query_selector(".tools") is None
    pixels = imread(picture)[:, :, :3]
    assert pixels.shape[:2] == (1600, 1200)
    # Text and drawings all the way down, and no theme button, which would do nothing, in the top right corner.
    assert (pixels.min(axis=(1, 2)) < 0.5).mean() > 0.3
    assert pixels[:90, 1000:].min() > 0.95


FOLD = """(() => {
  const bottom = (selector) => document.querySelector(selector).getBoundingClientRect().bottom;
  return {strip: bottom('.strip'), drawing: bottom('.first figure svg'), verdict: bottom('.verdict'),
          beside: document.querySelector('.first figure').getBoundingClientRect().left > 600};
})()"""


@pytest.mark.slow
def test_verdict_strip_and_headline_are_above_the_fold(tab) -> None:
    places = tab.evaluate(FOLD)
    assert places["verdict"] < places["strip"] <= 900
    assert places["drawing"] <= 900
    assert places["beside"]


@pytest.mark.slow
def test_print_is_six_pages_at_most(tab) -> None:
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b", tab.pdf(format="A4"))) <= 6
