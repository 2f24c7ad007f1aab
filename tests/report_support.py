"""A synthetic study of a known law, and what tests of the report read from a page."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from markupsafe import Markup

from scalebench.laws import Fit
from scalebench.laws.columns import Columns
from scalebench.laws.forms import Law
from scalebench.reporting import render
from scalebench.reporting.views import FigureSpec, FigureView, draw_figure, draw_figures
from scalebench.store import Results
from scalebench.store.comparison_columns import ROW_COLUMNS
from scalebench.store.comparisons import Comparisons

SIZES = (1_536, 4_096, 10_240, 24_576, 49_152, 98_304)
E, A, ALPHA = 1.4, 6.0, 0.28
HOSTILE = '<script>alert(1)</script>"]]><b>&amp;'
STUDY = {
    "name": "synthetic",
    "title": "Synthetic study of a known law",
    "axes": {"params": list(SIZES), "seed": [0, 1]},
    "fit": {"law": "power", "holdout": "largest", "best_over": []},
    "command": "scalebench run studies/synthetic.toml",
    "study_toml": 'schema = 1\nname = "synthetic"\n',
}


def trial(size: int, seed: int, rng: np.random.Generator) -> dict[str, object]:
    """One record: the law with noise of 0.004 nats, 3 ms + 60 ns a parameter, 2 MiB + 18 bytes a parameter."""
    step_time, memory = 3e-3 + 60e-9 * size * rng.normal(1, 0.01), 2.0**21 + 18 * size
    parts = {"parameters": 4 * size, "gradients": 0, "optimizer": 8 * size, "activations": 2**21, "other": 6 * size}
    return {
        "study": "synthetic", "trial_id": f"{size:08x}{seed:08x}", "attempt": "attempt-1", "status": "ok",
        "error_class": None, "error_message": None, "stop_step": 300, "family": "gpt", "params": size + 16_384,
        "params_non_embedding": size, "steps": 300, "batch_size": 16, "learning_rate": 0.008, "seed": seed,
        "implementation": "eager", "optimizer": "adamw", "precision": "float32", "device_kind": "cpu",
        "validation_loss_nats": E + A * size**-ALPHA + rng.normal(0, 0.004), "validation_loss_se_nats": 0.003,
        "train_loss_nats": 2.0, "floor_nats": None, "step_time_median_s": step_time,
        "step_time_p20_s": 0.97 * step_time, "step_time_p80_s": 1.06 * step_time,
        "timing_method": "perf_counter_ns", "timing_exclusive": True,
        "tokens_per_s": 2048 / step_time, "flops_per_step": 6.0 * size * 2048,
        "achieved_flops_per_s": 6.0 * size * 2048 / step_time, "mfu": 6.0 * size * 2048 / step_time / 6e11,
        "peak_flops_per_s": 6e11, "peak_source": "measured matrix product", "peak_memory_allocated_bytes": None,
        "memory_tracked_peak_bytes": memory, "peak_rss_bytes": 4e8 + size,
        **{f"memory_{part}_bytes": value for part, value in parts.items()},
        **{f"memory_at_peak_{part}_bytes": value for part, value in parts.items()},
        "machine_id": "m1", "device_name": "a processor", "cpu_model": "a processor", "threads": 1,
        "started_at": "2026-01-01T00:00:00Z", "git_commit": "0" * 40, "git_dirty": False, "python_version": "3.11.9",
        "torch_version": "2.13.0", "platform": "Linux", "invalid_reason": None, "attempt_dir": None,
    }  # fmt: skip


def write_steps(folder: Path, row: dict[str, object], rng: np.random.Generator) -> None:
    """Write 300 steps, 20 of them warm-up, one of them ten times as slow as the rest."""
    folder.mkdir(parents=True, exist_ok=True)
    times = float(row["step_time_median_s"]) * rng.lognormal(0, 0.03, 300)  # type: ignore[arg-type]
    times[150] *= 10
    loss = float(row["validation_loss_nats"]) + 3.4 * np.exp(-np.arange(300) / 40) + rng.normal(0, 0.02, 300)  # type: ignore[arg-type]
    steps = {"step": np.arange(300), "train_loss_nats": loss, "step_time_s": times, "data_time_s": 1e-5}
    pd.DataFrame(steps).assign(warm=np.arange(300) >= 20).to_parquet(folder / "steps.parquet")


def synthetic(folder: Path | None = None, **changes: object) -> Results:
    """Make the study's results; with a folder, with steps in it."""
    rng = np.random.default_rng(7)
    rows = [trial(size, seed, rng) | changes for size in SIZES for seed in (0, 1)]
    for row in rows if folder else ():
        row["attempt_dir"] = str(folder / str(row["trial_id"]))  # type: ignore[operator]
        write_steps(Path(str(row["attempt_dir"])), row, rng)
    return all_planned(pd.DataFrame(rows))


