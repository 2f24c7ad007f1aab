"""Commands that ask fitted laws what to do: one short function per command, which `cli` registers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

Column = Annotated[str | None, Parameter(show_default=False)]
Json = Annotated[bool, Parameter("--json", help="Print JSON for machines.", negative=())]
Where = Annotated[
    str | None, Parameter(show_default=False, help="Use the rows that fulfil a condition on the columns.")
]
Number = Annotated[float | None, Parameter(show_default=False)]
Law = Annotated[str, Parameter(help="The law fitted to points; `scalebench list` shows them.")]


def _given(**columns: str | None) -> dict[str, str]:
    return {role: name for role, name in columns.items() if name is not None}


def _numbers(option: str, text: str | None) -> Mapping[str, float]:
    """Read ``params=7e9,tokens=1e12``."""
    from scalebench import console_fit

    return console_fit.assigned(option, [part for part in (text or "").split(",") if part.strip()])


def optimal(
    points: Path,
    /,
    *,
    approach: Literal["1", "2", "3", "all"] = "all",
    budget: Annotated[list[float], Parameter(negative=(), show_default=False)] = [],  # noqa: B006
    count_params: Literal["total", "non_embedding"] = "total",
    count_flops: Literal["6ND", "exact"] = "6ND",
    params_column: Column = None,
    non_embedding_column: Column = None,
    tokens_column: Column = None,
    flops_column: Column = None,
    loss_column: Column = None,
    run_column: Column = None,
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
    from scalebench import console_optimal
    from scalebench.laws import Counting

    columns = _given(params=params_column, params_non_embedding=non_embedding_column, tokens=tokens_column)
    columns |= _given(flops=flops_column, loss=loss_column, run=run_column)
    approaches = console_optimal.APPROACHES if approach == "all" else (int(approach),)
    counting = Counting(count_params, count_flops)
    return console_optimal.run_optimal(points, columns, where, approaches, budget, counting, as_json=as_json)


def next_(
    source: Path,
    /,
    *,
    predict: str,
    budget: Number = None,
    candidates: Annotated[Path | None, Parameter(show_default=False)] = None,
    reach: float = 1.0,
    law: Law = "power",
    params_column: Column = None,
    tokens_column: Column = None,
    loss_column: Column = None,
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
    candidates:
        A file of trials that could be run, one a row: the inputs of the law, and flops; a grid over the range of the
        points unless given.
    reach:
        How many times beyond the largest inputs that grid goes.
    """
    from scalebench import console_design

    columns = _given(params=params_column, tokens=tokens_column, loss=loss_column)
    target = _numbers("--predict", predict)
    return console_design.run_next(source, law, columns, where, target, candidates, budget, reach, as_json=as_json)


def worth(
    baseline: Path,
    changed: Path,
    /,
    *,
    loss: Number = None,
    law: Law = "power",
    params_column: Column = None,
    tokens_column: Column = None,
    flops_column: Column = None,
    loss_column: Column = None,
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
    from scalebench import console_design

    columns = _given(params=params_column, tokens=tokens_column, flops=flops_column, loss=loss_column)
    return console_design.run_worth(baseline, changed, law, columns, where, loss, as_json=as_json)


def tune(
    points: Path,
    /,
    *,
    optimised: str = "learning_rate",
    against: str = "params_non_embedding",
    loss_column: Column = None,
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
    against:
        The columns that make a size, such as params_non_embedding or params,tokens.
    at:
        Sizes to predict the best value for, such as params_non_embedding=1e8.
    """
    from scalebench import console_design

    names = [name.strip() for name in against.split(",") if name.strip()]
    sizes = _numbers("--at", at)
    return console_design.run_tune(points, optimised, names, loss_column, where, sizes, as_json=as_json)


COMMANDS: dict[str, Callable[..., int]] = {"optimal": optimal, "next": next_, "worth": worth, "tune": tune}
