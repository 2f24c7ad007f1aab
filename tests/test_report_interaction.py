"""What scripts add to the report: values, series, scales, tables, files and links that keep what a reader has set."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser_support import hard_study, opened, probe
from report_support import page_text

from scalebench.reporting.page import LIVE_S, render_page


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(page_text(hard_study(), "loss", "residuals"))
    return path


@pytest.fixture(scope="module")
def tab(browser, page: Path) -> Iterator[Any]:
    """One tab for all tests that leave what the others look at as it was: to load a page takes longer than a test."""
    with opened(browser, page) as shared:
        yield shared


SORT = """(() => {
  const table = document.querySelector('table.sortable'), head = table.tHead.rows[0];
  const column = [...head.cells].findIndex((cell) => cell.textContent.startsWith('validation loss'));
  const button = head.cells[column].querySelector('button');
  const read = () => [...table.tBodies[0].rows].map((row) => row.cells[column].textContent);
  button.click(); const up = read(), sort = head.cells[column].ariaSort;
  button.click(); return {up, down: read(), sort};
})()"""


@pytest.mark.slow
def test_columns_sort_by_number_and_keep_the_unmeasured_last(tab) -> None:
    state = tab.evaluate(SORT)
    assert state["sort"] == "ascending"
    values = [float(text) for text in state["up"][:-1]]
    assert values == sorted(values)
    assert len(values) == 11
    assert state["down"] == [*state["up"][-2::-1], "—"]


TABS = """(() => [...document.querySelectorAll('[tabindex]')].filter((each) => each.matches('.scroll, pre')
  ? each.scrollWidth <= each.clientWidth : !each.matches('.drawing')).length)()"""


@pytest.mark.slow
def test_tab_stops_are_where_something_can_be_done(tab) -> None:
    assert tab.evaluate(TABS) == 0


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
def test_arrow_keys_read_the_values(tab) -> None:
    state = tab.evaluate(KEYS)
    assert state["read"] == [state["titles"][0], state["titles"][1], state["titles"][-1]]
    assert state["marks"] == 1


TABLE = """(() => {
  const table = document.querySelector('table.sortable'), tools = table.parentNode.previousElementSibling;
  const field = tools.querySelector('input'), rows = () => [...table.tBodies[0].rows].filter((row) => !row.hidden);
  const all = rows().length;
  field.value = 'failed'; field.dispatchEvent(new Event('input'));
  const csv = asCsv(table);
  return {all, left: rows().length, lines: csv.trim().split('\\n').length, csv};
})()"""


@pytest.mark.slow
def test_a_table_is_filtered_and_copied(tab) -> None:
    state = tab.evaluate(TABLE)
    assert (state["all"], state["left"], state["lines"]) == (12, 1, 2)
    assert state["csv"].startswith("trial,")


FILES = """(() => {
  const svg = document.querySelector('.first .drawing svg'), text = standalone(svg);
  return {parsed: new DOMParser().parseFromString(text, 'image/svg+xml').querySelector('parsererror') === null,
          left: (text.match(/var\\(/g) || []).length, marks: (text.match(/<use/g) || []).length};
})()"""


@pytest.mark.slow
def test_a_figure_is_saved_with_its_colours(tab) -> None:
    state = tab.evaluate(FILES)
    assert state["parsed"]
    assert state["left"] == 0
    assert state["marks"] > 10


@pytest.mark.slow
def test_the_theme_is_remembered(tab) -> None:
    press = """(() => {
      const root = document.documentElement;
      document.getElementById('theme').click(); const chosen = root.dataset.theme;
      delete root.dataset.theme; recall(); const recalled = root.dataset.theme;
      localStorage.clear();
      return [chosen, recalled];
    })()"""
    chosen, recalled = tab.evaluate(press)
    assert chosen in ("dark", "light")
    assert recalled == chosen


@pytest.mark.slow
def test_a_link_to_the_appendix_opens_it(tab) -> None:
    move = "(() => { location.hash = '#study-s-residuals'; openTarget(); })()"
    assert tab.evaluate(f"({move}, document.querySelector('details.appendix').open)") is True


EXPLORE = """(() => {
  showTrials(document.querySelector('details.trials'));
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
def test_any_two_columns_of_the_trials_are_drawn_linear_and_logarithmic(tab) -> None:
    state = tab.evaluate(EXPLORE)
    assert {"N (non-embedding parameters)", "compute", "training time", "validation loss (nats)"} <= set(state["names"])
    values = np.array(state["values"])
    assert len(values) == state["titles"] == 11
    scales = {"true": np.log, "false": np.asarray}
    assert {state["first"]["pressed"], state["second"]["pressed"]} == set(scales)
    for drawn in (state["first"], state["second"]):
        assert np.corrcoef(scales[drawn["pressed"]](values), drawn["at"])[0, 1] == pytest.approx(1, abs=1e-9)


# --- scales and links ------------------------------------------------------------------------------------------------

# The places of the hollow means of the headline figure, and its ticks: names and places, along x and y.
PLACES = """(() => {
  const svg = document.querySelector('#study-s-loss svg'), shown = (each) => each.getClientRects().length > 0;
  const number = (each, name) => Number(each.getAttribute(name));
  const marks = [...svg.querySelectorAll('use')].filter((use) => use.textContent.startsWith('mean at')).map((use) =>
    [number(use, 'x'), number(use, 'y')]);
  const along = (kind) => [...svg.querySelectorAll(`text.${kind}, .redrawn text`)].filter(shown)
    .filter((text) => text.classList.contains(kind)).map((text) => [text.textContent, number(text, kind[1])]);
  const ends = [...svg.querySelectorAll('[clip-path] path, path[clip-path]')].map((path) => path.getAttribute('d'));
  return {marks, x: along('tx'), y: along('ty'), paths: ends, link: location.hash,
          off: [...document.querySelectorAll('#study-s-loss [aria-pressed=false]')].map((each) => each.textContent)};
})()"""


def press(name: str, figure: str = "#study-s-loss") -> str:
    return f"[...document.querySelectorAll('{figure} button')].find((each) => each.textContent === '{name}').click()"


def amount(text: str) -> float:
    """Return the number of a tick: 50 k."""
    number, _, prefix = text.replace("\u00a0", " ").partition(" ")
    return float(number) * {"": 1, "k": 1e3, "M": 1e6}[prefix]


@pytest.mark.slow
def test_marks_and_ticks_are_where_the_other_scale_has_their_values(tab) -> None:
    sizes = np.array([1_536, 4_096, 10_240, 24_576, 49_152])  # the largest is the star
    losses = hard_study().frame.groupby("params_non_embedding")["validation_loss_nats"].mean().to_numpy()[:5]
    before = tab.evaluate(PLACES)
    tab.evaluate(press("log x"))
    linear = tab.evaluate(PLACES)
    tab.evaluate(press("log y"))
    both = tab.evaluate(PLACES)
    for name in ("log x", "log y"):
        tab.evaluate(press(name))
    after = tab.evaluate(PLACES)
    assert np.corrcoef(np.log(sizes), [x for x, _ in before["marks"]])[0, 1] == pytest.approx(1, abs=1e-6)
    for drawing, scale_of_loss in ((linear, np.asarray), (both, np.log)):
        places = np.array(drawing["marks"])
        slope, start = np.polyfit(sizes, places[:, 0], 1)
        np.testing.assert_allclose(places[:, 0], slope * sizes + start, atol=0.05)  # a twentieth of a point
        ticks = np.array([(amount(text), place) for text, place in drawing["x"]])
        assert len(ticks) >= 3
        np.testing.assert_allclose(slope * ticks[:, 0] + start, ticks[:, 1], atol=0.1)
        assert np.corrcoef(scale_of_loss(losses), places[:, 1])[0, 1] == pytest.approx(-1, abs=1e-5)
    assert [y for _, y in linear["marks"]] == [y for _, y in before["marks"]]
    assert linear["paths"] != before["paths"]
    assert after | {"link": ""} == before | {"link": ""}


@pytest.mark.slow
def test_a_link_keeps_scales_and_restores_them(browser, page: Path) -> None:
    with opened(browser, page) as tab:
        assert tab.evaluate(PLACES)["off"] == ["log y"]  # as the page has it
        tab.evaluate(press("log x"))
        left = tab.evaluate(PLACES)
        assert tab.evaluate("document.querySelector('#study-s-loss .tools a').hash") == left["link"]
    assert left["link"] == "#study-s-loss?log+x=false"
    assert probe(browser, page, PLACES, fragment=left["link"]) == left
    assert probe(browser, page, PLACES, fragment="#study-s-loss?log+x=maybe&other=1")["off"] == ["log y"]


@pytest.mark.slow
@pytest.mark.parametrize("fragment", ["#%E0%A4%A", "#study-s-loss?log+x=%3Cscript%3E&%ff=%", "#" + "?" * 5000])
def test_a_link_that_is_no_link_of_the_page_changes_nothing(browser, page: Path, fragment: str) -> None:
    with opened(browser, page, fragment) as tab:
        assert tab.evaluate(PLACES)["off"] == ["log y"]
        assert tab.evaluate("document.querySelectorAll('.drawing script').length") == 0


# --- a page of trials that are still running -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("used", [False, True])
def test_a_live_page_loads_itself_again_until_somebody_uses_it(browser, tmp_path: Path, used: bool) -> None:
    path = tmp_path / "report.html"
    path.write_text(render_page([], live=True))
    with opened(browser, path) as tab:
        tab.clock.install()
        tab.reload()
        assert f"every {LIVE_S} s" in tab.text_content("#live")
        path.write_text(render_page([]))  # the run has ended
        if used:
            tab.keyboard.press("Tab")
            assert "Load it again" in tab.text_content("#live")
        tab.clock.run_for(1000 * (LIVE_S - 1))
        assert tab.locator("#live").count() == 1
        tab.clock.run_for(2000)
        if not used:  # loading takes a moment, on the clock of the machine
            tab.wait_for_selector("#live", state="detached")
        tab.wait_for_load_state()
        assert tab.locator("#live").count() == used
