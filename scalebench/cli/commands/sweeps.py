"""The commands run and demo."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from scalebench import store
from scalebench.cli import INTERRUPTED
from scalebench.cli.counted import counted
from scalebench.cli.live_page import LivePage
from scalebench.cli.output import duration, one_line, print_json_line, quantity, say, say_exactly, trials, warn
from scalebench.errors import StudyError, number_of, unknown

if TYPE_CHECKING:
    from scalebench.cli.progress import TrialLabel
    from scalebench.running.planning import PlannedTrial
    from scalebench.running.sweep import Sweep
    from scalebench.study import Study

SHOWN_TRIALS = 10


def statuses(text: str) -> list[str]:
    """Read ``failed,timeout``; ``StudyError`` for a status that does not exist."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    wrong = [f"--retry: {unknown(name, store.STATUSES)}" for name in names if name not in store.STATUSES]
    if wrong:
        raise StudyError(wrong)
    return names


def gpu_slots(text: str | None) -> int | None:
    """Read ``gpu=4``; ``StudyError`` for anything else."""
    if text is None:
        return None
    name, _, number = text.partition("=")
    if name != "gpu" or not (number.isascii() and number.isdigit() and 0 < int(number) < 1000):
        raise StudyError([f"--slots: expected gpu=N with a number of GPUs, such as gpu=4 (given {text!r})"])
    return int(number)


# --- run -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunOptions:
    """How ``run`` runs a study. ``retry`` has the statuses to run again; ``force`` ignores predicted memory.

    With ``report`` the study's page is kept current while trials finish; ``with_parents`` runs its parents' studies
    first; at the end its ``conclusions`` are printed.
    """

    jobs: int | None = None
    retry: Sequence[str] = ()
    engine: str = "local"
    order: str = "auto"
    fresh_code: bool = False
    fail_fast: bool = False
    force: bool = False
    report: bool = False
    with_parents: bool = False
    conclusions: bool = True
    slots: int | None = None


def run_study(name: str, settings: Sequence[str], results: Path, options: RunOptions, *, as_json: bool) -> int:
    """Run a study's missing trials, and first those of its parents' studies if asked; return the exit code."""
    from scalebench.running.chain import ancestors
    from scalebench.running.engines import find_engine
    from scalebench.running.planning import load_study

    find_engine(options.engine, options.slots)
    study = load_study(name, settings)
    codes = []
    for parent in ancestors(study) if options.with_parents else ():
        codes.append(_run_one(parent, parent.name, (), results, replace(options, conclusions=False), as_json=as_json))
        if codes[-1] == INTERRUPTED:
            return INTERRUPTED
    return max([*codes, _run_one(study, name, settings, results, options, as_json=as_json)])


def _run_one(
    study: Study, name: str, settings: Sequence[str], results: Path, options: RunOptions, *, as_json: bool
) -> int:
    """Run the missing trials of one study and return the exit code; ``name`` and ``settings`` are how it was named."""
    from scalebench.running.ensembles import grouped
    from scalebench.running.memory import check_memory
    from scalebench.running.sweep import survey
    from scalebench.study.file import idle_exclusions

    begun = time.monotonic()
    warn(*idle_exclusions(study))
    sweep = survey(study, results, options.retry, fresh_code=options.fresh_code)
    if options.engine == "local" and not options.force:
        check_memory(sweep.missing)
    store.check_writable(results)  # after all that can be wrong with the study: then nothing is written
    _announce(sweep, as_json=as_json)
    if study.run.ensemble is not None and sweep.missing and not as_json:
        say(*grouped(sweep.missing, study, options.engine).sentences())
    try:
        page = LivePage(sweep.study_dir) if options.report else None
        _execute(sweep, study, options, page, as_json=as_json)
        if page:
            page.write()
    except (OSError, store.StoreError) as error:  # a full disk, or a folder that was removed or made read-only
        reason = f"{error.filename or results}: {error.strerror}" if isinstance(error, OSError) else error
        warn(f"stopped: {reason}; finished trials are kept, the same command goes on")
        return INTERRUPTED
    elapsed_s, place = time.monotonic() - begun, page.path if page else None
    if as_json:
        _summarise(sweep, elapsed_s, place)
    else:
        _conclude(sweep, name, settings, results, elapsed_s, place)
        say(*(_conclusions(sweep) if options.conclusions else ()))
    return 0 if set(sweep.statuses()) <= {"ok"} else 1


