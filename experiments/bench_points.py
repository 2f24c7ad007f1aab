"""Three columns of a large CSV, selected by a condition: ours (pyarrow and points/where.py), polars and duckdb.

`pytest experiments/bench_points.py --benchmark-enable`; polars and duckdb are skipped unless they are installed. Every
reader has to return the number of points that the condition selects, ours in less than 500 MB.

Measured on 2 cores of a shared machine, so by CPU time, readers interleaved; median (range) of 3 or 4 processes for one
CSV of 1 GB and 9.3 M rows, of 7 for all rows of 200 CSVs of 50; imports included; pyarrow 26.0, polars 2.1, duckdb 2.0.

    reader                             1 GB: CPU [s]       peak [MB]   200 files: CPU [s]   peak [MB]
    ours                               4.3 (3.6 to 4.5)    345         0.81 (0.75 to 1.03)  130
    ours, 16 MiB blocks, object texts  7.8 (7.6 to 8.2)    795         0.70 (0.56 to 0.83)  117
    polars, streaming                  2.9 (2.8 to 3.4)    370         0.47 (0.39 to 0.63)   68
    duckdb                             3.4 (3.3 to 3.4)    262         1.40 (1.33 to 1.69)   89
    pyarrow.dataset (no `step % 10`)   5.1 (5.0 to 5.2)    903         1.66 (1.49 to 1.91)  233

Neither library is worth its 70 MB (duckdb) or 180 MB (polars) beside pyarrow, which Parquet and pandas need anyway:

- Rows of wrong length: duckdb names the line if the dialect is given, but its sniffer reads a file with a short row as
  one column and says nothing. polars fills short rows with null and says nothing; for long ones it names no line.
- Wrong cells: read as numbers, they are errors in rows that the condition leaves out, too (and duckdb reads 1_0 as 10);
  read as texts, neither names the line. So finding the line again, and the header, would stay ours.
- Conditions as SQL: `1 < N < 3e6` is refused by duckdb, `in [...]` and `**` by polars, `kind == "dense"` by
  both: they break what --where accepts today.
- Safety: with enable_external_access = false and lock_configuration = true duckdb opens no file (the CSV has to be
  loaded before), but `repeat('x', 2000000000) = 'y'` takes 25 s on two rows, and a subquery over range() 27 s. polars'
  sql_expr has few functions; its SQLContext reads any file. A whitelist of ours is needed in front of either.
- pandas.eval has the syntax and the results of --where in 17 of 18 conditions tried, but `N.to_csv('file')` writes a
  file. Behind the same whitelist it saves 5 of 129 lines of code.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
from support import SOURCE_PATH

SIZE_BYTES = int(float(os.environ.get("SCALEBENCH_BENCH_CSV_BYTES", "2e8")))
OURS = """
from pathlib import Path
from scalebench.points.table import read_columns
table = read_columns(
    Path("big.csv"), {"params": "N", "tokens": "D", "loss": "loss"},
    "1e6 <= N < 1e8 and run != 'run-3' and step % 10 == 0",
)
points = table.values["loss"]
"""
# As texts, converted where possible: a wrong cell in a row that the condition leaves out is not an error.
POLARS = """
import polars as pl
number = lambda name: pl.col(name).cast(pl.Float64, strict=False)
selected = (number("N") >= 1e6) & (number("N") < 1e8) & (pl.col("run") != "run-3") & (number("step") % 10 == 0)
rows = pl.scan_csv("big.csv", infer_schema=False).filter(selected)
points = rows.select(number("N"), number("D"), number("loss")).collect(engine="streaming")["loss"]
"""
DUCKDB = """
import duckdb
points = duckdb.sql('''
    select try_cast(N as double) as N, try_cast(D as double) as D, try_cast(loss as double) as loss
    from read_csv('big.csv', all_varchar=true, header=true)
    where try_cast(N as double) >= 1e6 and try_cast(N as double) < 1e8 and run <> 'run-3'
    and try_cast(step as double) % 10 = 0
''').fetchnumpy()["loss"]
"""
REPORT = """
import resource
print(len(points), round(float(points.sum()), 3), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.fixture(scope="module")
def big_csv(tmp_path_factory):
    """Return a folder with a CSV of 9 columns that repeats 20,000 rows, and how many rows the condition selects."""
    folder = tmp_path_factory.mktemp("csv")
    rng = np.random.default_rng(0)
    columns = (10 ** rng.uniform(6, 10, 20_000), 10 ** rng.uniform(9, 12, 20_000), rng.uniform(2, 4, 20_000))
    block = "".join(
        f'run-{i % 97},{i},{n:.6e},{d:.6e},{loss:.6f},1.000e-03,{i:.3f},node{i % 13}.cluster,"warm-up, then cosine"\n'
        for i, (n, d, loss) in enumerate(zip(*columns, strict=True))
    ).encode()
    with (folder / "big.csv").open("wb") as file:
        file.write(b"run,step,N,D,loss,lr,wall_s,host,notes\n")
        for _ in range(SIZE_BYTES // len(block)):
            file.write(block)
    selected = sum(n < 1e8 and i % 97 != 3 and i % 10 == 0 for i, n in enumerate(columns[0]))
    return folder, int(selected) * (SIZE_BYTES // len(block))


def read(script, folder):
    """Return the number of points, the sum of their losses and the peak memory [B] of a process that reads them."""
    done = subprocess.run(
        [sys.executable, "-c", script + REPORT], cwd=folder, env=os.environ | {"PYTHONPATH": SOURCE_PATH},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    points, total, peak = done.stdout.split()
    return int(points), float(total), int(peak)


@pytest.mark.parametrize("reader", ["ours", "polars", "duckdb"])
def test_a_large_csv_takes_little_memory(benchmark, big_csv, reader):
    if reader != "ours":
        pytest.importorskip(reader)
    script = {"ours": OURS, "polars": POLARS, "duckdb": DUCKDB}[reader]
    folder, selected = big_csv
    points, total, peak = benchmark.pedantic(read, (script, folder), rounds=5)
    benchmark.extra_info["peak_bytes"] = peak
    assert points == selected
    assert 2 < total / points < 4
    if reader == "ours":
        assert peak < 5e8
