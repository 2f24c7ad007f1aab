"""Serving: requests per second by size, waiting by load, goodput."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from scalebench.analysis.serving import ENOUGH, LOADS, Served, capacity_trends, objectives, served, spread
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trials import numeric
from scalebench.reporting.figures.serving import CAPACITIES, FIRST, GOOD, LATENCY, TOKEN, WAITING, name_of, per_s
from scalebench.reporting.outcomes import Outcome, law_text
from scalebench.reporting.quantities import bounded, quantity
from scalebench.reporting.sections.common import DRAWN_WITH, RESOURCES, Column, StudySection, workload_of

UNSTEADY = 1.2  # ratio between measurements of one capacity from which it is said
MEANINGS = {"first_token_within_s": "their first token within", "token_within_s": "each further one within"}


def sentences(study: StudyAnalysis) -> Iterator[str]:
    """Yield what the smallest and the largest model answer, up to which load the objectives hold, what piled up."""
    models = [model for model in served(study) if model.capacity]
    if not models:
        shared = "every trial shared the machine" if served(study) else "no trial measured it"
        yield f"How many requests are answered per second is not known: {shared}."
        return
    ends = [models[0]] if len(models) == 1 else [models[0], models[-1]]
    texts = [_capacity(model) for model in ends]
    yield f"With a full batch {' and '.join(texts)}."
    if wanted := objectives(study.trials):
        met = " and ".join(f"{MEANINGS[name]} {quantity(value, 's')}" for name, value in wanted.items())
        yield from (_reach(model, met) for model in reversed(ends) if model.reach)
    if (ratio := spread(study)) > UNSTEADY:
        factor = f"a factor of {ratio:.3g}"
        yield f"Capacities of one model differ by up to {factor} between trials: the machine was not always as fast."


def _capacity(model: Served) -> str:
    """Return how many requests a model answers: "a model of 997 k parameters answers 84 requests/s (80 to 88)"."""
    assert model.capacity is not None
    text, interval = bounded(*model.capacity)
    settings = f" ({model.label})" if model.label else ""
    return f"a model of {quantity(model.size)} parameters{settings} answers {text} requests/s ({interval})"


def _reach(model: Served, wanted: str) -> str:
    """Return up to which load enough requests of a model met the objectives."""
    assert model.reach is not None
    met, missed, share = model.reach
    name, enough = f"{name_of(model)} parameters", f"{100 * ENOUGH:g} %"
    had = f"had {wanted}"
    at = f"{100 * (share or 0):.3g} % {had if met is None else ''}".strip()
    if met is None:
        return f"With {name}, {at} at the lowest load, {per_s(missed)}; no load tried reached {enough}."
    beyond = f"at {per_s(missed)}, the next load, {at}" if missed else "no higher load was tried"
    return f"With {name}, {enough} of the requests {had} up to {per_s(met)} ({beyond})."


def columns(study: StudyAnalysis) -> Sequence[Column]:
    """Return the columns of the table of trials."""
    own = [
        Column("capacity per s", "capacity_requests_per_s"),
        Column("offered per s", "offered_requests_per_s"),
        Column("answered per s", "answered_requests_per_s"),
        Column("first token", f"{FIRST}_median_s", "s"),
        Column("p99", f"{FIRST}_p99_s", "s"),
        Column("per further token", f"{TOKEN}_median_s", "s"),
        Column("whole request", f"{LATENCY}_median_s", "s"),
        Column("within objectives", "within_objectives"),
        Column("batch", "batch_mean"),
        Column("weights", "weight_bytes", "B"),
        Column("cache", "kv_cache_bytes", "B"),
    ]
    given = [Column(name.replace("_", " "), name) for name in LOADS if numeric(study.trials, name).nunique() > 1]
    return [*(column for column in given if column.name not in study.varied), *own, *RESOURCES]


def outcome(study: StudyAnalysis) -> Outcome:
    """Return what was measured, with the law of the time that a request costs."""
    trends = capacity_trends(study) if served(study) else {}
    laws = [f"{label}: {law_text(trend)}".removeprefix(": ") for label, trend in trends.items()]
    text = "none fitted" if not laws else "; ".join(laws) if len(laws) <= 3 else f"{len(laws)} laws, in its section"
    return Outcome("requests per second, waiting; time per request at capacity", text)


METHODS = (
    "Requests arrive in this process at a model with continuous batching: one joins the batch as soon as there is room "
    "for it, and its prompt is read before the next token of the others. Networks and HTTP are not part of it.",
    "Times begin with the arrival, so that waiting counts. The first requests do not count: they find an idle model. "
    "The time per further token leaves the first one out. Each trial measures the capacity before its load, by users "
    "who keep the batch full; the interval is over trials.",
    "Requests pile up where both their number in flight and the time to the first token grow over ten blocks of "
    "consecutive requests (Kendall's test, 1 %).",
    DRAWN_WITH,
)
SECTION = StudySection(
    shows=lambda study: workload_of(study) == "serving",
    sentences=sentences,
    figures=lambda _: (WAITING, CAPACITIES, GOOD),
    columns=columns,
    methods=METHODS,
    outcome=outcome,
)
