"""Whether decay branches agree with runs from scratch, and what they save: a table from the results of three studies.

    scalebench run decay-branches --with-parents && scalebench run decay-scratch
    python experiments/decay_branches.py results

Both sides have the same schedule; seeds in both must agree bit for bit on one machine (``equal_seeds`` is the largest
difference). ``difference`` is that of the means over the other seeds. ``noise`` is its standard error if branches and
runs from scratch are alike: from the spread over all different seeds of both.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

import scalebench

LOSS = "validation_loss_nats"


def lengths(folder: Path) -> pd.DataFrame:
    """Return a study's trials with ``total``, the steps from the very first one."""
    frame = scalebench.load_results(folder)
    return frame[frame["status"].eq("ok")].assign(total=frame["first_step"] + frame["steps"])


def agreement(branches: pd.DataFrame, scratch: pd.DataFrame) -> pd.DataFrame:
    """Return a row per size and length: mean losses, differences at equal seeds and at others, and its noise."""
    shared = set(branches["seed"]) & set(scratch["seed"])
    both = pd.concat([branches.assign(side="branches"), scratch.assign(side="scratch")])
    point = ["params_non_embedding", "total"]
    means = both.pivot_table(LOSS, point, "side")
    pairs = both[both["seed"].isin(shared)].pivot_table(LOSS, [*point, "seed"], "side")
    means["equal_seeds"] = (pairs["branches"] - pairs["scratch"]).abs().groupby(point).max()
    alone = both[~both["seed"].isin(shared)].groupby([*point, "side"])[LOSS]
    centres = alone.mean().unstack()
    means["difference"] = centres["branches"] - centres["scratch"]
    distinct = both.drop_duplicates([*point, "seed"]).groupby(point)[LOSS]
    means["noise"] = distinct.std() * alone.count().unstack().rdiv(1.0).sum(axis=1) ** 0.5
    return means.reset_index()


def saved(trunk: pd.DataFrame, branches: pd.DataFrame) -> float:
    """Return the FLOPs of a run per size and of its branches, over those of runs from scratch to the same lengths."""
    spent = sum((frame["steps"] * frame["flops_per_step"]).sum() for frame in (trunk, branches))
    return float(spent / (branches["total"] * branches["flops_per_step"]).sum())


def main() -> None:
    """Print the table and the share of the compute."""
    results = Path(sys.argv[1] if len(sys.argv) > 1 else "results")
    trunk, branches, scratch = (lengths(results / f"decay-{name}") for name in ("trunk", "branches", "scratch"))
    print(agreement(branches, scratch).to_string(index=False, float_format="%.4f"))
    share = saved(trunk, branches)
    print(f"trunk and branches took {share:.0%} of the FLOPs of runs from scratch to the same lengths")


if __name__ == "__main__":
    main()
