"""Compile every shipped configuration of every kernel for sm_80, sm_90 and sm_100 and check its requirements.

``make kernels`` runs it; no GPU is needed. The table is written to ``kernels/compiled.md`` and ``compiled.json``, with
the hash of its sources; the exit status is 1 if a configuration misses a requirement. The Gluon kernels are compiled
once more with the ptxas that ``--assembler`` or ``TRITON_PTXAS_PATH`` names. It is not part of the package, since
``scalekernels`` imports torch and triton only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import machine_code
import ptx_code
import sass
import second_assembler
import triton
from compiled_table import table
from machine_code import MachineCode
from scalekernels import OPERATIONS
from scalekernels.compilation import ARCHITECTURES, Compilation
from scalekernels.device import INTERPRETED

KERNELS = Path(__file__).resolve().parents[1]
CACHE = KERNELS.parent / "results" / "compiled"
REPORT = KERNELS / "compiled.json"
# Part of the cache key, since figures depend on how they are extracted. Read now: the file may change during the run.
_READERS = (machine_code, ptx_code, sass)
READER = hashlib.sha256(b"".join(Path(str(module.__file__)).read_bytes() for module in _READERS)).hexdigest()


@dataclass(frozen=True)
class Job:
    """One configuration for one architecture, by its index in its module's ``compilations(arch)``."""

    operation: str
    arch: int
    index: int
    kernel: str
    label: str
    work: int

    @property
    def name(self) -> str:
        """The unique name of the job."""
        return f"{self.operation}/{self.kernel}/{self.label}/sm_{self.arch}"


@lru_cache(maxsize=64)
def configurations(operation: str, arch: int) -> tuple[Compilation, ...]:
    """Return a module's configurations for an architecture. Raises ``ValueError`` if two have the same name."""
    shipped = tuple(import_module(f"scalekernels.{operation}").compilations(arch))
    twice = [name for name, count in Counter((c.kernel, c.label) for c in shipped).items() if count > 1]
    if twice:
        raise ValueError(f"{operation}, sm_{arch}: several configurations are called {twice}")
    return shipped


def all_jobs(operations: Sequence[str] = OPERATIONS) -> list[Job]:
    """Return every shipped configuration of the operations, for every architecture."""
    return [
        Job(operation, arch, index, shipped.kernel, shipped.label, shipped.work)
        for operation in operations
        for arch in ARCHITECTURES
        for index, shipped in enumerate(configurations(operation, arch))
    ]


def compilation_of(job: Job) -> Compilation:
    """Return a job's configuration."""
    return configurations(job.operation, job.arch)[job.index]


def largest(jobs: Sequence[Job]) -> list[Job]:
    """Return the job with the largest tile of every kernel and architecture."""
    best: dict[tuple[str, str, int], Job] = {}
    for job in jobs:
        key = (job.operation, job.kernel, job.arch)
        if key not in best or job.work >= best[key].work:
            best[key] = job
    return list(best.values())


def gluon_jobs(jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs of the Gluon kernels for Hopper, whose machine code most depends on the assembler."""
    return [job for job in jobs if job.arch == machine_code.LIMITED_ARCH and compilation_of(job).function.is_gluon()]


# --- one configuration -----------------------------------------------------------------------------------------------


def cache_key(compilation: Compilation, arch: int) -> str:
    """Return a hash of all that determines the figures: source, configuration, compiler, assembler, reader, requests.

    For the source it uses triton's cache key, which covers every function that the kernel calls.
    """
    options = sorted(machine_code.options_of(compilation).items())
    parts = (machine_code.source_of(compilation).hash(), compilation.kernel, repr(options), arch)
    versions = (triton.__version__, machine_code.ptxas_version(arch), READER)
    requests = (compilation.overlapped, compilation.specialized, bool(compilation.most_instructions))
    return hashlib.sha256(repr((parts, versions, requests)).encode()).hexdigest()


def figures(compilation: Compilation, arch: int, cache: Path) -> MachineCode:
    """Return a configuration's figures, from the cache if it was compiled before."""
    stored = cache / f"{cache_key(compilation, arch)}.json"
    if stored.exists():
        values = json.loads(stored.read_text(encoding="utf-8"))
        return MachineCode(**values | {"losses": tuple(values["losses"])})
    code = machine_code.inspect_code(compilation, arch)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=cache, delete=False, encoding="utf-8") as file:
        json.dump(asdict(code), file)
    Path(file.name).replace(stored)
    return code


def row_of(job: Job, cache: Path = CACHE) -> dict[str, Any]:
    """Compile a job and return its row of the table; an exception of the compiler is the row's failure."""
    compilation = compilation_of(job)
    row = {"operation": job.operation, "kernel": job.kernel, "label": job.label, "arch": job.arch, "work": job.work}
    row |= {"source": machine_code.source_sha256(compilation), "num_warps": compilation.num_warps}
    row |= {"num_stages": compilation.num_stages, "spills_allowed": compilation.spills_allowed}
    row |= {"overlap_excused": compilation.overlap_excused}
    try:
        code = figures(compilation, job.arch, cache)
    except Exception as error:  # noqa: BLE001 - whatever the compiler raises goes into the table
        return row | {"failures": [f"{type(error).__name__}: {str(error).strip()[:500]}"]}
    return row | asdict(code) | {"failures": machine_code.failures(compilation, job.arch, code)}


# --- all of them -----------------------------------------------------------------------------------------------------


