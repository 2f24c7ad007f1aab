"""What a page of the report looks like, and what it weighs: pictures of each, and a line of JSON for each.

    python experiments/page_pictures.py reports/*/index.html --output /tmp/pictures [--git fc7995e] [--axe] [--figures]

Needs chromium, playwright (and axe-playwright-python for ``--axe``). ``--git`` takes the pages of a commit,
``--figures`` adds a picture of each figure at 100 %. Times are of a page opened from disk in a new tab, the best of
three: until its load event ended, until its elements were there, and of the main thread's CPU.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

WIDTH, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
TALLEST = 16_000  # pixels: more than that makes no picture
SLOWEST = 300_000.0  # milliseconds that a picture may take
OPENED = 3  # times; the best is reported
TIMES = """(() => {
  const [all] = performance.getEntriesByType('navigation');
  return {load_s: all.loadEventEnd / 1000, interactive_s: all.domInteractive / 1000};
})()"""
SMALLEST = """(() => Math.min(...[...document.querySelectorAll('.drawing text')].map((text) => {
  const svg = text.closest('svg');
  return parseFloat(getComputedStyle(text).fontSize) * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
}).filter(Boolean)))()"""


def new_tab(browser: Browser, path: Path, size: dict[str, int], scheme: Any = "light") -> Page:
    """Open a page in a new tab."""
    tab = browser.new_page(viewport=size, color_scheme=scheme)  # type: ignore[arg-type]
    tab.set_default_timeout(SLOWEST)
    tab.goto(path.as_uri())
    return tab


def take(page: Page, path: Path) -> None:
    """Save a picture of the whole page, cut below TALLEST."""
    height = page.evaluate("document.documentElement.scrollHeight")
    clip = {"x": 0, "y": 0, "width": page.viewport_size["width"], "height": min(height, TALLEST)}  # type: ignore[index]
    page.screenshot(path=path, full_page=True, clip=clip)  # type: ignore[arg-type]


def pages_of(pdf: bytes) -> int:
    """Return the number of pages of a PDF."""
    return len(re.findall(rb"/Type\s*/Page\b", pdf))


def opened(browser: Browser, path: Path) -> dict[str, float]:
    """Return how long a page takes to open: until its load event, and the time of the browser's main thread in it."""
    best: dict[str, float] = {}
    for _ in range(OPENED):
        tab = browser.new_page(viewport=WIDTH)
        session = tab.context.new_cdp_session(tab)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})
        tab.goto(path.as_uri(), wait_until="load")
        metrics = {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}
        times = tab.evaluate(TIMES) | {"main_thread_s": metrics["TaskDuration"]}
        best = {name: min(value, best.get(name, value)) for name, value in times.items()}
        tab.close()
    return {name: round(value, 3) for name, value in best.items()}


def measured(browser: Browser, path: Path, axe: bool) -> dict[str, Any]:
    """Return size, nodes, printed pages, smallest text on a phone, time to open, console lines and findings of axe."""
    html, lines = path.read_bytes(), []
    tab = browser.new_page(viewport=WIDTH)
    tab.set_default_timeout(SLOWEST)
    tab.on("console", lambda message: lines.append(message.text))
    tab.goto(path.as_uri())
    row = {
        "bytes": len(html),
        "nodes": len(re.findall(rb"<[a-zA-Z]", html)),
        "elements_with_scripts": tab.evaluate("document.querySelectorAll('*').length"),
        "printed_pages": pages_of(tab.pdf(format="A4", print_background=True)),
        "console": lines,
        **opened(browser, path),
    }
    if axe:
        from axe_playwright_python.sync_playwright import Axe

        tab.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        row["axe"] = {each["id"]: len(each["nodes"]) for each in Axe().run(tab).response["violations"]}
    tab.close()
    tab = new_tab(browser, path, PHONE)
    row["overflow_on_phone"] = tab.evaluate("document.documentElement.scrollWidth - innerWidth")
    row["smallest_text_on_phone_px"] = round(tab.evaluate(SMALLEST), 1)
    tab.close()
    return row


def pictures(browser: Browser, path: Path, output: Path, name: str, figures: bool) -> None:
    """Save a page light and dark, on a phone, its first screen, and as it is printed."""
    for kind, size, scheme in (("light", WIDTH, "light"), ("dark", WIDTH, "dark"), ("phone", PHONE, "light")):
        tab = new_tab(browser, path, size, scheme)
        tab.screenshot(path=output / f"{name}-{kind}-first.png")
        take(tab, output / f"{name}-{kind}.png")
        if kind == "light":
            (output / f"{name}.pdf").write_bytes(tab.pdf(format="A4", print_background=True))
        if figures and kind == "light":
            tab.evaluate("document.querySelectorAll('details.appendix').forEach((each) => { each.open = true; })")
            for figure in tab.query_selector_all("figure[id]"):
                figure.screenshot(path=output / f"{name}-{figure.get_attribute('id')}.png")
        tab.close()


def from_git(commit: str, path: Path, folder: Path) -> Path | None:
    """Write a page of a commit to a folder; None where the commit has none."""
    done = subprocess.run(["git", "show", f"{commit}:{path}"], capture_output=True, check=False)
    if done.returncode:
        return None
    copy = folder / str(path).replace("/", "-")
    copy.write_bytes(done.stdout)
    return copy


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, save the pictures and print a line for each page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, help="folder of the pictures; none without it")
    parser.add_argument("--git", metavar="COMMIT")
    parser.add_argument("--axe", action="store_true")
    parser.add_argument("--figures", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as running:
        browser = running.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for path in options.pages:
            page = from_git(options.git, path, Path(folder)) if options.git else path.resolve()
            if page is None:
                continue
            name = path.parent.name if path.stem == "index" else path.stem
            print(json.dumps({"page": name, **measured(browser, page, options.axe)}), flush=True)
            if options.output:
                options.output.mkdir(parents=True, exist_ok=True)
                pictures(browser, page, options.output, name, options.figures)


if __name__ == "__main__":
    main()
