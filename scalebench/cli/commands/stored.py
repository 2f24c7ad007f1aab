"""The commands `status`, `report` and `export`: reading a results folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from scalebench import store
from scalebench.cli.commands.watch import running_trials
from scalebench.cli.counted import counted
from scalebench.cli.output import one_line, print_json, quantity, say, say_exactly, table, trials, warn
from scalebench.comparison.killed import comparisons_in
from scalebench.errors import number_of
from scalebench.running.claims import Observer
from scalebench.running.engines.slurm_queue import waiting
from scalebench.store.comparisons import Comparisons, latest, latest_unmeasured, went_wrong

if TYPE_CHECKING:
    import pandas as pd

    from scalebench.analysis.chain import Link

MOST_ALIKE = 10  # failures of one kind that are all listed
FIRST_IDS = 3


def show_status(results: Path, *, as_json: bool) -> int:
    """Print the status of each study; return exit code 1 if a trial is missing or did not end ok."""
    stored = store.read_results(results)
    from scalebench.analysis.chain import chain_of  # with pandas, which an error about the folder does not need

    planned = store.of_plans(stored).frame
    folders = {folder.name: folder for folder in store.study_dirs(results)}
    counts = {name: _study_counts(stored, planned, name, folders.get(name)) for name in stored.studies}
    queued = {name: dict(states) for name, folder in folders.items() if (states := waiting(folder))}
    compared = comparisons_in(results)

    chains = {name: chain_of(name, planned) for name in stored.studies}
    failed = planned[planned["status"] != "ok"]
    failed = failed[["study", "trial_id", "status", "stop_step", "error_class", "error_message"]]
    damaged = [*stored.damaged, *compared.damaged]
    if as_json:
        unfinished = {name: ids for name in stored.studies if (ids := _unfinished(stored, name))}
        notes = {
            "comparisons_not_measured": [asdict(run) for run in latest_unmeasured(compared)],
            "incomplete": stored.incomplete,
            "copied": stored.copied,
            "unfinished_of_earlier_plans": unfinished,
            "queued": queued,
        }
        linked = {name: [asdict(link) for link in chain] for name, chain in chains.items() if len(chain) > 1}
        document = {
            "studies": counts,
            "comparisons": _counts(compared),
            "not_ok": failed.to_dict("records"),
            "damaged": damaged,
        }
        print_json("status", document | {"chains": linked} | notes)
    else:
        names = [*store.STATUSES, "running", "missing"]
        used = [name for name in names if any(count.get(name) for count in counts.values())]
        rows = [(study, *(str(count.get(name, 0)) for name in used)) for study, count in counts.items()]
        if rows:
            table(str(results), ("study", *used), rows)
        reasons = (
            f"{row.study!s}/{row.trial_id!s} {row.status!s}: {one_line(row.error_message or row.error_class)}"
            for row in failed.itertuples(index=False)
        )
        say(*counted(reasons, MOST_ALIKE))
        say(*(line for name in stored.studies for line in _chain_lines(name, chains[name])))
        say(*(f"{name} in Slurm's queue: {_counted(states)}" for name, states in queued.items()))
        say(*_comparison_lines(compared))
        say(*(f"damaged, counts as missing: {one_line(line)}" for line in counted(damaged)))
        say(*stored.incomplete, *stored.copied, *_notes(stored, planned))
    complete = all(set(count) <= {"ok"} for count in counts.values()) and went_wrong(latest(compared.frame)).empty
    return 0 if complete and not damaged else 1


def _chain_lines(name: str, chain: Sequence[Link]) -> list[str]:
    """Return a line on the trials that a study's own started from, where they are and what the chain cost."""
    from scalebench.analysis.chain import cost_of, is_upper_bound

    if len(chain) < 2:
        return []
    links = " → ".join(f"{link.study} ({trials(link.trials)}, {quantity(link.flops, 'FLOP')})" for link in chain)
    place = chain[-2].place
    where = (
        f"; its parents are in {place}{'' if Path(place).exists() else ', which is no longer there'}" if place else ""
    )
    total = ("at most " if is_upper_bound(chain) else "") + quantity(cost_of(chain), "FLOP")
    return [f"{name} started from: {links}; {total} in all{where}"]


def _unfinished(stored: store.Results, name: str) -> list[str]:
    """Return the trials that only earlier plans of a study had and that have no result."""
    return [trial_id for trial_id in store.earlier_ids(stored.studies[name]) if trial_id not in stored.recorded[name]]


def _notes(stored: store.Results, planned: pd.DataFrame) -> list[str]:
    """Return lines on what is in the folder and not in the table: other settings, earlier plans, no checksum."""
    notes = [store.left_out_line(len(stored.frame) - len(planned))]
    for name in stored.studies:
        if ids := _unfinished(stored, name):
            listed = " ".join(ids[:FIRST_IDS]) + (" …" if ids[FIRST_IDS:] else "")
            count = trials(len(ids))
            notes.append(
                f"{name}: {count} of an earlier plan without a result: {listed} (`scalebench drop` forgets them)"
            )
    unchecked = int((~planned["checked"].astype(bool)).sum()) if "checked" in planned else 0
    if unchecked:
        notes.append(f"records without a checksum, of an earlier version, read unchecked: {unchecked:,}")
    return [note for note in notes if note]


