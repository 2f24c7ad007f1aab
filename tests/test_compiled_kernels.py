"""Shipped kernels compiled for GPUs that are not here: the requirements hold, and the written table is today's.

``make kernels`` compiles every configuration for every architecture and writes the table, whose rows are of today's
sources. Compiling is deterministic: where the table is of today's compiler too, each run compiles one configuration of
every kernel, drawn by the date, and finds the figures of its row; of another compiler it compiles the largest tile of
every kernel and architecture, and 24 others. ``SCALEBENCH_ROTATION`` repeats a draw. What was compiled before from the
very same source by the very same compiler is taken from the cache that ``make kernels`` fills.
"""

from __future__ import annotations

import json
import lzma
import os
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import compile_ahead
import machine_code
import pytest
import second_assembler
from scalekernels import OPERATIONS
from scalekernels.device import assembler

ROTATION = os.environ.get("SCALEBENCH_ROTATION", datetime.now(UTC).date().isoformat())
ROTATED = 24


@cache
def written() -> dict[str, object]:
    """The committed table, read once and never changed."""
    assert compile_ahead.REPORT.exists(), f"{compile_ahead.REPORT} is missing: make kernels writes it"
    return json.loads(compile_ahead.REPORT.read_text())


def is_of_todays_compiler() -> bool:
    """Whether triton and both of its assemblers are those that the table was written with."""
    today = compile_ahead.report_of([], [])
    return all(written()[key] == today[key] for key in ("triton_version", "ptxas_versions"))


def todays_jobs(compiler_is_known: bool) -> list[compile_ahead.Job]:
    """Return what a run compiles, drawn by the date; of a known compiler, one configuration of every kernel."""
    jobs, drawn = compile_ahead.all_jobs(), random.Random(ROTATION)
    if compiler_is_known:
        kernels: dict[tuple[str, str], list[compile_ahead.Job]] = {}
        for job in jobs:
            kernels.setdefault((job.operation, job.kernel), []).append(job)
        return [drawn.choice(shipped) for shipped in kernels.values()]
    always = compile_ahead.largest(jobs)
    rest = [job for job in jobs if job not in always]
    return always + drawn.sample(rest, min(ROTATED, len(rest)))


@pytest.mark.parametrize("job", todays_jobs(is_of_todays_compiler()), ids=lambda job: job.name)
def test_a_shipped_configuration_meets_its_requirements(job: compile_ahead.Job) -> None:
    row = json.loads(json.dumps(compile_ahead.row_of(job)))
    again = f"SCALEBENCH_ROTATION={ROTATION} pytest tests/test_compiled_kernels.py repeats it"
    assert not row["failures"], f"{job.name}: {row['failures']} ({again})"
    if is_of_todays_compiler():
        same = [each for each in written()["rows"] if all(each[key] == row[key] for key in ("kernel", "label", "arch"))]
        assert same == [row], f"make kernels writes the table anew ({again})"


def test_of_another_compiler_the_largest_of_everything_is_compiled_and_of_a_known_one_every_kernel() -> None:
    print(f"rotation {ROTATION}")
    known, jobs, every = todays_jobs(True), todays_jobs(False), compile_ahead.all_jobs()
    assert {(job.operation, job.kernel) for job in known} == {(job.operation, job.kernel) for job in every}
    assert {job.operation for job in known} == {job.operation for job in jobs} == set(OPERATIONS)
    for kernel, arch in {(job.kernel, job.arch) for job in every}:
        works = [job.work for job in every if (job.kernel, job.arch) == (kernel, arch)]
        assert max(works) in [job.work for job in jobs if (job.kernel, job.arch) == (kernel, arch)]


# --- the written table -----------------------------------------------------------------------------------------------


def test_the_written_table_is_of_todays_sources_and_lacks_nothing() -> None:
    problems = compile_ahead.out_of_date(written(), compile_ahead.all_jobs())
    assert not problems, f"make kernels writes it anew; {len(problems)} rows: {problems[:5]}"
    assert not [row for row in written()["rows"] if row["failures"]]
    assert compile_ahead.REPORT.with_suffix(".md").read_text() == compile_ahead.table(written())


def test_gluon_kernels_meet_their_requirements_with_the_newer_assembler_too() -> None:
    """``make gpu-carry`` fetches it: ``make kernels`` without it writes a table without this part."""
    jobs, other = compile_ahead.gluon_jobs(compile_ahead.all_jobs()), written()["other_assembler"]
    major, minor, _ = map(int, other["ptxas_version"].split("."))
    assert (major, minor) >= (13, 3)
    assert not [row for row in other["rows"] if row["failures"]]
    assert {row["source"] for row in other["rows"]} == set(compile_ahead.sources(jobs).values())
    assert [row["label"] for row in other["rows"]] == [job.label for job in jobs]


def rows_of_gluon_kernels() -> list[dict[str, Any]]:
    """The rows of the Gluon kernels for both assemblers, all of whose loops have requirements."""
    jobs = compile_ahead.gluon_jobs(compile_ahead.all_jobs())
    compilations = [compile_ahead.compilation_of(job) for job in jobs]
    assert all(compilation.specialized and compilation.overlapped for compilation in compilations)
    labels = {job.label for job in jobs}
    table: Any = written()
    rows = [row for row in table["rows"] if row["arch"] == 90 and row["label"] in labels]
    rows += table["other_assembler"]["rows"]
    assert len(rows) == 2 * len(jobs)
    return rows


