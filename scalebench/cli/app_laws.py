"""The commands on fitted laws (fit, predict, optimal, next, worth, tune): signatures and help texts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from scalebench.cli import completions
from scalebench.cli.columns import ComputeColumns, CountedColumns, LawColumns
from scalebench.cli.options import Bytes, File, Json, Law, Number, Plot, Points, Quantity, Seconds, Where, Whole

Inputs = Annotated[
    list[str],
    Parameter(
        "--column",
        negative=(),
        show_default=False,
        help="Column of another input of the law, as INPUT=COLUMN; repeatable.",
    ),
]


def _names(text: str) -> list[str]:
    """Read ``lr,bs``."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(option: str, text: str | None) -> Mapping[str, float]:
    """Read ``params=7e9,tokens=1e12``. Raises ``InputError`` for what is not a positive finite number."""
    from scalebench.cli.commands import fit as fitting
    from scalebench.errors import InputError

    values = fitting.assigned(option, [part for part in (text or "").split(",") if part.strip()])
    if wrong := [f"{name}={value:g}" for name, value in values.items() if not 0 < value < math.inf]:
        raise InputError([f"{option} {each}: a positive finite number is needed" for each in wrong])
    return values


def fit(
    points: Points,
    /,
    *,
    law: Annotated[
        str,
        Parameter(
            help="A law (`scalebench list`); A,B,C or auto picks the one with the lowest hold-out error.",
            completer=completions.laws,
        ),
    ] = "power",
    columns: LawColumns = LawColumns(),  # noqa: B008 - frozen
    other_columns: Inputs = [],  # noqa: B006
    where: Where = None,
    loss: str = "huber",
    delta: float = 1e-3,
    space: Literal["log", "raw"] = "log",
    fix: Annotated[list[str], Parameter(negative=(), show_default=False)] = [],  # noqa: B006
    bootstrap: Whole = 1000,
    method: Literal["auto", "resample", "residuals", "wild", "parametric"] = "auto",
    last: Annotated[bool, Parameter(negative=())] = False,
    backtest: Annotated[bool, Parameter(negative=())] = False,
    output: Annotated[File | None, Parameter(["--output", "-o"], show_default=False)] = None,
    plot: Plot = None,
    as_json: Json = False,
) -> int:
    """Fit a scaling law to POINTS: a CSV, TSV or Parquet file from any trainer, or a results folder.

    Parameters
    ----------
    where:
        Keep only rows that match this expression, such as "N > 1e7 and kind == 'dense'".
    loss:
        Loss of the residuals: huber, squares, absolute, or envelope (huber, fitted to the lower envelope).
    delta:
        Delta of the Huber loss.
    space:
        Whether residuals are differences of logs or of raw values.
    fix:
        Fix a parameter, as E=1.69; repeatable.
    bootstrap:
        Number of bootstrap refits for the intervals.
    method:
        Bootstrap method; auto picks the method with the best measured coverage for this number of configurations.
    last:
        Use only the last complete row of each run (of --run-column): checkpoints of one run are not independent.
    backtest:
        Also predict each of the largest sizes from the smaller ones, and report the error by distance.
    output:
        Write the fit as JSON to this file, for predict, next and worth.
    """
    from scalebench.cli.commands import fit as fitting

    options: dict[str, Any] = {"loss": loss, "delta": delta, "space": space}
    options["fixed"] = fitting.assigned("--fix", fix)
    by_role = columns.passed() | fitting.assigned("--column", other_columns, text=True)
    refits = fitting.bootstrap_refits(bootstrap, method)
    shown: dict[str, Any] = {"last": last, "backtest": backtest, "output": output, "plot": plot, "as_json": as_json}
    return fitting.run_fit(points, law, by_role, where, options, refits, **shown)


def predict(
    source: File,
    /,
    *,
    params: Number = None,
    tokens: Number = None,
    inputs: Annotated[list[str], Parameter("--input", negative=(), show_default=False)] = [],  # noqa: B006
    max_loss: Number = None,
    max_bytes: Bytes = None,
    max_latency: Seconds = None,
    where: Where = None,
    as_json: Json = False,
) -> int:
    """Predict loss, time, memory, compute, data and storage of a model size from measured trials, or loss from a fit.

    Compute is counted, for the model that the family builds at that size, where the results store how; else by a law.

    With --max-loss: the cheapest model that is good enough, among all trials of a results folder and what laws predict.

    Parameters
    ----------
    source:
        A results folder, or the JSON of a fit.
    params:
        Model size: non-embedding parameters N for a results folder, x for a law of one input.
    tokens:
        Training tokens D; by default as many as the trials used at this size.
    inputs:
        Another input of a fitted law, as NAME=NUMBER, such as unique_tokens=2.5e10 or flops=1e15; repeatable.
    max_loss:
        Find the model of the fewest FLOPs, those of all its parents included, with at most this loss in nats.
    max_bytes:
        With --max-loss: at most this size of the weights, such as 40k, 40kB or 64KiB.
    max_latency:
        With --max-loss: at most this time of a forward pass of a batch of one, such as 2ms.
    where:
        Keep only trials that match this expression, such as "implementation == 'sdpa'".
    """
    from scalebench.cli.commands import fit as fitting
    from scalebench.cli.commands import predict as command

    limits = {"--max-loss": max_loss, "--max-bytes": max_bytes, "--max-latency": max_latency}
    if any(value is not None for value in limits.values()):
        from scalebench.cli.commands import cheapest

        sizes = {"--params": params, "--tokens": tokens, "--input": inputs or None}
        return cheapest.run_cheapest(source, limits, sizes, where, as_json=as_json)
    others = fitting.assigned("--input", inputs)
    return command.run_predict(source, params, tokens, others, where, as_json=as_json)


