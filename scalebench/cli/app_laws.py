"""Commands that fit laws and ask them: one short function per command, which `cli` registers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from scalebench.cli.columns import ComputeColumns, CountedColumns, LawColumns

Json = Annotated[bool, Parameter("--json", help="Print JSON for machines.", negative=())]
Where = Annotated[
    str | None, Parameter(show_default=False, help="Use the rows that fulfil a condition on the columns.")
]
Number = Annotated[float | None, Parameter(show_default=False)]
Law = Annotated[str, Parameter(help="The law fitted to points; `scalebench list` shows them.")]
Inputs = Annotated[
    list[str],
    Parameter(
        "--column", negative=(), show_default=False, help="A further input of the law as INPUT=COLUMN; may be repeated."
    ),
]


def _numbers(option: str, text: str | None) -> Mapping[str, float]:
    """Read ``params=7e9,tokens=1e12``."""
    from scalebench.cli.commands import fit as fitting

    return fitting.assigned(option, [part for part in (text or "").split(",") if part.strip()])


def fit(
    points: Path,
    /,
    *,
    law: Annotated[
        str, Parameter(help="A law (`scalebench list`), or A,B or auto: the best of several by hold-out.")
    ] = "power",
    columns: LawColumns = LawColumns(),  # noqa: B008 - frozen
    other_columns: Inputs = [],  # noqa: B006
    where: Where = None,
    loss: str = "huber",
    delta: float = 1e-3,
    space: Literal["log", "raw"] = "log",
    fix: Annotated[list[str], Parameter(negative=(), show_default=False)] = [],  # noqa: B006
    bootstrap: int = 1000,
    method: Literal["auto", "resample", "residuals", "wild", "parametric"] = "auto",
    backtest: Annotated[bool, Parameter(negative=())] = False,
    output: Annotated[Path | None, Parameter("--json", show_default=False, allow_leading_hyphen=True)] = None,
) -> int:
    """Fit a scaling law to POINTS: a CSV, TSV or Parquet file from any trainer, or a results folder.

    Parameters
    ----------
    where:
        Use the rows that fulfil a condition on the columns, such as "N > 1e7 and kind == 'dense'".
    loss:
        What is summed over the residuals: huber, squares, absolute, or envelope (huber, drawn to the lower envelope).
    delta:
        Corner of the Huber loss.
    space:
        Residuals of the logs, or raw.
    fix:
        Pin a parameter, as E=1.69; may be repeated.
    bootstrap:
        Refits behind the intervals.
    method:
        How refits are drawn; auto takes what was measured to hold for so many configurations.
    backtest:
        Predict each of the largest sizes from the smaller ones, too.
    output:
        Write the fit as JSON; `--json -` prints it instead of the table.
    """
    from scalebench.cli.commands import fit as fitting

    options: dict[str, Any] = {"loss": loss, "delta": delta, "space": space}
    options["fixed"] = fitting.assigned("--fix", fix)
    given = columns.given() | fitting.assigned("--column", other_columns, text=True)
    refits = fitting.asked_refits(bootstrap, method)
    return fitting.run_fit(points, law, given, where, options, refits, backtest=backtest, output=output)


def predict(
    source: Path,
    /,
    *,
    params: Annotated[float | None, Parameter(show_default=False)] = None,
    tokens: Annotated[float | None, Parameter(show_default=False)] = None,
    inputs: Annotated[list[str], Parameter("--input", negative=(), show_default=False)] = [],  # noqa: B006
    where: Where = None,
    as_json: Json = False,
) -> int:
    """Predict a size from SOURCE: a results folder (time, memory, compute, data, storage, loss) or the JSON of a fit.

    Parameters
    ----------
    params:
        The size to predict: non-embedding parameters N for a results folder; x of a law of one input.
    tokens:
        Training tokens D; without it those that the recipe of the trials gives.
    inputs:
        A further input of a fitted law as NAME=NUMBER, such as unique_tokens=2.5e10 or flops=1e15; may be repeated.
    where:
        Use only the trials that fulfil a condition on the columns, such as "implementation == 'sdpa'".
    """
    from scalebench.cli.commands import fit as fitting
    from scalebench.cli.commands import predict as command

    others = fitting.assigned("--input", inputs)
    return command.run_predict(source, params, tokens, others, where, as_json=as_json)


def optimal(
    points: Path,
    /,
    *,
    approach: Literal["1", "2", "3", "all"] = "all",
    budget: Annotated[list[float], Parameter(negative=(), show_default=False)] = [],  # noqa: B006
    count_params: Literal["total", "non_embedding"] = "total",
    count_flops: Literal["6ND", "exact"] = "6ND",
    columns: CountedColumns = CountedColumns(),  # noqa: B008 - frozen
    where: Where = None,
    as_json: Json = False,
) -> int:
    """Say how to spend a compute budget, N*(C) and D*(C), by three approaches, and what each way of counting changes.

    Parameters
    ----------
    points:
        A CSV, TSV or Parquet file, or a results folder.
    approach:
        1: envelope of training curves (needs a run column); 2: isoFLOP parabolas; 3: a fitted surface.
    budget:
        Training FLOPs to spend; may be repeated; the largest of the points unless given.
    count_params:
        Whether N is all parameters or non-embedding ones.
    count_flops:
        Whether C is 6ND or the FLOPs column.
    """
    from scalebench.advice import Counting
    from scalebench.cli.commands import optimal as command

    approaches = command.APPROACHES if approach == "all" else (int(approach),)
    counting = Counting(count_params, count_flops)
    return command.run_optimal(points, columns.given(), where, approaches, budget, counting, as_json=as_json)


def next_(
    source: Path,
    /,
    *,
    predict: str,
    budget: Number = None,
    most: Annotated[int | None, Parameter(show_default=False)] = None,
    candidates: Annotated[Path | None, Parameter(show_default=False)] = None,
    reach: float = 1.0,
    law: Law = "power",
    columns: LawColumns = LawColumns(),  # noqa: B008 - frozen
    other_columns: Inputs = [],  # noqa: B006
    where: Where = None,
    as_json: Json = False,
) -> int:
    """Say which trial to run next: the one that most narrows a prediction, or the best set within a FLOP budget.

    Parameters
    ----------
    source:
        The JSON of a fit, points in a file, or a results folder.
    predict:
        The inputs of the prediction to narrow, such as params=7e9,tokens=1.4e12.
    budget:
        FLOPs that the trials may cost together; without it one trial is chosen, whatever it costs.
    most:
        Trials at most within the budget; 5 unless given.
    candidates:
        A file of trials that could be run, one a row: the inputs of the law, and flops. A grid over the points' range
        unless given.
    reach:
        How many times beyond the largest inputs that grid goes.
    """
    from scalebench.cli.commands import design as command
    from scalebench.cli.commands import fit as fitting

    given = columns.given() | fitting.assigned("--column", other_columns, text=True)
    target = _numbers("--predict", predict)
    return command.run_next(source, law, given, where, target, candidates, budget, reach, most=most, as_json=as_json)


def worth(
    baseline: Path,
    changed: Path,
    /,
    *,
    loss: Number = None,
    law: Law = "power",
    columns: ComputeColumns = ComputeColumns(),  # noqa: B008 - frozen
    where: Where = None,
    as_json: Json = False,
) -> int:
    """Say what a change was worth: how many times less compute CHANGED needs for the loss of BASELINE.

    Parameters
    ----------
    baseline:
        A results folder, points with columns flops and loss (or params, tokens and loss with --law chinchilla), or the
        JSON of a fit.
    changed:
        The same of the changed study.
    loss:
        The loss to compare at; the lowest that both have measured unless given.
    """
    from scalebench.cli.commands import design as command

    return command.run_worth(baseline, changed, law, columns.given(), where, loss, as_json=as_json)


def tune(
    points: Path,
    /,
    *,
    optimised: str = "learning_rate",
    against: str = "params_non_embedding",
    loss_column: Annotated[str | None, Parameter(show_default=False)] = None,
    where: Where = None,
    at: Annotated[str | None, Parameter(show_default=False)] = None,
    as_json: Json = False,
) -> int:
    """Say how the best learning rate (or batch size, or any swept column) moves with size.

    Parameters
    ----------
    points:
        A CSV, TSV or Parquet file, or a results folder, with a sweep at each size.
    optimised:
        The swept column.
    loss_column:
        The loss; "loss" unless given, "validation_loss_nats" of a results folder.
    against:
        The columns that make a size, such as params_non_embedding or params,tokens.
    at:
        Sizes to predict the best value for, such as params_non_embedding=1e8.
    """
    from scalebench.cli.commands import design as command

    names = [name.strip() for name in against.split(",") if name.strip()]
    sizes = _numbers("--at", at)
    return command.run_tune(points, optimised, names, loss_column, where, sizes, as_json=as_json)


COMMANDS: dict[str, Callable[..., int]] = {
    "fit": fit,
    "predict": predict,
    "optimal": optimal,
    "next": next_,
    "worth": worth,
    "tune": tune,
}
