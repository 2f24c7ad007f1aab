"""Time the candidates of tunable kernels on this device, by replaying CUDA graphs in random order.

    python kernels/tools/tuning.py --output rows.json   # on the device
    python kernels/tools/tuning.py --quick --output rows.json   # few candidates
    python kernels/tools/tuning.py --adopt tune.json    # make the winners of a session the default tiles

All candidates meet the requirements of ``make kernels``, but for tiles of dQ that are not ``late``: their exponentials
run beside a product less often, which only a time can excuse. A candidate can only win if its results equal the shipped
tile's up to a few roundings and, except for methods in any order, equal themselves bit for bit in every run. One that
fails in any way is a row with the reason. They are compiled and tried in parallel processes beforehand
(``tuning_workers``), since this program has to run alone on the device, and a candidate that crashes or hangs there is
not launched here. In a session that has been done by its ``candidate`` jobs, and ``--failed`` has what failed.

``--adopt`` writes ``scalekernels/attention/tuned.json``, or ``--table``. A shipped tile is replaced only by one that
is faster by ``MARGIN``; rows that the session did not measure are unchanged.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import random
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from scalekernels.attention import hopper, hopper_gradients, launch, tuned
from scalekernels.attention.cases import flops
from torch import Tensor

from scalebench.comparison.cuda_timing import clock_for, side_stream
from scalebench.comparison.timing import Clock, Timer

ROUNDS = 12  # samples of each candidate, in random order
MEMORY_SHARE = 0.75  # of the device's free memory, for all processes that try candidates
MARGIN = 0.01  # by which a candidate must be faster than the shipped tile to replace it
PROVENANCE = ("device", "torch", "triton", "ptxas")  # of a session's versions, stored with the tiles
Run = Callable[[Any], Sequence[Tensor]]


@dataclass(frozen=True)
class Tunable:
    """A kernel at a shape: the candidates, the shipped one first, and a function that runs one of them."""

    kernel: str
    head_dimension: int
    length: int
    causal: bool
    candidates: Sequence[Any]
    make: Callable[[], Run]  # draws the inputs
    flops: float
    is_deterministic: bool = True  # whether results must be the same from run to run

    @property
    def name(self) -> str:
        """The unique name."""
        mask = "causal" if self.causal else "full"
        return f"{self.kernel} D{self.head_dimension} T{self.length} {mask}"

    @property
    def case(self) -> dict[str, Any]:
        """The key of a row of ``tuned.json``, and the length that is measured."""
        case = {"operation": self.kernel, "head_dimension": self.head_dimension, "causal": self.causal}
        return case | {"bucket": tuned.bucket(self.length, self.length), "length": self.length}


def tunables() -> Iterator[Tunable]:
    """Yield every tunable kernel at 16k tokens of width 2048, in sequences of 8192 and 1024; methods first."""
    for length, deterministic in itertools.product((8192, 1024), (True, False)):
        for head_dimension, causal in itertools.product((128, 64), (True, False)):
            yield _methods(head_dimension, length, causal, deterministic)
    for deterministic, causal in itertools.product((True, False), (True, False)):
        yield _methods(256, 8192, causal, deterministic)
    for head_dimension, length in ((64, 8192), (64, 1024), (128, 8192), (128, 1024)):
        for causal in (True, False):
            yield from _attention(head_dimension, length, causal)


def _methods(head_dimension: int, length: int, causal: bool, deterministic: bool) -> Tunable:
    """The backward pass as a whole, by each method; "apart" is held to be right."""
    batch, heads = 16384 // length, 2048 // head_dimension
    products = flops(batch, heads, length, length, head_dimension, causal)
    scale, length_bucket = head_dimension**-0.5, tuned.bucket(length, length)

    def make() -> Run:
        shape = (batch, heads, length, head_dimension)
        q, k, v, grad = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(4))
        out, lse = launch.forward(q, k, v, causal, scale)
        compute = partial(hopper_gradients.backward, grad, q, k, v, out, lse, causal, scale)
        plain = partial(launch.backward, grad, q, k, v, out, lse, causal, scale, deterministic, True, True, gluon=False)
        return lambda method: plain() if method == hopper_gradients.PLAIN else compute(method=method)

    candidates = hopper_gradients.methods(head_dimension, causal, length_bucket, deterministic)
    kernel, place = hopper_gradients.METHOD_ROWS[deterministic], (head_dimension, length, causal)
    return Tunable(kernel, *place, candidates, make, 2.5 * products, deterministic)


def _attention(head_dimension: int, length: int, causal: bool) -> Iterator[Tunable]:
    batch, heads = 16384 // length, 2048 // head_dimension
    shape = (batch, heads, length, head_dimension)
    products = flops(batch, heads, length, length, head_dimension, causal)
    scale, length_bucket = head_dimension**-0.5, tuned.bucket(length, length)

    def forward() -> Run:
        q, k, v, _ = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(4))
        return lambda tile: launch.forward_gluon(q, k, v, causal, scale, tile)

    def backward(kind: str) -> Run:
        q, k, v, grad = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(4))
        out, lse = launch.forward(q, k, v, causal, scale, gluon=False)
        need_q, need_kv = kind != "keys", kind != "queries"
        compute = partial(hopper_gradients.backward, grad, q, k, v, out, lse, causal, scale, need_q, need_kv)
        return lambda tile: compute(tile={kind: tile})

    place = (head_dimension, length, causal)
    yield Tunable("forward", *place, hopper.candidates(head_dimension, causal, length_bucket), forward, products)
    for kind, share in (("keys", 2.0), ("queries", 1.5)):  # products over those of the forward pass
        candidates = hopper_gradients.candidates(kind, head_dimension, causal, length_bucket)
        yield Tunable(kind, *place, candidates, partial(backward, kind), share * products)


def candidate_jobs(few: bool = False) -> Iterator[dict[str, Any]]:
    """Yield a job for each candidate: compile it and hold it to the shipped one. The length decides no machine code.

    ``few``: only the candidates of ``quick``.
    """
    seen: set[str] = set()
    for tunable in quick(tunables()) if few else tunables():
        for place, candidate in enumerate(tunable.candidates):
            code = code_of(tunable, candidate)
            if code not in seen:
                seen.add(code)
                yield {"kind": "candidate", "tunable": tunable.name, "place": place, "candidate": str(candidate),
                       "few": few, "code": code}  # fmt: skip


def code_of(tunable: Tunable, candidate: Any) -> str:
    """Return a name of the machine code of a candidate, which the length of the sequence does not decide."""
    return f"{tunable.kernel} D{tunable.head_dimension} {'causal' if tunable.causal else 'full'}: {candidate}"


def try_candidate(job: Mapping[str, Any]) -> dict[str, Any]:
    """Compile and launch one candidate and compare its results with the shipped one's."""
    every = quick(tunables()) if job["few"] else tunables()
    tunable = next(tunable for tunable in every if tunable.name == job["tunable"])
    run = tunable.make()
    return {"problem": fault(tunable, run, tunable.candidates[job["place"]], run(tunable.candidates[0]))}


