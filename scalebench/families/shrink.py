"""Smaller models of a family: the same Config with fewer heads, hidden units or layers.

A family declares which of them its Config can reduce in ``CAPABILITIES`` (``fewer_heads``, ``fewer_hidden``,
``fewer_layers``); ``modules.shrink`` moves the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

FIELDS: Mapping[str, str] = {"heads": "heads", "hidden": "hidden", "layers": "depth"}  # units -> field of the Config


def units_of(config: Any, kind: str) -> int:
    """Return how many units of a kind (a key of ``FIELDS``) a configuration has: in each layer, or layers."""
    return int(getattr(config, FIELDS[kind]))


def with_units(config: Any, kind: str, number: int) -> Any:
    """Return the configuration with another number of units of a kind."""
    return replace(config, **{FIELDS[kind]: number})
