"""The columns of points by role, as options that commands share. Nothing here imports more than cyclopts."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated

from cyclopts import Parameter


def _column(text: str) -> Parameter:
    return Parameter(help=text, show_default=False)


@Parameter(name="*")
@dataclass(frozen=True)
class PointColumns:
    """Columns of size, data, compute and loss, for every command on points."""

    params_column: Annotated[
        str | None, _column("Column of parameters N (default: params; params_non_embedding in a results folder).")
    ] = None
    tokens_column: Annotated[
        str | None, _column("Column of training tokens D (default: tokens; tokens_seen in a results folder).")
    ] = None
    flops_column: Annotated[
        str | None,
        _column("Column of training FLOPs C; gives D = C / 6N if the law needs tokens and there is no such column."),
    ] = None
    loss_column: Annotated[
        str | None, _column("Column of the loss L (default: loss; validation_loss_nats in a results folder).")
    ] = None

    def given(self) -> dict[str, str]:
        """Return {role: column} for the options that were given."""
        named = {field.name.removesuffix("_column"): getattr(self, field.name) for field in fields(self)}
        return {role: column for role, column in named.items() if isinstance(column, str)}


@Parameter(name="*")
@dataclass(frozen=True)
class LawColumns(PointColumns):
    """Also the columns of laws whose response is not a loss."""

    x_column: Annotated[str | None, _column("Column of the input of a law with one input (default: x).")] = None
    y_column: Annotated[str | None, _column("Column of the response if it is not a loss (default: y).")] = None
    config_column: Annotated[
        str | None,
        _column(
            "Column that identifies the configuration of a row (default: rows with equal inputs are one configuration)."
        ),
    ] = None


@Parameter(name="*")
@dataclass(frozen=True)
class ComputeColumns(PointColumns):
    """Columns of both the baseline and the changed study."""

    flops_column: Annotated[
        str | None, _column("Column of training FLOPs C (default: flops; known for a results folder).")
    ] = None


@Parameter(name="*")
@dataclass(frozen=True)
class CountedColumns(PointColumns):
    """Columns of points whose parameters and FLOPs can be counted in several ways."""

    params_column: Annotated[str | None, _column("Column of all parameters (default: params).")] = None
    flops_column: Annotated[str | None, _column("Column of training FLOPs C (default: flops).")] = None
    params_non_embedding_column: Annotated[
        str | None,
        Parameter(
            "--non-embedding-column",
            show_default=False,
            help="Column of non-embedding parameters (default: params_non_embedding).",
        ),
    ] = None
    unique_tokens_column: Annotated[str | None, _column("Column of unique tokens U (default: unique_tokens).")] = None
    run_column: Annotated[
        str | None, _column("Column that identifies the run of a row, for training curves (default: run).")
    ] = None
