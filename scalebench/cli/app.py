"""The command line: one short function per command. Torch is imported only by the commands that need it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter, validators

from scalebench import __version__
from scalebench.cli import app_laws
from scalebench.comparison.options import OPERATION_MODULES, Options

app = App(
    name="scalebench",
    version=__version__,
    help="Measure how training time, memory, compute and loss scale with model size, and fit scaling laws.",
    help_format="plaintext",
    suppress_keyboard_interrupt=False,  # an interrupted run has its own exit code and can be continued
)

OK, NOT_ALL_OK, USAGE, INTERRUPTED = 0, 1, 2, 3

Settings = Annotated[
    list[str], Parameter("--set", help="Override a field of the study: --set train.steps=100.", negative=())
]
Json = Annotated[bool, Parameter("--json", help="Print JSON.", negative=())]
RESULTS = Path("results")
_OPERATION_HELP = f"{', '.join(OPERATION_MODULES)}, or the path of a .py file."


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit: 0 done, 1 some trial not ok, 2 usage or invalid input, 3 interrupted (resumable)."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = app(arguments, exit_on_error=False, result_action="return_value")
    except CycloptsError:
        sys.exit(USAGE)  # cyclopts has printed the reason
    except KeyboardInterrupt:
        print("interrupted: finished trials are kept; run the same command again to continue", file=sys.stderr)
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
    """Whether an error is caused by the input, so that one line is enough, and not by a fault in scalebench."""
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
    retry: Annotated[
        str, Parameter(help="Also run trials again that ended with these statuses, such as failed,timeout.")
    ] = "",
    fresh_code: Annotated[
        bool, Parameter(negative=(), help="Also run trials again whose results come from another version of the code.")
    ] = False,
    engine: str = "local",
    with_parents: Annotated[
        bool,
        Parameter(negative=(), help="First run the studies that STUDY starts from ([from]), with their weights kept."),
    ] = False,
    as_json: Json = False,
) -> int:
    """Run the trials of STUDY (a TOML file, or the name of one that ships) that have no result yet.

    Parameters
    ----------
    results:
        Results folder; each study gets a subfolder.
    jobs:
        Number of trials to run at the same time (default: one per core on a CPU, one on a GPU).
    engine:
        Where trials run: local is this machine.
    """
    from scalebench.cli.commands.sweeps import run_study, statuses

    how: dict[str, Any] = {"engine": engine, "fresh_code": fresh_code, "with_parents": with_parents}
    return run_study(study, settings, results, jobs, statuses(retry), **how, as_json=as_json)


@app.command
def plan(
    study: str,
    /,
    *,
    settings: Settings = [],  # noqa: B006
    results: Path = RESULTS,
    every: Annotated[bool, Parameter("--all", negative=(), help="List all sizes, not only the first 40.")] = False,
    speed: Annotated[
        bool, Parameter(negative=(), help="Model a fused GPT's training step kernel by kernel (GPU).")
    ] = False,
    ceilings: Annotated[
        tuple[float, float, float],
        Parameter(help="Rates for --speed: TFLOP/s of products and of attention, TB/s of memory."),
    ] = (700.0, 450.0, 2.8),
    as_json: Json = False,
) -> int:
    """Show what STUDY would run: trials, parameters, FLOPs, estimated time and memory. Runs and measures nothing."""
    from scalebench.cli.commands.sweeps import show_plan

    return show_plan(study, settings, results, every=every, as_json=as_json, ceilings=ceilings if speed else ())


@app.command
def status(results: Path = RESULTS, /, *, as_json: Json = False) -> int:
    """Show the progress of the studies under RESULTS, and every trial that is not ok."""
    from scalebench.cli.commands.stored import show_status

    return show_status(results, as_json=as_json)


@app.command
def report(
    results: Annotated[list[Path], Parameter(negative=())] = [RESULTS],  # noqa: B006
    /,
    *,
    output: Annotated[Path, Parameter(["--output", "-o"], help="The HTML file to write.")] = Path("report.html"),
    pictures: Annotated[bool, Parameter(negative=(), help="Also write each study's first figure as a PNG.")] = False,
) -> int:
    """Write one self-contained HTML report of the studies under RESULTS."""
    from scalebench.cli.commands.stored import write_report

    return write_report(results, output, pictures=pictures)


@app.command
def export(
    results: Path = RESULTS,
    /,
    *,
    output: Annotated[Path, Parameter(["--output", "-o"], help="A .csv or .parquet file.")],
) -> int:
    """Write every trial of every study under RESULTS as a table, one row per trial."""
    from scalebench.cli.commands.stored import export_table

    return export_table(results, output)


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
    """Generate text with a trained model under RESULTS (its study must keep weights: checkpoint = true).

    Parameters
    ----------
    trial:
        Trial id, or the first digits of it; `scalebench export` and the report list them.
    prompt:
        Text to continue.
    tokens:
        Number of tokens to generate (default: 100, or as many as fit into the model's context).
    temperature:
        Sampling temperature; 0 is greedy decoding (default: 1).
    top_k:
        Sample from the k most likely tokens (0: all).
    top_p:
        Sample from the smallest set of most likely tokens with at least this total probability.
    beams:
        Beam width; above 1, beam search instead of sampling.
    seed:
        Sampling seed.
    """
    from scalebench.cli.commands.generate import run_generate
    from scalebench.workloads.completion import Request

    return run_generate(results, trial, Request(prompt, tokens, temperature, top_k, top_p, beams, seed))


for _name, _command in app_laws.COMMANDS.items():
    app.command(_command, name=_name)


@app.command
def compare(
    operation: Annotated[str | None, Parameter(show_default=False, help=_OPERATION_HELP)] = None,
    /,
    *,
    options: Options = Options(),  # noqa: B008 - frozen
    imports: Annotated[
        list[Path], Parameter("--import", negative=(), help="Import a JSON file of pytest-benchmark; may be repeated.")
    ] = [],  # noqa: B006
    results: Path = RESULTS,
    as_json: Json = False,
) -> int:
    """Compare the implementations of an operation: accuracy, time, FLOP/s, B/s and memory, with a verdict."""
    from scalebench.cli.commands.compare import run_compare

    return run_compare(operation, options, imports, results, as_json=as_json)


@app.command(name="list")
def list_(*, columns: bool = False, as_json: Json = False) -> int:
    """List workloads, families, studies, laws, optimizers and data sources; with --columns, the recorded columns.

    Parameters
    ----------
    columns: List the columns of records: name, unit, meaning, and the workloads that have it.
    """
    from scalebench.cli.commands.catalogue import show_catalogue, show_columns

    return (show_columns if columns else show_catalogue)(as_json=as_json)


@app.command
def doctor(*, results: Path = RESULTS, as_json: Json = False) -> int:
    """Describe this machine, and list what will not work on it."""
    from scalebench.cli.commands.doctor import show

    return show(results, as_json=as_json)


@app.command
def demo(
    *,
    results: Path = RESULTS,
    output: Annotated[
        Path | None, Parameter(["--output", "-o"], help="The HTML file to write; RESULTS/demo/report.html if omitted.")
    ] = None,
) -> int:
    """Run the demo study, and write its report and a PNG of its first figure."""
    from scalebench.cli.commands.sweeps import run_demo

    return run_demo(results, output)


if __name__ == "__main__":
    main()
