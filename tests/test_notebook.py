"""The notebook that ships is executed, cell by cell, as a reader would."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import nbformat
import pytest
from support import REPOSITORY

NOTEBOOK = REPOSITORY / "studies" / "first-steps.ipynb"


def test_the_committed_notebook_has_no_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")


def run_cell(source: str, names: dict[str, Any]) -> object:
    """Execute a cell and return the value of its last line, which a notebook shows."""
    module = ast.parse(source)
    last = module.body.pop() if isinstance(module.body[-1], ast.Expr) else None
    exec(compile(module, str(NOTEBOOK), "exec"), names)
    return eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names) if last else None


@pytest.mark.slow
@pytest.mark.usefixtures("forked_trials")
def test_every_cell_of_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    shown: dict[str, Any] = {cell.id: run_cell(cell.source, names) for cell in cells if cell.cell_type == "code"}
    assert repr(shown["c6"]) == "Counter({'ok': 8})"
    assert "8 ok" in shown["c7"]._repr_html_()
    assert shown["c8"].lines
    assert "alpha" in shown["c10"]._repr_html_()
    assert (tmp_path / "results-notebook" / "report.html").exists()
