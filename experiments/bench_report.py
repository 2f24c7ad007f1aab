"""How long a user waits for the page on 10,000 made-up trials of 200 steps: of one series of sizes, and of twenty.

`pytest experiments/bench_report.py --benchmark-enable`. Each page must stay below 5 MB, and the same page twice is the
same bytes.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from report_support import STUDY, trial

from scalebench.reporting import report
from scalebench.store import SCHEMA
from scalebench.store.files import checksum

TRIALS, SIZES, STEPS = 10_000, 20, 200
ATTEMPT = "attempt-20260101T000000000000Z-a"
MOST_BYTES = 5_000_000


def steps_file(rng: np.random.Generator) -> bytes:
    """Return the file of a trial's steps."""
    content, step = io.BytesIO(), np.arange(STEPS)
    loss, times = 1.5 + 3 * np.exp(-step / 40) + rng.normal(0, 0.02, STEPS), 4e-3 * rng.lognormal(0, 0.03, STEPS)
    columns = {"step": step, "train_loss_nats": loss, "step_time_s": times, "data_time_s": 1e-5, "warm": step >= 20}
    pd.DataFrame(columns).to_parquet(content)
    return content.getvalue()


def rows(series: int) -> Iterator[dict[str, Any]]:
    """Yield the records: sizes from 1 k to 1 M, as many seeds as make TRIALS."""
    rng, sizes = np.random.default_rng(0), np.geomspace(1e3, 1e6, SIZES).round().astype(int)
    for i in range(TRIALS):
        place, seed = i % (SIZES * series), i // (SIZES * series)
        row = trial(int(sizes[place % SIZES]), seed, rng)
        row |= {"trial_id": f"{i:016x}", "optimizer": f"way {place // SIZES:02d}", "attempt": ATTEMPT, "steps": STEPS}
        row["validation_loss_nats"] += 0.05 * (place // SIZES)
        yield row


@pytest.fixture(scope="module", params=[1, 20])
def results(request, tmp_path_factory) -> Path:
    """A results folder, written long enough ago to be indexed."""
    folder, rng = tmp_path_factory.mktemp(f"series-{request.param}"), np.random.default_rng(1)
    steps, planned = [steps_file(rng) for _ in range(20)], []
    for i, row in enumerate(rows(request.param)):
        attempt = folder / "synthetic" / "trials" / row["trial_id"] / ATTEMPT
        attempt.mkdir(parents=True)
        content = steps[i % len(steps)]
        (attempt / "steps.parquet").write_bytes(content)
        del row["attempt_dir"]
        record = json.loads(
            json.dumps({"schema": SCHEMA, "files": {"steps.parquet": len(content)}, **row}, default=float)
        )
        (attempt / "record.json").write_text(json.dumps(record | {"sha256": checksum(record)}))
        planned.append({"trial_id": row["trial_id"]})
    (folder / "synthetic" / "study.json").write_text(json.dumps({"schema": SCHEMA, **STUDY, "planned": planned}))
    time.sleep(2.5)
    return folder


def test_page_of_ten_thousand_trials(benchmark, results: Path, tmp_path: Path) -> None:
    pages = []
    benchmark.pedantic(lambda: pages.append(report([results], tmp_path / "page.html").read_bytes()), rounds=2)
    assert len(pages[0]) < MOST_BYTES
    assert pages[0] == pages[1]
