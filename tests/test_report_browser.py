"""The report in a real browser: themes, scripts on and off, a phone's width, sorting, and nothing refused or logged."""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from report_support import page_text

from scalebench.reporting import render
from scalebench.store import Results

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
# The widest words a study can hold: an id without a place to break, and a long reason.
LONG = "x" * 300


def study() -> Results:
    """Six sizes, two seeds, one failure; a law with 0.004 nats of noise."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "study": "s", "trial_id": f"{size:08x}{seed:08x}", "status": "ok", "params_non_embedding": size,
            "seed": seed, "steps": 100, "validation_loss_nats": 1.4 + 6 * size**-0.28 + rng.normal(0, 0.004),
            "validation_loss_se_nats": 0.003, "step_time_median_s": 3e-3 + 6e-8 * size, "flops_per_step": 1e4 * size,
            "memory_tracked_peak_bytes": 2e6 + 18 * size, "achieved_flops_per_s": 1e9, "error_message": None,
            "invalid_reason": None, "timing_exclusive": True, "command": LONG,
        }
        for size in (1_536, 4_096, 10_240, 24_576, 49_152, 98_304) for seed in (0, 1)
    ]  # fmt: skip
    rows[3] |= {"status": "failed", "error_message": LONG, "validation_loss_nats": None, "step_time_median_s": None}
    planned = [{"trial_id": trial_id} for trial_id in (*(row["trial_id"] for row in rows), LONG)]
    return Results(pd.DataFrame(rows), (LONG,), {"s": {"title": "A study", "command": LONG, "planned": planned}})


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(render(study()))
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


Probe = Callable[..., Any]


@pytest.fixture
def probe(browser: Any, page: Path) -> Probe:
    """Evaluate a JavaScript expression on the page, freshly opened in a window of its own size and colour scheme."""

    def evaluate(
        expression: str, path: Path = page, width: int = 1200, height: int = 1600, scheme: str = "light"
    ) -> Any:
        with opened(browser, path, width, height, scheme) as (tab, _):
            return tab.evaluate(expression)

    return evaluate


@contextmanager
def opened(browser: Any, path: Path, width: int = 1200, height: int = 1600, scheme: str = "light") -> Iterator[Any]:
    """Open a page: the tab and the messages of its console so far."""
    tab = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    console: list[str] = []
    tab.on("console", lambda message: console.append(message.text))
    tab.on("pageerror", lambda error: console.append(str(error)))
    tab.goto(path.as_uri())
    yield tab, console
    tab.close()


@pytest.mark.slow
def test_nothing_is_logged_or_refused(browser: Any, page: Path) -> None:
    with opened(browser, page) as (tab, console):
        assert tab.locator("h1").inner_text() == "A study"
        assert console == []


@pytest.mark.slow
def test_policy_refuses_the_network(browser: Any, page: Path) -> None:
    """The same page asked for an image elsewhere has it refused: the silence above is not a deaf test."""
    ask = "document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:9/a.png'}))"
    copy = page.with_name("copy.html")
    copy.write_text(page.read_text().replace("</body>", f"<script>{ask}</script></body>"))
    with opened(browser, copy) as (_, console):
        assert any("Content Security Policy" in line for line in console)


COLORS = """(() => {
  const of = (selector, name) => getComputedStyle(document.querySelector(selector))[name];
  return {paper: of('html', 'backgroundColor'), ink: of('body', 'color'), text: of('.drawing text', 'fill')};
})()"""


@pytest.mark.slow
def test_dark_theme_reaches_the_drawings(probe: Probe) -> None:
    light, dark = probe(COLORS), probe(COLORS, scheme="dark")
    assert brightness(light["paper"]) > 700
    assert brightness(light["ink"]) < 150
    assert brightness(dark["paper"]) < 150
    assert brightness(dark["ink"]) > 600
    assert [light["text"], dark["text"]] == [light["ink"], dark["ink"]]


def brightness(color: str) -> int:
    """Sum the three channels of an rgb() colour."""
    return sum(map(int, re.findall(r"\d+", color)[:3]))


@pytest.mark.slow
def test_theme_button(probe: Probe) -> None:
    clicked = f"(document.getElementById('theme').click(), {COLORS})"
    assert probe(clicked) == probe(COLORS, scheme="dark")


@pytest.mark.slow
def test_no_overflow_and_legible_text_on_a_phone(probe: Probe) -> None:
    measured = probe("""({
      window: innerWidth, page: document.documentElement.scrollWidth,
      text: Math.min(...[...document.querySelectorAll('.drawing text')].map((text) =>
        parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a || Infinity)),
      open: (document.querySelectorAll('details').forEach((d) => { d.open = true; }),
             document.documentElement.scrollWidth)})""", width=390, height=800)  # fmt: skip
    assert measured["window"] == 390
    assert max(measured["page"], measured["open"]) <= 390
    assert measured["text"] >= 8


@pytest.mark.slow
def test_page_is_complete_without_scripts(browser: Any, page: Path) -> None:
    """The browser is told to run no script, says that it refused the page's, and shows all of it."""
    silent, picture = page.with_name("silent.html"), page.with_name("page.png")
    silent.write_text(page.read_text().replace("script-src 'unsafe-inline'", "script-src 'none'"))
    with opened(browser, silent) as (tab, console):
        tab.screenshot(path=picture)
    assert any("script" in line for line in console)
    pixels = imread(picture)[:, :, :3]
    assert pixels.shape[:2] == (1600, 1200)
    # Text and drawings all the way down, and no theme button, which would do nothing, in the top right corner.
    assert (pixels.min(axis=(1, 2)) < 0.5).mean() > 0.3
    assert pixels[:90, 1000:].min() > 0.95


