"""A table of which the page has some rows as elements: all of them appear where scripts run."""

import pytest
from browser_support import opened
from markupsafe import Markup

from scalebench.reporting.overview import Overview
from scalebench.reporting.page import templates
from scalebench.reporting.tables import Table, number, word
from scalebench.reporting.views import FigureView

TABLE = Table("Loss of trials.", ("trial", "loss"), tuple((word(f"t{i}"), number(i)) for i in range(40)),
              excerpt=(3, 7))  # fmt: skip
OVERVIEW = Overview("Two.", TABLE, figures=(FigureView("Loss", Markup("<svg></svg>"), "Marks.", TABLE, "figure-a"),))
ROWS = "[...document.querySelectorAll('figure tbody tr')].map((row) => row.cells[0].textContent)"


@pytest.fixture(scope="module")
def html() -> str:
    page = templates().get_template("page.html.j2")
    return page.render(heading="A", overview=OVERVIEW, sections=[], damaged=(), css="", js=Markup(scripts()))


def scripts() -> str:
    from scalebench.reporting.page import HERE, SCRIPTS

    return "".join((HERE / name).read_text("utf-8") for name in SCRIPTS)


def test_the_excerpt_says_how_many_rows_it_has():
    assert [row[0][0] for row in TABLE.excerpted.rows] == ["t3", "t7"]
    assert "2 of 40 rows" in TABLE.excerpted.caption


@pytest.mark.slow
def test_all_rows_appear_when_the_table_is_opened(browser, html, tmp_path):
    path = tmp_path / "index.html"
    path.write_text(html)
    with opened(browser, path) as tab:
        assert tab.evaluate(ROWS) == ["t3", "t7"]
        tab.evaluate("document.querySelector('figure details').open = true")
        tab.wait_for_function(f"{ROWS}.length === 40")
        assert tab.evaluate(ROWS) == [f"t{i}" for i in range(40)]
        assert tab.locator("figure .tools input[type=search]").count() == 1
    with opened(browser, path, java_script_enabled=False) as tab:
        assert tab.locator("figure tbody tr").count() == 2