def drop_trials(study_dir: Path, names: Sequence[str]) -> int:
    """Forget planned trials without a result; return the exit code. Raises ``StoreError``."""
    if not (study_dir / "study.json").exists():
        raise store.StoreError(f"{study_dir}: no study.json here; name the folder of a study, as in results/STUDY")
    finished = set(store.read_results(study_dir).frame["trial_id"])
    dropped = store.drop(study_dir, names, finished)
    say(f"{study_dir}: forgot {trials(len(dropped))}: {' '.join(dropped)}")
    return 0


def _counted(states: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in states.items())


def _counts(compared: Comparisons) -> dict[str, dict[str, int]]:
    """Count each compared operation's newest rows by status."""
    return {
        str(name): {str(status): int(count) for status, count in part["status"].value_counts().items()}
        for name, part in latest(compared.frame).groupby("operation")
    }


def _comparison_lines(compared: Comparisons) -> list[str]:
    lines = [
        f"comparison {name}: " + ", ".join(f"{count} {status}" for status, count in counts.items())
        for name, counts in _counts(compared).items()
    ]
    early = latest(compared.frame).dropna(subset="run_ended").drop_duplicates("run")
    lines += [f"{row.operation!s}/{row.run!s} ended early: {row.run_ended!s}" for row in early.itertuples()]
    lines += map(str, latest_unmeasured(compared))
    for row in went_wrong(latest(compared.frame)).itertuples():
        why = row.error_message if row.status != "ok" else f"wrong: {row.error_note!s}"
        lines.append(f"{row.operation!s}/{row.case!s} {row.provider!s} {row.status!s}: {why!s}")
    return lines


def _study_counts(stored: store.Results, planned: pd.DataFrame, name: str, folder: Path | None) -> dict[str, int]:
    """Count a study's planned trials by status; those that are run again now count by the result that they have.

    Trials of earlier plans that have no result count as missing, too.
    """
    counts = Counter(str(status) for status in planned.loc[planned["study"] == name, "status"])
    ids = {*store.planned_ids(stored.studies[name]), *_unfinished(stored, name)}
    without = tuple(ids - {*stored.recorded[name]})
    running = len(running_trials(folder, Observer(folder), without)) if folder is not None else 0
    more = {"running": running, "missing": len(without) - running}
    return dict(counts) | {status: count for status, count in more.items() if count}


def write_report(results: Sequence[Path], output: Path, *, pictures: bool) -> int:
    """Write the page, and with ``pictures`` a PNG named after each study beside it."""
    from scalebench.analysis.study import analyse_all, damaged_elsewhere
    from scalebench.reporting import check_page, picture, write
    from scalebench.running.dials import count_dial

    check_page(output)
    stored = store.read_results(*results)
    studies = analyse_all(stored, count_dial)
    say(str(write(studies, output, damaged_elsewhere(stored), comparisons_in(*results))))
    for study in studies if pictures else ():
        say(str(picture(study, output.with_name(f"{study.name}.png"))))
    return 0


def _to_export(results: Path) -> store.Results:
    """Read the trials of the studies as they are now; what is damaged or of an earlier plan is reported on stderr."""
    stored = store.read_results(results)
    planned = store.of_plans(stored)
    for line in counted(stored.damaged):
        warn(f"damaged, left out: {line}")
    if line := store.left_out_line(len(stored.frame) - len(planned.frame)):
        warn(line)
    return planned


def export_to(results: Path, tracker: str, folder: Path, *, as_json: bool) -> int:
    """Write the trials as runs of an experiment tracker; what is left out is reported on stderr."""
    from scalebench.store.trackers import export_runs

    count, command = export_runs(_to_export(results), tracker, folder)
    if as_json:
        written = {"path": str(folder), "format": tracker, "content": "runs", "rows": count, "columns": None}
        print_json("export", {"written": [written], "next_command": command})
        return 0
    say(f"{folder}: {trials(count)}")
    say_exactly(f"look at them: {command}" if tracker != "wandb-offline" else f"upload them: {command}")
    return 0


def export_table(results: Path, output: Path, *, as_json: bool) -> int:
    """Write the table of all trials; what is left out is reported on stderr.

    Rows of comparisons have other columns: they get a second file beside it, or the file itself if there are no trials.
    """
    stored, compared = _to_export(results).frame, comparisons_in(results).frame
    tables = {"trials": stored} if len(stored) or compared.empty else {}
    tables |= {"comparisons": compared} if len(compared) else {}
    written: list[dict[str, str | int]] = []
    for content, frame in tables.items():
        path = output.with_name(f"{output.stem}-comparisons{output.suffix}") if written else output
        store.write_table(frame, path)
        size = {"rows": len(frame), "columns": len(frame.columns)}
        written.append({"path": str(path), "format": path.suffix.removeprefix("."), "content": content, **size})
        if not as_json:
            count = trials(len(frame)) if content == "trials" else f"{number_of(len(frame), 'row')} of comparisons"
            say(f"{path}: {count}")
    if as_json:
        print_json("export", {"written": written, "next_command": None})
    return 0
