"""Coverage of the intervals on simulated studies: `python tests/coverage_laws.py`, or `make coverage`.

Everything below was fixed before anything was counted. A study is drawn from the truth of its law with Gaussian noise
in the log, fitted with the defaults (Huber, delta 1e-3) and bootstrapped (400 refits, auto); its 95 % intervals of the
offset, of the exponents, and of predictions 10x beyond every input (mean, and one new run) either hold the truth or
not. Target: 92 % to 98 % of 500 studies. The oracle knows the noise: 95 % of its estimates, from the same estimator on
2,000 other studies, lie within the width that ours is divided by. Each batch of studies is written when it is done, so
that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from scalebench.laws import LAWS, FitRefused, fit
from scalebench.laws.forms import Array

REFITS, ORACLE_STUDIES, BATCH = 400, 2000, 50
TRUTHS = {
    "power": {"E": 1.7, "A": 30.0, "alpha": 0.35},
    "chinchilla": {"E": 1.8, "A": 480.0, "alpha": 0.35, "B": 2100.0, "beta": 0.37},
    "offset_linear": {"c0": 0.02, "c1": 4e-9},
}
SMALLEST = {"params": 1e3, "x": 1e6}  # chinchilla: 1e7 parameters and 1e9 tokens


@dataclass(frozen=True)
class Scenario:
    """A design: sizes evenly spaced in the log over a factor `span`, `seeds` runs each, log noise `noise`.

    Chinchilla designs are grids of `sizes` over both inputs.
    """

    law: str
    sizes: tuple[int, ...]
    seeds: int
    span: float
    noise: float

    @property
    def name(self) -> str:
        """Unique name, also that of its file."""
        sizes = "x".join(map(str, self.sizes))
        return f"{self.law} {sizes} sizes, {self.seeds} seeds, {self.span:g}x, noise {100 * self.noise:g} %"

    def inputs(self) -> dict[str, Array]:
        """Columns of the law's inputs, each [n]."""
        lowest = (1e7, 1e9) if self.law == "chinchilla" else (SMALLEST[LAWS[self.law].inputs[0]],)
        axes = [np.geomspace(low, low * self.span, k) for low, k in zip(lowest, self.sizes, strict=True)]
        grid = [np.repeat(axis.ravel(), self.seeds) for axis in np.meshgrid(*axes)]
        return dict(zip(LAWS[self.law].inputs, grid, strict=True))

    def mean(self, inputs: dict[str, Array]) -> Array:
        """True response, [n]."""
        logs = {name: np.log(value) for name, value in inputs.items()}
        return np.asarray(LAWS[self.law].predict(TRUTHS[self.law], logs)[0])


SCENARIOS = (
    Scenario("power", (5,), 2, 100.0, 0.005),
    Scenario("power", (6,), 1, 1000.0, 0.005),
    Scenario("power", (6,), 2, 100.0, 0.005),
    Scenario("power", (6,), 2, 100.0, 0.02),
    Scenario("power", (8,), 1, 100.0, 0.002),
    Scenario("power", (8,), 3, 1000.0, 0.01),
    Scenario("power", (12,), 1, 100.0, 0.005),
    Scenario("power", (12,), 2, 1000.0, 0.01),
    Scenario("offset_linear", (5,), 2, 100.0, 0.02),
    Scenario("offset_linear", (6,), 1, 1000.0, 0.05),
    Scenario("offset_linear", (8,), 3, 100.0, 0.02),
    Scenario("offset_linear", (12,), 1, 1000.0, 0.05),
    Scenario("chinchilla", (3, 3), 1, 100.0, 0.002),
    Scenario("chinchilla", (4, 3), 1, 100.0, 0.005),
    Scenario("chinchilla", (5, 5), 1, 100.0, 0.005),
    Scenario("chinchilla", (7, 6), 1, 100.0, 0.01),
)


def asked(scenario: Scenario) -> tuple[str, ...]:
    """Parameters whose intervals are counted: the offset (or both coefficients of a line) and the exponents."""
    law = LAWS[scenario.law]
    return ("c0", "c1") if scenario.law == "offset_linear" else ("E", *law.exponents)


def beyond(scenario: Scenario) -> dict[str, Array]:
    """The inputs 10x beyond the largest."""
    return {name: np.array([10 * value.max()]) for name, value in scenario.inputs().items()}


def draw(scenario: Scenario, rng: np.random.Generator) -> dict[str, Array]:
    """One study."""
    inputs = scenario.inputs()
    loss = scenario.mean(inputs)
    return {**inputs, LAWS[scenario.law].response: loss * np.exp(scenario.noise * rng.standard_normal(len(loss)))}


