"""Rules about the structure of the code: import circles, rooms, lengths, and what starts without torch."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from statistics import median, quantiles

import pytest
from command_support import planted, surface, write_study
from support import REPOSITORY, child_environment, shared_folder, source_tree

from scalebench.cli.app import app

PACKAGES = {
    "scalebench": REPOSITORY / "scalebench",
    "scalekernels": REPOSITORY / "kernels" / "scalekernels",
    "tools": REPOSITORY / "kernels" / "tools",
}
# An import inside a function makes a circle too. What must stay is listed: (importing, imported): why.
EXCEPTIONS: dict[tuple[str, str], str] = {}
BLOCKS = ("body", "orelse", "handlers", "finalbody", "cases")  # of statements: an import is never inside an expression
COMMANDS = [name for name in app if not name.startswith("-")]


def module_files(folder: Path) -> dict[str, Path]:
    """Map the dotted name of every module in a folder to its file. Scripts without a package have their bare names."""
    root = folder.parent if (folder / "__init__.py").exists() else folder
    files = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def import_statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield every import below a node, inside functions too, except those under ``if TYPE_CHECKING``."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node
    only_types = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
    for block in ("orelse",) if only_types else BLOCKS:
        for child in getattr(node, block, ()):
            yield from import_statements(child)


def imported_names(path: Path, known: Iterable[str]) -> set[str]:
    """Return the modules among ``known`` that a source file imports.

    ``from a import b`` counts as ``a.b`` where that is a module and as ``a`` otherwise. ``import a.b`` does not count
    as ``a``: a package's ``__init__`` may import its own modules.
    """
    names = set()
    for statement in import_statements(source_tree(path)):
        if isinstance(statement, ast.Import):
            names |= {alias.name for alias in statement.names}
            continue
        assert statement.level == 0, "imports are absolute in this project"
        full = {alias.name: f"{statement.module}.{alias.name}" for alias in statement.names}
        names |= {name if name in known else str(statement.module) for name in full.values()}
    return names & set(known)


def import_graph(files: dict[str, Path]) -> dict[str, set[str]]:
    """Map every module to the modules of ``files`` that it imports, without the exceptions."""
    graph = {name: imported_names(path, files) - {name} for name, path in files.items()}
    return {name: {other for other in others if (name, other) not in EXCEPTIONS} for name, others in graph.items()}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Return one import circle of the graph, or an empty list."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_no_import_circle(package: str) -> None:
    assert circle(import_graph(module_files(PACKAGES[package]))) == []


def test_import_circles_are_detected_in_functions_but_not_among_types(tmp_path: Path) -> None:
    package = tmp_path / "shop"
    package.mkdir()
    (package / "__init__.py").write_text("from shop.till import total\n")
    (package / "till.py").write_text("def total():\n    from shop import stock\n    return stock.count\n")
    (package / "stock.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import shop.till\n")
    files = module_files(package)
    assert import_graph(files) == {"shop": {"shop.till"}, "shop.till": {"shop.stock"}, "shop.stock": set()}
    assert circle(import_graph(files)) == []
    (package / "stock.py").write_text("def count():\n    import shop.till\n")
    assert set(circle(import_graph(files))) == {"shop.till", "shop.stock"}


# A trial goes from the command line to the training loop in five calls, each into the next module. The third is into
# another process: an engine forks it, or starts it as a program.
CALLS = (
    ("scalebench.cli.commands.sweeps", "execute", "scalebench.running.sweep"),
    ("scalebench.running.sweep", "place", "scalebench.running.engines.local"),
    ("scalebench.running.fork_server", "run_and_exit", "scalebench.running.worker"),
    ("scalebench.running.worker", "run", "scalebench.workloads.training"),
    ("scalebench.workloads.training_run", "train", "scalebench.workloads.loop"),
)


@pytest.mark.parametrize(("caller", "function", "module"), CALLS)
def test_five_calls_from_the_command_line_to_the_training_loop(caller: str, function: str, module: str) -> None:
    files = module_files(PACKAGES["scalebench"])
    used = {getattr(node, "attr", getattr(node, "id", "")) for node in ast.walk(source_tree(files[caller]))}
    defined = {node.name for node in source_tree(files[module]).body if isinstance(node, ast.FunctionDef)}
    assert function in used & defined


def test_at_most_twenty_rooms() -> None:
    rooms = [
        path for path in PACKAGES["scalebench"].iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    ]
    assert 10 <= len(rooms) <= 20, sorted(path.name for path in rooms)


@pytest.mark.parametrize(("package", "lines"), [("scalebench", 300), ("scalekernels", 420), ("tools", 420)])
def test_files_are_short(package: str, lines: int) -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in PACKAGES[package].rglob("*.py")}
    assert {str(path): length for path, length in lengths.items() if length > lines} == {}


@pytest.mark.slow
def test_functions_are_short() -> None:
    lengths = [
        node.end_lineno - node.lineno + 1
        for folder in PACKAGES.values()
        for path in folder.rglob("*.py")
        for node in ast.walk(source_tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert len(lengths) > 1000
    assert median(lengths) <= 10
    assert quantiles(lengths, n=10)[-1] <= 35


# --- what starts without what takes long to import -------------------------------------------------------------------

# Modules that import neither torch nor what draws; the page itself draws, sentences and tables do without.
LIGHT = (
    *("scalebench", "analysis.predictions", "analysis.study", "cli.app", "laws", "measure.environment"),
    *("points.table", "reporting.sections", "store", "study", "families", "running.planning", "tasks", "workloads"),
)
# What takes longer to import than these commands take: they answer within a second, as experiments/bench_commands.py
# measures. A results folder or a table that is there needs pandas.
DRAWN_OR_BUILT = {"torch", "triton", "matplotlib", "seaborn", "sklearn", "scipy.stats", "scipy.optimize", "ray"}
OF_TABLES = {"pandas", "pyarrow", "scipy"}


def command_lines(*lines: Iterable[object], codes: tuple[int, ...] = (0, 1)) -> str:
    """Return a script that runs command lines one after another; it fails for an exit code not among ``codes``."""
    return "\n".join(f"end({[str(word) for word in line]!r}, {codes})" for line in lines)


# Runs scripts one after another, and prints after each its name and all modules that are loaded.
RUN = """
import json, sys
from scalebench.cli.app import main