SORT = """(() => {
  const table = document.querySelector('table.sortable'), head = table.tHead.rows[0];
  const column = [...head.cells].findIndex((cell) => cell.textContent.startsWith('validation loss'));
  const button = head.cells[column].querySelector('button');
  const read = () => [...table.tBodies[0].rows].map((row) => row.cells[column].textContent);
  button.click(); const up = read(), sort = head.cells[column].ariaSort;
  button.click(); return {up, down: read(), sort};
})()"""


@pytest.mark.slow
def test_columns_sort_by_number_and_keep_the_unmeasured_last(probe: Probe) -> None:
    found = probe(SORT)
    assert found["sort"] == "ascending"
    values = [float(text) for text in found["up"][:-1]]
    assert values == sorted(values)
    assert len(values) == 11
    assert found["down"] == [*found["up"][-2::-1], "—"]


# --- what the scripts add --------------------------------------------------------------------------------------------

FOLD = """(() => {
  const bottom = (selector) => document.querySelector(selector).getBoundingClientRect().bottom;
  return {strip: bottom('.strip'), drawing: bottom('.first figure svg'), verdict: bottom('.verdict'),
          beside: document.querySelector('.first figure').getBoundingClientRect().left > 600};
})()"""


@pytest.mark.slow
def test_verdict_strip_and_headline_are_above_the_fold(probe: Probe) -> None:
    found = probe(FOLD, width=1280, height=900)
    assert found["verdict"] < found["strip"] <= 900
    assert found["drawing"] <= 900
    assert found["beside"]


TEXT = """(() => Math.min(...[...document.querySelectorAll('.first .drawing text')].map((text) => {
  const svg = text.closest('svg');
  return parseFloat(getComputedStyle(text).fontSize) * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
})))()"""


@pytest.mark.slow
def test_text_of_figures_can_be_read_on_a_phone(probe: Probe) -> None:
    assert probe(TEXT, width=390, height=800) >= 11


TABS = """(() => [...document.querySelectorAll('[tabindex]')].filter((each) => each.matches('.scroll, pre')
  ? each.scrollWidth <= each.clientWidth : !each.matches('.drawing')).length)()"""


@pytest.mark.slow
def test_tab_stops_are_where_something_can_be_done(probe: Probe) -> None:
    assert probe(TABS) == 0


KEYS = """(() => {
  const figure = document.querySelector('.first figure'), drawing = figure.querySelector('.drawing');
  const press = (key) => drawing.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true, cancelable: true}));
  const read = () => figure.querySelector('.value').textContent;
  const titles = [...figure.querySelectorAll('.drawing use > title')].map((title) => title.textContent);
  press('ArrowRight'); const first = read(); press('ArrowRight'); const second = read();
  press('ArrowLeft'); press('ArrowLeft'); const last = read();
  return {titles, read: [first, second, last], marks: figure.querySelectorAll('use.here').length};
})()"""


@pytest.mark.slow
def test_arrow_keys_read_the_values(probe: Probe) -> None:
    found = probe(KEYS)
    assert found["read"] == [found["titles"][0], found["titles"][1], found["titles"][-1]]
    assert found["marks"] == 1


TABLE = """(() => {
  const table = document.querySelector('table.sortable'), tools = table.parentNode.previousElementSibling;
  const field = tools.querySelector('input'), rows = () => [...table.tBodies[0].rows].filter((row) => !row.hidden);
  const all = rows().length;
  field.value = 'failed'; field.dispatchEvent(new Event('input'));
  const csv = asCsv(table);
  return {all, left: rows().length, lines: csv.trim().split('\\n').length, csv};
})()"""


