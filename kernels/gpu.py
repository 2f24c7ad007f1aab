"""Everything that needs a GPU, by one command and without a network: check, compare, sweep, report.

    make gpu OUT=gpu-results [STAGES=check,compare,sweep,report] [WHEELS=folder] [PYTHON=python3]

Runs from source with the torch and triton that are there. Each stage is made of parts, each a process of its own with a
log and a record under OUT/parts; a part that ended well is not done again by the same code. A stage stops at its
deadline and says what did not fit: the same command goes on from there. Correctness cases run side by side, timings
alone on the device. A stage that fails does not keep the next from running. At the end everything is one archive beside
OUT; exit status 0 when all is well, 1 when something failed or did not fit, 3 when interrupted.

``--dry`` runs the same on a CPU under the interpreter, tiny, to try the machinery.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from gpu_parts import Part, Run, run_parts

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
STUDY = ROOT / "studies" / "gpt-implementations.toml"
OPERATIONS = ("attention", "cross-entropy", "norm", "optimizer")  # as `scalebench compare` calls them
OPTIMIZERS = ("AdamW", "Adam", "SGD", "Adagrad", "RMSprop")  # those that torch has
# On a CPU under the interpreter: two trials of three steps.
DRY_STUDY = (
    "model.params=1500", "train.steps=3", "train.batch_size=2", "train.sequence_length=16", "train.precision=float32",
    'train.implementation=["eager", "triton"]', "train.device=cpu", "data.validation_samples=2",
)  # fmt: skip


# --- stages ----------------------------------------------------------------------------------------------------------


def module_of(operation: str) -> str:
    """Return what the checker loads for an operation: a module of scalekernels, or a Python file."""
    return operation if operation.endswith(".py") else f"scalekernels.{operation.replace('-', '_')}"


def checker(*arguments: object) -> tuple[str, ...]:
    """Return the command of a check."""
    return (sys.executable, str(HERE / "check_case.py"), *map(str, arguments))


def scalebench(*arguments: object) -> tuple[str, ...]:
    """Return a command of scalebench."""
    return (sys.executable, "-m", "scalebench.cli", *map(str, arguments))


def check_parts(run: Run) -> list[Part]:
    """The witness, every case of every operation, and optimizers over many steps."""
    dtypes = ("float16",) if run.dry else ("float16", "bfloat16", "float32")
    found = run.out / "check"
    subjects: list[tuple[object, ...]] = [("canary", str(index)) for index in range(1 if run.dry else 4)]
    for operation in run.operations:
        module = module_of(operation)
        command = checker("list", module, "--dtype", ",".join(dtypes), "--most-flops", 0 if run.dry else 1e11)
        listed = subprocess.run(command, env=run.environment, capture_output=True, text=True)
        labels = listed.stdout.splitlines() if listed.returncode == 0 else ["(the cases could not be listed)"]
        subjects += [("case", module, label) for label in labels[: run.cases]]
    steps = 3 if run.dry else 1000
    if "optimizer" in run.operations:
        kinds = [(name, dtype) for name in OPTIMIZERS for dtype in ("float32", "bfloat16")]
        subjects += [("steps", name, "--dtype", dtype, "--steps", steps) for name, dtype in kinds]
    return [check_part(found, run.device, *subject) for subject in subjects]


def check_part(found: Path, device: str, kind: object, *subject: object) -> Part:
    """Return a check as a part, its findings under a name of its own."""
    name = " ".join(map(str, (kind, *subject)))
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return Part(name, checker(kind, *subject, "--device", device, "--output", found / f"{digest}.json"), 240)


def coverage_part(run: Run) -> Part:
    """What the checks launched, held against what ships."""
    modules = ",".join(module_of(operation) for operation in run.operations)
    command = checker("coverage", modules, "--device", run.device, "--output", run.out / "coverage.json")
    return Part("coverage", (*command, "--findings", str(run.out / "check")))


def compare_parts(run: Run) -> list[Part]:
    """Every operation against its alternatives, forward and backward."""
    small = ("--shapes", "cases", "--processes", 1, "--seconds", 0.01, "--providers", "eager,triton", "--device", "cpu")
    options = small if run.dry else ("--shapes", "ladder", "--seconds", 0.5)
    parts = []
    for operation in run.operations:
        command = scalebench("compare", operation, "--results", run.out / "results", *options)
        parts += [Part(f"{operation} forward", command), Part(f"{operation} backward", (*command, "--backward"))]
    return [part for part in parts if part.name != "optimizer backward"]  # a step has none


def sweep_parts(run: Run) -> list[Part]:
    """One study; it resumes by itself."""
    settings = [word for setting in DRY_STUDY if run.dry for word in ("--set", setting)]
    return [Part("gpt-implementations", scalebench("run", STUDY, "--results", run.out / "results", *settings))]


def report_parts(run: Run) -> list[Part]:
    """One page of all results."""
    return [Part("report", scalebench("report", run.out / "results", "-o", run.out / "report.html"))]


STAGES: dict[str, Callable[[Run], list[Part]]] = {
    "check": check_parts,
    "compare": compare_parts,
    "sweep": sweep_parts,
    "report": report_parts,
}


def run_stage(run: Run, stage: str) -> None:
    """Run a stage until its deadline; correctness side by side, timings alone. A check ends with what it covered."""
    deadline = time.monotonic() + 60 * run.minutes
    jobs = run.jobs if stage == "check" else 1
    run_parts(run, stage, STAGES[stage](run), jobs, deadline)
    if stage == "check":
        run_parts(run, stage, [coverage_part(run)], 1, time.monotonic() + 120)


# --- around them -----------------------------------------------------------------------------------------------------


def code_sha256() -> str:
    """Return 16 hex digits over all the source that a part may run."""
    digest = hashlib.sha256()
    for path in sorted([*ROOT.glob("scalebench/**/*.py"), *HERE.glob("**/*.py"), *ROOT.glob("studies/*.toml")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def unpack_wheels(wheels: Path, into: Path) -> list[str]:
    """Unpack the pure Python wheels of packages that are not installed; return their names.

    A pure wheel is a zip file of what is to lie on the path, so that no installer is needed.
    """
    taken = []
    for wheel in sorted(wheels.glob("*-none-any.whl")):
        name = wheel.name.partition("-")[0]
        try:
            distribution(name)
        except PackageNotFoundError:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(into)  # noqa: S202 - the user's own folder of wheels
            taken.append(name)
    return taken


def environment_of(out: Path, dry: bool) -> dict[str, str]:
    """Return the environment of the parts: the source on the path, compiled code kept under OUT."""
    paths = [str(ROOT), str(HERE), str(out / "packages"), os.environ.get("PYTHONPATH", "")]
    found = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    found |= {"TRITON_CACHE_DIR": str(out / "cache" / "triton")}
    found |= {"TORCHINDUCTOR_CACHE_DIR": str(out / "cache" / "inductor")}
    return found | ({"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"} if dry else {})


def summary(run: Run, stages: Sequence[str]) -> str:
    """Return what became of every stage, and every part that did not end well."""
    lines = ["# What ran", "", f"code `{run.code}`{', dry: on a CPU under the interpreter' if run.dry else ''}", ""]
    for stage in stages:
        rows = [row for row in run.rows if row["stage"] == stage]
        good = sum(row["status"] == "ok" for row in rows)
        lines.append(f"- {stage}: {good} of {len(rows)} parts ended well")
        lines += [f"  - {r['name']}: {r['status']}: {r['detail'][:300]}" for r in rows if r["status"] != "ok"]
    return "\n".join(lines) + "\n"


def pack(out: Path) -> Path:
    """Pack OUT, without what can be made again, into one archive beside it."""
    archive = out.with_name(out.name + ".tar.gz")
    with tarfile.open(archive, "w:gz") as packed:
        for path in sorted(out.iterdir()):
            if path.name not in ("cache", "packages"):
                packed.add(path, arcname=f"{out.name}/{path.name}")
    return archive


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stages asked for, whatever becomes of each; write the summary and the archive."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("--minutes", type=float, default=9.0, help="of each stage")
    parser.add_argument("--jobs", type=int, default=max(1, min(12, (os.cpu_count() or 1) - 1)))
    parser.add_argument("--operations", default=",".join(OPERATIONS), help="names, or Python files that offer the same")
    parser.add_argument("--cases", type=int, help="at most so many of each operation are checked; all unless --dry")
    parser.add_argument("--dry", action="store_true")
    asked = parser.parse_args(arguments)
    stages = [stage for stage in asked.stages.split(",") if stage]
    if unknown := [stage for stage in stages if stage not in STAGES]:
        parser.error(f"unknown stage {', '.join(unknown)}; known: {', '.join(STAGES)}")
    out = asked.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if asked.wheels:
        print(f"from {asked.wheels}: {', '.join(unpack_wheels(asked.wheels, out / 'packages')) or 'nothing needed'}")
    operations = tuple(asked.operations.split(","))
    environment = environment_of(out, asked.dry)
    run = Run(out, asked.minutes, asked.jobs, asked.dry, operations, environment, code_sha256())
    run.cases = asked.cases or (1 if asked.dry else None)
    for stage in stages:
        try:
            run_stage(run, stage)
        except KeyboardInterrupt:
            return 3
    text = summary(run, stages)
    (out / "summary.md").write_text(text, encoding="utf-8")
    (out / "summary.json").write_text(json.dumps(run.rows, indent=1), encoding="utf-8")
    print(f"{text}\n{pack(out)}")
    return 0 if all(row["status"] == "ok" for row in run.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
