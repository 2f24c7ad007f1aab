"""The commands that need no results (compare, list, doctor): signatures and help texts."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from scalebench.cli import completions
from scalebench.cli.options import RESULTS, File, Json, ResultsOption
from scalebench.comparison.options import OPERATION_MODULES, Options

IMPORT_HELP = "Import a JSON file of pytest-benchmark, hyperfine, asv or google-benchmark; repeatable."
KIND_HELP = "List only these: workloads, families, studies, laws, optimizers or sources."
COLUMNS_HELP = "List the columns of trials and comparisons: name, unit, meaning, and the workloads that have it."
OPERATION_HELP = f"{', '.join(OPERATION_MODULES)}, or the path of a .py file."


def compare(
    operation: Annotated[
        str | None, Parameter(show_default=False, help=OPERATION_HELP, completer=completions.operations)
    ] = None,
    /,
    *,
    options: Options = Options(),  # noqa: B008 - frozen
    imports: Annotated[list[File], Parameter("--import", negative=(), show_default=False, help=IMPORT_HELP)] = [],  # noqa: B006
    results: ResultsOption = RESULTS,
    as_json: Json = False,
) -> int:
    """Compare the implementations of an operation: accuracy, time, FLOP/s, B/s and memory, with a verdict."""
    from scalebench.cli.commands.compare import run_compare

    return run_compare(operation, options, imports, results, as_json=as_json)


def list_(
    kind: Annotated[str | None, Parameter(help=KIND_HELP)] = None,
    /,
    *,
    columns: Annotated[bool, Parameter(negative=(), help=COLUMNS_HELP)] = False,
    as_json: Json = False,
) -> int:
    """List workloads, families, studies, laws, optimizers and data sources; with --columns, the recorded columns."""
    from scalebench.cli.commands.catalogue import show_catalogue, show_columns

    return show_columns(kind, as_json=as_json) if columns else show_catalogue(kind, as_json=as_json)


def doctor(*, results: ResultsOption = RESULTS, as_json: Json = False) -> int:
    """Describe this machine, and list what will not work on it."""
    from scalebench.cli.commands.doctor import show

    return show(results, as_json=as_json)


def new_study(
    family: Annotated[
        str, Parameter(help="A model family; `scalebench list` shows them.", completer=completions.families)
    ],
    /,
    *,
    output: Annotated[
        File | None, Parameter(["--output", "-o"], help="The file to write; FAMILY-study.toml if omitted.")
    ] = None,
) -> int:
    """Write a study file for FAMILY, with every field explained in comments."""
    from scalebench.cli.commands.template import new_study as write

    return write(family, output)


def schema(
    command: Annotated[str | None, Parameter(help="A command with --json: the schema of what that prints.")] = None, /
) -> int:
    """Print the JSON Schema of study files, with which editors complete and check them."""
    from scalebench.cli.commands.schema import show_schema

    return show_schema(command)
