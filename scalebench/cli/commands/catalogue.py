"""Every name that a study can use, with its meaning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scalebench.cli.output import print_json, say, table
from scalebench.errors import InputError, unknown

SINGULAR = {
    "workloads": "workload", "studies": "study", "laws": "law", "optimizers": "optimizer", "sources": "source",
}  # fmt: skip


def catalogue() -> dict[str, Any]:
    """Return every name that a study can use, with its meaning."""
    from scalebench.data import SOURCES, source_names
    from scalebench.families import FAMILIES, model_fields
    from scalebench.laws import LAWS
    from scalebench.optim.optimizers import OPTIMIZERS
    from scalebench.running.shipped import shipped_studies
    from scalebench.study.file import read_toml
    from scalebench.workloads import WORKLOADS

    studies = {name: read_toml(path).get("title", "") for name, path in shipped_studies().items()}
    return {
        "workloads": {name: f"{workload.SUMMARY} (table [{workload.TABLE}])" for name, workload in WORKLOADS.items()},
        "families": {
            name: {
                "summary": family.SUMMARY,
                "sizes": list(family.SIZES),
                "fields": model_fields(family),
                "implementations": list(family.IMPLEMENTATIONS),
            }
            for name, family in FAMILIES.items()
        },
        "studies": studies,
        "laws": {name: law.formula for name, law in LAWS.items()},
        "optimizers": {name: choice.summary for name, choice in OPTIMIZERS.items()},
        "sources": dict(zip(source_names(), (source.summary for source in SOURCES.values()), strict=True)),
    }


def show_catalogue(kind: str | None = None, *, as_json: bool) -> int:
    """Print workloads, families, studies, laws, optimizers and data sources, or only one ``kind`` of them."""
    names = catalogue()
    if kind is not None and kind not in names:
        raise InputError([f"list: {unknown(kind, names)}"])
    names = {key: value for key, value in names.items() if kind in (None, key)}
    if as_json:
        print_json("list", names)
        return 0
    for i, key in enumerate(names):
        say(*([""] if i else []))
        _show_families(names[key]) if key == "families" else say(
            *(f"{SINGULAR[key]} {name}: {text}" for name, text in names[key].items())
        )
    return 0


def _show_families(families: Mapping[str, Any]) -> None:
    for name, family in families.items():
        say(f"family {name}: {family['summary']}")
        say(
            f"    fields: {', '.join(family['fields'])}", f"    implementations: {', '.join(family['implementations'])}"
        )
        if family["sizes"]:
            say(f"    sizes: {', '.join(family['sizes'])}")


def columns() -> list[dict[str, Any]]:
    """Return every column of trials and comparisons, with unit, meaning and what has it: workloads, or "compare"."""
    from scalebench.store.comparison_columns import COMPARISON_COLUMNS
    from scalebench.workloads import WORKLOADS, columns_of

    rows: dict[tuple[str, str, str], list[str]] = {}
    declared = {name: columns_of(name) for name in WORKLOADS} | {"compare": COMPARISON_COLUMNS}
    for name, its_columns in declared.items():
        for column in its_columns:
            rows.setdefault((column.name, column.unit, column.meaning), []).append(name)
    return [
        {"name": name, "unit": unit, "meaning": meaning, "workloads": workloads}
        for (name, unit, meaning), workloads in rows.items()
    ]


def show_columns(kind: str | None = None, *, as_json: bool) -> int:
    """Print the columns of trials and comparisons; a family's [model] fields stand in a trial's record besides.

    Raises ``InputError`` for a ``kind`` of the catalogue, which columns are not.
    """
    if kind is not None:
        raise InputError([f"list: --columns lists columns, not {kind[:60]}; leave one of them out"])
    rows = columns()
    if as_json:
        print_json("list", {"columns": rows})
        return 0
    header = ("column", "unit", "meaning", "workloads")
    cells = [(row["name"], row["unit"], row["meaning"], ", ".join(row["workloads"])) for row in rows]
    table("", header, cells, text_columns=4)
    say("plus a column for each field of a model (`scalebench list` shows them by family) and each shape of a case")
    return 0
