"""Check one case of an operation numerically and write the result as JSON.

    python kernels/tools/check_case.py case scalekernels.attention "B1 H8/2 T512 D64 bf16 causal" --output result.json
    python kernels/tools/check_case.py steps AdamW --dtype bfloat16 --output result.json
    python kernels/tools/check_case.py rounding adamw --output result.json
    python kernels/tools/check_case.py canary 0 --output result.json

After a fault on a GPU every later launch of the process fails, so ``tests/test_gpu_kernels.py`` runs each case in a
separate process, and ``gpu_session.py`` starts a new one after a fault. With TRITON_INTERPRET=1 and ``--device cpu``
the checks run on a CPU.
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

import canary
import torch
import triton
from check_coverage import check_coverage, record_launches
from check_results import judged, same_bits
from check_rounding import check_rounding
from check_steps import check_steps
from scalekernels.accuracy import Terms, terms_of
from scalekernels.cross_entropy.products import PATHS, weight_gradient_path
from scalekernels.device import INTERPRETED, assembler
from scalekernels.providers import Unsupported
from torch import Tensor
from torch.nn import functional as F

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def versions(device: str) -> dict[str, Any]:
    """Return the versions that determine the machine code, the path of ptxas, and the device."""
    known: dict[str, Any] = {"torch": torch.__version__, "triton": triton.__version__, "interpreted": INTERPRETED}
    known["TRITON_PTXAS_PATH"] = os.environ.get("TRITON_PTXAS_PATH")
    if device != "cuda":
        return known | {"device": device}
    major, minor = torch.cuda.get_device_capability()
    arch = 10 * major + minor
    path, version = assembler(arch)
    known |= {"ptxas": version, "ptxas_path": path}
    return known | {"device": torch.cuda.get_device_name(), "capability": arch}


def after_sdpa(device: str) -> None:
    """Run PyTorch's own attention forward and backward: it changes the state of memory and of the CUDA context."""
    q = torch.randn(1, 2, 128, 64, device=device, dtype=torch.bfloat16, requires_grad=True)
    F.scaled_dot_product_attention(q, q, q, is_causal=True).sum().backward()


def run_fresh(module: Any, provider: str, case: Any, inputs: Mapping[str, Tensor], backward: bool) -> dict[str, Tensor]:
    """Prepare and call a provider once on copies of the inputs; memory that it does not write is NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills torch.empty with NaN
    try:
        copies = {name: tensor.clone() for name, tensor in inputs.items()}
        results = module.providers()[provider].prepare(case, copies, backward)()
        return {name: tensor.detach().clone() for name, tensor in results.items()}
    finally:
        torch.use_deterministic_algorithms(False)


@dataclasses.dataclass(frozen=True)
class Expected:
    """A case's inputs and what its results are compared with: the float64 oracle, and PyTorch in the same precision."""

    inputs: Mapping[str, Tensor]
    oracle: Mapping[str, Tensor]
    eager: Mapping[str, Tensor]
    terms: Terms = 0.0


def check_provider(
    module: Any, provider: str, case: Any, device: str, backward: bool, expected: Expected
) -> dict[str, Any]:
    """Check one of our providers: accuracy, and the same bits in a repeat and after PyTorch's own attention."""
    first = run_fresh(module, provider, case, expected.inputs, backward)
    check = judged(first, expected.eager, expected.oracle, expected.terms)
    if check["problem"]:
        return check
    again = run_fresh(module, provider, case, expected.inputs, backward)
    after_sdpa(device)
    later = run_fresh(module, provider, case, expected.inputs, backward)
    check["problem"] = judged(later, expected.eager, expected.oracle, expected.terms)["problem"]
    deterministic = "atomic" not in provider  # atomic additions have no fixed order
    if deterministic and not check["problem"]:
        differs = [
            name for name, other in (("a repeat", again), ("a run after SDPA", later)) if not same_bits(first, other)
        ]
        check["problem"] = f"{' and '.join(differs)} gave other bits" if differs else None
    return check


def check_case(module: Any, case: Any, device: str) -> dict[str, Any]:
    """Check all of our providers on a case, forward and backward."""
    checks: dict[str, Any] = {}
    ours = [name for name in module.providers() if name.startswith("triton")]
    for direction in ("forward", "backward"):
        backward = direction == "backward"
        try:
            inputs = module.inputs(case, device)
            oracle = module.results(case, inputs, backward)
            eager = run_fresh(module, "eager", case, inputs, backward)
            expected = Expected(inputs, oracle, eager, terms_of(module, case, inputs, backward))
        except Unsupported as reason:  # such as the backward pass of an optimizer step
            checks |= {f"{name} {direction}": {"problem": None, "unavailable": str(reason)} for name in ours}
            continue
        for provider in ours:
            name = f"{provider} {direction}"
            print(f"{module.__name__}: {case.label}: {name}", file=sys.stderr, flush=True)  # last line if it crashes
            try:
                checks[name] = check_provider(module, provider, case, device, backward, expected)
            except Unsupported as reason:
                checks[name] = {"problem": None, "unavailable": str(reason)}
    return checks


