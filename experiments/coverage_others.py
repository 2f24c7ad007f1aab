"""Coverage of 95 % intervals where noise grows, optima lie at an edge, and times drift between sessions.

`python experiments/coverage_others.py` draws 200 studies of each design with a planted truth, in five minutes on one
core, and writes `reports/coverage/others.md`. Laws with noise that grows or shrinks tenfold are those of
`coverage_designs.GROWING`, counted as in `coverage_laws`. `tune` has the same six rates, a factor of two apart, at
seven sizes; `diff` has two folders without a difference, each of four configurations in some sessions.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from coverage_designs import GROWING
from coverage_laws import batches, cells, oracle_widths, study, summarise

from scalebench.advice import optimum_law
from scalebench.analysis.difference import difference
from scalebench.laws import FitRefused

Intervals = dict[str, tuple[float, float, float]]  # low, high, truth
SIZES = np.geomspace(1e6, 1e9, 7)
RATES = 1e-2 * 2.0 ** np.arange(6)
EXPONENT = -0.2
BEGIN = pd.Timestamp("2026-01-01", tz="UTC")


@dataclass(frozen=True)
class Sweeps:
    """Rates swept at seven sizes: the optimum of the largest lies `inside` steps above the lowest rate."""

    inside: float
    noise: float

    def __str__(self) -> str:
        """The design in words."""
        return f"optimum of the largest size {self.inside:g} steps from the edge, noise {self.noise:g}"

    def study(self, rng: np.random.Generator) -> Intervals | None:
        """The intervals of one study, in logs but for the exponent; None if the law is refused."""
        size, rate = (axis.ravel() for axis in np.meshgrid(SIZES, RATES, indexing="ij"))
        level = float(np.log(RATES[0]) + self.inside * np.log(2) - EXPONENT * np.log(SIZES[-1]))
        away = np.log(rate) - level - EXPONENT * np.log(size)
        loss = 2 + 0.1 * away**2 + self.noise * rng.standard_normal(len(rate))
        try:
            law = optimum_law({"params": size, "learning_rate": rate, "loss": loss})
        except FitRefused:
            return None
        far = 10 * SIZES[-1]
        ends = (float(end) for end in np.log(law.prediction_interval(params=far)))
        return {
            "exponent": (*law.interval("params"), EXPONENT),
            "10x beyond": (*ends, float(level + EXPONENT * np.log(far))),
        }


@dataclass(frozen=True)
class Sessions:
    """Two folders without a difference: `runs` of four configurations in each of some sessions.

    Logs of times differ by `drift` between sessions and by 0.5 % between runs. `in_turns`: each session measures both.
    """

    old: int
    new: int
    runs: int
    drift: float
    in_turns: bool = False

    def __str__(self) -> str:
        """The design in words."""
        both = "the same" if self.in_turns else f"{self.old} and {self.new}"
        return f"{both} sessions, {self.runs} runs in each, drift {100 * self.drift:g} %"

    def study(self, rng: np.random.Generator) -> Intervals | None:
        """The intervals of one study, in logs."""
        drift = self.drift * rng.standard_normal((2, max(self.old, self.new)))
        old = self._folder(rng, drift[0, : self.old], 0)
        new = self._folder(rng, drift[0 if self.in_turns else 1, : self.new], 5 if self.in_turns else 144_000)
        effects = [effect for effect in difference(old, new, 1e-6).effects if effect.low and effect.high]
        names = ("all", *(f"size {i}" for i in range(1, len(effects))))
        return {
            name: (float(np.log(effect.low)), float(np.log(effect.high)), 0.0)
            for name, effect in zip(names, effects, strict=True)
            if effect.low and effect.high
        }

    def _folder(self, rng: np.random.Generator, drift: np.ndarray, minute: int) -> pd.DataFrame:
        session, run, size = (
            a.ravel() for a in np.meshgrid(*map(np.arange, (len(drift), self.runs, 4)), indexing="ij")
        )
        started = BEGIN + pd.to_timedelta(1440 * session + 10 * (4 * run + size) + minute, unit="min")
        times = np.exp(size + drift[session] + 0.005 * rng.standard_normal(len(size)))
        return pd.DataFrame(
            {"params_non_embedding": 10.0**size, "step_time_median_s": times, "started_at": started.astype(str)}
        ).assign(status="ok", wall_time_s=60.0, invalid_reason=None)


EDGES = tuple(Sweeps(inside, noise) for inside in (2.0, 1.0, 0.5, 0.0) for noise in (0.003, 0.01, 0.03))
DRIFTS = tuple(
    Sessions(*sessions, drift, in_turns=in_turns)
    for drift in (0.0, 0.02)
    for *sessions, in_turns in (
        (1, 1, 4, False), (2, 2, 2, False), (3, 3, 1, False), (3, 3, 2, False), (6, 6, 1, False), (1, 4, 2, False),
        (3, 3, 2, True),
    )
)  # fmt: skip


def counted(design: Sweeps | Sessions, studies: int) -> str:
    """A line of the table: refusals in percent, and coverage in percent with the median width of each interval."""
    drawn = [design.study(np.random.default_rng([6, seed])) for seed in range(studies)]
    rows: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for intervals in drawn:
        for name, interval in (intervals or {}).items():
            rows["one size" if name.startswith("size") else name].append(interval)
    texts = []
    for name, values in rows.items():
        low, high, truth = np.array(values).T
        percent = 100 * float(np.mean((low <= truth) & (truth <= high)))
        bold = "" if percent >= 91 else "**"
        texts.append(f"{name} {bold}{percent:.1f}{bold} ({np.median(high - low):.2g})")
    refused = 100 * float(np.mean([intervals is None for intervals in drawn]))
    return f"| {design} | {refused:.0f} | {' · '.join(texts)} |"


def laws(studies: int) -> list[str]:
    """The lines of noise that grows."""
    lines = []
    for scenario in GROWING:
        studied = [each for _, _, seeds in batches(scenario, studies) for each in study(scenario, seeds)]
        summary = summarise(scenario, studied, oracle_widths(scenario))
        lines.append(
            f"| {summary['scenario']} | {summary['refused_percent']:g} | {cells(summary['methods']['auto'])} |"
        )
        print(lines[-1], flush=True)
    return lines


HEAD = """# Coverage of 95 % intervals in harder designs

