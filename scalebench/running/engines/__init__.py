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


def find_engine(name: str, slots: int | None = None) -> Engine:
    """Return an engine by name, with a number of this machine's GPUs if ``slots`` gives one.

    Raises ``InputError`` for an unknown name, with the known ones and a suggestion, and for slots of another engine.
    """
    if name not in ENGINES:
        raise InputError([f"engine: {unknown(name, list(ENGINES))}"])
    if slots is None:
        return ENGINES[name]
    if name != "local":
        raise InputError(f"--slots: the engine {name} finds its GPUs itself; leave it out")
    return local.Packed(slots)