def recorded(folder: Path) -> Results:
    """The results of ``synthetic(folder)``, whose steps are there already."""
    results = synthetic()
    folders = [str(folder / trial_id) for trial_id in results.frame["trial_id"]]
    return Results(results.frame.assign(attempt_dir=folders), (), results.studies)


def all_planned(frame: pd.DataFrame) -> Results:
    """Make results of these trials, every one of them planned."""
    planned = [{"trial_id": trial_id} for trial_id in frame["trial_id"]]
    return Results(frame, (), {"synthetic": STUDY | {"planned": planned}})


def changed(results: Results, trial_index: int, **values: object) -> Results:
    """Return the results with one trial's record changed."""
    frame = results.frame.astype(object)
    for column, value in values.items():
        frame.loc[trial_index, column] = value
    return Results(frame, results.damaged, results.studies)


def broken(results: Results) -> dict[str, Results]:
    frame, studies = results.frame, results.studies
    failed = frame.assign(status="failed", validation_loss_nats=None, step_time_median_s=None, error_message="boom")
    return {
        "no rows": Results(frame.iloc[:0], (), studies),
        "no study": Results(frame.iloc[:0], (), {}),
        "one trial": Results(frame.iloc[:1], (), studies),
        "one size": Results(frame.iloc[:2], (), studies),
        "two sizes": Results(frame.iloc[:4], (), studies),
        "four sizes": Results(frame.iloc[:8], (), studies),
        "all failed": Results(failed, (), studies),
        "no study.json": Results(frame, (), {"synthetic": {}}),
        "few columns": Results(frame[["study", "trial_id", "status", "params"]], (), studies),
        "all null": Results(
            frame.assign(**dict.fromkeys(frame.columns.drop(["study", "trial_id", "status"]))), (), studies
        ),
        "one seed": Results(frame[frame["seed"] == 0], (), studies),
        "no steps": Results(frame.assign(attempt_dir="/nowhere"), (), studies),
        "an unknown law": Results(frame, (), {"synthetic": STUDY | {"fit": {"law": "chinchilla"}}}),
    }


