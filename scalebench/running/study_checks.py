"""Errors of a study that can be checked before its trials are planned: unknown names, and impossible parents."""

from __future__ import annotations

from collections.abc import Iterator

from scalebench.data import DataError, open_source
from scalebench.errors import InputError, unknown
from scalebench.families import family_error
from scalebench.laws import LAWS
from scalebench.points.where import parse
from scalebench.study import Study
from scalebench.workloads import WORKLOADS


def name_lines(study: Study) -> Iterator[str]:
    """Yield a line for every unknown name."""
    axes = study.axes()
    errors = (family_error(name) for name in axes.get("model.family", ()))
    yield from (f"model.family: {error}" for error in errors if error)
    yield from (f"fit.law: {unknown(name, LAWS)}" for name in (study.fit.law,) if name not in LAWS)
    for source in axes.get("data.source", ()):
        try:
            open_source(source)
        except DataError as error:
            yield f"data.source: {error}"
    fields = sorted({key.partition(".")[2] for key in axes})
    yield from (f"fit.best_over: {unknown(axis, fields)}" for axis in study.fit.best_over if axis not in fields)


def parent_lines(study: Study) -> Iterator[str]:
    """Yield a line for every error in [from], and for every field that cannot be set beside it."""
    source = study.parents
    if source is None:
        return
    if study.start is not None and not WORKLOADS[study.workload].TAKES_WEIGHTS:
        able = ", ".join(name for name, workload in WORKLOADS.items() if workload.TAKES_WEIGHTS)
        teachers = study.own_parents
        teacher = f": a trial has one parent, and here it is that of {teachers.KEY}" if teachers else ""
        yield f"from: the workload {study.workload!r} starts from no weights{teacher}; those that do: {able}"
    if source.study == study.name:
        own = f"a study cannot start from its own trials; give this one another name than {study.name!r}"
        yield f"{source.KEY}.study: {own}"
    for key in ("model.params", "model.size"):
        if study.start is not None and key in study.axes():
            yield f"{key}: with [from] a model has the size of its parent; leave it out"
    try:
        if source.where is not None:
            parse(source.where)
    except InputError as error:
        yield f"{source.KEY}.where: {error}"
