"""The command `diff`: two results folders, configuration by configuration, with verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scalebench import store
from scalebench.analysis.difference import WORSE, Difference, Effect, difference
from scalebench.cli.counted import counted
from scalebench.cli.output import print_json, quantity, say, say_exactly, table, warn
from scalebench.errors import InputError, number_of
from scalebench.points.table import select_rows
from scalebench.reporting.quantities import significant

SHOWN = 20  # effects, of those with a verdict first
HEADER = ("configuration", "quantity", "old", "new", "change (95 %)", "verdict")


def run_diff(
    old: Path, new: Path, where: str | None, margin: float, *, other_machine: bool, markdown: bool, as_json: bool
) -> int:
    """Print what changed from OLD to NEW; exit code 1 if something became worse."""
    if not 0 < margin < 1:
        raise InputError([f"--margin {margin:g}: must be greater than 0 and less than 1, such as 0.01"])
    if markdown and as_json:
        raise InputError(["--markdown and --json: the output has one format; give one"])
    frames = []
    for path in (old, new):
        results = store.of_plans(store.read_results(path))
        warn(*(f"damaged, left out: {line}" for line in counted(results.damaged)))
        frames.append(select_rows(path, results.frame, where))
    try:
        changes = difference(frames[0], frames[1], margin, other_machine=other_machine)
    except InputError as error:
        raise InputError([f"{old} and {new}: {line}" for line in error.lines]) from error
    if as_json:
        print_json("diff", changes.to_dict())
    elif markdown:
        say_exactly(*_markdown(changes))
    else:
        _print(changes)
    return 1 if changes.regressions else 0


def _print(changes: Difference) -> None:
    say(_sentence(changes), "")
    effects = _worst_first(changes.effects)
    lines: list[tuple[str, ...]] = []
    for name in dict.fromkeys(effect.quantity for effect in effects):  # a heading for each: one more column is too wide
        same = [_cells(effect) for effect in effects if effect.quantity == name]
        lines += [(name,), *((label, *cells) for label, _, *cells in same)]
    table("", (HEADER[0], *HEADER[2:]), lines)
    say("", *_notes(changes, len(effects)))


def _markdown(changes: Difference) -> list[str]:
    """Return the difference as a Markdown table, for a pull request."""
    effects = _worst_first(changes.effects)
    rows = ["| " + " | ".join(cells) + " |" for cells in (HEADER, ["---"] * len(HEADER), *map(_cells, effects))]
    return [f"**{_sentence(changes)}**", "", *rows, "", *_notes(changes, len(effects))]


def _worst_first(effects: Sequence[Effect]) -> list[Effect]:
    """Return the effects to show: on all configurations, then the worst ones, then the others as they come."""
    order = sorted(effects, key=lambda effect: (effect.label != "all", effect.verdict != WORSE))
    return order[:SHOWN]


def _sentence(changes: Difference) -> str:
    """Say what became worse or better, or that nothing is beyond the noise."""
    overall = [effect for effect in changes.effects if effect.label == "all"] or list(changes.effects)
    parts = [f"{effect.quantity} {_change(effect)}: {effect.verdict}" for effect in overall]
    worse = len(changes.regressions)
    head = f"{worse} of {len(changes.effects)} comparisons became worse" if worse else "nothing became worse"
    return f"{head}; {'; '.join(parts)}"


def _change(effect: Effect) -> str:
    text = _relative(effect.ratio, effect)
    return text if text.startswith("×") else f"{text} %"


def _relative(ratio: float, effect: Effect) -> str:
    """Write a ratio as a change in percent, or as a factor where the whole change is a factor of two or more."""
    if not 0.5 < effect.ratio < 2:
        return f"×{significant(ratio)}"
    return "0" if ratio == 1 else f"{100 * (ratio - 1):+.2g}".replace("-", "−")


def _cells(effect: Effect) -> tuple[str, ...]:
    change = _change(effect)
    if effect.low is not None and effect.high is not None:
        ends = (_relative(end, effect) for end in (effect.low, effect.high))
        change = f"{change} ({' to '.join(ends)})"
    values = (quantity(value, effect.unit) for value in (effect.old, effect.new))
    return (effect.label, effect.quantity, *values, change, effect.verdict)


def _notes(changes: Difference, effects_shown: int) -> list[str]:
    """Return lines on the noise, on what was left out, and on how the verdicts were reached."""
    lines = []
    for name, spread in changes.noise.items():
        if spread is None:
            lines.append(f"{name}: no configuration has repeats, so the noise is unknown; run several seeds")
            continue
        lines.append(f"{name}: one run varies by {100 * spread:.2g} % between repeats")
        if any(effect.verdict == "within noise" and effect.quantity == name for effect in changes.effects):
            lines[-1] += "; 'within noise' is a change that other seeds alone can make"
    lines += [f"{name}: not compared, as other programs ran during the trials of a folder" for name in changes.shared]
    lines += changes.notes
    if len(changes.effects) > effects_shown:
        lines.append(f"{len(changes.effects) - effects_shown} more comparisons; --json has all")
    if changes.only_old or changes.only_new:
        lines.append(f"not in both: {number_of(changes.only_old, 'configuration')} of OLD, {changes.only_new} of NEW")
    lines.append("intervals: Student's t, each at 95 %; verdicts after Holm's correction for all comparisons together")
    return lines
