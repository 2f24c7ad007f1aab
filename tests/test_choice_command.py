"""`fit --law auto`: which laws it chooses among."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_support import planted, write_study


@pytest.mark.slow
def test_auto_leaves_out_data_that_does_not_vary(command, tmp_path: Path) -> None:
    """A study of several sizes that all saw as many tokens has laws of size alone."""
    write_study(tmp_path / "results" / "planted", planted())
    code, out, err = command("fit", "results/planted", "--law", "auto", "--bootstrap", "20")
    assert code == 0, err
    assert "L = E + A * N^-alpha" in out
    code, _, err = command("fit", "results/planted", "--law", "chinchilla")
    assert code == 2
    assert "it has to vary" in err