def compile_all(
    jobs: Sequence[Job], processes: int, cache: Path = CACHE, tick: Callable[[], None] = lambda: None
) -> list[dict[str, Any]]:
    """Compile jobs on ``processes`` cores, the largest first; return rows in the jobs' order. ``tick`` counts them."""
    rows: dict[str, dict[str, Any]] = {}
    waiting = sorted(jobs, key=lambda job: -job.work)
    try:
        for job, row in _pool(waiting, processes, cache):
            rows[job.name] = row
            tick()
    except BrokenProcessPool:  # the compiler crashed its process: run the rest in one process each to find the job
        for job in [job for job in waiting if job.name not in rows]:
            rows[job.name] = _alone(job, cache)
            tick()
    return [rows[job.name] for job in jobs]


def _pool(jobs: Sequence[Job], processes: int, cache: Path) -> Iterator[tuple[Job, dict[str, Any]]]:
    fresh = multiprocessing.get_context("spawn")  # torch has threads, with which a forked process could hang
    with ProcessPoolExecutor(processes, mp_context=fresh) as pool:
        started: dict[Future[dict[str, Any]], Job] = {pool.submit(row_of, job, cache): job for job in jobs}
        for done in as_completed(started):
            yield started[done], done.result()


def _alone(job: Job, cache: Path) -> dict[str, Any]:
    try:
        ((_, row),) = _pool([job], 1, cache)
    except BrokenProcessPool:
        compilation = compilation_of(job)
        row = {"operation": job.operation, "kernel": job.kernel, "label": job.label, "arch": job.arch}
        row |= {"work": job.work, "source": machine_code.source_sha256(compilation)}
        row["failures"] = ["the compiler crashed its process"]
    return row


# --- the table -------------------------------------------------------------------------------------------------------


def sources(jobs: Sequence[Job]) -> dict[str, str]:
    """Return the hash of the sources of every job, by name, without compiling."""
    return {job.name: machine_code.source_sha256(compilation_of(job)) for job in jobs}


def sources_sha256(by_name: dict[str, str]) -> str:
    """Return one hash over all sources."""
    return hashlib.sha256(json.dumps(by_name, sort_keys=True).encode()).hexdigest()


def out_of_date(report: dict[str, Any], jobs: Sequence[Job]) -> list[str]:
    """Return which rows of a table are missing, not shipped any more or from other sources; empty if up to date."""
    current = sources(jobs)
    written = {f"{r['operation']}/{r['kernel']}/{r['label']}/sm_{r['arch']}": r["source"] for r in report["rows"]}
    problems = [f"{name} is missing" for name in current if name not in written]
    problems += [f"{name} is not shipped any more" for name in written if name not in current]
    problems += [
        f"{name} was made from other sources" for name, sha256 in current.items() if written.get(name, sha256) != sha256
    ]
    if not problems and report["sources_sha256"] != sources_sha256(current):
        problems = ["the hash of all sources differs"]
    return problems


def report_of(rows: Sequence[dict[str, Any]], jobs: Sequence[Job]) -> dict[str, Any]:
    """Return the machine-readable table."""
    return {
        "schema": 1,
        "triton_version": triton.__version__,
        "ptxas_versions": {f"sm_{arch}": machine_code.ptxas_version(arch) for arch in ARCHITECTURES},
        "sources_sha256": sources_sha256(sources(jobs)),
        "rows": list(rows),
    }


def compiled_report(processes: int, cache: Path, other: Path | None = None) -> dict[str, Any]:
    """Compile everything with triton's own ptxas, the Gluon kernels with the ``other`` one too; return the table."""
    from rich.console import Console
    from rich.progress import Progress

    jobs = all_jobs()
    with Progress(console=Console(stderr=True)) as progress:

        def compiled(label: str, some: Sequence[Job]) -> list[dict[str, Any]]:
            bar = progress.add_task(f"compiling {len(some)} {label}", total=len(some))
            return compile_all(some, processes, cache, lambda: progress.advance(bar))

        with second_assembler.using(None):
            report = report_of(compiled("configurations", jobs), jobs)
        if other is not None:
            with second_assembler.unpacked(other) as path, second_assembler.using(path):
                rows = compiled("with the other ptxas", gluon_jobs(jobs))
                version = machine_code.ptxas_version(machine_code.LIMITED_ARCH)
            report["other_assembler"] = {"ptxas_version": version, "rows": rows}
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, print and write the table; return 1 if a requirement is missed."""
    parser = argparse.ArgumentParser(description="compile every shipped kernel configuration without a GPU")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path, default=REPORT, help="path of the .json; the .md is written next to it")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument(
        "--assembler", type=Path, default=os.environ.get(second_assembler.VARIABLE),
        help="another ptxas (or .xz of one) to compile the Gluon kernels with as well",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if INTERPRETED:
        parser.error("interpreted kernels cannot be compiled: unset TRITON_INTERPRET")
    begun = time.monotonic()
    report = compiled_report(options.processes, options.cache, options.assembler)
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    options.output.with_suffix(".md").write_text(table(report), encoding="utf-8")
    print(table(report))
    rows = [*report["rows"], *report.get("other_assembler", {"rows": []})["rows"]]
    failed = [row for row in rows if row["failures"]]
    print(f"{len(rows)} configurations in {time.monotonic() - begun:.0f} s, {len(failed)} miss a requirement")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
