"""Settings that vary within a sweep and that its law does not model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

REPLICATES = ("seed", "data_seed", "init_seed", "replicate", "repeat", "rep", "trial")  # these differ between repeats
SHOWN = 6  # values in a message


def unmodelled(
    settings: Mapping[str, ArrayLike], sweep: ArrayLike, optimised: Sequence[ArrayLike]
) -> dict[str, list[str]]:
    """Map each setting that varies within a sweep to its values there.

    `settings` are the other columns of a table, each [n], `sweep` [n] numbers the rows' sweeps and `optimised` are the
    swept columns. A setting whose values occur in several rows of a sweep, as those of a grid do, changes the loss
    without being in the law. Exempt are a column that is unique in each row (a result, the name of a run), one that
    follows a swept column one to one (a rate in another unit), and the names in `REPLICATES`.
    """
    numbered, swept = np.asarray(sweep), [_codes(column) for column in optimised]
    varied = {}
    for name, column in settings.items():
        if name.lower() in REPLICATES:
            continue
        values = np.asarray(column)
        for number in np.unique(numbered):
            rows = numbered == number
            if _is_setting(values[rows], [codes[rows] for codes in swept]):
                varied[name] = [str(value) for value in dict.fromkeys(values[rows].tolist())]
                break
    return varied


def _codes(column: ArrayLike) -> NDArray[Any]:
    return np.unique(np.asarray(column), return_inverse=True)[1].reshape(-1)


def _is_setting(values: NDArray[Any], swept: Sequence[NDArray[Any]]) -> bool:
    codes = _codes(values.astype(str))
    distinct = int(codes.max()) + 1
    if distinct in (1, len(codes)) or any(_follows(values, codes, other) for other in swept):
        return False
    return distinct <= len(codes) / 2 or not _is_measured(values)


def _follows(values: NDArray[Any], codes: NDArray[Any], others: NDArray[Any]) -> bool:
    """Whether values follow others one to one: names of any order, but numbers that rise or fall with them.

    Numbers that were sampled together are pairs as well, and neither stands for the other.
    """
    pairs = len(np.unique(np.stack([codes, others]), axis=1).T)
    if not pairs == len(np.unique(codes)) == len(np.unique(others)):
        return False
    return not _are_numbers(values) or bool((codes == others).all() or (codes == others.max() - others).all())


def _are_numbers(values: NDArray[Any]) -> bool:
    try:
        values.astype(float)
    except ValueError:
        return False
    return True


def _is_measured(values: NDArray[Any]) -> bool:
    """Whether values are numbers with decimals, as results are, which may be equal by chance."""
    return _are_numbers(values) and bool((values.astype(float) != np.round(values.astype(float))).any())


def setting_line(name: str, values: Sequence[str]) -> str:
    """Return the error message for a setting that varies within a sweep."""
    more = ", …" if len(values) > SHOWN else ""
    return f"column {name!r} takes {len(values)} values within a sweep ({', '.join(values[:SHOWN])}{more})"
