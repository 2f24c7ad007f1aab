"""Which shipped configurations the checks of a run have launched."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import triton
from scalekernels.compilation import ARCHITECTURES, Compilation


def record_launches(launched: list[dict[str, Any]]) -> None:
    """Append to ``launched`` every configuration that triton compiles or loads in this process (not if interpreted).

    ``cached``: it was loaded from triton's cache.
    """
    cached = [False]

    def look(*, cache_hit: bool, **_: Any) -> None:  # called just before ``note``
        cached[0] = cache_hit

    def note(*, fn: Any, compile: Mapping[str, Any], **_: Any) -> None:  # noqa: A002 - triton's name
        launched.append(launch_of(fn.jit_function, compile) | {"cached": cached[0]})

    triton.knobs.compilation.listener = look
    triton.knobs.runtime.jit_post_compile_hook = note


def launch_of(function: Any, compiled: Mapping[str, Any]) -> dict[str, Any]:
    """Return what identifies the configuration of a launch: function, constants, pointer types, warps, stages."""
    names = [parameter.name for parameter in function.params]
    constants = {names[path[0]]: str(value) for path, value in compiled["constants"].items() if len(path) == 1}
    entry = {"function": f"{function.fn.__module__}.{function.fn.__qualname__}", "constants": constants}
    entry |= {"pointers": pointers_of(compiled["signature"])}
    return entry | {"num_warps": compiled["num_warps"], "num_stages": compiled["num_stages"]}


def pointers_of(signature: Mapping[str, str]) -> dict[str, str]:
    """Return the types of the tensor arguments: pointers and tensor descriptors."""
    return {name: kind for name, kind in signature.items() if kind.startswith(("*", "tensordesc"))}


def is_launch_of(entry: Mapping[str, Any], compilation: Compilation) -> bool:
    """Return whether a recorded launch matches a configuration: function, constants, pointer types, warps, stages."""
    function = compilation.function.fn
    if entry["function"] != f"{function.__module__}.{function.__qualname__}":
        return False
    if (entry["num_warps"], entry["num_stages"]) != (compilation.num_warps, compilation.num_stages):
        return False
    constants = {name: str(value) for name, value in compilation.constants.items()}
    return bool(
        entry["pointers"] == pointers_of(compilation.signature) and constants.items() <= entry["constants"].items()
    )


def check_coverage(modules: Sequence[Any], folder: Path, device: str) -> dict[str, Any]:
    """Check that the launches recorded in a folder of results include every configuration shipped for this device."""
    if device != "cuda":
        return {"coverage": {"problem": None, "unavailable": "the interpreter compiles nothing"}}
    major, minor = torch.cuda.get_device_capability()
    arch = max(known for known in ARCHITECTURES if known <= 10 * major + minor)
    entries = [
        entry
        for path in sorted(folder.glob("*.json"))
        for entry in json.loads(path.read_text(encoding="utf-8"))["launched"]
    ]
    checks: dict[str, Any] = {}
    for module in modules:
        for shipped in (compilation for compilation in module.compilations(arch) if not compilation.candidate):
            launched = any(is_launch_of(entry, shipped) for entry in entries)
            name = f"{module.__name__}: {shipped.kernel} {shipped.label}"
            checks[name] = {"problem": None if launched else "shipped, but no case launched it"}
    return checks
