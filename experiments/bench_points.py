"""Reading a large CSV: `pytest experiments/bench_points.py --benchmark-enable`; asserts the memory it takes, too."""

import os
import subprocess
import sys

import numpy as np
import pytest
from support import SOURCE_PATH

SIZE_BYTES = 200_000_000
SCRIPT = """
import resource
from pathlib import Path
from scalebench.points.table import read_columns
table = read_columns(Path("big.csv"), {"params": "N", "tokens": "D", "loss": "L"}, "N < 1e7 and name != 'run-3'")
print(len(table), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.fixture
def big_csv(tmp_path):
    rng = np.random.default_rng(0)
    values = zip(
        10 ** rng.uniform(6, 10, 10_000), 10 ** rng.uniform(9, 12, 10_000), rng.uniform(2, 4, 10_000), strict=True
    )
    block = "".join(
        f"{n:.6e},{d:.6e},{loss:.6f},run-{i},{'x' * 40}\n" for i, (n, d, loss) in enumerate(values)
    ).encode()
    with (tmp_path / "big.csv").open("wb") as file:
        file.write(b"N,D,L,name,notes\n")
        for _ in range(SIZE_BYTES // len(block)):
            file.write(block)
    return tmp_path


def test_a_200_mb_csv_takes_seconds_and_far_less_than_2_gb(benchmark, big_csv):
    def read():
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], cwd=big_csv, env=os.environ | {"PYTHONPATH": SOURCE_PATH},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return map(int, done.stdout.split())

    points, peak = benchmark.pedantic(read, rounds=1)
    assert points > 100_000
    benchmark.extra_info["peak_bytes"] = peak
    assert peak < 1e9
