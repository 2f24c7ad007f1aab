"""Check one case of one operation numerically, in this process alone, and write what was found as JSON.

    python kernels/tools/check_case.py case scalekernels.attention "B1 H8/2 T512 D64 bf16 causal" --output found.json
    python kernels/tools/check_case.py steps AdamW --dtype bfloat16 --output found.json
    python kernels/tools/check_case.py rounding adamw --output found.json
    python kernels/tools/check_case.py canary 0 --output found.json

A fault on a GPU poisons every later launch of its process, so ``tests/test_gpu_kernels.py`` gives each case a process
of its own, and ``gpu_session.py`` starts a new one after a fault. With TRITON_INTERPRET=1 and ``--device cpu`` the same
runs on a CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import triton
from check_coverage import check_coverage, record_launches
from scalekernels.accuracy import FURTHEST, Terms, judge_results, terms_of
from scalekernels.device import INTERPRETED, assembler
from scalekernels.providers import Unsupported
from torch import Tensor
from torch.nn import functional as F

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def versions(device: str) -> dict[str, Any]:
    """Return what made the machine code: versions, which ptxas by which path, and on what it ran."""
    found: dict[str, Any] = {"torch": torch.__version__, "triton": triton.__version__, "interpreted": INTERPRETED}
    found["TRITON_PTXAS_PATH"] = os.environ.get("TRITON_PTXAS_PATH")
    if device != "cuda":
        return found | {"device": device}
    major, minor = torch.cuda.get_device_capability()
    arch = 10 * major + minor
    path, version = assembler(arch)
    found |= {"ptxas": version, "ptxas_path": path}
    return found | {"device": torch.cuda.get_device_name(), "capability": arch}


def measured(
    ours: Mapping[str, Tensor],
    eager: Mapping[str, Tensor],
    oracle: Mapping[str, Tensor],
    terms: Terms = 0.0,
    furthest: float = FURTHEST,
) -> dict[str, Any]:
    """Hold every tensor to the acceptance rule of ``scalekernels.accuracy``; return its errors and what is wrong."""
    judged = judge_results(ours, eager, oracle, terms=terms, furthest=furthest)
    return {
        "tensors": {name: dataclasses.asdict(row) for name, row in judged.tensors.items()},
        "problem": judged.problem or None,
    }


def after_sdpa(device: str) -> None:
    """Run forward and backward of torch's own attention: it leaves memory and the context in another state."""
    q = torch.randn(1, 2, 128, 64, device=device, dtype=torch.bfloat16, requires_grad=True)
    F.scaled_dot_product_attention(q, q, q, is_causal=True).sum().backward()


def run_fresh(module: Any, provider: str, case: Any, given: Mapping[str, Tensor], backward: bool) -> dict[str, Tensor]:
    """Prepare and call a provider once on copies of the inputs; memory that it does not write holds NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # torch.empty gives NaN
    try:
        copies = {name: tensor.clone() for name, tensor in given.items()}
        found = module.providers()[provider].prepare(case, copies, backward)()
        return {name: tensor.detach().clone() for name, tensor in found.items()}
    finally:
        torch.use_deterministic_algorithms(False)


def same_bits(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Tell whether two results are equal to the last bit."""
    return all(torch.equal(one[name], other[name]) for name in one)


@dataclasses.dataclass(frozen=True)
class Expected:
    """What a case's results are held against: its inputs, the float64 oracle, and torch's own in the same precision."""

    given: Mapping[str, Tensor]
    oracle: Mapping[str, Tensor]
    eager: Mapping[str, Tensor]
    terms: Terms = 0.0


def check_provider(
    module: Any, provider: str, case: Any, device: str, backward: bool, expected: Expected
) -> dict[str, Any]:
    """Check one of our providers: accuracy, the same bits again, and the same after torch's own attention."""
    first = run_fresh(module, provider, case, expected.given, backward)
    found = measured(first, expected.eager, expected.oracle, expected.terms)
    if found["problem"]:
        return found
    again = run_fresh(module, provider, case, expected.given, backward)
    after_sdpa(device)
    later = run_fresh(module, provider, case, expected.given, backward)
    found["problem"] = measured(later, expected.eager, expected.oracle, expected.terms)["problem"]
    deterministic = "atomic" not in provider  # atomic sums come in any order
    if deterministic and not found["problem"]:
        differs = [
            name for name, other in (("a repeat", again), ("a run after SDPA", later)) if not same_bits(first, other)
        ]
        found["problem"] = f"{' and '.join(differs)} gave other bits" if differs else None
    return found