def check_canary(index: int, device: str) -> dict[str, Any]:
    """Check the assembler canary of one tile, several times."""
    rounds = 2 if INTERPRETED else 50
    wrong = [canary.wrong_entries(device, *canary.TILES[index], seed=seed) for seed in range(rounds)]
    problem = f"{sum(map(bool, wrong))} of {rounds} products are wrong, {max(wrong)} entries at worst"
    return {f"canary {canary.TILES[index]}": {"problem": problem if any(wrong) else None}}


def check_mechanism(name: str, device: str) -> dict[str, Any]:
    """Check one mechanism of the GPU; a fault is a problem only if shipped kernels need it, else information."""
    import mechanisms

    try:
        problem = mechanisms.witnesses()[name](device)
    except Exception as error:  # noqa: BLE001 - it may fail in any way
        problem = f"{type(error).__name__}: {error}"[:500]
    return {
        f"mechanism {name}": {
            "problem": problem if mechanisms.is_shipped(name) else None,
            "information": problem or "exact",
        }
    }


def check_sums(device: str) -> dict[str, Any]:
    """Check that the loss has a fast product for the sums of weight's gradient; on a GPU the slow one is a problem.

    The first request tries each way on the device for exact results; see ``cross_entropy.products``.
    """
    checks: dict[str, Any] = {}
    for name in ("bfloat16", "float16"):
        path = weight_gradient_path(device, DTYPES[name])
        slow = device == "cuda" and path == list(PATHS)[-1]
        problem = "no product of 16-bit matrices adds to float32 sums correctly" if slow else None
        checks[f"sums of {name} products"] = {"problem": problem, "information": path}
    return checks


# --- which cases -----------------------------------------------------------------------------------------------------


def cases(module: Any, dtypes: Sequence[str], larger: bool) -> Iterator[Any]:
    """Yield the operation's small cases in every dtype, each once; ``larger`` adds its ``LARGER`` cases for a GPU."""
    seen = set()
    for case in (*module.CASES, *(module.LARGER if larger else ())):
        for dtype in dtypes:
            in_dtype = dataclasses.replace(case, dtype=DTYPES[dtype])
            if in_dtype.label not in seen:
                seen.add(in_dtype.label)
                yield in_dtype


def find(module: Any, label: str) -> Any:
    """Return the case with a label. Raises ``SystemExit`` if there is none."""
    all_cases = (*cases(module, list(DTYPES), larger=True), *module.GOALS, *module.LADDER)
    known = {case.label: case for case in all_cases}
    if label not in known:
        raise SystemExit(f"{module.__name__} has no case {label!r}; known: {', '.join(known)}")
    return known[label]


# --- the command -----------------------------------------------------------------------------------------------------


def load(name: str) -> Any:
    """Return a kernel module by name, or from a Python file that defines the same names."""
    if not name.endswith(".py"):
        return import_module(name)
    spec = importlib.util.spec_from_file_location(Path(name).stem, name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[Path(name).stem] = module  # dataclasses look up their module there
    spec.loader.exec_module(module)
    return module


def run_checks(options: argparse.Namespace) -> dict[str, Any]:
    """Run the requested checks and return them by name."""
    if options.kind == "case":
        module = load(options.subject)
        return check_case(module, find(module, options.label), options.device)
    if options.kind == "steps":
        return check_steps(options.subject, DTYPES[options.dtype.split(",")[0]], options.device, options.steps)
    if options.kind == "rounding":
        return check_rounding(options.subject, options.device)
    if options.kind == "coverage":
        return check_coverage([load(name) for name in options.subject.split(",")], options.findings, options.device)
    return check_canary(int(options.subject), options.device)


def command_line() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = argparse.ArgumentParser(description="check one kernel case numerically")
    parser.add_argument("kind", choices=("case", "steps", "rounding", "canary", "coverage", "list"))
    parser.add_argument("subject", help="a module or Python file, an optimizer, or the canary's number")
    parser.add_argument("label", nargs="?", default="", help="the case's label")
    parser.add_argument("--device", default="cpu" if INTERPRETED else "cuda")
    parser.add_argument("--dtype", default="float32", help="a dtype; for list several, joined by commas")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--larger", action="store_true", help="list the cases for a GPU as well")
    parser.add_argument("--findings", type=Path, help="for coverage: the folder with the results of the checks")
    parser.add_argument("--output", type=Path, help="file to write the results to, as JSON")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks and write their results; return 1 if a check failed."""
    options = command_line().parse_args(arguments)
    if options.kind == "list":
        print("\n".join(case.label for case in cases(load(options.subject), options.dtype.split(","), options.larger)))
        return 0
    launched: list[dict[str, Any]] = []
    record_launches(launched)
    checks = run_checks(options)
    problems = {name: check["problem"] for name, check in checks.items() if check["problem"]}
    result = {"problems": problems, "checks": checks, "launched": launched, "versions": versions(options.device)}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print("; ".join(f"{name}: {problem}" for name, problem in problems.items()) or "all good", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
