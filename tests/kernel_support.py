"""What tests of kernels share: poisoned memory, the acceptance rule, and deliberately broken copies of a kernel."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from scalekernels.accuracy import ULPS, Terms, judge_results
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill every tensor that comes from ``torch.empty`` and its kin with NaN: what a kernel forgets to write shows."""
    enabled, filled = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled)
        torch.utils.deterministic.fill_uninitialized_memory = filled


@pytest.fixture(autouse=True, scope="module")
def poisoned_memory() -> Iterator[None]:
    """Fill memory from ``torch.empty``, workspaces included, with NaN in every test of a module that imports this."""
    with poisoned():
        yield


class Operations(TorchDispatchMode):
    """Notes the names of the package's operations that run, in order, in backward passes too."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "scalekernels":
            self.names.append(function.name().removeprefix("scalekernels::"))
        return function(*args, **(kwargs or {}))


def inaccuracy(
    ours: Mapping[str, Tensor],
    same_precision: Mapping[str, Tensor],
    oracle: Mapping[str, Tensor],
    *,
    ulps: float = ULPS,
    terms: Terms = 0.0,
) -> str | None:
    """Say how ``ours`` fails the acceptance rule of ``scalekernels.accuracy``, or return None where it passes."""
    return judge_results(ours, same_precision, oracle, ulps=ulps, terms=terms).problem or None


def assert_accurate(
    ours: Mapping[str, Tensor],
    same_precision: Mapping[str, Tensor],
    oracle: Mapping[str, Tensor],
    *,
    ulps: float = ULPS,
) -> None:
    """Fail with the reason where ``ours`` does not pass the acceptance rule of :func:`inaccuracy`."""
    if reason := inaccuracy(ours, same_precision, oracle, ulps=ulps):
        pytest.fail(reason)


def install_mutant(monkeypatch: pytest.MonkeyPatch, folder: Path, module: ModuleType, old: str, new: str) -> None:
    """Replace the jit functions of ``module`` by copies in whose source ``old``, found exactly once, reads ``new``.

    The copy has the module's imports, its jit functions and the constants that these use, and nothing else, so that no
    operator is registered twice. A mutation whose text has gone from the kernel fails the test instead of passing it.
    """
    source, names = _jit_source(module)
    assert source.count(old) == 1, f"{old!r} occurs {source.count(old)} times in {module.__name__}; expected once"
    path = folder / f"mutant_{module.__name__.replace('.', '_')}.py"
    path.write_text(source.replace(old, new))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    mutant = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutant)
    for name in names:
        monkeypatch.setattr(module, name, getattr(mutant, name))


@cache
def _jit_source(module: ModuleType) -> tuple[str, list[str]]:
    """Return the part of a module's source that its jit functions need, and the names of these."""
    assert module.__file__ is not None
    text = Path(module.__file__).read_text()
    tree = ast.parse(text)
    kernels = _jit_functions(tree)
    used: set[str] = set()
    needed: list[ast.stmt] = []
    while len(needed) < len(needed := [node for node in tree.body if node in kernels or _is_needed(node, used)]):
        used = {name.id for node in needed for name in ast.walk(node) if isinstance(name, ast.Name)}
    lines = text.splitlines()
    parts = ("\n".join(lines[_first_line(node) - 1 : node.end_lineno]) for node in needed)
    return "\n\n".join(parts) + "\n", [kernel.name for kernel in kernels]


def _jit_functions(tree: ast.Module) -> list[ast.FunctionDef]:
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [
        node for node in functions if any("triton.jit" in ast.unparse(decorator) for decorator in node.decorator_list)
    ]


def _is_needed(node: ast.stmt, used: set[str]) -> bool:
    if isinstance(node, ast.Assign):
        names = (name for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name))
        return any(name.id in used for name in names)
    return isinstance(node, ast.Import | ast.ImportFrom)


def _first_line(node: ast.stmt) -> int:
    decorators = node.decorator_list if isinstance(node, ast.FunctionDef) else []
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def guarded_launches(monkeypatch: pytest.MonkeyPatch, kernels: Mapping[str, Sequence[str]]) -> list[str]:
    """Note the launches of ``kernels`` (module: names) by name; one outside ``torch.cuda.device_of`` fails the test."""
    launched: list[str] = []
    depth = [0]

    @contextmanager
    def device_of(tensor: Tensor) -> Iterator[None]:
        assert isinstance(tensor, Tensor)
        depth[0] += 1
        yield
        depth[0] -= 1

    class Spy:
        def __init__(self, kernel: Any, name: str) -> None:
            self.kernel, self.name = kernel, name

        def __getitem__(self, grid: Any) -> Any:
            assert depth[0], f"{self.name} is launched on whatever device is current"
            launched.append(self.name)
            return self.kernel[grid]

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    for module, names in kernels.items():
        home = importlib.import_module(module)
        for name in names:
            monkeypatch.setattr(home, name, Spy(getattr(home, name), name))
    return launched


def error(output: Tensor, exact: Tensor) -> float:
    """The largest absolute error of an output, whose exact value is in float64."""
    assert output.shape == exact.shape
    return (output.detach().double() - exact).abs().max().item() if exact.numel() else 0.0
