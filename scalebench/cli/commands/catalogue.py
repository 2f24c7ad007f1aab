"""Every name a study can use, with what it stands for."""

from __future__ import annotations

from typing import Any

from scalebench.cli.output import print_json, say, table


def catalogue() -> dict[str, Any]:
    """Return every name a study can use, with what it stands for."""
    from scalebench.data import SOURCES, source_names
    from scalebench.families import FAMILIES, model_fields
    from scalebench.laws import LAWS
    from scalebench.optim.optimizers import OPTIMIZERS
    from scalebench.running.shipped import studies_dir
    from scalebench.study.file import read_toml
    from scalebench.workloads import WORKLOADS

    studies = {
        path.stem: read_toml(path).get("title", "")
        for path in sorted(studies_dir().glob("*.toml"), key=lambda path: path.stem)
    }
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


def show_catalogue(*, as_json: bool) -> int:
    """Print workloads, families, studies, laws, optimizers and data sources."""
    names = catalogue()
    if as_json:
        print_json("list", names)
        return 0
    say(*(f"workload {name}: {text}" for name, text in names["workloads"].items()), "")
    for name, family in names["families"].items():
        say(f"family {name}: {family['summary']}")
        say(
            f"    fields: {', '.join(family['fields'])}", f"    implementations: {', '.join(family['implementations'])}"
        )
        if family["sizes"]:
            say(f"    sizes: {', '.join(family['sizes'])}")
    for kind, key in (("study", "studies"), ("law", "laws"), ("optimizer", "optimizers"), ("source", "sources")):
        say("", *(f"{kind} {name}: {text}" for name, text in names[key].items()))
    return 0


def columns() -> list[dict[str, Any]]:
    """Return every column that a record can have, with unit, meaning and the workloads whose records have it."""
    from scalebench.workloads import WORKLOADS, columns_of

    rows: dict[tuple[str, str, str], list[str]] = {}
    for workload in WORKLOADS:
        for column in columns_of(workload):
            rows.setdefault((column.name, column.unit, column.meaning), []).append(workload)
    return [
        {"name": name, "unit": unit, "meaning": meaning, "workloads": workloads}
        for (name, unit, meaning), workloads in rows.items()
    ]


def show_columns(*, as_json: bool) -> int:
    """Print the columns of records; the fields of a family's [model] stand in a record besides."""
    rows = columns()
    if as_json:
        print_json("list", {"columns": rows})
        return 0
    header = ("column", "unit", "meaning", "workloads")
    cells = [(row["name"], row["unit"], row["meaning"], ", ".join(row["workloads"])) for row in rows]
    table("", header, cells, text_columns=4)
    say("plus one column per field of the model (`scalebench list` shows them by family)")
    return 0