def end(words, codes):
    try:
        main(words)
    except SystemExit as end:
        assert end.code in codes, (words, end.code)

for name, script in json.loads(sys.argv[1]).items():
    exec(script)
    print(json.dumps([name, *sys.modules]))
"""


def scripts(finished: Path) -> dict[str, str]:
    """Return what may load ever more, in this order."""
    lines = "plan mlp|plan gpt|list|list --columns|run nothere|plan wrong.toml|plan mlp --set train.stepz=3"
    others = "compare nothere|compare|status none|export none -o x.csv|new study nothere|nothere|schema"
    generate = ["generate", "none", "--trial", "1", "--prompt", "a"]
    serve = ["serve", "1", "--results", "none"]
    files = "fit none.csv|predict none --params 1|optimal none.csv|worth a b|tune none.csv|diff a b|report none|show 3f"
    following = ["next", "none.csv", "--predict", "params=1"]
    columns = ["--params-column", "N", "--tokens-column", "D", "--loss-column", "L"]
    fit = ["fit", "p.csv", "--law", "chinchilla", *columns, "--output", "f.json"]
    predict = ["predict", "f.json", "--params", "7e9", "--tokens", "1e12"]
    return {
        "help": command_lines(["--help"], *([name, "--help"] for name in COMMANDS)),
        "studies": command_lines(
            *(line.split() for line in f"{lines}|{others}".split("|")), generate, serve, codes=(0, 2)
        ),
        "tables": command_lines(*(line.split() for line in files.split("|")), following, codes=(2,)),
        "light": f"import {', '.join(name if name == 'scalebench' else f'scalebench.{name}' for name in LIGHT)}",
        "laws": command_lines(fit, predict, ["predict", "planted", "--params", "3e6"]),
        "results": command_lines(
            ["status", finished], ["export", finished, "-o", "x.csv"], ["report", finished, "-o", "x.html"]
        ),
    }


@pytest.fixture
def loaded(tmp_path_factory: pytest.TempPathFactory, finished: Path) -> dict[str, set[str]]:
    """The modules that are loaded in one process after each of the scripts and those before it."""

    def fill(folder: Path) -> None:
        (folder / "wrong.toml").write_text('schema = 1\nname = "w"\n[model]\nfamily = "gpt"\nwidht = 3\n')
        surface(0.01).to_csv(folder / "p.csv", index=False)
        write_study(folder / "planted", planted())
        code = [sys.executable, "-c", RUN, json.dumps(scripts(finished))]
        done = subprocess.run(code, cwd=folder, env=child_environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert (folder / "x.html").exists()
        rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('["')]
        (folder / "loaded.json").write_text(json.dumps({name: modules for name, *modules in rows}))

    folder = shared_folder(tmp_path_factory, "loaded", fill)
    return {name: set(modules) for name, modules in json.loads((folder / "loaded.json").read_text()).items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "modules"),
    [
        ("help", {"torch", "triton", "matplotlib.pyplot", "seaborn", "pandas", "fastapi", "uvicorn"}),
        ("studies", DRAWN_OR_BUILT | OF_TABLES),
        ("tables", DRAWN_OR_BUILT),
        ("light", {"torch", "triton", "matplotlib", "seaborn"}),
        ("laws", {"torch", "matplotlib", "seaborn", "jinja2", "scalebench.reporting.page"}),
        ("results", {"torch"}),
    ],
)
def test_what_takes_long_to_import_is_loaded_where_it_is_needed(
    loaded: dict[str, set[str]], script: str, modules: set[str]
) -> None:
    assert "scalebench.cli.app" in loaded[script]
    assert not loaded[script] & modules


def test_the_commands_whose_help_loads_little_are_all() -> None:
    assert {"run", "plan", "status", "report", "export", "compare", "fit", "predict"} <= set(COMMANDS)


def test_no_test_file_imports_another() -> None:
    """What several share is in support files."""
    files = module_files(REPOSITORY / "tests") | module_files(REPOSITORY / "experiments")
    assert sum(name.startswith("test_") for name in files) > 100
    importing = re.compile(r"^\s*(?:from|import) (test_\w+)", re.MULTILINE)
    imports = {name: importing.findall(path.read_text(encoding="utf-8")) for name, path in files.items()}
    assert {name: names for name, names in imports.items() if names} == {}
