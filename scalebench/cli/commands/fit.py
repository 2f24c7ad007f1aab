"""The command `fit`: a law on points from any trainer, as a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalebench.analysis.fit_warnings import file_warnings
from scalebench.cli.commands.choice import choose_law, print_choice
from scalebench.cli.output import print_json, quantity, say, say_written, table, warn
from scalebench.errors import InputError
from scalebench.laws import Refits
from scalebench.laws.intervals.determined import beside, switched_off
from scalebench.laws.posing import WIDTHS
from scalebench.points.files import holds_trials, open_table
from scalebench.points.fit_file import fit_points, to_document, unused_columns
from scalebench.points.numerals import number
from scalebench.points.roles import RUN
from scalebench.points.table import CONFIG
from scalebench.points.table_warnings import run_column
from scalebench.reporting.figures.points import fit_figure
from scalebench.reporting.pictures import check_plot, draw_plot
from scalebench.reporting.quantities import bounded, percent
from scalebench.store import StoreError, check_output, json_safe, write_output

if TYPE_CHECKING:
    from scalebench.laws import Backtest, Fit

DEFAULT_DELTA = 1e-3
SLOW = 2e7  # points times refits: about 20 s of one core


def assigned(option: str, texts: Sequence[str], *, text: bool = False) -> dict[str, Any]:
    """Read ``NAME=VALUE`` options, the values as numbers unless ``text``. Raises ``InputError``."""
    values: dict[str, Any] = {}
    named: set[str] = set()
    for assignment in texts:
        name, equals, value = (part.strip() for part in assignment.partition("="))
        try:
            values[name] = value if text else number(value)
        except ValueError:
            equals = ""
        if equals and name in named:
            raise InputError([f"{option} {assignment}: {name} is given twice"])
        named.add(name)
        if not (name and equals and value):
            raise InputError([f"{option} {assignment}: expected NAME={'COLUMN' if text else 'NUMBER'}"])
    return values


def bootstrap_refits(number: int, method: str) -> Refits:
    """Return how the refits for intervals are drawn. Raises ``InputError``."""
    if number < 2:
        raise InputError([f"--bootstrap {number}: intervals need at least 2 refits, better 1000"])
    return Refits(method, number)


def run_fit(
    points: Path,
    law: str,
    columns: Mapping[str, str],
    where: str | None,
    options: Mapping[str, Any],
    refits: Refits,
    *,
    last: bool,
    backtest: bool,
    output: Path | None,
    plot: Path | None,
    as_json: bool,
) -> int:
    """Fit a law, print it as a table or as JSON; write the JSON and draw the law if requested; return the exit code."""
    if options["delta"] != DEFAULT_DELTA and options["loss"] in WIDTHS:
        raise InputError([f"--delta {options['delta']:g}: --loss {options['loss']} has no delta; leave it out"])
    if output is not None:
        with _named(output):
            check_output(output)
    check_plot(plot)
    columns, last_of = by_configuration(points, columns, last=last)
    law, choice = choose_law(points, law, columns, where, options, last_of)
    fitted, table = fit_points(points, law, columns, where, options, refits, last_of)
    warn(*unused_columns(columns, fitted.law, table.columns))
    warn(*(f"{points}: {line}" for line in file_warnings(points, fitted, table, where)))
    if fitted.n_points * refits.n > SLOW:
        warn(f"{points}: {refits.n:,} refits of {fitted.n_points:,} points take minutes; --bootstrap 100 is faster")
    tested = fitted.backtest("rolling") if backtest else None
    document = {} if choice is None else {"choice": json_safe(choice.to_dict())}
    document |= to_document(fitted, table, tested)
    if backtest:
        document["backtest_by_distance"] = fitted.backtest("beyond").by_distance()
    if output is not None:
        with _named(output):
            write_output(output, json.dumps(document, indent=1, allow_nan=False).encode() + b"\n")
    draw_plot(lambda marks: fit_figure(marks, fitted), plot)
    if as_json:
        print_json("fit", document)
        return 0
    if choice is not None:
        print_choice(choice)
    print_fit(fitted, document)
    if tested is not None:
        print_backtest(tested)
        print_distances(document["backtest_by_distance"])
    say_written(output, plot)
    return 0


def by_configuration(
    path: Path, columns: Mapping[str, str], *, last: bool = False
) -> tuple[dict[str, str], str | None]:
    """Return the columns, and the run column if only the last row of each run counts.

    Without ``last``, the rows of a run are one configuration. Raises ``InputError`` without a run column.
    """
    others = {role: name for role, name in columns.items() if role != RUN}
    run = columns.get(RUN)
    if run is not None and CONFIG in others and not last:
        raise InputError(["--config-column and --run-column: both say which rows are one configuration; give one"])
    if last:
        run = run or (None if holds_trials(path) else run_column(open_table(path).names))
        if run is None:
            raise InputError([f"{path}: --last needs the column that names the run of each row: --run-column"])
        return others, run
    return others | ({} if run is None else {CONFIG: run}), None


@contextmanager
def _named(output: Path) -> Iterator[None]:
    """Raise ``StoreError`` with the file that cannot be written."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{output}: cannot be written ({error.strerror})") from error


