"""Accessibility of a page of studies and a comparison: no finding of axe of any level, contrast, order of headings."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from report_support import STUDY, changed, compared, synthetic

import scalebench.reporting
from scalebench.reporting import render
from scalebench.reporting.page import with_own_titles
from scalebench.reporting.sections.base import SectionView
from scalebench.store import Results

CSS = (Path(scalebench.reporting.__file__).parent / "report.css").read_text(encoding="utf-8")
TEXT_CONTRAST, GRAPHIC_CONTRAST = 4.5, 3.0  # WCAG 2.2, 1.4.3 and 1.4.11


def page_of_everything() -> str:
    """Two studies of one title, one of them with a failure and six series, and a comparison, on one page."""
    first = changed(synthetic(), 3, status="failed", error_class="OSError", error_message="disk full").frame
    small = synthetic().frame.iloc[:4]
    ways = pd.concat(
        [small.assign(study="ways", optimizer=f"way{i}", trial_id=f"{i}" + small["trial_id"],
                      validation_loss_nats=small["validation_loss_nats"] + 0.1 * i) for i in range(6)]
    )  # fmt: skip
    frame = pd.concat([first, ways], ignore_index=True).assign(timing_exclusive=True)
    planned = {
        name: [{"trial_id": id_} for id_ in frame.loc[frame["study"] == name, "trial_id"]]
        for name in ("synthetic", "ways")
    }
    studies = {name: STUDY | {"planned": planned[name]} for name in planned}
    return render(Results(frame, ("results/a/record.json: not readable",), studies), compared())


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(page_of_everything())
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "rules"), [("light", {}), ("dark", {"runOnly": ["color-contrast"]})])
def test_axe_finds_nothing(page: Path, browser: Any, scheme: str, rules: dict[str, Any]) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    tab = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
    tab.goto(page.as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    options = rules | {"resultTypes": ["violations"]}  # where rules pass is not listed, which takes half of the time
    findings = axe.Axe().run(tab, options=options).response["violations"]
    tab.close()
    assert [(each["id"], each["impact"], each["nodes"][0]["html"][:200]) for each in findings] == []


def test_sections_of_one_title_have_their_names_behind_it() -> None:
    titles = {"study-a": "One", "study-b": "One", "study-c": "Two", "study-d": "Overview"}
    views = [SectionView(id_, title, Path(), (), None, (), ()) for id_, title in titles.items()]
    assert [view.title for view in with_own_titles(views)] == ["One (a)", "One (b)", "Two", "Overview (d)"]


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first: str, second: str) -> float:
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def themes() -> list[dict[str, str]]:
    blocks = re.findall(r"--paper: #[^}]+", CSS)
    return [dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6})", block)) for block in blocks]


@pytest.mark.parametrize("theme", themes(), ids=["light", "dark by preference", "dark by choice"])
def test_colours_can_be_told_from_what_is_behind_them(theme: dict[str, str]) -> None:
    for behind in ("--paper", "--soft", "--warn"):
        for text in ("--ink", "--accent") + (("--muted",) if behind != "--warn" else ()):
            assert contrast(theme[text], theme[behind]) >= TEXT_CONTRAST, (text, behind)
    for name, color in theme.items():
        if re.fullmatch(r"--[sr]\d", name):
            assert contrast(color, theme["--paper"]) >= GRAPHIC_CONTRAST or name == "--r1", name


def test_the_dark_theme_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    light, *dark = themes()
    assert dark[0] == dark[1]
    assert set(light) == set(dark[0])


@pytest.mark.slow
def test_headings_are_in_order(page: Path) -> None:
    levels = [int(level) for level in re.findall(r"<h([1-6])[ >]", page.read_text())]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels)), levels
