"""Every name a study can use, with what it stands for."""

from __future__ import annotations

from typing import Any

from scalebench.cli.output import print_json, say


def catalogue() -> dict[str, Any]:
    """Return every name a study can use, with what it stands for."""
    from scalebench.data import SOURCES, source_names
    from scalebench.families import FAMILIES, model_fields
    from scalebench.laws import LAWS
    from scalebench.optim.optimizers import OPTIMIZERS
    from scalebench.running.planning import studies_dir
    from scalebench.study.file import read_toml

    studies = {path.stem: read_toml(path).get("title", "") for path in sorted(studies_dir().glob("*.toml"))}
    return {
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
    """Print the families, studies, laws, optimizers and data sources."""
    found = catalogue()
    if as_json:
        print_json(found)
        return 0
    for name, family in found["families"].items():
        say(f"family {name}: {family['summary']}")
        say(
            f"    fields: {', '.join(family['fields'])}", f"    implementations: {', '.join(family['implementations'])}"
        )
        if family["sizes"]:
            say(f"    sizes: {', '.join(family['sizes'])}")
    for kind, key in (("study", "studies"), ("law", "laws"), ("optimizer", "optimizers"), ("source", "sources")):
        say("", *(f"{kind} {name}: {text}" for name, text in found[key].items()))
    return 0
