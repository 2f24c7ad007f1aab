"""The command line: one short function per command. Torch is imported only by the commands that need it."""

from __future__ import annotations

import contextlib
import gc
import inspect
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal, get_origin, get_type_hints

from cyclopts import App, CycloptsError, Group, Parameter, validators

from scalebench import __version__
from scalebench.cli import INTERRUPTED, STDERR, app_laws, app_results, app_setup, completions
from scalebench.cli.characters import use_plain_characters
from scalebench.cli.counted import counted
from scalebench.cli.options import RESULTS, Json, ResultsArgument, ResultsOption, Settings, StudyFile, Whole
from scalebench.cli.usage_errors import usage_line

app = App(
    name="scalebench",
    version=__version__,
    help="Measure how training time, memory, compute and loss scale with model size, and fit scaling laws.",
    help_format="plaintext",
    suppress_keyboard_interrupt=False,  # an interrupted run has its own exit code and can be continued
)

OK, NOT_ALL_OK, USAGE = 0, 1, 2  # and INTERRUPTED
# Plans and records are many objects without cycles: at Python's own thresholds, a tenth of the time of a command on
# 10,000 trials goes into looking for some.
COLLECT_AFTER = (50_000, 20, 20)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit.

    0 done, 1 some trial not ok, 2 usage, invalid input or full disk, 3 interrupted (the same command continues).
    """
    _open_closed_streams()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    gc.set_threshold(*COLLECT_AFTER)
    use_plain_characters()
    code = _exit_code(arguments)
    if code == INTERRUPTED:  # another signal while Python shuts down would replace the exit code
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def _exit_code(arguments: Sequence[str] | None) -> int:
    try:
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except CycloptsError as error:
        print(usage_line(error, [name for group in COMMANDS.values() for name in group]), file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("interrupted: finished trials are kept; run the same command again to continue", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _discard_output()
        return OK
    except OSError as error:
        _discard_output()
        where = f"{error.filename}: " if error.filename else ""
        print(f"{where}{error.strerror or error}; what is finished is kept", file=sys.stderr)
        return USAGE
    except ValueError as error:
        if not _is_input_error(error):
            raise
        print("\n".join(counted(str(error).splitlines())), file=sys.stderr)
        return USAGE
    return code if isinstance(code, int) else OK


def _open_closed_streams() -> None:
    """Open the null device where a standard stream is closed (``>&-``), so that no file takes its place."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= STDERR:  # the last of theirs
        pass
    os.close(descriptor)
    null = Path(os.devnull)
    sys.stdout = sys.stdout or null.open("w", encoding="utf-8")
    sys.stderr = sys.stderr or null.open("w", encoding="utf-8")


