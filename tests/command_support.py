"""Tables and recorded studies with known laws, for the tests of the commands that fit and predict."""

from __future__ import annotations

import re
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
from support import REPOSITORY

from scalebench.store import write_json, write_record

# Chinchilla's law: L = E + A N^-alpha + B D^-beta.
PLANTED = {"E": 1.7, "A": 400.0, "B": 410.0, "alpha": 0.34, "beta": 0.28}
COLUMNS = ("--params-column", "N", "--tokens-column", "D", "--loss-column", "L")
CHINCHILLA = ("--law", "chinchilla", "--params-column", "N", "--loss-column", "L")

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def surface(noise: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """Chinchilla's law on a grid of 5 x 5."""
    n, d = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e7, 1e10, 5), np.geomspace(1e9, 1e12, 5)))
    loss = PLANTED["E"] + PLANTED["A"] * n ** -PLANTED["alpha"] + PLANTED["B"] * d ** -PLANTED["beta"]
    loss = loss * np.exp(noise * np.random.default_rng(seed).standard_normal(n.size))
    return pd.DataFrame({"N": n, "D": d, "C": 6 * n * d, "L": loss, "kind": np.where(n > 5e7, "big", "small")})


# A study of one axis: L = E + A N^-ALPHA, and costs that are lines in N.
SIZES = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
E, A, ALPHA = 1.5, 20.0, 0.3
VOCABULARY_BYTES, BATCH_TOKENS, STEPS = 40, 2_048, 500


def record(size: int, seed: int, rng: np.random.Generator) -> dict[str, object]:
    """One trial: 2 ms + 50 ns a parameter, 1 MiB + 18 bytes, 12 bytes of checkpoint for each parameter of all."""
    embedding = round(VOCABULARY_BYTES * size**0.5)
    return {
        "study": "planted", "trial_id": f"{size:08x}{seed:08x}", "status": "ok", "family": "gpt",
        "params": size + embedding, "params_non_embedding": size, "seed": seed, "steps": STEPS,
        "implementation": "eager", "optimizer": "adamw", "precision": "float32", "device_name": "a processor",
        "validation_loss_nats": (E + A * size**-ALPHA) * np.exp(rng.normal(0, 0.001)), "validation_loss_se_nats": 0.001,
        "step_time_median_s": (2e-3 + 50e-9 * size) * np.exp(rng.normal(0, 0.01)), "timing_exclusive": True,
        "memory_tracked_peak_bytes": 2.0**20 + 18 * size, "flops_per_step": 1e6 + 6.0 * size * BATCH_TOKENS,
        "checkpoint_bytes": 5_000 + 12 * (size + embedding), "tokens_seen": STEPS * BATCH_TOKENS,
    }  # fmt: skip


def attempt_of(folder: Path, trial_id: str) -> Path:
    """The attempt of a recorded trial, called as no other's in its study."""
    return folder / "trials" / trial_id / f"attempt-{trial_id}"


def write_study(folder: Path, rows: list[dict[str, object]], axes: dict[str, object] | None = None) -> Path:
    """Record a study's trials in a folder, as a run would, but without waiting for the disk."""
    with patch("scalebench.store.files.os.fsync"):
        for row in rows:
            attempt = attempt_of(folder, str(row["trial_id"]))
            attempt.mkdir(parents=True)
            write_record(attempt, row)
        write_json(
            folder / "study.json", {"name": folder.name, "axes": axes or {}, "fit": {"law": "power"}, "planned": []}
        )
    return folder


def planted(**changes: object) -> list[dict[str, object]]:
    """Return the rows of seven sizes with two seeds each, some columns changed."""
    rng = np.random.default_rng(3)
    return [record(size, seed, rng) | changes for size in SIZES for seed in (0, 1)]


def named(table: pd.DataFrame) -> dict[str, np.ndarray]:
    return {role: table[name].to_numpy() for role, name in {"params": "N", "tokens": "D", "loss": "L"}.items()}


def written(folder: Path, content: str | bytes, name: str = "p.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def readme_tables() -> dict[str, str]:
    """The tables that the README gives, by file name."""
    tables = re.findall(r"```csv\n(.*?)```", README, flags=re.DOTALL)
    return dict(zip(("points.csv", "old.csv", "new.csv", "sweep.csv"), tables, strict=True))
