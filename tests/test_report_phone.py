"""The report on a phone 375 pixels wide: rows of sentences are cards, and other tables keep their row heads in view."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from browser_support import opened, probe
from report_support import STUDY, synthetic

from scalebench.reporting import render
from scalebench.store import Results

PHONE = (375, 800)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two studies, one of which starts from the other's trials: the page begins with a row of sentences for each."""
    base, child = synthetic().frame, synthetic(study="child", parent_trial_id="0123456789abcdef").frame
    frame = pd.concat([base, child.assign(trial_id="c" + child["trial_id"].str[1:])], ignore_index=True)
    path = tmp_path_factory.mktemp("page") / "index.html"
    studies = {name: STUDY | {"name": name, "title": name} for name in ("synthetic", "child")}
    path.write_text(render(Results(frame.assign(wall_time_s=2.0), (), studies)))
    return path


CARDS = """[...document.querySelectorAll("table.cards")].map((table) => ({
  display: getComputedStyle(table).display,
  right: Math.max(...[...table.querySelectorAll("tbody *")].map((each) => each.getBoundingClientRect().right)),
  heads: [...table.tHead.rows[0].cells].slice(1).map((cell) => cell.textContent),
  labels: [...table.tBodies[0].rows].map((row) => [...row.cells].slice(1).map(
    (cell) => getComputedStyle(cell, "::before").content.replaceAll('"', ""))),
}))"""


def test_every_cell_of_a_card_is_on_the_screen_after_the_name_of_its_column(browser: Any, page: Path) -> None:
    tables = probe(browser, page, CARDS, size=PHONE)
    assert tables
    for table in tables:
        assert table["display"] == "block"
        assert table["right"] <= PHONE[0]
        assert table["labels"]
        assert all(row == [f"{head}: " for head in table["heads"]] for row in table["labels"])


@pytest.mark.parametrize("width", [320, 375, 544, 545])
def test_the_page_itself_does_not_scroll_sideways(browser: Any, page: Path, width: int) -> None:
    with opened(browser, page, size=(width, 800)) as tab:
        tab.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        assert tab.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize("options", [{"size": (1280, 900)}, {"size": PHONE, "print": True}])
def test_on_a_desk_and_on_paper_it_is_a_table(browser: Any, page: Path, options: dict[str, Any]) -> None:
    paper = options.pop("print", False)
    with opened(browser, page, **options) as tab:
        tab.emulate_media(media="print" if paper else "screen")
        tables = tab.evaluate(CARDS)
    assert {table["display"] for table in tables} == {"table"}
    assert {label for table in tables for row in table["labels"] for label in row} == {"none"}


def test_a_row_head_stays_in_view_while_its_table_scrolls(browser: Any, page: Path) -> None:
    with opened(browser, page, size=PHONE) as tab:
        tab.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        places = tab.evaluate("""[...document.querySelectorAll(".scroll:has(table:not(.cards))")]
            .filter((each) => each.scrollWidth > each.clientWidth + 40)
            .map((each) => {
              each.scrollLeft = 40;
              const head = each.querySelector("tbody th").getBoundingClientRect();
              return [head.left - each.getBoundingClientRect().left, head.width / each.clientWidth];
            })""")
    assert places
    assert max(abs(left) for left, _ in places) < 1
    assert max(width for _, width in places) < 0.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_a_phone(browser: Any, page: Path, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    with opened(browser, page, size=PHONE, color_scheme=scheme) as tab:
        tab.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        findings = axe.Axe().run(tab, options={"resultTypes": ["violations"]}).response["violations"]
    assert [(each["id"], each["nodes"][0]["html"][:200]) for each in findings] == []
