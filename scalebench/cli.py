"""The command line: one short function per command. Torch is imported only by the commands that need it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter, validators

from scalebench import __version__, cli_laws
from scalebench.comparison.options import Options

app = App(
    name="scalebench",
    version=__version__,
    help="Scaling studies by measurement: what a growing model costs, and what it buys.",
    help_format="plaintext",
    suppress_keyboard_interrupt=False,  # an interrupted run has its own exit code and says that it can go on
)

OK, NOT_ALL_OK, USAGE, INTERRUPTED = 0, 1, 2, 3

Settings = Annotated[
    list[str], Parameter("--set", help="Override a field of the study: --set train.steps=100.", negative=())
]
Json = Annotated[bool, Parameter("--json", help="Print JSON for machines.", negative=())]
RESULTS = Path("results")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit: 0 done, 1 some trial not ok, 2 usage or invalid input, 3 interrupted (resumable)."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = app(arguments, exit_on_error=False, result_action="return_value")
    except CycloptsError:
        sys.exit(USAGE)  # cyclopts has said what was wrong
    except KeyboardInterrupt:
        print("interrupted: what is finished is kept, and the same command goes on from there", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(OK)
    except ValueError as error:
        if not _is_input_error(error):
            raise
        print(error, file=sys.stderr)
        sys.exit(USAGE)
    sys.exit(code if isinstance(code, int) else OK)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _is_input_error(error: ValueError) -> bool:
    """Say whether an error is the input's, to be told in a line, rather than a fault of ours."""
    from scalebench.errors import InputError
    from scalebench.laws import FitRefused
    from scalebench.store import StoreError

    return isinstance(error, InputError | StoreError | FitRefused)


@app.command
def run(
    study: str,
    /,
    *,
    settings: Settings = [],  # noqa: B006 - cyclopts reads the default; nothing changes it
    results: Path = RESULTS,
    jobs: Annotated[int | None, Parameter(validator=validators.Number(gte=1))] = None,
    retry: Annotated[str, Parameter(help="Run again the trials of these statuses: failed,timeout.")] = "",
    fresh_code: Annotated[bool, Parameter(negative=(), help="Also run again what other code made.")] = False,
    engine: Literal["local"] = "local",  # noqa: ARG001 - the only one so far
    as_json: Json = False,
) -> int:
    """Run the trials of STUDY (a TOML file, or the name of one that ships) that have no result yet.

    Parameters
    ----------
    results:
        The folder that holds results; a study gets a folder of its own in it.
    jobs:
        Workers at a time: one per core on a CPU unless given, one on a GPU.
    """
    from scalebench import console

    return console.run_study(
        study, settings, results, jobs, console.statuses(retry), fresh_code=fresh_code, as_json=as_json
    )


@app.command
def plan(
    study: str,
    /,
    *,
    settings: Settings = [],  # noqa: B006
    results: Path = RESULTS,
    every: Annotated[bool, Parameter("--all", negative=(), help="List every size, however many.")] = False,
    as_json: Json = False,
) -> int:
    """Show what STUDY would run: trials, parameters, FLOPs, estimated time and memory. Runs nothing."""
    from scalebench import console

    return console.show_plan(study, settings, results, every=every, as_json=as_json)


@app.command
def status(results: Path = RESULTS, /, *, as_json: Json = False) -> int:
    """Show how far the studies under RESULTS are, and every trial that did not end well."""
    from scalebench import console

    return console.show_status(results, as_json=as_json)


@app.command
def report(
    results: Annotated[list[Path], Parameter(negative=())] = [RESULTS],  # noqa: B006
    /,
    *,
    output: Annotated[Path, Parameter(["--output", "-o"], help="The HTML file to write.")] = Path("report.html"),
) -> int:
    """Write one self-contained HTML report of the studies under RESULTS."""
    from scalebench.reporting import report as write_report

    print(write_report(results, output))
    return OK


@app.command
def export(
    results: Path = RESULTS,
    /,
    *,
    output: Annotated[Path, Parameter(["--output", "-o"], help="A .csv or .parquet file.")],
) -> int:
    """Write every trial of every study under RESULTS as a table, one row per trial."""
    from scalebench import console

    return console.export_table(results, output)


Column = Annotated[str | None, Parameter(show_default=False)]


