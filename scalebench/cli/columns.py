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
    """Size, data, compute and loss: what every command on points may be told."""

    params_column: Annotated[
        str | None, _column('Parameters N; "params" unless given, "params_non_embedding" of a results folder.')
    ] = None
    tokens_column: Annotated[
        str | None, _column('Training tokens D; "tokens" unless given, "tokens_seen" of a results folder.')
    ] = None
    flops_column: Annotated[
        str | None, _column("Training FLOPs C, which give D = C / 6N where a law needs tokens and none are named.")
    ] = None
    loss_column: Annotated[
        str | None, _column('Loss L; "loss" unless given, "validation_loss_nats" of a results folder.')
    ] = None

    def given(self) -> dict[str, str]:
        """Return role -> column of those that are given."""
        named = {field.name.removesuffix("_column"): getattr(self, field.name) for field in fields(self)}
        return {role: column for role, column in named.items() if isinstance(column, str)}


@Parameter(name="*")
@dataclass(frozen=True)
class LawColumns(PointColumns):
    """Those, and what laws of other things than a loss take."""

    x_column: Annotated[str | None, _column('The input of a law of one input; "x" unless given.')] = None
    y_column: Annotated[str | None, _column('The response of a law, where it is no loss; "y" unless given.')] = None
    config_column: Annotated[
        str | None,
        _column("Names the independent run of each row; without it, rows with equal inputs are one configuration."),
    ] = None


@Parameter(name="*")
@dataclass(frozen=True)
class ComputeColumns(PointColumns):
    """Those of baseline and changed study alike."""

    flops_column: Annotated[
        str | None, _column('Training FLOPs C; "flops" unless given. A results folder says its own.')
    ] = None


@Parameter(name="*")
@dataclass(frozen=True)
class CountedColumns(PointColumns):
    """Those of points whose parameters and FLOPs can be counted in more ways than one."""

    params_column: Annotated[str | None, _column('All parameters; "params" unless given.')] = None
    flops_column: Annotated[str | None, _column('Training FLOPs C; "flops" unless given.')] = None
    params_non_embedding_column: Annotated[
        str | None,
        Parameter(
            "--non-embedding-column",
            show_default=False,
            help='Non-embedding parameters; "params_non_embedding" unless given.',
        ),
    ] = None
    unique_tokens_column: Annotated[str | None, _column('Unique tokens U; "unique_tokens" unless given.')] = None
    run_column: Annotated[str | None, _column('Names the run of each row of training curves; "run" unless given.')] = (
        None
    )