@pytest.mark.slow
def test_a_table_is_filtered_and_copied(probe: Probe) -> None:
    found = probe(TABLE)
    assert (found["all"], found["left"], found["lines"]) == (12, 1, 2)
    assert found["csv"].startswith("trial,")


FILES = """(() => {
  const svg = document.querySelector('.first .drawing svg'), text = standalone(svg);
  return {parsed: new DOMParser().parseFromString(text, 'image/svg+xml').querySelector('parsererror') === null,
          left: (text.match(/var\\(/g) || []).length, marks: (text.match(/<use/g) || []).length};
})()"""


@pytest.mark.slow
def test_a_figure_is_saved_with_its_colours(probe: Probe) -> None:
    found = probe(FILES)
    assert found["parsed"]
    assert found["left"] == 0
    assert found["marks"] > 10


@pytest.mark.slow
def test_the_theme_is_remembered(probe: Probe) -> None:
    press = """(() => {
      const root = document.documentElement;
      document.getElementById('theme').click(); const chosen = root.dataset.theme;
      delete root.dataset.theme; recall(); const recalled = root.dataset.theme;
      localStorage.clear();
      return [chosen, recalled];
    })()"""
    chosen, recalled = probe(press)
    assert chosen in ("dark", "light")
    assert recalled == chosen


@pytest.mark.slow
def test_a_link_to_the_appendix_opens_it(probe: Probe) -> None:
    move = "(() => { location.hash = '#study-s-residuals'; openTarget(); })()"
    assert probe(f"({move}, document.querySelector('details.appendix').open)") is True


@pytest.mark.slow
def test_a_series_is_hidden_and_shown(probe: Probe, tmp_path: Path) -> None:
    frame = study().frame
    both = pd.concat([frame.assign(implementation=name, trial_id=name + frame["trial_id"]) for name in "ab"])
    path = tmp_path / "two.html"
    path.write_text(page_text(Results(both.reset_index(drop=True), (), {"s": {}}), "loss"))
    toggle = """(() => {
      const figure = document.querySelector('.first figure');
      const button = [...figure.querySelectorAll('.tools button')].find((each) => each.textContent === 'a');
      const count = () => [...figure.querySelectorAll('.drawing use')].filter(
        (use) => use.getClientRects().length).length;
      const before = count(); button.click(); const without = count(), pressed = button.ariaPressed; button.click();
      return {before, without, pressed, after: count()};
    })()"""
    found = probe(toggle, path)
    assert found["without"] < found["before"] == found["after"]
    assert found["pressed"] == "false"


@pytest.mark.slow
def test_print_is_six_pages_at_most(browser: Any, page: Path) -> None:
    with opened(browser, page) as (tab, _):
        printed = tab.pdf()
    assert 1 <= len(re.findall(rb"/Type /Page\b", printed)) <= 6


EXPLORE = """(() => {
  const figure = document.querySelector('.explore'), [x, y] = figure.querySelectorAll('select');
  const choose = (field, name) => {
    field.value = [...field.options].findIndex((option) => option.text === name);
    field.dispatchEvent(new Event('change'));
  };
  const read = () => [...figure.querySelectorAll('.drawing use')].map((use) => Number(use.getAttribute('x')));
  choose(x, 'compute'); choose(y, 'validation loss (nats)');
  const logX = [...figure.querySelectorAll('button')].find((each) => each.textContent === 'log x');
  const table = figure.parentNode.querySelector('table');
  const heads = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
  const key = (row, name) => Number(row.cells[heads.indexOf(name)].dataset.key);
  const rows = [...table.tBodies[0].rows].filter((row) => key(row, 'validation loss (nats)'));
  const first = {pressed: logX.ariaPressed, at: read()};
  logX.click();
  return {first, second: {pressed: logX.ariaPressed, at: read()}, values: rows.map((row) => key(row, 'compute')),
          names: [...x.options].map((option) => option.text), titles: figure.querySelectorAll('use title').length};
})()"""


@pytest.mark.slow
def test_any_two_columns_of_the_trials_are_drawn_linear_and_logarithmic(probe: Probe) -> None:
    found = probe(EXPLORE)
    assert {"N (non-embedding parameters)", "compute", "training time", "validation loss (nats)"} <= set(found["names"])
    values = np.array(found["values"])
    assert len(values) == found["titles"] == 11
    scales = {"true": np.log, "false": np.asarray}
    assert {found["first"]["pressed"], found["second"]["pressed"]} == set(scales)
    for drawn in (found["first"], found["second"]):
        assert np.corrcoef(scales[drawn["pressed"]](values), drawn["at"])[0, 1] == pytest.approx(1, abs=1e-9)