def _discard_output() -> None:
    """Send what is still buffered for standard output nowhere, so that the end of the process does not fail on it."""
    with contextlib.suppress(OSError, ValueError):  # not a file: nothing is buffered for one
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _interrupt(*_: object) -> None:
    """Stop what runs, in order. A second signal ends this process at once; workers end with their driver."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(INTERRUPTED))
    raise KeyboardInterrupt


def _is_input_error(error: ValueError) -> bool:
    """Whether an error is caused by the input, so that one line is enough, and not by a fault in scalebench."""
    from scalebench.errors import InputError
    from scalebench.laws import FitRefused
    from scalebench.store import StoreError

    return isinstance(error, InputError | StoreError | FitRefused)


def run(
    study: StudyFile,
    /,
    *,
    settings: Settings = [],  # noqa: B006 - cyclopts reads the default; nothing changes it
    results: ResultsOption = RESULTS,
    jobs: Annotated[Whole | None, Parameter(validator=validators.Number(gte=1))] = None,
    retry: Annotated[
        str, Parameter(help="Also run trials again that ended with these statuses, such as failed,timeout.")
    ] = "",
    fresh_code: Annotated[
        bool, Parameter(negative=(), help="Also run trials again whose results come from another version of the code.")
    ] = False,
    engine: Annotated[str, Parameter(completer=completions.engines)] = "local",
    slots: Annotated[
        str | None, Parameter(help="GPUs of this machine to use, such as gpu=4 (default: all of them).")
    ] = None,
    fail_fast: Annotated[
        bool, Parameter(negative="--keep-going", help="Stop at the first trial that does not end ok; or go on.")
    ] = False,
    force: Annotated[
        bool, Parameter(negative=(), help="Also run trials that are predicted to need more memory than there is.")
    ] = False,
    order: Annotated[
        Literal["auto", "given", "cheapest", "largest"],
        Parameter(help="By predicted cost, or as in the study; auto leaves it to the engine."),
    ] = "auto",
    with_parents: Annotated[
        bool,
        Parameter(negative=(), help="First run the studies that STUDY starts from ([from]), with their weights kept."),
    ] = False,
    report: Annotated[
        bool,
        Parameter(
            negative=(),
            help="Keep RESULTS/<study>/report.html current while trials finish; an open page loads itself again.",
        ),
    ] = False,
    as_json: Json = False,
) -> int:
    """Run the trials of STUDY (a TOML file, or the name of one that ships) that have no result yet.

    Parameters
    ----------
    jobs:
        Number of trials to run at the same time (default: one per core on a CPU, one per GPU).
    engine:
        Where trials run: local (this machine), ray (RAY_ADDRESS, or an embedded cluster) or slurm (job arrays).
    """
    from scalebench.cli.commands.sweeps import RunOptions, gpu_slots, run_study, statuses

    options = RunOptions(
        jobs, statuses(retry), engine, order, fresh_code, fail_fast, force, report, with_parents, slots=gpu_slots(slots)
    )
    return run_study(study, settings, results, options, as_json=as_json)


def plan(
    study: StudyFile,
    /,
    *,
    settings: Settings = [],  # noqa: B006
    results: ResultsOption = RESULTS,
    every: Annotated[bool, Parameter("--all", negative=(), help="List all sizes, not only the first 40.")] = False,
    speed: Annotated[
        bool, Parameter(negative=(), help="Model a fused GPT's training step kernel by kernel (GPU).")
    ] = False,
    ceilings: Annotated[
        tuple[float, float, float] | None,
        Parameter(
            show_default=False,
            help="Rates for --speed: TFLOP/s of products and of attention, TB/s of memory (default: 700 450 2.8).",
        ),
    ] = None,
    force: Annotated[bool, Parameter(negative=(), help="Accept trials that need more memory than there is.")] = False,
    as_json: Json = False,
) -> int:
    """Show what STUDY would run: trials, parameters, FLOPs, estimated time and memory. Runs and measures nothing."""
    from scalebench.cli.commands.planned import show_plan
    from scalebench.cli.commands.speed import speed_ceilings

    rates = speed_ceilings(ceilings, speed=speed)
    return show_plan(study, settings, results, every=every, force=force, as_json=as_json, ceilings=rates)


def status(
    results: ResultsArgument = RESULTS,
    /,
    *,
    watch: Annotated[bool, Parameter(negative=(), help="Print a line of progress as it changes, to the end.")] = False,
    as_json: Json = False,
) -> int:
    """Show the progress of the studies under RESULTS, and every trial that is not ok.

    Exit code 1 if a trial is missing, still running, or did not end ok.
    """
    from scalebench.cli.commands.stored import show_status
    from scalebench.cli.commands.watch import watch_studies
    from scalebench.cli.output import say, warn

    if watch:
        watch_studies(results, warn if as_json else say)  # JSON is alone on standard output
    return show_status(results, as_json=as_json)


def _usage(name: str, function: Callable[..., int]) -> str:
    """Return the usage of a command with its positional arguments by name: report [OPTIONS] [RESULTS...]."""
    words = [f"Usage: scalebench {name} [OPTIONS]"]
    hints = get_type_hints(function)
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            word = parameter.name.upper() + ("..." if get_origin(hints[parameter.name]) is list else "")
            words.append(word if parameter.default is parameter.empty else f"[{word}]")
    return " ".join(words)


def _register() -> None:
    """Add every command to the app, in its group, with an example at the end of its help."""
    for position, (group, commands) in enumerate(COMMANDS.items()):
        heading = Group(group, sort_key=position)
        for name, (function, example) in commands.items():
            *parent, own = name.split()
            target = app
            if parent:  # "new study" is the command `study` of `new`
                target = App(name=parent[0], group=heading, help=str(function.__doc__).splitlines()[0])
                app.command(target)
            epilogue = f"Example: scalebench {example}"
            inner = heading if target is app else None
            target.command(function, name=own, group=inner, usage=_usage(name, function), help_epilogue=epilogue)
    app.register_install_completion_command(help="Complete commands and options in this shell.", group="Options")


# In the order of the three jobs. Each example is run by tests/test_help.py.
COMMANDS: dict[str, dict[str, tuple[Callable[..., int], str]]] = {
    "Run a scaling sweep": {
        "demo": (app_results.demo, "demo -o report.html"),
        "new study": (app_setup.new_study, "new study gpt"),
        "schema": (app_setup.schema, "schema"),
        "plan": (plan, "plan demo"),
        "run": (run, "run demo --set train.steps=20"),
        "status": (status, "status results/demo"),
        "drop": (app_results.drop, "drop results/demo 3f2a"),
        "show": (app_results.show, "show 3f2a"),
        "generate": (app_results.generate, 'generate results --prompt "def "'),
        "serve": (app_results.serve, "serve --results results --port 8000"),
    },
    "Report, fit and predict": {
        "report": (app_results.report, "report results/demo -o report.html"),
        "export": (app_results.export, "export results -o trials.csv"),
        "diff": (app_results.diff, "diff old-results new-results"),
        "fit": (app_laws.fit, "fit points.csv --law chinchilla -o fit.json"),
        "predict": (app_laws.predict, "predict fit.json --params 7e9 --tokens 1.4e12"),
        "optimal": (app_laws.optimal, "optimal points.csv --budget 1e21"),
        "next": (app_laws.next_, "next fit.json --predict params=7e9,tokens=1.4e12"),
        "worth": (app_laws.worth, "worth old.csv new.csv"),
        "tune": (app_laws.tune, "tune sweep.csv --optimised lr --against params"),
    },
    "Compare kernel speed with eager PyTorch": {
        "compare": (app_setup.compare, "compare norm --providers eager,compiled --processes 1 --seconds 0.1"),
    },
    "This installation": {
        "list": (app_setup.list_, "list --columns"),
        "doctor": (app_setup.doctor, "doctor"),
    },
}
_register()


if __name__ == "__main__":
    main()
