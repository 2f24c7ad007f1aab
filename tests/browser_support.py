"""A browser for tests of the report: started once for a file of tests, and what it shows of a page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from scalebench.store import Results

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless chromium; tests that need one are skipped where it or playwright is missing."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@contextmanager
def opened(
    browser: Any, path: Path, fragment: str = "", size: tuple[int, int] = (1280, 900), **options: Any
) -> Iterator[Any]:
    """Yield a tab with the page; an error of its scripts fails the test. ``options`` are those of a browser context."""
    errors: list[Any] = []
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
    tab = context.new_page()
    tab.on("pageerror", lambda error: errors.append(error))  # noqa: PLW0108 - playwright sets attributes of it
    tab.goto(path.as_uri() + fragment)
    yield tab
    context.close()
    assert errors == []


def probe(browser: Any, path: Path, expression: str, **options: Any) -> Any:
    """Return the value of a JavaScript expression on the page; ``options`` are those of ``opened``."""
    with opened(browser, path, **options) as tab:
        return tab.evaluate(expression)


# The widest words a study can hold: an id without a place to break, and a long reason.
LONG = "x" * 300


def hard_study() -> Results:
    """Six sizes, two seeds, one failure; a law with 0.004 nats of noise."""
    import numpy as np
    import pandas as pd

    from scalebench.store import Results

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
