"""Write the table of compiled configurations in Markdown."""

from __future__ import annotations

from typing import Any

HEAD = (
    "| kernel | configuration | arch | regs | spills, stack | shared | matrix instructions | load B | verdict |",
    "|---|---|---|---:|---:|---:|---|---:|---|",
)


def verdict(row: dict[str, Any]) -> str:
    """Return "ok", "ok" with what is excused, or every failure."""
    if row["failures"]:
        return "**" + "; ".join(row["failures"]).replace("|", "/") + "**"
    excused = []
    if row["spill_store_bytes"] + row["spill_load_bytes"] + row["stack_bytes"]:
        excused.append(f"spills: {row['spills_allowed']}")
    if row["overlap_excused"]:
        excused.append(f"{row['overlap']:.0%} of the exponentials beside a product: {row['overlap_excused']}")
    return f"ok ({'; '.join(excused)})" if excused else "ok"


def table(report: dict[str, Any]) -> str:
    """Return the table in Markdown."""
    versions = ", ".join(f"{version} for {arch}" for arch, version in report["ptxas_versions"].items())
    failed = sum(bool(row["failures"]) for row in report["rows"])
    lines = [
        "# Shipped configurations, compiled ahead of time",
        "",
        f"Written by `make kernels`: triton {report['triton_version']}, ptxas {versions}; {len(report['rows'])} "
        f"configurations, {failed} of which miss a requirement; sources `{report['sources_sha256'][:16]}`.",
        "Registers, spills (bytes stored + loaded, as ptxas reports) and stack (bytes, as cuobjdump reports) are per "
        "thread, shared memory per block. Nothing here was run on a GPU: these figures show what would be launched, "
        "not whether it is correct or fast.",
        "",
        *HEAD,
        *(_line(row) for row in report["rows"]),
    ]
    if other := report.get("other_assembler"):
        failed = sum(bool(row["failures"]) for row in other["rows"])
        lines += ["", f"## The Gluon kernels with ptxas {other['ptxas_version']}", ""]
        lines += [f"{len(other['rows'])} configurations, {failed} of which miss a requirement.", "", *HEAD]
        lines += [_line(row) for row in other["rows"]]
    return "\n".join(lines) + "\n"


def _line(row: dict[str, Any]) -> str:
    cells = [row["kernel"], row["label"], f"sm_{row['arch']}"]
    if "registers" in row:
        matrix = ", ".join(f"{count} {name}" for name, count in row["matrix"].items())
        cells += [row["registers"], f"{row['spill_store_bytes']} + {row['spill_load_bytes']}, {row['stack_bytes']}"]
        cells += [row["shared_bytes"], matrix or "–", row["widest_load_bytes"]]
    else:
        cells += ["–"] * 5
    return "| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + f" | {verdict(row)} |"