def check_case(module: Any, case: Any, device: str) -> dict[str, Any]:
    """Check every one of our providers on a case, forward and backward; the oracle is computed once per direction."""
    checks: dict[str, Any] = {}
    ours = [name for name in module.providers() if name.startswith("triton")]
    for direction in ("forward", "backward"):
        backward = direction == "backward"
        try:
            given = module.inputs(case, device)
            oracle = module.results(case, given, backward)
            eager = run_fresh(module, "eager", case, given, backward)
            expected = Expected(given, oracle, eager, terms_of(module, case, given, backward))
        except Unsupported as reason:  # as the backward pass of an optimizer's step
            checks |= {f"{name} {direction}": {"problem": None, "unavailable": str(reason)} for name in ours}
            continue
        for provider in ours:
            name = f"{provider} {direction}"
            print(f"{module.__name__}: {case.label}: {name}", file=sys.stderr, flush=True)  # the last word of a crash
            try:
                checks[name] = check_provider(module, provider, case, device, backward, expected)
            except Unsupported as reason:
                checks[name] = {"problem": None, "unavailable": str(reason)}
    return checks


def check_canary(index: int, device: str) -> dict[str, Any]:
    """Check the witness of one tile, several times over."""
    import canary

    rounds = 2 if INTERPRETED else 50
    wrong = [canary.wrong_entries(device, *canary.TILES[index], seed=seed) for seed in range(rounds)]
    problem = f"{sum(map(bool, wrong))} of {rounds} products are wrong, {max(wrong)} entries at worst"
    return {f"canary {canary.TILES[index]}": {"problem": problem if any(wrong) else None}}


# --- which cases -----------------------------------------------------------------------------------------------------


def cases(module: Any, dtypes: Sequence[str], larger: bool) -> Iterator[Any]:
    """Yield the operation's small cases in every dtype, each once; ``larger`` adds its ``LARGER``, for a GPU alone."""
    seen = set()
    for case in (*module.CASES, *(module.LARGER if larger else ())):
        for dtype in dtypes:
            one = dataclasses.replace(case, dtype=DTYPES[dtype])
            if one.label not in seen:
                seen.add(one.label)
                yield one


def find(module: Any, label: str) -> Any:
    """Return the case of a label. Raises ``SystemExit`` for an unknown one."""
    every = (*cases(module, list(DTYPES), larger=True), *module.GOALS, *module.LADDER)
    known = {case.label: case for case in every}
    if label not in known:
        raise SystemExit(f"{module.__name__} has no case {label!r}; known: {', '.join(known)}")
    return known[label]


# --- the command -----------------------------------------------------------------------------------------------------


def load(name: str) -> Any:
    """Return a kernel module by its name, or from the path of a Python file that offers the same names."""
    if not name.endswith(".py"):
        return import_module(name)
    spec = importlib.util.spec_from_file_location(Path(name).stem, name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[Path(name).stem] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def run_checks(asked: argparse.Namespace) -> dict[str, Any]:
    """Run what the command line asks for and return its checks by name."""
    if asked.kind == "case":
        module = load(asked.subject)
        return check_case(module, find(module, asked.label), asked.device)
    if asked.kind == "steps":
        from check_steps import check_steps

        return check_steps(asked.subject, DTYPES[asked.dtype.split(",")[0]], asked.device, asked.steps)
    if asked.kind == "rounding":
        from check_rounding import check_rounding

        return check_rounding(asked.subject, asked.device)
    if asked.kind == "coverage":
        return check_coverage([load(name) for name in asked.subject.split(",")], asked.findings, asked.device)
    return check_canary(int(asked.subject), asked.device)


def command_line() -> argparse.ArgumentParser:
    """Return what the arguments may be."""
    parser = argparse.ArgumentParser(description="check one kernel case numerically")
    parser.add_argument("kind", choices=("case", "steps", "rounding", "canary", "coverage", "list"))
    parser.add_argument("subject", help="a module or Python file, an optimizer, or the canary's number")
    parser.add_argument("label", nargs="?", default="", help="the case's label")
    parser.add_argument("--device", default="cpu" if INTERPRETED else "cuda")
    parser.add_argument("--dtype", default="float32", help="one of them; for list several, joined by commas")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--larger", action="store_true", help="list the cases for a GPU too")
    parser.add_argument("--findings", type=Path, help="of coverage: the folder of what the checks wrote")
    parser.add_argument("--output", type=Path, help="where the findings go, as JSON")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Check what the arguments say and write it; exit status 1 when a check failed."""
    asked = command_line().parse_args(arguments)
    if asked.kind == "list":
        print("\n".join(case.label for case in cases(load(asked.subject), asked.dtype.split(","), asked.larger)))
        return 0
    launched: list[dict[str, Any]] = []
    record_launches(launched)
    checks = run_checks(asked)
    problems = {name: found["problem"] for name, found in checks.items() if found["problem"]}
    found = {"problems": problems, "checks": checks, "launched": launched, "versions": versions(asked.device)}
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    asked.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print("; ".join(f"{name}: {problem}" for name, problem in problems.items()) or "all good", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
