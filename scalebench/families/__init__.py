"""Model families, one file each. Adding one: a module with the names of ``base.Family``, and a line in ``FAMILIES``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any, get_args, get_type_hints

from scalebench.data import Data
from scalebench.errors import unknown
from scalebench.families import cnn, gpt, linear, mlp, resnet, vit
from scalebench.families.base import Counts, Family, OutOfReach, Unsupported

__all__ = ["FAMILIES", "Counts", "Family", "OutOfReach", "Unsupported", "configure", "model_fields"]

FAMILIES: dict[str, Family] = {
    "linear": linear,
    "mlp": mlp,
    "cnn": cnn,
    "resnet": resnet,
    "vit": vit,
    "gpt": gpt,
}


def model_fields(family: Family) -> list[str]:
    """Return what a study may write under [model] for a family, besides family, params and size."""
    return [field.name for field in fields(family.Config)]


def configure(family: Family, request: Mapping[str, Any], data: Data, sequence_length: int | None) -> Any:
    """Turn a study's [model] fields into the family's Config.

    ``size`` takes a published Config and replaces fields in it; ``params`` turns the dial with the other fields held;
    without either the fields must say it all. Raises ``OutOfReach`` with what is missing or cannot be had.
    """
    held = {key: value for key, value in request.items() if key not in ("size", "params")}
    _check_types(family, held)
    if size := request.get("size"):
        if size not in family.SIZES:
            raise OutOfReach(f"size: {unknown(size, family.SIZES)}")
        return replace(family.SIZES[size], **held)
    held = family.defaults(data, sequence_length) | held
    if params := request.get("params"):
        return family.at(params, **held)
    missing = [name for name in _required(family.explicit) if name not in held]
    if missing:
        raise OutOfReach(f"{' and '.join(missing)} missing: give params, a size, or {' and '.join(missing)}")
    return family.explicit(**held)


def _required(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind != p.VAR_KEYWORD]


def _check_types(family: Family, held: Mapping[str, Any]) -> None:
    """Refuse unknown fields, wrong types and numbers that are not positive."""
    known = _field_types(family.Config)
    for name, value in held.items():
        if name not in known:
            raise OutOfReach(f"{name}: {unknown(name, list(known)).replace('unknown', 'unknown key', 1)}")
        if known[name] is int and (type(value) is not int or value < 1):
            raise OutOfReach(f"{name}: expected a positive whole number (given {value!r})")
        if known[name] is bool and not isinstance(value, bool):
            raise OutOfReach(f"{name}: expected true or false (given {value!r})")
        if (allowed := get_args(known[name])) and value not in allowed:
            raise OutOfReach(f"{name}: {unknown(str(value), allowed)}")


@lru_cache(maxsize=64)
def _field_types(config: type) -> dict[str, Any]:
    return get_type_hints(config)