def print_fit(fit: Fit, document: Mapping[str, Any]) -> None:
    """Print parameters with their intervals, and diagnostics of the fit."""
    rows: list[tuple[str, ...]] = []
    beside_off = {name for off in switched_off(fit) for name in beside(fit, off)}
    for name, value in fit.parameters.items():
        text, interval = bounded(value, *ends(document["intervals"][name]))
        if name in fit.undetermined:
            rows.append((name, "not determined", "" if name in beside_off else interval, ""))
        else:
            rows.append((name, text, interval, _mark(name, document)))
    say(f"{fit.law.name}: {fit.law.formula}", "")
    table("", ("parameter", "value", "95 % interval", ""), rows, last_is_text=True)
    say(*(f"{name} is not determined: {reason}" for name, reason in fit.undetermined.items() if name not in beside_off))
    agreeing = f"{fit.starts_agreeing} of {fit.starts} starts agree"
    reason = f" ({document['interval_reason']})" if document["interval_reason"] else ""
    bounds = ", ".join(_at_bound(name, fit) for name in fit.bounds_hit) or "none"
    say(
        "",
        f"points      {fit.n_points:,} in {fit.n_configurations:,} configurations",
        f"objective   {fit.objective:.9g}, the sum of {loss_name(document)}; {agreeing}",
        f"status      {_status(fit)}, condition number {fit.condition_number:.3g}{_why_unsound(fit)}",
        f"bounds      {bounds}",
        f"intervals   {document['interval_method']}{reason}",
    )


def _status(fit: Fit) -> str:
    if fit.status == "converged" and fit.undetermined:
        return f"{', '.join(fit.undetermined)} not determined (the optimizer converged)"
    return fit.status


def _why_unsound(fit: Fit) -> str:
    if off := " and ".join(switched_off(fit)):
        return f": {off} = 0, the points do not fall as the law does, so the other parameters of that term mean nothing"
    if fit.status == "degenerate":
        return ": the points do not separate its parameters; only predictions within their range are meaningful"
    return "; the fit did not settle: these are the values of its best start" if fit.status == "max_iterations" else ""


def _at_bound(name: str, fit: Fit) -> str:
    if name in fit.unresolved:
        return f"1 / {name} at its bound 0: the points do not resolve it"
    if name == "mix":  # of laws whose A and B are made of several coordinates
        return "the ratio of its two terms at its bound: the points constrain only one of them"
    return f"{name} at its bound"


def _mark(name: str, document: Mapping[str, Any]) -> str:
    if name in document["fixed"]:
        return "fixed"
    one_sided = ": one-sided" if document["intervals"][name] else ""
    return f"at its bound{one_sided}" if name in document["bounds_hit"] else ""


def ends(interval: Sequence[float | None] | None) -> tuple[float, float]:
    """Return the ends of an interval of a fit's JSON: NaN without an interval, infinite where it has no upper end."""
    low, high = interval or (None, None)
    if low is None:
        return float("nan"), float("nan")
    return low, float("inf") if high is None else high


def loss_name(document: Mapping[str, Any]) -> str:
    """Return the name of the loss and its residuals."""
    corner = f" (δ = {document['delta']:g})" if document["loss"] == "huber" else ""
    space = "log residuals" if document["space"] == "log" else "residuals"
    return f"{document['loss']}{corner} of {space}"


def print_backtest(tested: Backtest) -> None:
    """Print each larger size as predicted from the smaller ones."""
    say("")
    if not tested.forecasts:
        say("backtest: refused, too few smaller sizes to fit the law to")
        return
    rows_of_text = [
        (
            quantity(row.size),
            f"{row.measured:.5g}",
            f"{row.predicted:.5g}",
            percent(row.error_percent / 100),
            {None: "no interval", True: "yes", False: "no"}[row.inside_interval],
            percent(row.naive_error_percent / 100),
        )
        for row in tested.forecasts
    ]
    header = ("held-out size", "measured", "predicted", "error", "in its 95 % interval", "next-smaller size's error")
    say("rolling backtest: each size predicted from all smaller ones")
    table("", header, rows_of_text)


def print_distances(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the hold-out error by distance beyond the fitted sizes."""
    cells = [
        (
            f"×{row['distance_above']:g} to ×{row['distance_up_to']:g}"
            if row["distance_up_to"]
            else f"above ×{row['distance_above']:g}",
            f"{row['n']}",
            percent(row["median_absolute_error_percent"] / 100, sign=False),
            percent(row["median_error_percent"] / 100),
            "no interval" if row["coverage"] is None else percent(row["coverage"], sign=False),
        )
        for row in rows
    ]
    if cells:
        say(
            "",
            "hold-out error by distance: every configuration beyond each of several cuts, predicted from those below",
        )
        table("", ("distance", "forecasts", "median error", "median bias", "inside 95 % interval"), cells)
