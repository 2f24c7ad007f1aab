"""Files of pytest-benchmark, real ones, as rows of a comparison."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scalebench.store import read_json

BENCH = """
import time
import pytest
@pytest.mark.benchmark(group="naps")
@pytest.mark.parametrize("provider", ["eager", "long"])
def test_nap(benchmark, provider):
    benchmark.pedantic(lambda: time.sleep(1e-3 if provider == "eager" else 2e-3), rounds=12)
"""


@pytest.fixture(scope="module")
def bench_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two real JSON files of pytest-benchmark, with their rounds."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "test_naps.py").write_text(BENCH)
    paths = [folder / "first.json", folder / "second.json"]
    # Within a run of pytest-xdist, pytest-benchmark would take itself for one of its workers and measure nothing.
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    for path in paths:
        line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--benchmark-json={path}", folder]
        subprocess.run(line, cwd=folder, check=True, capture_output=True, env=alone)
    return paths


@pytest.mark.slow
def test_files_of_pytest_benchmark_are_imported_with_their_rounds(bench_files, command, tmp_path: Path) -> None:
    imports = [part for path in bench_files for part in ("--import", path)]
    code, out, _ = command("compare", "naps", *imports, "--results", tmp_path / "r", "--json")
    assert code == 0
    eager, long = json.loads(out)["rows"]
    data = [read_json(path)["benchmarks"][1]["stats"]["data"] for path in bench_files]
    assert (long["case"], long["provider"], long["processes"], long["samples"]) == ("naps", "long", 2, 24)
    assert long["time_median_s"] == pytest.approx(np.sqrt(np.median(data[0]) * np.median(data[1])))
    assert long["verdict"] in ("SLOWER", "INCONCLUSIVE")
    assert long["accepted"] is None
    assert eager["source"] == "pytest-benchmark"
    assert "one provider after the other" in eager["timing_method"]
    samples = pd.read_parquet(next((tmp_path / "r").rglob("samples.parquet")))
    assert samples.loc[samples["provider"] == "long", "time_s"].tolist() == pytest.approx([*data[0], *data[1]])


@pytest.mark.slow
def test_files_of_different_machines_get_no_verdict(bench_files, command, tmp_path: Path) -> None:
    here, there = (read_json(path) for path in bench_files)
    here["benchmarks"], there["benchmarks"] = here["benchmarks"][:1], there["benchmarks"][1:]
    there["machine_info"]["node"] = "another"
    for name, content in (("here.json", here), ("there.json", there)):
        (tmp_path / name).write_text(json.dumps(content))
    code, out, _ = command("compare", "naps", "--import", "here.json", "--import", "there.json", "--json")
    _, long = json.loads(out)["rows"]
    assert code == 0
    assert (long["verdict"], long["ratio"]) == (None, None)
    assert "another machine" in long["verdict_reason"]


@pytest.mark.slow
def test_a_file_without_samples_still_has_its_median(bench_files, command, tmp_path: Path) -> None:
    content = read_json(bench_files[0])
    for one in content["benchmarks"]:
        del one["stats"]["data"]
    (tmp_path / "short.json").write_text(json.dumps(content))
    code, out, _ = command("compare", "naps", "--import", "short.json", "--json")
    _, long = json.loads(out)["rows"]
    assert code == 0
    assert long["time_median_s"] == content["benchmarks"][1]["stats"]["median"]
    assert long["time_low_s"] is long["verdict"] is None


def test_what_is_no_file_of_pytest_benchmark_is_refused(command, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    for name in ("other.json", "absent.json"):
        code, _, err = command("compare", "naps", "--import", name)
        assert code == 2
        assert name in err