def study(scenario: Scenario, seed: int) -> dict[str, tuple[float, float, float]] | None:
    """(low, high, truth) of every interval of one study; None where it was refused."""
    rng, far = np.random.default_rng([zlib.crc32(scenario.name.encode()), seed]), beyond(scenario)
    points = draw(scenario, rng)
    mean = float(scenario.mean(far)[0])
    truths = {"mean": mean, "new": mean * float(np.exp(scenario.noise * rng.standard_normal()))}
    try:
        boot = fit(points, scenario.law).bootstrap(REFITS, seed)
    except FitRefused:
        return None
    found = {name: (*boot.interval(name), TRUTHS[scenario.law][name]) for name in asked(scenario)}
    for kind, truth in truths.items():
        (low,), (high,) = boot.prediction_interval(far, kind=kind)
        found[kind] = (float(low), float(high), truth)
    return found


def oracle_widths(scenario: Scenario) -> dict[str, float]:
    """Width that holds 95 % of the estimates of the same estimator, noise known."""
    rng = np.random.default_rng(2)
    studies = [draw(scenario, rng)[LAWS[scenario.law].response] for _ in range(ORACLE_STUDIES)]
    inputs = scenario.inputs()
    exact = fit({**inputs, LAWS[scenario.law].response: scenario.mean(inputs)}, scenario.law)
    found = replace_bound(exact).refit(np.log(studies), exact.problem.weights)
    logs = {name: np.log(value) for name, value in beyond(scenario).items()}
    mean = LAWS[scenario.law].predict(found, logs)[:, 0]
    samples = {name: found[name] for name in asked(scenario)}
    samples |= {"mean": mean, "new": mean * np.exp(scenario.noise * rng.standard_normal(len(mean)))}
    return {name: float(np.ptp(np.quantile(values, [0.025, 0.975]))) for name, values in samples.items()}


def replace_bound(exact):
    """The exact fit without the bound on its offset that its exact points set."""
    upper = np.where(exact.problem.lower == 0.0, np.inf, exact.problem.upper)
    return replace(exact, problem=replace(exact.problem, upper=upper))


def batches(scenario: Scenario, studies: int, folder: Path) -> Iterator[dict[str, object]]:
    """Finished studies of a scenario, read where they are and run where they are not, a batch at a time."""
    path = folder / f"{scenario.name}.jsonl"
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    yield from done[:studies]
    for first in range(len(done), studies, BATCH):
        found = [study(scenario, seed) for seed in range(first, min(first + BATCH, studies))]
        with path.open("a") as file:
            file.writelines(json.dumps(one) + "\n" for one in found)
        yield from found


def summarise(scenario: Scenario, found: list, widths: dict[str, float]) -> dict[str, object]:
    """Coverage in percent and median width over the oracle's of every interval; refusals in percent."""
    answered = [one for one in found if one is not None]
    rows = {}
    for name, oracle in widths.items():
        low, high, truth = np.array([one[name] for one in answered]).T
        rows[name] = {
            "coverage_percent": round(100 * float(np.mean((low <= truth) & (truth <= high))), 1),
            "missed_below_percent": round(100 * float(np.mean(truth < low)), 1),
            "width_over_oracle": round(float(np.median(high - low)) / oracle, 2),
        }
    refused = 100 * (1 - len(answered) / len(found))
    return {"scenario": scenario.name, "studies": len(found), "refused_percent": round(refused, 1), "intervals": rows}


def table(summaries: list[dict]) -> str:
    """The summaries as Markdown: coverage (median width over the oracle's)."""
    lines = [
        "# Coverage of 95 % intervals",
        "",
        f"Per cent of studies whose interval holds the truth (median width over the oracle's), defaults of `fit` and "
        f"{REFITS} refits; 500 studies have a standard error of 1 %. Predictions are 10x beyond every input. Outside "
        "92 to 98 %: **bold**. Scenarios and oracle: `tests/coverage_laws.py`. They and the target were fixed "
        "in advance; two choices of the method were not: a first run of the same scenarios showed resampling and the "
        "scale of new runs to cover up to 99 %, whereupon resampling was kept for 20 configurations a parameter and "
        "new runs were given Satterthwaite's degrees of freedom. No design here is large enough for resampling.",
        "",
        "| scenario | studies | refused % | intervals |",
        "|---|---|---|---|",
    ]
    for one in summaries:
        cells = []
        for name, row in one["intervals"].items():
            value = row["coverage_percent"]
            text = f"{value:g}" if 92 <= value <= 98 else f"**{value:g}**"
            cells.append(f"{name} {text} ({row['width_over_oracle']:g})")
        lines.append(f"| {one['scenario']} | {one['studies']} | {one['refused_percent']:g} | {' · '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is not there yet and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=500)
    parser.add_argument("--output", type=Path, default=Path("reports/coverage"))
    parser.add_argument("--cache", type=Path, default=Path("results/coverage"))
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    options.output.mkdir(parents=True, exist_ok=True)
    summaries: list[dict] = []
    for scenario in SCENARIOS:
        began = time.perf_counter()
        found = list(batches(scenario, options.studies, options.cache))
        summaries.append(summarise(scenario, found, oracle_widths(scenario)))
        print(f"{time.perf_counter() - began:5.0f} s  {json.dumps(summaries[-1])}", flush=True)
        (options.output / "coverage.json").write_text(json.dumps(summaries, indent=1) + "\n")
        (options.output / "table.md").write_text(table(summaries))


if __name__ == "__main__":
    main()
