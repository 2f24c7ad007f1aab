"""What the README shows is what the program does: its Python runs, and its outputs have the lines that are shown.

Its commands are in tests/test_help.py, its study files in tests/test_packaging.py and tests/test_from.py.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest
from command_support import README, planted, readme_tables, write_study

import scalebench
from scalebench.running.planning import load_study, plan


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def shown(command: str) -> list[str]:
    """The lines that the README shows below a command, up to the next one; "…" stands for lines left out."""
    (text,) = [block for block in blocks("text") if f"$ scalebench {command}" in block]
    part = text.partition(f"$ scalebench {command}\n")[2].partition("\n$ ")[0]
    return [line for line in part.splitlines() if line.strip()]


def shape(line: str) -> str:
    """A line with # for every number, and one space for several."""
    return re.sub(r"\s+", " ", re.sub(r"[×±−+-]?\d[\d,.]*(e[+-]?\d+)?", "#", line)).strip()


def test_the_table_of_inference_is_planned(tmp_path: Path) -> None:
    (text,) = [block for block in blocks("text") if "[inference]" in block]
    text = text.replace(', "int8"]', "]")  # torchao is an extra
    head = 'schema = 1\nname = "i"\n[model]\nfamily = "gpt"\nparams = 1e4\n'
    (tmp_path / "i.toml").write_text(
        head.replace("[model]", text.splitlines()[0] + "\n[model]") + text.partition("\n")[2]
    )
    assert len(plan(load_study(tmp_path / "i.toml"), tmp_path / "results")) == 2 * 2


@pytest.mark.parametrize(
    "line", ["optimal points.csv --approach 3 --budget 1e21", "next fit.json --predict params=7e9,tokens=1.4e12"]
)
def test_the_outputs_on_the_tables_of_the_readme_are_as_shown(command, tmp_path: Path, monkeypatch, line: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "points.csv").write_text(readme_tables()["points.csv"])
    if line.startswith("next"):
        assert command("fit", "points.csv", "--law", "chinchilla", "-o", "fit.json")[0] == 0
    out = command(*line.split())[1].splitlines()
    for text in shown(line):
        assert text == "…" or text in out, text


@pytest.mark.slow
def test_predict_prints_the_lines_that_are_shown(command, tmp_path: Path, monkeypatch) -> None:
    """The shape of each line: the numbers are those of the demo on one machine."""
    monkeypatch.setenv("COLUMNS", "80")
    write_study(tmp_path / "results" / "demo", planted())
    out = {shape(line) for line in command("predict", "results/demo", "--params", "1e7")[1].splitlines()}
    expected = [line for line in shown("predict results/demo --params 1e6") if not line.startswith(("…", "training"))]
    for line in expected[:4]:
        assert shape(line) in out, line


@pytest.mark.slow
def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch) -> None:
    """On recorded trials in the place of those that it would run; of the report the arguments alone."""
    import matplotlib as mpl

    mpl.use("Agg")
    monkeypatch.chdir(tmp_path)
    write_study(tmp_path / "results" / "mlp", planted(study="mlp"))
    (code,) = [block for block in blocks("python") if "scalebench.load_study" in block]
    code, _, report = code.partition("scalebench.report")
    inspect.signature(scalebench.report).bind(*ast.literal_eval(report.strip()))
    assert code.count("scalebench.run(study") == 1
    exec(compile(code.replace("scalebench.run(study", "print(study.name"), "README.md", "exec"), {})


def test_the_operation_of_the_kernels_readme_is_compared(tmp_path: Path) -> None:
    """Loaded as `compare` loads it; every provider but the compiled one against the file's own float64 results."""
    from scalebench.comparison.operations import load_operation

    text = (Path(__file__).parents[1] / "kernels" / "README.md").read_text()
    path = tmp_path / "swiglu.py"
    path.write_text(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[-1])
    module = load_operation(str(path)).module
    for case in module.CASES:
        tensors = module.inputs(case)
        right = module.results(case, tensors, False)["y"]
        assert right.shape == (case.rows, case.hidden)
        for name in ("eager", "one-product"):
            made = module.providers()[name].prepare(case, tensors, False)()["y"]
            assert (made - right).abs().max() < 1e-6
        counted = module.cost(case, False)
        assert counted.flops >= 2 * 2 * case.rows * case.width * case.hidden
