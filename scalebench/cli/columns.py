"""Options that name the columns of points, shared by commands. Imports nothing but cyclopts."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated

from cyclopts import Parameter


def _column(text: str) -> Parameter:
    return Parameter(help=text, show_default=False)


@Parameter(name="*")
@dataclass(frozen=True)
class PointColumns:
    """Columns of size, data, compute and loss."""

    params_column: Annotated[
        str | None, _column('Parameters N; default "params", or "params_non_embedding" for a results folder.')
    ] = None
    tokens_column: Annotated[
        str | None, _column('Training tokens D; default "tokens", or "tokens_seen" for a results folder.')
    ] = None
    flops_column: Annotated[
        str | None,
        _column("Training FLOPs C; used for D = C / 6N if the law needs tokens and no column of them is named."),
    ] = None
    loss_column: Annotated[
        str | None, _column('Loss L; default "loss", or "validation_loss_nats" for a results folder.')
    ] = None

    def passed(self) -> dict[str, str]:
        """Return role -> column for the options that were passed."""
        columns = {field.name.removesuffix("_column"): getattr(self, field.name) for field in fields(self)}
        return {role: column for role, column in columns.items() if isinstance(column, str)}


@Parameter(name="*")
@dataclass(frozen=True)
class LawColumns(PointColumns):
    """Columns of any law, also of one whose response is not a loss."""

    x_column: Annotated[str | None, _column('Input of a law with one input; default "x".')] = None
    y_column: Annotated[str | None, _column('Response of a law, if it is not a loss; default "y".')] = None
    config_column: Annotated[
        str | None,
        _column("Id of the independent run of each row; by default, rows with equal inputs are one configuration."),
    ] = None
    run_column: Annotated[
        str | None, _column("Name of the run of each row; its rows are one configuration, or see --last.")
    ] = None


@Parameter(name="*")
@dataclass(frozen=True)
class ComputeColumns(PointColumns):
    """Columns that baseline and changed study share."""

    flops_column: Annotated[str | None, _column('Training FLOPs C; default "flops". A results folder has its own.')] = (
        None
    )


@Parameter(name="*")
@dataclass(frozen=True)
class CountedColumns(PointColumns):
    """Columns of points whose parameters and FLOPs can be counted in several ways."""

    params_column: Annotated[str | None, _column('All parameters; default "params".')] = None
    flops_column: Annotated[str | None, _column('Training FLOPs C; default "flops".')] = None
    params_non_embedding_column: Annotated[
        str | None,
        Parameter(
            "--non-embedding-column",
            show_default=False,
            help='Non-embedding parameters; default "params_non_embedding".',
        ),
    ] = None
    unique_tokens_column: Annotated[str | None, _column('Unique tokens U; default "unique_tokens".')] = None
    run_column: Annotated[str | None, _column('Run id of each row of training curves; default "run".')] = None
