"""The chain of a study, in a table: what its trials started from and what all of it cost."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from scalebench.analysis.chain import chain_of, cost_of, is_upper_bound
from scalebench.analysis.study import StudyAnalysis
from scalebench.reporting.tables import Table, number, table, word

COLUMNS = ("study", "trials", "own compute", "share of the chain")


def chain_tables(study: StudyAnalysis) -> Iterator[Table]:
    """Yield the chain of a study whose trials have parents; nothing for any other."""
    name = study.name
    frames = [frame for frame in (study.trials.assign(study=name), study.beside) if len(frame)]
    chain = chain_of(name, pd.concat(frames)) if frames else []
    if len(chain) < 2:
        return
    total = cost_of(chain)
    rows = []
    for link in chain:
        note = f"{link.study} and all before it" if link.whole else link.study
        share = f"{100 * link.flops / total:.0f}\u00a0%" if total else "—"
        rows.append((word(note), number(link.trials), number(link.flops, "FLOP"), word(share)))
    rows.append(
        (
            word("the chain, at most" if is_upper_bound(chain) else "the chain"),
            word(None),
            number(total, "FLOP"),
            word(None),
        )
    )
    caption = (
        "The chain, oldest first: the trials that others started from, each counted once, up to the checkpoint that "
        "was used. FLOPs are those of training steps."
    )
    yield table(caption, COLUMNS, rows)
