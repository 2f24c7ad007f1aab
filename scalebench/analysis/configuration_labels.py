"""Short labels of configurations: the size, then only those settings that tell configurations of one size apart."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

SIZES = ("params_non_embedding", "params", "params_active")  # the first that varies names a configuration
LONG = 8  # characters of a number that a label shortens

Key = tuple[str, ...]  # a configuration: the text of its value in each column


def labels_by_size(names: Sequence[str], keys: Sequence[Key]) -> dict[Key, str]:
    """Return a label of each different configuration, in order of size: "1,512 params, batch size 8".

    ``names`` are the columns of the keys. A setting that follows from the size, as a default learning rate does, is
    in no label: a column is added only while configurations share a label, the one that separates most of them first.
    """
    size = _size_column(names, keys)
    chosen = [] if size is None else [size]
    while len(_parts(keys, chosen)) < len(keys):
        candidates = [i for i in range(len(names)) if i not in chosen]
        chosen.append(max(candidates, key=lambda i: (len(_parts(keys, [*chosen, i])), "params" not in names[i])))
    short = {i: _short({key[i] for key in keys}) for i in chosen if i != size}
    labels = {}
    for key in sorted(keys, key=lambda key: [_ordered(key[i]) for i in chosen]):
        settings = [f"{names[i].replace('_', ' ')} {short[i][key[i]]}" for i in short]
        sized = [] if size is None else [f"{float(key[size]):,.0f} params"]
        labels[key] = ", ".join(sized + settings) or "the configuration"
    return labels


def _size_column(names: Sequence[str], keys: Sequence[Key]) -> int | None:
    """Return the column of the size: the first of ``SIZES`` that varies and is known for every configuration."""
    for i in (names.index(name) for name in SIZES if name in names):
        values = {key[i] for key in keys}
        if len(values) > 1 and all(_ordered(value)[0] == 0 for value in values):
            return i
    return None


def _parts(keys: Sequence[Key], columns: Sequence[int]) -> set[Key]:
    return {tuple(key[i] for i in columns) for key in keys}


def _ordered(value: str) -> tuple[int, float, str]:
    """Return a sort key: numbers by value, before text."""
    try:
        number = float(value)
    except ValueError:
        return (1, 0.0, value)
    return (0, number, "") if number == number else (1, 0.0, value)  # noqa: PLR0124 - NaN differs from itself


def _short(values: Collection[str]) -> Mapping[str, str]:
    """Return long numbers with four digits where these distinguish the values, by value; others unchanged."""
    try:
        short = {value: value if len(value) < LONG else f"{float(value):.4g}" for value in values}
    except ValueError:
        short = {}
    return short if len({*short.values()}) == len(values) else {value: value for value in values}
