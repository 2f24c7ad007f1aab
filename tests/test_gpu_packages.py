"""Everything that the GPU session imports is on the GPU machine or carried there: it has no network."""

from __future__ import annotations

import re
import sys
from functools import cache
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from support import REPOSITORY

# Packages of a usual image with PyTorch that the product needs, and those with which it needs them.
ON_THE_MACHINE = {
    "torch", "triton", "numpy", "scipy", "pandas", "pyarrow", "matplotlib", "seaborn", "rich", "psutil", "jinja2",
    "markupsafe", "safetensors", "tokenizers", "scikit-learn", "huggingface-hub", "pygments", "packaging", "pillow",
}  # fmt: skip
# Imported where the user asks for what they are for: another engine, a tracker, data of a hub, another's kernels, a
# server.
OPTIONAL = {"ray", "datasets", "mlflow", "tensorboard", "wandb", "liger-kernel", "flash-attn", "fastapi", "starlette",
            "uvicorn"}  # fmt: skip
TOOLS = REPOSITORY / "kernels" / "tools"
IMPORT = re.compile(r"^ *(?:from (\w+)[\w.]* import |import (\w+))", re.MULTILINE)
SOURCES = (REPOSITORY / "scalebench", REPOSITORY / "kernels" / "scalekernels", TOOLS)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def carried() -> set[str]:
    """The packages that `make gpu-carry` fetches."""
    text = (REPOSITORY / "Makefile").read_text().replace("\\\n", " ")
    words = re.search(r"^WHEELS := (.+)$", text, re.MULTILINE)
    assert words is not None
    return {normal(word) for word in words[1].split()}


def imported(path: Path) -> set[str]:
    """The top-level names of the modules that a file imports, at any place in it; parsing it takes 20 times longer."""
    return {name for names in IMPORT.findall(path.read_text()) for name in names if name}


@cache
def third_party() -> set[str]:
    """The distributions of all modules that the product and the session's tools import."""
    own = {"scalebench", "scalekernels", *(path.stem for path in TOOLS.glob("*.py"))}
    names = {name for folder in SOURCES for path in folder.rglob("*.py") for name in imported(path)}
    of = packages_distributions()
    return {normal(of.get(name, [name])[0]) for name in names - own - set(sys.stdlib_module_names)}


def test_every_package_that_is_imported_is_there_or_carried() -> None:
    needed = third_party()
    assert {"torch", "pydantic", "cyclopts", "torchao"} <= needed  # the search finds what is imported
    assert needed - ON_THE_MACHINE - carried() - OPTIONAL == set()


def test_what_is_carried_needs_nothing_else() -> None:
    """They are installed without their dependencies."""
    environment = {"extra": "", "python_version": "3.12", "python_full_version": "3.12.3"}
    installed = {normal(name) for names in packages_distributions().values() for name in names}
    assert len(carried() & installed) >= 8
    for name in carried() & installed:
        for line in requires(name) or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate(environment):
                assert normal(requirement.name) in carried() | ON_THE_MACHINE, f"{name} needs {line}"


def test_a_package_that_is_not_there_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "carried", set)
    with pytest.raises(AssertionError):
        test_every_package_that_is_imported_is_there_or_carried()
