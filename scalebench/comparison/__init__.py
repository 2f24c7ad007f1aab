"""One operation, many providers: correctness, time, rates and memory side by side, with a verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalebench.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from scalebench.comparison.operations import Operation

__all__ = ["Comparison", "Plan", "compare", "measure", "plan_comparison"]

DEVICES = ("cpu", "cuda")
# The unit of replication is the process. A GPU's differ little from each other, and each costs compilations anew.
PROCESSES = {"cpu": 5, "cuda": 3}


@dataclass(frozen=True)
class Comparison:
    """What a comparison found: the run's folder and its rows (see ``comparison_store.ROW_COLUMNS``)."""

    run: Path
    rows: list[dict[str, Any]]

    @property
    def frame(self) -> pd.DataFrame:
        """The rows as a table."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    @property
    def good(self) -> bool:
        """Whether every result that was checked is right and no provider crashed; unavailable or oom is no crash."""
        return all(row["accepted"] is not False and row["status"] in ("ok", "unavailable", "oom") for row in self.rows)


@dataclass(frozen=True)
class Plan:
    """What a comparison will measure: an operation, its cases, and the request that its processes read."""

    operation: Operation
    cases: list[Any]
    request: dict[str, Any]

    @property
    def sampling_s(self) -> float:
        """The most seconds that sampling takes, compilation and warm-up apart."""
        cells = len(self.cases) * len(self.request["providers"]) * self.request["processes"]
        return float(cells * self.request["rule"]["timeout_s"])


def plan_comparison(
    operation: str,
    *,
    shapes: Sequence[str] = (),
    dtypes: Sequence[str] = (),
    providers: Sequence[str] = (),
    backward: bool = False,
    baseline: str = "eager",
    device: str | None = None,
    processes: int | None = None,
    seconds: float = 1.0,
    target_noise: float = 0.005,
    margin: float = 0.02,
    seed: int = 0,
) -> Plan:
    """Decide everything about a comparison without measuring; the arguments are those of ``compare``."""
    import torch

    from scalebench.comparison.operations import choose_cases, choose_providers, encode, load_operation
    from scalebench.errors import unknown

    found = load_operation(operation)
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    wrong = [f"--device: {unknown(kind, DEVICES)}"] if kind not in DEVICES else []
    if kind == "cuda" and not torch.cuda.is_available():
        wrong.append("--device cuda: no usable CUDA device; --device cpu compares on the processor")
    numbers = {"--seconds": seconds, "--noise": target_noise, "--margin": margin, "--processes": processes or 1}
    wrong += [f"{name} {value}: must be greater than 0" for name, value in numbers.items() if value <= 0]
    names = choose_providers(found, providers)
    known = list(found.module.providers())
    if baseline not in known:
        wrong.append(f"--baseline: {unknown(baseline, known)}")
    if wrong:
        raise InputError(wrong)
    cases = choose_cases(found, shapes, dtypes, kind)
    request = {
        "schema": 1, "operation": found.name, "origin": found.origin, "source": "measured", "backward": backward,
        "device": kind, "cases": [encode(case) for case in cases], "providers": names, "baseline": baseline,
        "processes": PROCESSES[kind] if processes is None else processes, "margin": margin, "seed": seed,
        "rule": {"target_noise": target_noise, "timeout_s": seconds},
    }  # fmt: skip
    return Plan(found, cases, request)


def measure(plan: Plan, results: Path, command: str, tick: Callable[[float], None] = lambda _: None) -> Comparison:
    """Run the processes of a plan, write the run under ``results`` and return it.

    Raises ``StoreError`` when the folder cannot be written, ``ProcessLost`` when a process dies by itself.
    """
    from scalebench.comparison.rows import collect, samples_table
    from scalebench.comparison.runner import run_processes
    from scalebench.comparison_store import new_run, read_run, write_run
    from scalebench.store import check_writable, write_json

    check_writable(results)
    run = new_run(results, plan.operation.name)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(run / "request.json", plan.request | {"started_at": started, "command": command})
    run_processes(run, tick)
    summaries = {name: provider.summary for name, provider in plan.operation.module.providers().items()}
    costs = [cost_columns(plan.operation, case, plan.request["backward"]) for case in plan.cases]
    write_run(run, collect(run, costs, summaries), samples_table(run))
    return Comparison(run, read_run(run)[0])


def cost_columns(operation: Operation, case: Any, backward: bool) -> Mapping[str, Any]:
    """Return what a case costs as columns."""
    cost = asdict(operation.module.cost(case, backward))
    return {"flops": cost["flops"], "bytes_moved": cost["bytes_read"] + cost["bytes_written"]}


def compare(operation: str, *, results: str | Path = "results", **options: Any) -> Comparison:
    """Measure the providers of an operation beside each other and return the comparison.

    ``operation`` is "attention", "optimizer", "cross-entropy", "norm", or the path of a Python file that offers the
    names of a kernel file (``kernels/README.md``). Options, all by name: ``shapes`` ("cases", "ladder" or
    "batch=1,heads=8,…"), ``dtypes`` and ``providers`` (all unless given), ``backward``, ``baseline`` ("eager"),
    ``device``, ``processes`` (5 on a CPU, 3 on a GPU), ``seconds`` (the most for a provider, case and process),
    ``target_noise`` and ``margin`` (fractions), ``seed``. The run is kept under ``results``. Raises ``InputError``
    (a ``ValueError``) with a line per mistake.
    """
    command = f"scalebench.compare({operation!r}, {', '.join(f'{k}={v!r}' for k, v in options.items())})"
    return measure(plan_comparison(operation, **options), Path(results), command)