@app.command
def fit(
    points: Path,
    /,
    *,
    law: Annotated[
        str, Parameter(help="A law (`scalebench list`), or A,B or auto: the best of several by hold-out.")
    ] = "power",
    params_column: Column = None,
    tokens_column: Column = None,
    loss_column: Column = None,
    x_column: Column = None,
    y_column: Column = None,
    flops_column: Column = None,
    config_column: Column = None,
    other_columns: Annotated[list[str], Parameter("--column", negative=(), show_default=False)] = [],  # noqa: B006
    where: Annotated[str | None, Parameter(show_default=False)] = None,
    loss: str = "huber",
    delta: float = 1e-3,
    space: Literal["log", "raw"] = "log",
    fix: Annotated[list[str], Parameter(negative=(), show_default=False)] = [],  # noqa: B006
    bootstrap: int = 1000,
    method: Literal["auto", "resample", "residuals", "wild", "parametric"] = "auto",
    backtest: Annotated[bool, Parameter(negative=())] = False,
    output: Annotated[Path | None, Parameter("--json", show_default=False)] = None,
) -> int:
    """Fit a scaling law to POINTS: a CSV, TSV or Parquet file from any trainer, or a results folder.

    Parameters
    ----------
    params_column:
        Parameters N; "params" unless given, "params_non_embedding" of a results folder.
    tokens_column:
        Training tokens D; "tokens" unless given, "tokens_seen" of a results folder.
    loss_column:
        Loss L; "loss" unless given, "validation_loss_nats" of a results folder.
    x_column:
        The input of a law of one input; "x" unless given.
    y_column:
        The response of the law, where it is no loss; "y" unless given.
    flops_column:
        Training FLOPs C, which give D = C / 6N where no tokens column is given.
    config_column:
        Names the independent run of each row; without it, rows with equal inputs are one configuration.
    other_columns:
        A further input of the law as INPUT=COLUMN; may be repeated.
    where:
        Use the rows that fulfil a condition on the columns, such as "N > 1e7 and kind == 'dense'".
    loss:
        What is summed over the residuals: huber, squares or absolute.
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
        Write the fit as JSON; `--json=-` prints it instead of the table.
    """
    from scalebench import console_fit

    given = {"params": params_column, "tokens": tokens_column, "loss": loss_column, "x": x_column, "y": y_column}
    given |= {"flops": flops_column, "config": config_column}
    columns = {role: name for role, name in given.items() if name is not None}
    options: dict[str, Any] = {"loss": loss, "delta": delta, "space": space}
    options["fixed"] = console_fit.assigned("--fix", fix)
    columns |= console_fit.assigned("--column", other_columns, text=True)
    return console_fit.run_fit(
        points, law, columns, where, options, bootstrap, method=method, backtest=backtest, output=output
    )


@app.command
def predict(
    source: Path,
    /,
    *,
    params: Annotated[float | None, Parameter(show_default=False)] = None,
    tokens: Annotated[float | None, Parameter(show_default=False)] = None,
    inputs: Annotated[list[str], Parameter("--input", negative=(), show_default=False)] = [],  # noqa: B006
    where: Annotated[str | None, Parameter(show_default=False)] = None,
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
    from scalebench import console_fit, console_predict

    others = console_fit.assigned("--input", inputs)
    return console_predict.run_predict(source, params, tokens, others, where, as_json=as_json)


@app.command
def generate(
    results: Path = RESULTS,
    /,
    *,
    trial: str,
    prompt: str,
    tokens: Annotated[int | None, Parameter(show_default=False)] = None,
    temperature: Annotated[float | None, Parameter(show_default=False)] = None,
    top_k: int = 0,
    top_p: float = 1.0,
    beams: int = 1,
    seed: int = 0,
) -> int:
    """Print what a trained model under RESULTS adds to a prompt (its study ran with checkpoint = true).

    Parameters
    ----------
    trial:
        The trial's id, or how it begins; `scalebench export` and the report list them.
    prompt:
        The text to go on from.
    tokens:
        How many to add: 100 unless given, or as many as the model's context leaves room for.
    temperature:
        1 draws as the model says, less keeps closer to the likeliest, 0 takes the likeliest; 1 unless given.
    top_k:
        Draw from so many of the likeliest tokens; 0 from all.
    top_p:
        Draw from the fewest likeliest tokens whose probability reaches this.
    beams:
        Above 1: beam search with so many hypotheses.
    seed:
        Of the draws.
    """
    from scalebench.console_generate import run_generate
    from scalebench.writing import Request

    return run_generate(results, trial, Request(prompt, tokens, temperature, top_k, top_p, beams, seed))


for _name, _command in cli_laws.COMMANDS.items():
    app.command(_command, name=_name)


@app.command
def compare(
    operation: Annotated[str | None, Parameter(show_default=False)] = None,
    /,
    *,
    options: Options = Options(),  # noqa: B008 - frozen
    imports: Annotated[list[Path], Parameter("--import", negative=(), help="pytest-benchmark JSON.")] = [],  # noqa: B006
    results: Path = RESULTS,
    as_json: Json = False,
) -> int:
    """Hold the providers of OPERATION against each other: attention, optimizer, cross-entropy, norm, or a .py file."""
    from scalebench import console_compare

    return console_compare.run_compare(operation, options, imports, results, as_json=as_json)


@app.command(name="list")
def list_(*, as_json: Json = False) -> int:
    """Show the families, studies, laws, optimizers and data sources there are."""
    from scalebench.catalogue import show_catalogue

    return show_catalogue(as_json=as_json)


@app.command
def doctor(*, results: Path = RESULTS, as_json: Json = False) -> int:
    """Say what this machine is and what will not work on it."""
    from scalebench.doctor import show

    return show(results, as_json=as_json)


@app.command
def demo(
    *,
    results: Path = RESULTS,
    output: Annotated[Path, Parameter(["--output", "-o"])] = Path("reports/demo/index.html"),
) -> int:
    """Run the demo study and write its report."""
    from scalebench import console

    return console.run_demo(results, output)


if __name__ == "__main__":
    main()
