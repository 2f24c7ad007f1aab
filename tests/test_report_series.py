"""What scripts add to a page of two series: series on and off, and the figure of the trials, restored from its link."""

from pathlib import Path

import pandas as pd
import pytest
from browser_support import hard_study, opened, probe
from refits_support import refits_of
from report_support import page_text

from scalebench.reporting.sections import base
from scalebench.store import Results

STATE = """(() => {
  const figure = document.querySelector('.explore');
  return {chosen: [...figure.querySelectorAll('select')].map((each) => each.selectedOptions[0].text),
          pressed: [...figure.querySelectorAll('[aria-pressed]')].map((each) => [each.textContent, each.ariaPressed]),
          visible: [...figure.querySelectorAll('.drawing use')].filter((use) => use.getClientRects().length).length,
          open: document.querySelector('details.trials').open, link: location.hash};
})()"""
CHANGE = """(() => {
  showTrials(document.querySelector('details.trials'));
  const figure = document.querySelector('.explore'), [x] = figure.querySelectorAll('select');
  const click = (name) => [...figure.querySelectorAll('button')].find((each) => each.textContent === name).click();
  x.value = [...x.options].findIndex((option) => option.text === 'step time');
  x.dispatchEvent(new Event('change', {bubbles: true}));
  click('log y'); click('b'); click('log x'); click('log x');
})()"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A study of two series, as it is alone on a page, and "brief", as it is beside many others."""
    plain, paths = hard_study().frame, {}
    both = pd.concat([plain.assign(implementation=name, trial_id=name + plain["trial_id"]) for name in "ab"])
    for kind, many in (("whole", base.MANY), ("brief", 0)):
        paths[kind] = tmp_path_factory.mktemp(kind) / "index.html"
        with pytest.MonkeyPatch.context() as patch, refits_of(50):
            patch.setattr(base, "MANY", many)
            paths[kind].write_text(page_text(Results(both.reset_index(drop=True), (), {"s": {}}), "loss"))
    return paths


@pytest.mark.slow
def test_a_series_is_hidden_and_shown(browser, pages: dict[str, Path]) -> None:
    toggle = """(() => {
      const figure = document.querySelector('.first figure');
      const button = [...figure.querySelectorAll('.tools button')].find((each) => each.textContent === 'a');
      const count = () => [...figure.querySelectorAll('.drawing use')].filter(
        (use) => use.getClientRects().length).length;
      const before = count(); button.click(); const without = count(), pressed = button.ariaPressed; button.click();
      return {before, without, pressed, after: count()};
    })()"""
    state = probe(browser, pages["whole"], toggle)
    assert state["without"] < state["before"] == state["after"]
    assert state["pressed"] == "false"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["whole", "brief"])
def test_the_figure_of_the_trials_is_restored_from_its_link(browser, pages: dict[str, Path], kind: str) -> None:
    """Columns, scales and series can be chosen, also on a page of many studies, where trials are stored as JSON."""
    path = pages[kind]
    with opened(browser, path) as tab:
        assert tab.evaluate("document.querySelectorAll('details.trials td').length > 0") == (kind == "whole")
        tab.evaluate(CHANGE)
        left = tab.evaluate(STATE)
        cells = tab.evaluate("document.querySelector('details.trials').querySelectorAll('tbody tr').length")
    assert cells == 24
    assert left["chosen"] == ["step time", "validation loss (nats)"]
    assert left["visible"] == 11  # of 22 with both values
    assert left["link"].startswith("#study-s-explore?")
    restored = probe(browser, path, STATE, fragment=left["link"])
    assert restored == left | {"open": True}


@pytest.mark.slow
def test_trials_as_json_are_those_of_the_table(browser, pages: dict[str, Path]) -> None:
    read = """(showTrials(document.querySelector('details.trials')), [...document.querySelectorAll(
      '.trials table')][0].querySelectorAll('tr').entries().map(([, row]) => [...row.cells].map((cell) =>
      [cell.textContent, cell.dataset.key && Number(cell.dataset.key).toPrecision(6), cell.tagName,
       cell.className])).toArray())"""
    whole, brief = (probe(browser, path, read) for path in pages.values())
    assert whole == brief
    assert len(whole) == 25
