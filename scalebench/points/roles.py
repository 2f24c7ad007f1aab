"""Roles of columns: which column of a file or results folder is params, tokens, flops or loss to a law."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scalebench.errors import InputError, unknown
from scalebench.laws import LAWS, Law
from scalebench.points.files import OF_RESULTS, holds_trials, is_results, open_table
from scalebench.points.table import CONFIG, read_columns

ALIASES = {"x": ("params",), "y": ("loss",), "params": ("x",), "loss": ("y",)}
LAWS_OF_ONE_INPUT = tuple(name for name, law in LAWS.items() if len(law.inputs) == 1)
# What `--law auto` chooses among: losses of size alone, or of size and data.
CHOICES = {1: ("power", "broken"), 2: ("chinchilla", "skaling", "kaplan", "overtraining")}
RUN = "run"  # the role of text that names a training run


def find_law(name: str) -> Law:
    """Return a law by name. Raises ``InputError``."""
    if name not in LAWS:
        raise InputError([f"--law: {unknown(name, LAWS)}"])
    return LAWS[name]


def named_laws(text: str, by_role: Mapping[str, str], names: Sequence[str]) -> tuple[str, ...]:
    """Return the laws of ``--law A,B,C``; of ``auto`` those of size and data where columns have data, else of size.

    Raises ``InputError`` for laws whose inputs differ.
    """
    has_data = bool({"tokens", "flops"} & {*by_role, *names}) or "tokens_seen" in names
    chosen = CHOICES[2 if has_data else 1] if text == "auto" else text.split(",")
    laws = tuple(dict.fromkeys(name.strip() for name in chosen if name.strip()))
    inputs = {find_law(name).inputs if len(find_law(name).inputs) > 1 else ("x",) for name in laws}
    if len(inputs) != 1:
        each = "; ".join(f"{name}: {', '.join(LAWS[name].inputs)}" for name in laws)
        raise InputError([f"--law {text}: laws are compared on the same inputs; these have {each or 'no names'}"])
    return laws


def column_options(law: Law) -> dict[str, str]:
    """Return role -> the option of the command that names its column."""
    own = {role: f"--{role}-column" for role in ("params", "tokens", "flops", "loss", "x", "y", CONFIG)}
    own |= {"tokens": "--tokens-column, or --flops-column for D = C / 6N"}
    options = {role: own.get(role, f"--column {role}=NAME") for role in (*law.inputs, "flops", CONFIG)}
    return options | {law.response: own.get(law.response, "--y-column")}


def column_names(path: Path) -> tuple[str, ...]:
    """Return the columns of a file; of a results folder those that laws read by default."""
    return tuple(OF_RESULTS.values()) if is_results(path) else open_table(path).names


def as_spelled(name: str, names: Sequence[str]) -> str:
    """Return the one of ``names`` that is a name but for upper and lower case, if there is just one; else the name."""
    alike = [other for other in names if other.lower() == name.lower()]
    return alike[0] if name not in names and len(alike) == 1 else name


def law_columns(
    law: Law, by_role: Mapping[str, str], *, of_results: bool, names: Sequence[str] = ("params",)
) -> dict[str, str]:
    """Return role -> column for a law, from those given by role and the defaults.

    A law of one input takes ``x`` and ``params``, ``y`` and ``loss`` for each other; any law takes ``y`` for its
    response. With ``flops``, a law of tokens reads FLOPs in the place of tokens that are not among the ``names`` of the
    file; with both, it does in the place of parameters that are not.
    """
    defaults = OF_RESULTS if of_results else {}
    columns = {}
    for role in (*law.inputs, law.response):
        aliases = ALIASES.get(role, ()) if len(law.inputs) == 1 else ()
        roles = [role, *aliases, *(("y",) if role == law.response else ())]
        chosen = next((name for name in roles if name in by_role), None)
        default = as_spelled(defaults.get(role, role), names)
        by_flops = role == ("params" if "tokens" in by_role else "tokens") and default not in names
        if chosen is None and by_flops and "flops" in by_role and "tokens" in law.inputs:
            columns["flops"] = by_role["flops"]
        else:
            columns[role] = by_role[chosen] if chosen else default
    return columns | ({CONFIG: by_role[CONFIG]} if CONFIG in by_role else {})


def read_roles(
    path: Path, roles: Sequence[str], optional: Sequence[str], by_role: Mapping[str, str], where: str | None
) -> dict[str, Any]:
    """Return columns by role, each (n,): all ``roles``, and of the ``optional`` those that are given or present.

    Here ``params`` is the total, of a results folder too. Raises ``InputError`` or ``StoreError``.
    """
    defaults = (
        {"params_non_embedding": OF_RESULTS["params"], **OF_RESULTS, "params": "params"} if holds_trials(path) else {}
    )
    present = open_table(path).names
    columns_by_role = {
        role: by_role.get(role) or as_spelled(defaults.get(role, role), present) for role in (*roles, *optional)
    }
    used = {role: name for role, name in columns_by_role.items() if role in (*roles, *by_role) or name in present}
    columns = {CONFIG if role == RUN else role: name for role, name in used.items()}  # the reader's one role of text
    options = {role: f"--{role.removeprefix('params_').replace('_', '-')}-column" for role in columns_by_role}
    values = read_columns(path, columns, where, options=options).values
    return {RUN if role == CONFIG else role: column for role, column in values.items()}
