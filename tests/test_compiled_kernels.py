"""Shipped kernels compiled for GPUs that are not here: the requirements hold, and the written table is today's.

Each run compiles the largest tile of every kernel and architecture, and a rotation of the others drawn by the date;
``SCALEBENCH_ROTATION`` repeats a rotation. What was compiled before from the very same source by the very same compiler
is taken from the cache that ``make kernels`` fills.
"""

from __future__ import annotations

import json
import os
import random
from datetime import UTC, datetime

import compile_ahead
import pytest
from scalekernels import OPERATIONS

ROTATION = os.environ.get("SCALEBENCH_ROTATION", datetime.now(UTC).date().isoformat())
ROTATED = 24


def todays_jobs() -> list[compile_ahead.Job]:
    """The largest tile of every kernel and architecture, and 24 others that change with the date."""
    jobs = compile_ahead.all_jobs()
    always = compile_ahead.largest(jobs)
    rest = [job for job in jobs if job not in always]
    return always + random.Random(ROTATION).sample(rest, min(ROTATED, len(rest)))


@pytest.mark.slow
@pytest.mark.parametrize("job", todays_jobs(), ids=lambda job: job.name)
def test_a_shipped_configuration_meets_its_requirements(job: compile_ahead.Job) -> None:
    row = compile_ahead.row_of(job)
    again = f"SCALEBENCH_ROTATION={ROTATION} pytest tests/test_compiled_kernels.py repeats it"
    assert not row["failures"], f"{job.name}: {row['failures']} ({again})"


def test_the_rotation_is_large_enough_and_holds_the_largest_of_everything() -> None:
    print(f"rotation {ROTATION}")
    jobs = todays_jobs()
    assert len(jobs) >= 24
    assert {job.operation for job in jobs} == set(OPERATIONS)
    kernels = {(job.kernel, job.arch) for job in compile_ahead.all_jobs()}
    for kernel, arch in kernels:
        works = [job.work for job in compile_ahead.all_jobs() if (job.kernel, job.arch) == (kernel, arch)]
        assert max(works) in [job.work for job in jobs if (job.kernel, job.arch) == (kernel, arch)]


# --- the written table -----------------------------------------------------------------------------------------------


def written() -> dict[str, object]:
    """The committed table."""
    assert compile_ahead.REPORT.exists(), f"{compile_ahead.REPORT} is missing: make kernels writes it"
    return json.loads(compile_ahead.REPORT.read_text())


def test_the_written_table_is_of_todays_sources_and_lacks_nothing() -> None:
    problems = compile_ahead.out_of_date(written(), compile_ahead.all_jobs())
    assert not problems, f"make kernels writes it anew; {len(problems)} rows: {problems[:5]}"
    assert not [row for row in written()["rows"] if row["failures"]]
    assert compile_ahead.REPORT.with_suffix(".md").read_text() == compile_ahead.table(written())


@pytest.mark.slow
def test_a_table_that_lacks_a_row_or_was_made_from_other_sources_is_out_of_date() -> None:
    jobs = compile_ahead.all_jobs()
    report = written()
    report["rows"][0]["source"] = "0" * 16
    gone = report["rows"].pop()
    problems = compile_ahead.out_of_date(report, jobs)
    assert len(problems) == 2
    assert "made from other sources" in problems[1]
    assert gone["label"] in problems[0]
    assert "is missing" in problems[0]
    report = written()
    assert "not shipped" in compile_ahead.out_of_date(report, jobs[1:])[0]
    report["sources_sha256"] = "0" * 64
    assert compile_ahead.out_of_date(report, jobs)