def _execute(sweep: Sweep, study: Study, options: RunOptions, page: LivePage | None, *, as_json: bool) -> None:
    """Run the missing trials and show their progress; with ``fail_fast`` up to the first that is not ok."""
    from scalebench.cli.progress import Progress, SweepProgress
    from scalebench.running.attempts import resources_of
    from scalebench.running.sweep import execute

    expected = {trial.trial_id: (resources_of(trial, study).expected_s, trial.steps) for trial in sweep.missing}
    labels = {trial.trial_id: _label(trial) for trial in sweep.missing}
    with Progress(quiet=as_json) as display:
        progress = SweepProgress(expected, display, labels)

        def tick(running: Sequence[Path]) -> None:
            progress.tick(running)
            if page:
                page.refresh()

        rows = execute(
            sweep, study, jobs=options.jobs, engine=options.engine, slots=options.slots, order=options.order, tick=tick
        )
        with contextlib.closing(rows):
            for row in rows:
                progress.finish(row, as_json=as_json)
                if page:
                    page.finished()
                if options.fail_fast and row["status"] != "ok":
                    return


def _announce(sweep: Sweep, *, as_json: bool) -> None:
    for line in counted(sweep.damaged):
        warn(f"damaged, counts as missing: {line}")
    if sweep.other_code:
        results = number_of(sweep.other_code, "result")
        warn(f"{results} of another version of the code; --fresh-code runs again what other code made")
    if not as_json:
        say(f"{sweep.study_dir.name}: {trials(len(sweep.planned))}, {len(sweep.missing)} to run")
        sys.stdout.flush()  # into a pipe too, before what follows takes its time


def _label(planned: PlannedTrial) -> TrialLabel:
    """Return what a running trial is called, and what one of its steps processes."""
    from scalebench.cli.progress import TrialLabel

    spec = planned.trial.spec
    length = getattr(spec, "sequence_length", None)
    text = f"{planned.trial.family} {quantity(planned.counts.non_embedding)} seed {spec.seed}"
    processed = getattr(spec, "tokens_per_step", spec.batch_size * (length or 1))
    return TrialLabel(text, processed, "tokens" if length else "samples")


def _conclusions(sweep: Sweep) -> list[str]:
    """Return the sentences at the head of the study's page, if any trial ended ok."""
    if not any(row["status"] == "ok" for row in sweep.rows.values()):
        return []
    from scalebench.analysis.study import analyse
    from scalebench.reporting import conclusions

    return ["", *conclusions(analyse(store.read_results(sweep.study_dir), sweep.study_dir.name))]


def _summarise(sweep: Sweep, elapsed_s: float, page: Path | None) -> None:
    """Print the outcome as one JSON line."""
    counts = dict(sweep.statuses())
    summary = {"study": sweep.study_dir.name, "executed": sweep.executed, "statuses": counts}
    places = {"results": str(sweep.study_dir)} | ({"report": str(page)} if page else {})
    print_json_line("run", "summary", summary | {"elapsed_s": elapsed_s} | places)


def _conclude(
    sweep: Sweep, name: str, settings: Sequence[str], results: Path, elapsed_s: float, page: Path | None
) -> None:
    """Print the outcome, what did not end ok with the command that runs it again, and where the page is."""
    statuses = ", ".join(f"{number} {status}" for status, number in sorted(sweep.statuses().items()))
    say(f"{sweep.executed} executed in {duration(elapsed_s)}: {statuses}")
    wrong = {trial_id: row for trial_id, row in sweep.rows.items() if row["status"] != "ok"}
    lines = counted(
        f"{trial_id} {row['status']}: {one_line(row['error_message'] or row['error_class'])}"
        for trial_id, row in wrong.items()
    )
    say(*lines[:SHOWN_TRIALS])
    if len(lines) > SHOWN_TRIALS:
        say(f"… and {len(lines) - SHOWN_TRIALS} more")
    if wrong:
        words = ["scalebench", "run", name, *(word for setting in settings for word in ("--set", setting))]
        words += [
            "--results",
            str(results),
            "--retry",
            ",".join(sorted({str(row["status"]) for row in wrong.values()})),
        ]
        say_exactly(f"to run them again: {shlex.join(words)}; their logs are in {sweep.study_dir}/trials")
    say_exactly(f"report: {page}" if page else f"report: scalebench report {shlex.quote(str(sweep.study_dir))}")


def run_demo(results: Path, output: Path | None) -> int:
    """Run the demo study, write its report and a picture beside it, and print its conclusions; return the exit code.

    The report is ``demo/report.html`` in the results folder unless ``output`` is another file.
    """
    from scalebench.analysis.study import analyse
    from scalebench.reporting import check_page, conclusions, picture, write
    from scalebench.running.dials import count_dial

    output = output or results / "demo" / "report.html"
    check_page(output)
    code = run_study("demo", [], results, RunOptions(conclusions=False), as_json=False)
    if code == INTERRUPTED:
        return code
    study = analyse(store.read_results(results / "demo"), "demo", count_dial)
    say("", *conclusions(study), "")
    say(f"report: {write([study], output)}", f"picture: {picture(study, output.with_name('loss.png'))}")
    return code