def test_the_loops_of_gluon_kernels_have_no_division_and_no_64_bit_address() -> None:
    rows = rows_of_gluon_kernels()
    assert {(row["divisions"], row["addresses"], row["overwritten"]) for row in rows} == {(0, 0, 0)}


def test_the_exponentials_of_gluon_kernels_run_beside_products_unless_a_measured_time_excuses_them() -> None:
    rows = rows_of_gluon_kernels()
    assert {row["kernel"] for row in rows} >= {"hopper_keys", "hopper_queries", "hopper_queries_single", "hopper_all"}
    few = [row for row in rows if row["overlap"] < machine_code.OVERLAP_AT_LEAST]
    assert all(row["kernel"] == "hopper_queries" and "ms at length" in row["overlap_excused"] for row in few)


@pytest.mark.slow
def test_a_table_that_lacks_a_row_or_was_made_from_other_sources_is_out_of_date() -> None:
    jobs = compile_ahead.all_jobs()
    report: Any = written()
    first, *others, gone = report["rows"]
    problems = compile_ahead.out_of_date(report | {"rows": [first | {"source": "0" * 16}, *others]}, jobs)
    assert len(problems) == 2
    assert "made from other sources" in problems[1]
    assert gone["label"] in problems[0]
    assert "is missing" in problems[0]
    assert "not shipped" in compile_ahead.out_of_date(report, jobs[1:])[0]
    assert compile_ahead.out_of_date(report | {"sources_sha256": "0" * 64}, jobs)


@pytest.mark.parametrize("place", ["rows", "other_assembler"])
def test_a_missed_requirement_is_the_exit_status(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report: Any = written()
    part = report if place == "rows" else report["other_assembler"]
    missed = part["rows"][0] | {"failures": ["71.0 instructions per element in the main loop; 70 allowed"]}
    rows = {"rows": [missed, *part["rows"][1:]]}
    reports = iter([report, report | (rows if place == "rows" else {place: part | rows})])
    monkeypatch.setattr(compile_ahead, "compiled_report", lambda *_: next(reports))
    monkeypatch.delenv("TRITON_PTXAS_PATH", raising=False)
    assert compile_ahead.main(["--output", str(tmp_path / "table.json")]) == 0
    assert compile_ahead.main(["--output", str(tmp_path / "table.json")]) == 1
    assert "1 miss a requirement" in capsys.readouterr().out
    assert "71.0 instructions" in (tmp_path / "table.json").read_text()


# --- another assembler -----------------------------------------------------------------------------------------------


def program(path: Path, says: str) -> Path:
    """Write a program that prints this."""
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


def test_another_assembler_is_used_within_its_block_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, named = assembler(90), program(tmp_path / "named", "release 1.2, V1.2.3")
    monkeypatch.setenv("TRITON_PTXAS_PATH", str(named))
    packed = tmp_path / "other.xz"
    packed.write_bytes(lzma.compress(program(tmp_path / "other", "release 99.1, V99.1.7").read_bytes()))
    with second_assembler.unpacked(packed) as path, second_assembler.using(path):
        assert assembler(90)[1] == "99.1.7"
    assert not path.exists()
    with second_assembler.using(None):
        assert assembler(90) == own
    assert assembler(90)[1] == "1.2.3"
    assembler.cache_clear()


def test_what_is_no_assembler_is_refused_by_name(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", program(tmp_path / "else", "hello")):
        with pytest.raises(ValueError, match=f"{path.name} is no ptxas"), second_assembler.unpacked(path):
            pass


@pytest.mark.slow
def test_gluon_kernels_are_compiled_with_both_assemblers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [job for job in compile_ahead.all_jobs() if job.operation == "norm" or job.arch != 90]
    gluon = compile_ahead.gluon_jobs(compile_ahead.all_jobs())
    assert {job.arch for job in gluon} == {90}
    assert not compile_ahead.gluon_jobs(jobs)
    forward = min((job for job in gluon if job.kernel.endswith("forward_hopper")), key=lambda job: job.work)
    monkeypatch.setattr(compile_ahead, "all_jobs", lambda: [forward, jobs[0]])
    in_fresh_processes = compile_ahead._pool

    def pool(some: list[compile_ahead.Job], processes: int, cache: Path) -> Iterator[tuple[compile_ahead.Job, object]]:
        """Compile here what needs no other assembler: a fresh process takes seconds, and one shows that it works."""
        if os.environ.get(second_assembler.VARIABLE):
            yield from in_fresh_processes(some, processes, cache)
        else:
            yield from ((job, compile_ahead.row_of(job, cache)) for job in some)

    monkeypatch.setattr(compile_ahead, "_pool", pool)
    report = compile_ahead.compiled_report(1, compile_ahead.CACHE, Path(assembler(90)[0]))
    again = report["other_assembler"]
    assert again["ptxas_version"] == assembler(90)[1]
    assert again["rows"] == report["rows"][:1]
    again["rows"][0]["failures"] = ["spills: 8 bytes"]
    assert "1 configurations, 1 of which miss a requirement" in compile_ahead.table(report)
    assert compile_ahead.table(report).count(forward.label) == 2