def undrawn(results: Results) -> str:
    """Render the page with the titles, captions and tables of its figures, each drawing empty, in half of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scalebench.reporting.views.to_svg", lambda *_: "<svg></svg>")
        return render(results)


def page_text(results: Results, *figures: str) -> str:
    """Render the page with no figure but those of these keys, in a fifth of the time: for tests of its text."""

    def draw(section: str, specs: Iterable[FigureSpec[Any]], subject: object) -> tuple[FigureView, ...]:
        return draw_figures(section, [spec for spec in specs if spec.key in figures], subject)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scalebench.reporting.sections.common.draw_figures", draw)
        patch.setattr("scalebench.reporting.overview.draw_figures", draw)
        return render(results)


def page_of_alike(results: Results) -> str:
    """Render a page of studies of equal rows in a fraction of the time: what the first one's are is drawn and fitted.

    The drawings of the others are copies of it with ids of their own, as they would be.
    """
    views: dict[str, tuple[str, FigureView | None]] = {}
    fits: dict[tuple[object, ...], Fit] = {}
    fit_anew = Fit.of

    def draw(section: str, specs: Iterable[FigureSpec[Any]], subject: object) -> tuple[FigureView, ...]:
        for spec in specs:
            if spec.key not in views:
                name = f"{section}-{spec.key}"
                views[spec.key] = name, draw_figure(name, spec, subject)
        drawn = ((f"{section}-{spec.key}", *views[spec.key]) for spec in specs)
        return tuple(renamed(view, old, new) for new, old, view in drawn if view is not None)

    def fit_once(points: Columns, law: str | Law, **options: object) -> Fit:
        columns = [(name, np.asarray(points[name]).tolist()) for name in [*points.keys()]]
        key = (repr(columns), getattr(law, "name", law), repr(options))
        if key not in fits:
            fits[key] = fit_anew(points, law, **options)  # type: ignore[arg-type]
        return fits[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scalebench.reporting.sections.common.draw_figures", draw)
        patch.setattr(Fit, "of", staticmethod(fit_once))
        return render(results)


def renamed(view: FigureView, old: str, new: str) -> FigureView:
    """The drawing as it is under another name: its ids begin with the name or with a checksum of it."""
    short = [f"f{zlib.crc32(name.encode()):08x}" for name in (old, new)]
    return replace(view, id=new, svg=Markup(str(view.svg).replace(old, new).replace(*short)))


class Outline(HTMLParser):
    """Collect elements, ids and what the page would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def compared() -> Comparisons:
    """Make a comparison of three providers on five sizes in float32: eager, a fused one twice as fast, a wrong one."""
    rows = [
        dict.fromkeys(ROW_COLUMNS) | {
            "operation": "sum", "run": "run-1", "source": "measured", "backward": False, "case": f"n={n}",
            "case_index": i, "dtype": "float32", "shape_n": n, "provider": provider, "summary": f"the {provider} way",
            "status": "ok", "time_median_s": time * n, "time_low_s": 0.9 * time * n, "time_high_s": 1.2 * time * n,
            "time_p20_s": 0.95 * time * n, "time_p80_s": 1.1 * time * n, "samples": 40, "outliers": 1, "processes": 3,
            "calls_per_sample": 10, "noise": 0.01, "stop_reason": "noise", "stop_reasons": "noise",
            "prepare_time_s": 0.1, "first_call_time_s": 0.2, "flops": float(n), "bytes_moved": 4.0 * n,
            "achieved_flops_per_s": 1 / time, "achieved_bytes_per_s": 4 / time, "matmul_ceiling_flops_per_s": 1e10,
            "copy_ceiling_bytes_per_s": 8e9, "ceiling_source": "measured", "peak_memory_bytes": 4.0 * n,
            "memory_method": "allocator", "max_abs_error": 1e-6, "eager_max_abs_error": 1e-6, "error_ratio": 1.0,
            "accepted": provider != "wrong", "error_note": "3 of 4 values are wrong" if provider == "wrong" else None,
            "baseline": "eager", "ratio": time / 2e-9, "ratio_low": 0.9 * time / 2e-9, "ratio_high": 1.1 * time / 2e-9,
            "margin": 0.05, "verdict": {"fused": "FASTER"}.get(provider), "verdict_reason": "the whole interval",
            "machine_id": "m1", "device_kind": "cpu", "cpu_model": "a processor", "cpu_count": 2, "load_average": 0.1,
            "threads": 1, "python_version": "3.11.9", "torch_version": "2.13.0", "command": "scalebench compare sum",
        }
        for i, n in enumerate((1_000, 4_000, 16_000, 64_000, 256_000))
        for provider, time in (("eager", 2e-9), ("fused", 1e-9), ("wrong", 1.5e-9))
    ]  # fmt: skip
    return Comparisons(pd.DataFrame(rows), (), {"run-1": {}})
