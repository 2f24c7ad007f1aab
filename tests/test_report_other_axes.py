"""Below the figure of the loss are links to the same loss against whatever else was measured."""

from pathlib import Path

import pytest
from browser_support import hard_study, opened
from report_support import page_text


@pytest.mark.slow
def test_a_link_below_the_loss_opens_it_against_another_column(browser, tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    page.write_text(page_text(hard_study(), "loss"))
    with opened(browser, page) as tab:
        links = tab.locator("#study-s-loss p.tools a")
        assert links.all_inner_texts() == ["compute", "training time"]  # every trial has read as much data
        links.last.click()
        tab.wait_for_selector("#study-s-explore select")
        chosen = "[...document.querySelectorAll('.explore select')].map((each) => each.selectedOptions[0].text)"
        assert tab.evaluate(chosen) == ["training time", "validation loss (nats)"]