Per cent of {studies} studies whose interval holds the truth; the standard error is {error:.1f} %. Made by
`python experiments/coverage_others.py`.

## Noise that grows or shrinks tenfold with size

In brackets: median width over that of an oracle that knows the noise. Predictions are 10x beyond every input, where
noise has grown or shrunk on. Outside 92 to 98 %: **bold**. With six sizes of one seed residuals do not show growth,
with eight seldom: the intervals are then too narrow. What shows it best are several seeds of each size.
"""
TUNED = """
## `tune` with optima near the edge of the grid

In brackets: median width, in logs but for the exponent. Below 91 %: **bold**.
"""
DIFFERENT = """
## `diff` of times that drift between sessions

In brackets: median width in logs. Below 91 %: **bold**. With one session on each side drift is unknown, which is said.
"""


def main() -> None:
    """Draw the studies and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--output", type=Path, default=Path("reports/coverage/others.md"))
    options = parser.parse_args()
    head = "\n| design | refused % | intervals |\n|---|---|---|\n"
    text = HEAD.format(studies=options.studies, error=100 * (0.95 * 0.05 / options.studies) ** 0.5)
    text += head + "\n".join(laws(options.studies)) + "\n"
    parts: tuple[tuple[str, tuple[Sweeps | Sessions, ...]], ...] = ((TUNED, EDGES), (DIFFERENT, DRIFTS))
    for title, designs in parts:
        lines = [counted(design, options.studies) for design in designs]
        print("\n".join(lines), flush=True)
        text += title + head + "\n".join(lines) + "\n"
    options.output.write_text(text)


if __name__ == "__main__":
    main()
