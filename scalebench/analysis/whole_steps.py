"""From a budget to steps: one rule for the trials of a plan and for what is predicted of others."""

from __future__ import annotations


def whole_steps(budget: float, per_step: float) -> int:
    """Return the steps that a budget in tokens, samples or FLOPs is worth, rounded; a small one still takes one."""
    return max(1, round(budget / per_step))