def optimal(
    points: Points,
    /,
    *,
    approach: Literal["1", "2", "3", "all"] = "all",
    budget: Annotated[list[Quantity], Parameter(negative=(), show_default=False)] = [],  # noqa: B006
    unique_tokens: Number = None,
    count_params: Literal["total", "non_embedding"] = "total",
    count_flops: Literal["6ND", "exact"] = "6ND",
    columns: CountedColumns = CountedColumns(),  # noqa: B008 - frozen
    where: Where = None,
    plot: Plot = None,
    as_json: Json = False,
) -> int:
    """Compute-optimal model size and tokens, N*(C) and D*(C), by three approaches and each counting convention.

    Parameters
    ----------
    approach:
        1: envelope of training curves (needs a run column); 2: isoFLOP parabolas; 3: a fitted surface.
    budget:
        Training FLOPs to spend; repeatable; default: the largest among the points.
    unique_tokens:
        Size, tokens and epochs for this much unique data: fits the law data_constrained, or takes the JSON of its fit.
    count_params:
        Count all parameters in N, or only non-embedding ones.
    count_flops:
        Compute C as 6ND, or read it from the FLOPs column.
    """
    from scalebench.advice import Counting
    from scalebench.cli.commands import optimal as command

    others = {"--approach": approach != "all", "--count-params": count_params != "total",
              "--count-flops": count_flops != "6ND", "--unique-tokens-column": columns.unique_tokens_column is not None,
              "--run-column": columns.run_column is not None, "--plot": plot is not None}  # fmt: skip
    command.check_combination([name for name, passed in others.items() if passed], approach, unique_tokens)
    if unique_tokens is not None:
        return command.run_repeated(points, columns.passed(), where, unique_tokens, budget, as_json=as_json)
    approaches = command.APPROACHES if approach == "all" else (int(approach),)
    counting = Counting(count_params, count_flops)
    return command.run_optimal(points, columns.passed(), where, approaches, budget, counting, plot, as_json=as_json)


def next_(
    source: File,
    /,
    *,
    predict: str,
    budget: Number = None,
    most: Annotated[Whole | None, Parameter(show_default=False)] = None,
    candidates: Annotated[File | None, Parameter(show_default=False)] = None,
    reach: float = 1.0,
    law: Law = None,
    columns: LawColumns = LawColumns(),  # noqa: B008 - frozen
    other_columns: Inputs = [],  # noqa: B006
    where: Where = None,
    as_json: Json = False,
) -> int:
    """Which trial to run next: the one that narrows a prediction most, or the best set within a FLOP budget.

    Parameters
    ----------
    source:
        The JSON of a fit, a file of points, or a results folder.
    predict:
        The inputs of the prediction to narrow, such as params=7e9,tokens=1.4e12.
    budget:
        Total FLOPs of the new trials; without it, one trial is chosen whatever its cost.
    most:
        Maximum number of new trials within the budget (default 5).
    candidates:
        File of possible trials, with columns for the law's inputs and flops; default: a grid over the points' range.
    reach:
        Extend that grid to this multiple of the largest inputs.
    """
    from scalebench.cli.commands import design as command
    from scalebench.cli.commands import fit as fitting

    by_role = columns.passed() | fitting.assigned("--column", other_columns, text=True)
    target = _numbers("--predict", predict)
    return command.run_next(source, law, by_role, where, target, candidates, budget, reach, most=most, as_json=as_json)


def worth(
    baseline: File,
    changed: File,
    /,
    *,
    loss: Number = None,
    law: Law = None,
    columns: ComputeColumns = ComputeColumns(),  # noqa: B008 - frozen
    where: Where = None,
    plot: Plot = None,
    as_json: Json = False,
) -> int:
    """Compute multiplier of a change: how many times less compute CHANGED needs to reach the loss of BASELINE.

    Parameters
    ----------
    baseline:
        A results folder, points with columns flops and loss (or params, tokens and loss with --law chinchilla), or the
        JSON of a fit.
    changed:
        The same for the changed study.
    loss:
        Compare at this loss; default: the lowest loss that both have measured.
    """
    from scalebench.cli.commands import design as command

    return command.run_worth(baseline, changed, law, columns.passed(), where, loss, plot, as_json=as_json)


def tune(
    points: Points,
    /,
    *,
    optimised: str = "learning_rate",
    against: str = "params_non_embedding",
    loss_column: Annotated[str | None, Parameter(show_default=False)] = None,
    replicates: str = "seed",
    where: Where = None,
    at: Annotated[str | None, Parameter(show_default=False)] = None,
    plot: Plot = None,
    as_json: Json = False,
) -> int:
    """How the best learning rate (or batch size, or any swept column) scales with model size.

    Parameters
    ----------
    optimised:
        The swept column, or several that are swept together, as lr,bs: then their joint optimum.
    loss_column:
        Loss column; default "loss", or "validation_loss_nats" for a results folder.
    against:
        Columns that define the size, such as params_non_embedding or params,tokens.
    replicates:
        Columns that may differ between the runs of a sweep; any other setting that varies must be optimised, a size, or
        selected by --where.
    at:
        Predict the best value at this size, such as params_non_embedding=1e8.
    """
    from scalebench.cli.commands.tune import run_tune

    swept, names, repeats = map(_names, (optimised, against, replicates))
    return run_tune(points, swept, names, loss_column, repeats, where, _numbers("--at", at), plot, as_json=as_json)
