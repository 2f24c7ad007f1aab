"""A table of which the page has some rows as elements: all of them appear where scripts run."""

import base64
import gzip
import io
import json
import re

import numpy as np
import pandas as pd
import pytest
from browser_support import opened
from markupsafe import Markup
from report_support import all_planned, page_text, trial

from scalebench.reporting.overview import Overview
from scalebench.reporting.page import templates
from scalebench.reporting.tables import FIRST_ROWS, MAX_FIRST_ROWS, Table, number, word
from scalebench.reporting.views import FigureView, as_json, downloads

TABLE = Table("Loss of trials.", ("trial", "loss"), tuple((word(f"t{i}"), number(i)) for i in range(40)),
              excerpt=(3, 7))  # fmt: skip
OVERVIEW = Overview("Two.", TABLE, figures=(FigureView("Loss", Markup("<svg></svg>"), "Marks.", TABLE, "figure-a"),))
ROWS = "[...document.querySelectorAll('figure tbody tr')].map((row) => row.cells[0].textContent)"


@pytest.fixture(scope="module")
def html() -> str:
    page = templates().get_template("page.html.j2")
    parts = {"sections": [], "live_s": None, "unmeasured": (), "damaged": ()}
    return page.render(heading="A", overview=OVERVIEW, **parts, css="", js=Markup(scripts()))


def scripts() -> str:
    from scalebench.reporting.page import HERE, SCRIPTS

    return "".join((HERE / name).read_text("utf-8") for name in SCRIPTS)


def test_the_excerpt_says_how_many_rows_it_has():
    assert [row[0][0] for row in TABLE.first.rows] == ["t3", "t7"]
    assert "2 of 40 rows" in TABLE.first.caption


def long(rows: int) -> Table:
    return Table("Loss.", ("trial",), tuple((number(i),) for i in range(rows)))


def test_a_long_table_shows_rows_spread_evenly_and_a_short_one_all():
    assert long(MAX_FIRST_ROWS).first.rows == long(MAX_FIRST_ROWS).rows
    keys = [row[0][1] for row in long(MAX_FIRST_ROWS + 1).first.rows]
    assert (keys[0], keys[-1], len(keys)) == (0, MAX_FIRST_ROWS, FIRST_ROWS)
    assert max(np.diff(keys)) - min(np.diff(keys)) <= 1


def test_whole_numbers_are_exact_for_a_script():
    table = Table("", ("a",), (((number(1_234_567_891)),), (number(1.23456789012),)))
    assert [row[0][1] for row in json.loads(as_json(table))["rows"]] == [1_234_567_891, 1.23456789]


TRIALS = 130


@pytest.fixture(scope="module")
def study_page() -> str:
    """A study of more trials than a page has rows of them; two sizes, as fits take time."""
    rng = np.random.default_rng(0)
    rows = [trial(1000 * 2 ** (i % 2), i // 2, rng) | {"trial_id": f"{i:016x}"} for i in range(TRIALS)]
    return page_text(all_planned(pd.DataFrame(rows)), "step-time")


def test_the_tables_of_trials_are_short_and_the_page_has_every_trial(study_page):
    names = {f"{i:016x}" for i in range(TRIALS)}
    (details,) = re.findall('<details class="data trials".*?</details>', study_page, re.DOTALL)
    shown, _, rest = details.partition('<script type="application/json">')
    assert shown.count("<tr>") == FIRST_ROWS + 1
    assert f"{FIRST_ROWS} of {TRIALS} rows; all {TRIALS} appear where scripts run." in shown
    assert {row[0] for row in json.loads(rest.partition("</script>")[0])["rows"]} == names
    assert study_page.count(f"{FIRST_ROWS} of {TRIALS} rows; all") == 2  # the other is behind the step times
    csv = re.search(r'download="synthetic.csv" href="data:text/csv;charset=utf-8;base64,([^"]+)', study_page)
    assert set(pd.read_csv(io.BytesIO(base64.b64decode(csv[1])), dtype=str)["trial_id"]) == names


def test_a_csv_above_the_limit_is_embedded_compressed():
    rows = pd.DataFrame({"trial_id": [f"{i % 7}" for i in range(500)], "loss": 1.5})
    (file,) = downloads("s", rows, 1000)
    assert file.name == "s.csv.gz"
    content = gzip.decompress(base64.b64decode(file.uri.partition("base64,")[2]))
    pd.testing.assert_frame_equal(pd.read_csv(io.BytesIO(content), dtype={"trial_id": str}), rows)
    assert [each.name for each in downloads("s", rows, 100_000)] == ["s.csv", "s.json"]
    assert list(downloads("s", rows, 10)) == []


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


TRIALS_SHOWN = """(() => {
  const details = document.querySelector('details.trials'), tables = () => details.querySelectorAll('table');
  const before = tables()[0].tBodies[0].rows.length;
  fill(details);
  const table = tables()[0], head = table.tHead.rows[0];
  head.cells[1].querySelector('button').click();
  return {before, tables: tables().length, tools: details.querySelectorAll(':scope > .tools').length,
          rows: table.tBodies[0].rows.length, sorted: head.cells[1].ariaSort,
          marks: details.querySelectorAll('.explore use').length};
})()"""


@pytest.mark.slow
def test_all_trials_appear_with_their_sorting_and_their_figure(browser, study_page, tmp_path):
    path = tmp_path / "index.html"
    path.write_text(study_page)
    expected = {"before": FIRST_ROWS, "tables": 1, "tools": 1, "rows": TRIALS, "sorted": "ascending", "marks": TRIALS}
    with opened(browser, path) as tab:
        assert tab.evaluate(TRIALS_SHOWN) == expected
