"""Compare the providers of one operation: correctness, time, rates and memory, with a verdict."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalebench.comparison.options import Options, check_operation, listed, out_of_range
from scalebench.errors import InputError, expect, number_of, unknown

if TYPE_CHECKING:
    import pandas as pd
    from scalekernels.providers import Provider

    from scalebench.comparison.operations import Operation

__all__ = ["Comparison", "ComparisonPlan", "Options", "close_run", "compare", "measure", "plan_comparison"]

OPTIONS = tuple(field.name for field in fields(Options))
# Types of the options, for values from Python.
KINDS: Mapping[str, tuple[Any, str]] = {
    "processes": (int | None, "a whole number"),
    "seed": (int, "a whole number"),
    **dict.fromkeys(("seconds", "noise", "margin", "patience"), (int | float, "a number")),
    "minutes": (int | float | None, "a number"),
    **dict.fromkeys(("backward", "graphs"), (bool, "True or False")),
    "baseline": (str, "the name of a provider"),
    "device": (str | None, "cpu or cuda"),
}
DEVICES = ("cpu", "cuda")
# The unit of replication is the process. On a GPU processes differ little, and each compiles everything again.
PROCESSES = {"cpu": 5, "cuda": 3}


@dataclass(frozen=True, repr=False)
class Comparison:
    """Result of a comparison: the run's folder and its rows (see ``store/comparison_columns.py``).

    ``ended`` is why it ended early, if it did; ``not_measured`` lists the cases that have no rows for that reason.
    """

    run: Path
    rows: list[dict[str, Any]]
    ended: str = ""
    not_measured: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Return one line: how many rows of which cases, and the folder."""
        cases = len({row["case"] for row in self.rows})
        return f"Comparison: {number_of(len(self.rows), 'row')} of {number_of(cases, 'case')} in {self.run}; .frame"

    def _repr_html_(self) -> str:
        """Return the main columns as a table, for notebooks."""
        names = ("case", "provider", "status", "time_median_s", "time_low_s", "time_high_s", "ratio", "verdict")
        main = self.frame[[name for name in names if name in self.frame]]
        html: str = main.to_html(index=False, na_rep="", border=0)
        return html

    @property
    def frame(self) -> pd.DataFrame:
        """The rows as a table."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    @property
    def good(self) -> bool:
        """Whether everything was measured, all checked results are right and nothing crashed (oom is not a crash)."""
        return not self.ended and all(
            row["accepted"] is not False and row["status"] in ("ok", "unavailable", "oom") for row in self.rows
        )


@dataclass(frozen=True)
class ComparisonPlan:
    """What a comparison will measure: an operation, its cases and costs, and the request for its processes."""

    operation: Operation
    cases: list[Any]
    costs: list[Mapping[str, Any]]
    request: dict[str, Any]
    options: Options

    @property
    def sampling_s(self) -> float:
        """Upper bound of the sampling time in seconds, without compilation and warm-up."""
        cells = len(self.cases) * len(self.request["providers"]) * self.request["processes"]
        return float(cells * self.request["rule"]["timeout_s"])


def plan_comparison(operation: str, options: Options) -> ComparisonPlan:
    """Decide everything about a comparison without measuring. Raises ``InputError`` with one line per error."""
    check_operation(operation)
    if wrong := out_of_range(options):
        raise InputError(wrong)
    import torch  # after what can be wrong without it: it takes seconds

    from scalebench.comparison.operations import choose_cases, choose_providers, encode, load_operation

    chosen = load_operation(operation)
    kind = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    wrong = _wrong_device(kind, cuda=torch.cuda.is_available())
    known = list(chosen.module.providers())
    if options.baseline not in known:
        wrong.append(f"--baseline: {unknown(options.baseline, known)}")
    if wrong:
        raise InputError(wrong)
    names = choose_providers(chosen, listed(options.providers))
    cases = choose_cases(chosen, options.shapes, listed(options.dtype), kind)
    request = {
        "schema": 1, "operation": chosen.name, "origin": chosen.origin, "source": "measured", "device": kind,
        "backward": options.backward, "cases": [encode(case) for case in cases], "providers": names,
        "baseline": options.baseline, "processes": options.processes or PROCESSES[kind], "margin": options.margin,
        "seed": options.seed, "graphs": options.graphs,
        "rule": {"target_noise": options.noise, "timeout_s": options.seconds},
    }  # fmt: skip
    return ComparisonPlan(
        chosen, cases, [cost_columns(chosen, case, options.backward) for case in cases], request, options
    )


def _wrong_device(device: str, *, cuda: bool) -> list[str]:
    wrong = [f"--device: {unknown(device, DEVICES)}"] if device not in DEVICES else []
    if device == "cuda" and not cuda:
        wrong.append("--device cuda: no usable CUDA device; --device cpu compares on the processor")
    return wrong


def measure(
    plan: ComparisonPlan, results: Path, command: str, tick: Callable[[float], None] = lambda _: None,
    waiting: Callable[[], None] = lambda: None,
) -> Comparison:  # fmt: skip
    """Run the processes of a plan, write the run under ``results`` and return it.

    What was measured is kept when it ends early, see ``Comparison.ended``: at the deadline, when it is interrupted, or
    when a process ends by itself. Raises ``StoreError`` when the folder cannot be written.
    """
    from scalebench.comparison.runner import ProcessLost, run_processes
    from scalebench.store import check_writable, write_json
    from scalebench.store.comparisons import RUNNING, new_run
    from scalebench.store.locks import FileLock

    options = plan.options
    deadline = math.inf if options.minutes is None else time.monotonic() + 60 * options.minutes
    check_writable(results)
    run = new_run(results, plan.operation.name)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    with FileLock(run / RUNNING).holding():
        write_json(run / "request.json", plan.request | {"started_at": started, "command": command})
        try:
            ended = run_processes(run, tick, deadline=deadline, patience_s=options.patience, waiting=waiting)
        except ProcessLost as error:
            ended = str(error)
        return close_run(run, ended)


def close_run(run: Path, ended: str = "the processes ended") -> Comparison:
    """Write the rows of what the processes of a run finished, and return them.

    Every run ends with this. It also saves a run that was killed, since everything is read from the run's folder.
    ``ended`` is why it ended early. Raises ``StoreError`` for a folder that is not a run.
    """
    from scalebench.comparison.operations import decode, load_operation
    from scalebench.comparison.rows import collect, measured_cases, samples_table
    from scalebench.store import read_json
    from scalebench.store.comparisons import read_run, write_run

    request = read_json(run / "request.json")
    operation = load_operation(request["origin"])
    cases = [decode(operation, case) for case in request["cases"]]
    providers = operation.module.providers()
    costs = [
        {name: cost_columns(operation, case, request["backward"], provider) for name, provider in providers.items()}
        for case in cases
    ]
    summaries = {name: provider.summary for name, provider in providers.items()}
    measured = measured_cases(run)
    missing = [case.label for number, case in enumerate(cases) if number not in measured]
    complete = not missing and all(len(runs) == request["processes"] for runs in measured.values())
    write_run(run, collect(run, costs, summaries), samples_table(run), "" if complete else ended, missing)
    return Comparison(run, read_run(run)[0], "" if complete else ended, tuple(missing))


def cost_columns(
    operation: Operation, case: Any, backward: bool, provider: Provider | None = None
) -> Mapping[str, Any]:
    """Return the cost of a case as columns: the provider's own cost if it has one, otherwise the operation's.

    Raises ``InputError`` where the operation has no such direction.
    """
    from scalekernels.cost import Cost
    from scalekernels.providers import Unsupported

    own = provider.cost if provider else None
    try:
        cost = (own or operation.module.cost)(case, backward)
    except Unsupported as reason:
        raise InputError([f"{operation.name}: {reason}"]) from reason
    expect(cost, Cost, f"{operation.name}: cost returns a scalekernels.cost.Cost")
    return {"flops": cost.flops, "bytes_moved": cost.bytes_read + cost.bytes_written}


def compare(operation: str | Path, *, results: str | Path = "results", **options: Any) -> Comparison:
    """Measure the providers of an operation beside each other and return the comparison.

    ``operation`` is "attention", "optimizer", "cross-entropy", "norm", or the path of a Python file that offers the
    names of a kernel file (``kernels/README.md``). ``options`` are the fields of ``comparison.options.Options``:
    ``shapes``, ``dtype``, ``providers``, ``backward``, ``baseline``, ``device``, ``processes``, ``seconds``, ``noise``,
    ``margin``, ``seed``, ``minutes``, ``patience``, ``graphs``.
    The run is kept under ``results``. Raises ``InputError`` (a ``ValueError``) with a line per
    mistake, ``StoreError`` when the folder cannot be written.
    """
    expect(operation, str | Path, "compare: expected the name of an operation, or the path of a Python file")
    for name in ("shapes", "dtype", "providers"):
        expect(options.get(name, ()), str | Sequence, f"compare: {name}: expected a text, or several")
    for name, (kinds, expected) in KINDS.items():
        expect(options.get(name, getattr(Options, name)), kinds, f"compare: {name}: expected {expected}")
    unknown_options = [f"compare: {unknown(name, OPTIONS)}" for name in options if name not in OPTIONS]
    if unknown_options:
        raise InputError(unknown_options)
    arguments = "".join(f", {name}={value!r}" for name, value in options.items())
    if isinstance(options.get("shapes"), str):
        options["shapes"] = (options["shapes"],)
    plan = plan_comparison(str(operation), Options(**options))
    return measure(plan, Path(results), f"scalebench.compare({operation!r}{arguments})")
