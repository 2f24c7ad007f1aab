"""Engines by name. To add one: a module with the names of ``base.Engine``, and a line in ``ENGINES``."""

from __future__ import annotations

from scalebench.errors import InputError, unknown
from scalebench.running.engines import local, ray, slurm
from scalebench.running.engines.base import Engine, Resources

__all__ = ["ENGINES", "Engine", "Resources", "find_engine"]

ENGINES: dict[str, Engine] = {
    "local": local,
    "ray": ray,
    "slurm": slurm,
}


def find_engine(name: str) -> Engine:
    """Return an engine by name; raises ``InputError`` with the known names and a suggestion."""
    if name not in ENGINES:
        raise InputError([f"engine: {unknown(name, list(ENGINES))}"])
    return ENGINES[name]
