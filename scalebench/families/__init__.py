"""Model families, one file each. Adding one: a module with the names of ``base.Family``, and a line in ``FAMILIES``.

Looking up a path that ends in .py loads a user's own file (``own.py``).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any, get_args, get_type_hints

from scalebench.data import Data
from scalebench.errors import InputError, unknown
from scalebench.families import (
    attention,
    bert,
    cnn,
    gpt,
    linear,
    mlp,
    moe,
    resnet,
    rnn,
    transformer,
    vit,
)  # fmt: skip
from scalebench.families.base import CAPABILITIES, Counts, Decoder, Family
from scalebench.families.own import Families, ForeignCodeError, check_named, check_unchanged, file_sha256

__all__ = [
    "CAPABILITIES", "FAMILIES", "Counts", "Decoder", "Family", "ForeignCodeError", "check_fields", "check_named",
    "check_unchanged", "configure", "family_error", "file_sha256", "model_fields",
]  # fmt: skip

FAMILIES: Mapping[str, Family] = Families({
    "linear": linear,
    "mlp": mlp,
    "cnn": cnn,
    "resnet": resnet,
    "vit": vit,
    "gpt": gpt,
    "rnn": rnn,
    "moe": moe,
    "attention": attention,
    "transformer": transformer,
    "bert": bert,
})  # fmt: skip


def family_error(name: str) -> str | None:
    """Return why a study cannot have this family: an unknown name, or a file that does not define one; else None."""
    try:
        FAMILIES[name]
    except KeyError:
        return f"{unknown(name, FAMILIES)}; a family of your own is the path of a Python file"
    except InputError as error:
        return str(error)
    return None


def model_fields(family: Family) -> list[str]:
    """Return the keys that [model] may have for a family, besides family, params and size."""
    return [field.name for field in fields(family.Config)]


def configure(family: Family, request: Mapping[str, Any], data: Data, sequence_length: int | None) -> Any:
    """Return the family's Config for a study's [model] fields.

    ``size`` starts from a published Config; ``params`` uses the dial with the other fields fixed; without either, the
    fields must be complete. Raises ``InputError`` naming the field that is missing or invalid.
    """
    fixed = {key: value for key, value in request.items() if key not in ("size", "params")}
    check_fields(family, fixed)
    if size := request.get("size"):
        if size not in family.SIZES:
            raise InputError(f"size: {unknown(size, family.SIZES)}")
        return replace(family.SIZES[size], **fixed)
    fixed = family.defaults(data, sequence_length) | fixed
    if params := request.get("params"):
        return family.config_for(params, **fixed)
    missing = [name for name in _required(family.explicit) if name not in fixed]
    if missing:
        raise InputError(f"{' and '.join(missing)} missing: give params, a size, or {' and '.join(missing)}")
    return family.explicit(**fixed)


def _required(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind != p.VAR_KEYWORD]


def check_fields(family: Family, fixed: Mapping[str, Any]) -> None:
    """Raise ``InputError`` for unknown fields, wrong types and numbers that are not positive."""
    known = _field_types(family.Config)
    for name, value in fixed.items():
        if name not in known:
            keys = ["params", "size", *known]  # and family, which is known here
            raise InputError(f"{name}: {unknown(name, keys).replace('unknown', 'unknown key', 1)}")
        if known[name] is int and (type(value) is not int or value < 1):
            raise InputError(f"{name}: expected a positive whole number (given {value!r})")
        if known[name] is float and (type(value) not in (int, float) or not 0 <= value < math.inf):
            raise InputError(f"{name}: expected a number of at least 0 (given {value!r})")
        if known[name] is bool and not isinstance(value, bool):
            raise InputError(f"{name}: expected true or false (given {value!r})")
        if (allowed := get_args(known[name])) and value not in allowed:
            raise InputError(f"{name}: {unknown(str(value), allowed)}")


@lru_cache(maxsize=64)
def _field_types(config: type) -> dict[str, Any]:
    return get_type_hints(config)
