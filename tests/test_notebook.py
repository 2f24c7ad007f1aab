"""The notebook that ships is executed, cell by cell, as a reader would."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from support import REPOSITORY, SOURCE_PATH

NOTEBOOK = REPOSITORY / "studies" / "first-steps.ipynb"


def test_the_committed_notebook_has_no_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.slow
def test_every_cell_of_the_notebook_runs(tmp_path: Path, monkeypatch) -> None:
    import nbclient

    monkeypatch.setenv("PYTHONPATH", SOURCE_PATH)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    assert "Counter({'ok': 8})" in outputs["c6"][-1]["data"]["text/plain"]
    assert "8 ok" in outputs["c7"][-1]["data"]["text/html"]
    assert "image/png" in outputs["c8"][-1]["data"]
    assert "alpha" in (fitted := outputs["c10"][-1]["data"]["text/html"])
    assert "converged" in fitted  # a first study shows a law that its points determine
    assert "not determined" not in fitted
    assert (tmp_path / "results-notebook" / "report.html").exists()