def fault(tunable: Tunable, run: Run, candidate: Any, expected: Sequence[Tensor]) -> str | None:
    """Return what is wrong with a candidate's results, None if nothing is."""
    output = run(candidate)
    problem = difference(output, expected)
    if problem or not tunable.is_deterministic:
        return problem
    again = run(candidate)
    places = [
        place for place, (one, other) in enumerate(zip(output, again, strict=True)) if not torch.equal(one, other)
    ]
    return f"results {places} are not the same from run to run" if places else None


def difference(output: Sequence[Tensor], expected: Sequence[Tensor]) -> str | None:
    """Return which result differs from the expected one by more than a few roundings, None if none does."""
    for place, (result, exact) in enumerate(zip(output, expected, strict=True)):
        if not exact.numel():
            continue
        allowed = 4 * torch.finfo(exact.dtype).eps * float(exact.float().abs().max())
        error = float((result.float() - exact.float()).abs().max())
        if not error <= allowed:  # NaN is not close
            return f"result {place} differs by {error:.3g}; allowed {allowed:.3g}"
    return None


def measure(tunable: Tunable, clock: Clock, failed: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return a row for each candidate: median time in seconds and TFLOP/s, or the problem.

    Those in ``failed`` (problem by code) are not launched; ``RuntimeError`` if the shipped one is among them.
    """
    if problem := failed.get(code_of(tunable, tunable.candidates[0])):
        raise RuntimeError(f"the shipped one {problem}")
    run, timers = tunable.make(), {}

    def work(candidate: Any) -> Mapping[str, Tensor]:
        return {str(place): result for place, result in enumerate(run(candidate))}

    rows: list[dict[str, Any]] = []
    expected = run(tunable.candidates[0])
    for candidate in tunable.candidates:
        row: dict[str, Any] = {"kernel": tunable.name, "candidate": str(candidate), "shipped": not rows}
        row |= tunable.case | {"tile": candidate._asdict()}
        try:
            row["problem"] = failed.get(code_of(tunable, candidate)) or fault(tunable, run, candidate, expected)
            if code_of(tunable, candidate) not in failed:
                timers[len(rows)] = clock.timer(partial(work, candidate), calls=1)
        except Exception as error:  # noqa: BLE001 - a candidate may fail in any way
            row["problem"] = f"{type(error).__name__}: {error}"[:500]
        rows.append(row)
    for place, samples in timed(timers).items():
        median = statistics.median(samples)
        rows[place] |= {"time_median_s": median, "tflops": tunable.flops / median / 1e12, "samples_s": samples}
    good = [row for row in rows if not row["problem"] and "time_median_s" in row]
    best = min(good, key=lambda row: row["time_median_s"], default=None)
    return [row | {"winner": row is best} for row in rows]


def timed(timers: Mapping[int, Timer]) -> dict[int, list[float]]:
    """Return the samples of each timer in seconds, taken in random order after one each that does not count."""
    samples: dict[int, list[float]] = {place: [] for place in timers}
    order = [place for place in timers for _ in range(ROUNDS)]
    random.Random(0).shuffle(order)
    for place in [*timers, *order]:
        samples[place].append(timers[place].take())
    return {place: times[1:] for place, times in samples.items()}


def adopted(table: Mapping[str, Any], session: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table of default tiles, updated with the winners of a session's ``tune.json``."""
    versions = session["versions"]
    date = str(versions["date"])
    sessions = {**table.get("sessions", {}), date: {name: _version(str(versions[name])) for name in PROVENANCE}}
    rows = {_place(row): dict(row) for row in table["rows"]}
    for (kernel, *place), candidates in _by_case(session["winners"]).items():
        if (best := _best(candidates)) is not None:
            row = dict(zip(("kernel", "head_dimension", "causal", "bucket"), (kernel, *place), strict=True))
            row |= {name: best[name] for name in ("length", "tile", "time_median_s", "tflops")}
            rows[_place(row)] = row | {"session": date}
    used = {row["session"] for row in rows.values()}
    used_sessions = {name: sessions[name] for name in sorted(used)}
    return {"sessions": used_sessions, "rows": [rows[place] for place in sorted(rows)]}


def _version(text: str) -> str:
    """Return the number in what ptxas says of itself ("… release 13.5, V13.5.37"), or the text."""
    number = re.search(r", V([\d.]+)", text)
    return number[1] if number else text


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["kernel"], row["head_dimension"], row["causal"], row["bucket"]


def _by_case(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    cases: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        if "tile" in row and "time_median_s" in row and not row["problem"]:
            case = (row["operation"], row["head_dimension"], row["causal"], row["bucket"])
            cases.setdefault(case, []).append(row)
    return cases


def _best(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the fastest row, or the shipped tile's if it is as fast within ``MARGIN``."""
    best = min(rows, key=lambda row: row["time_median_s"], default=None)
    shipped = next((row for row in rows if row["shipped"]), None)
    if best and shipped and best["time_median_s"] > (1 - MARGIN) * shipped["time_median_s"]:
        return shipped
    return best


def quick(every: Iterator[Tunable]) -> Iterator[Tunable]:
    """Yield the methods of the backward pass, and forward passes with few candidates."""
    for tunable in every:
        if tunable.kernel in hopper_gradients.METHOD_ROWS.values():
            yield tunable
        elif tunable.kernel == "forward":
            shipped = tunable.candidates[0]
            other = shipped._replace(persistent=not shipped.persistent)
            consumers = [shipped._replace(stages=3, consumers=5 - shipped.consumers, persistent=True)]
            near = [shipped, other, *(consumers if tunable.head_dimension == 64 else [])]
            yield dataclasses.replace(tunable, candidates=tuple(near))


def adopt(path: Path, into: Path) -> int:
    """Update the default tiles from a session's ``tune.json``; return the number of rows."""
    table = json.loads(tuned.FILE.read_text(encoding="utf-8"))
    table = adopted(table, json.loads(path.read_text(encoding="utf-8")))
    lines = ",\n".join(f"  {json.dumps(row)}" for row in table["rows"])
    sessions = json.dumps(table["sessions"], indent=1).replace("\n", "\n ")
    into.write_text(f'{{\n "sessions": {sessions},\n "rows": [\n{lines}\n ]\n}}\n', encoding="utf-8")
    return len(table["rows"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every tunable kernel, writing after each, or adopt a session's winners."""
    parser = argparse.ArgumentParser(description="time the candidates of tunable kernels, or adopt the fastest")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--output", type=Path, help="measure and write the rows to this file")
    action.add_argument("--adopt", type=Path, help="a session's tune.json")
    parser.add_argument("--table", type=Path, default=tuned.FILE, help="file for the adopted rows")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="few methods of the backward pass and few candidates of the forward pass only",
    )
    parser.add_argument("--failed", type=Path, help="JSON: the problems of candidates that were tried before, by code")
    parser.add_argument("--workers", type=int, default=min(14, os.cpu_count() or 1), help="processes that try them")
    options = parser.parse_args(arguments)
    if options.adopt:
        print(f"{options.table}: {adopt(options.adopt, options.table)} rows")
        return 0
    failed = failed_before(options)
    device = torch.device("cuda", torch.cuda.current_device())
    with side_stream(device):
        measure_all(quick(tunables()) if options.quick else tunables(), clock_for(device), options.output, failed)
    return 0


def failed_before(options: argparse.Namespace) -> dict[str, str]:
    """Return the problems of candidates, by code: those of ``--failed``, or else of trying all of them now."""
    if options.failed:
        known: dict[str, str] = json.loads(options.failed.read_text(encoding="utf-8"))
        return known
    from tuning_workers import jobs_of, try_all

    free, _ = torch.cuda.mem_get_info()
    jobs = jobs_of(candidate_jobs(options.quick))
    return try_all(jobs, options.workers, MEMORY_SHARE * free, options.output.with_suffix(".log"))


def measure_all(every: Iterator[Tunable], clock: Clock, output: Path, failed: Mapping[str, str]) -> None:
    """Measure kernels, printing and writing the rows after each."""
    rows: list[dict[str, Any]] = []
    for tunable in every:
        try:
            rows += measure(tunable, clock, failed)
        except RuntimeError as error:
            rows.append({"kernel": tunable.name, "problem": f"{type(error).__name__}: {error}"[:500]})
        for row in rows[-len(tunable.candidates) :]:
            if row["kernel"] == tunable.name:
                rate = f"{row['tflops']:6.1f} TFLOP/s" if "tflops" in row else row["problem"]
                print(f"{row['kernel']:28} {row.get('candidate', ''):60} {rate}", flush=True)
        output.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
