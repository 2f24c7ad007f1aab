"""The measurements of the GPU session: ``scalebench compare`` at the shapes of the goals, and training by studies.

Every step runs a scalebench command, so that its results are stored and reported like all others.
"""

from __future__ import annotations

import tarfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import session_rehearsed
from session import MOST_BYTES, ProgramFailedError, Session, Step

Shape = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """One ``scalebench compare``: an operation, shapes, providers and a baseline."""

    operation: str
    shapes: Sequence[Shape]
    providers: str
    baseline: str
    backward: bool = False
    seconds: float = 0.3

    @property
    def name(self) -> str:
        """The name of the step."""
        return f"{self.operation} {'backward' if self.backward else 'forward'}"


def attention(batch: int, heads: int, length: int, head_dimension: int, causal: bool, key_heads: int = 0) -> Shape:
    """Return a shape of attention, in bfloat16."""
    return {
        "batch": batch, "query_heads": heads, "key_heads": key_heads or heads, "query_length": length,
        "key_length": length, "head_dimension": head_dimension, "causal": causal, "dtype": "bfloat16",
    }  # fmt: skip


def attention_shapes(lengths: Sequence[int]) -> list[Shape]:
    """Return 16k tokens and a width of 2048, as in FlashAttention's tables, and the shape of a small GPT."""
    wide = [
        attention(16384 // length, 2048 // dimension, length, dimension, causal)
        for length in lengths
        for dimension in (128, 64)
        for causal in (False, True)
    ]
    return [*wide, attention(32, 12, 1024, 64, True)]


def loss(width: int) -> Shape:
    """Return a shape of the loss: GPT-2's vocabulary, rounded up to a multiple of 64."""
    return {"tokens": 8192, "width": width, "classes": 50304, "dtype": "bfloat16"}


def norm(kind: str, width: int, residual: bool) -> Shape:
    """Return a shape of a norm."""
    return {"kind": kind, "rows": 16384, "width": width, "residual": residual, "dtype": "bfloat16"}


def optimizer(size: str, dtype: str, state: str) -> Shape:
    """Return a shape of AdamW: the parameters of a published GPT size."""
    return {"name": size, "algorithm": "adamw", "dtype": dtype, "state_dtype": state}


def turning(batch: int, length: int, heads: int, head_dimension: int) -> Shape:
    """Return a shape of rotary positions: the tokens of one training step."""
    sizes = {"batch": batch, "length": length, "heads": heads, "head_dimension": head_dimension}
    return {**sizes, "dtype": "bfloat16"}


WEIGHTS, LARGE = (".pt", ".safetensors"), (".gz", ".log")  # files that are never packed, or only if there is room
TRAINING_S, LAW_S, KEEP_EVERY_S = 200.0, 170.0, 30.0
APART_S = 0.4  # between the starts of concurrent programs
CLOSING_S = 6.0  # that a comparison needs after its deadline: it imports pandas and writes its rows
EXPORT_S = 5.0
PROFILES = (("fused", 768), ("fused", 2048))  # implementation and width
SDPA = "sdpa-flash,sdpa-cudnn"
ADAMW = [optimizer("124M", "bfloat16", "float32"), optimizer("124M", "float32", "float32")]
LOSSES = [loss(768), loss(2048), loss(4096)]
NORMS = [norm("rms", 4096, False), norm("rms", 2048, True), norm("layer", 768, True)]
TURNINGS = [turning(32, 1024, 12, 64), turning(16, 2048, 16, 128)]
GOALS = [
    *attention_shapes([8192]), attention(8, 16, 2048, 128, False), attention(8, 16, 2048, 128, True),
]  # fmt: skip

# Each is a process that takes about 7 s before its first sample, in which nothing else can use the GPU.
TABLES: Mapping[str, Sequence[Table]] = {
    "loss and optimizer": (
        Table("cross-entropy", LOSSES, "eager,compiled,triton", "compiled", backward=True, seconds=0.2),
        Table("optimizer", ADAMW, "fused,triton,triton-int8-state", "fused", seconds=0.2),
    ),
    "backward": (
        Table("norm", NORMS, "eager,compiled,triton", "eager", backward=True, seconds=0.1),
        Table("attention", GOALS, f"{SDPA},triton,triton-atomic", "sdpa-cudnn", backward=True, seconds=0.2),
        Table("rotary", TURNINGS, "eager,triton", "eager", backward=True, seconds=0.1),
    ),
    "forward": (
        Table("attention", GOALS, f"{SDPA},triton", "sdpa-cudnn", seconds=0.2),
        Table("norm", NORMS, "eager,compiled,triton", "eager", seconds=0.1),
        Table("rotary", TURNINGS, "eager,triton", "eager", seconds=0.1),
    ),
}


def measuring_steps() -> list[Step]:
    """Return the measurement steps, the most important first; the last can use all remaining time."""
    loss_and_optimizer, backward, forward = (
        Step(f"{name} tables", tables_step(tables), least_s=20, most_s=75) for name, tables in TABLES.items()
    )
    return [
        loss_and_optimizer,
        backward,
        Step("training", training, least_s=25, most_s=TRAINING_S),
        Step("profiles", profiles, least_s=20, most_s=45),
        forward,
        Step("law", law, least_s=60, most_s=LAW_S),
    ]


# --- programs that take turns on the GPU -----------------------------------------------------------------------------


def together(session: Session, programs: Mapping[str, Callable[[], str]], keep_every_s: float = KEEP_EVERY_S) -> str:
    """Run programs concurrently and return a line for each; results are copied to OUT at intervals.

    Programs take turns on the GPU by its lock, so only their preparations overlap. They start in order. Raises
    ``RuntimeError`` with all lines if one failed.
    """
    ended, outcomes = threading.Event(), {}

    def bring() -> None:
        while not ended.wait(keep_every_s):
            keep(session)

    def run_later(place: int, name: str, program: Callable[[], str]) -> bool:
        time.sleep(place * APART_S)
        try:
            outcomes[name] = f"ok: {program()}"
        except Exception as error:  # noqa: BLE001 - the others go on
            outcomes[name] = f"failed: {error}"[:300]
        session.say(f"  {name}: {outcomes[name]}")
        return outcomes[name].startswith("ok")

    bringing = threading.Thread(target=bring)
    bringing.start()
    try:
        with ThreadPoolExecutor(len(programs)) as threads:
            good = all(list(threads.map(run_later, range(len(programs)), programs, programs.values())))
    finally:
        ended.set()
        bringing.join()
        keep(session)
    lines = "; ".join(f"{name}: {outcomes[name]}" for name in programs)
    if not good:
        raise RuntimeError(lines)
    return lines


def tables_step(tables: Sequence[Table]) -> Any:
    """Return the function of a step that measures several tables."""
    return lambda session: together(session, {table.name: partial(compare, session, table) for table in tables})


def compare(session: Session, table: Table, most_s: float = 600.0) -> str:
    """Measure a table within ``most_s`` and return a short summary; the comparison ends itself before the deadline."""
    if session.device == "cpu":
        shapes = [session_rehearsed.SHAPES[table.operation]]
        table = replace(table, shapes=shapes, providers="eager", baseline="eager", seconds=0.02)
    words = [word for shape in table.shapes for word in ("--shapes", written(shape))]
    options = ["--providers", table.providers, "--baseline", table.baseline, "--processes", 1]
    options += ["--seconds", table.seconds, "--device", session.device, *(["--backward"] if table.backward else [])]
    options += ["--results", session.work / "results", "--minutes"]
    options += [max(1.0, min(most_s, session.left_s()) - CLOSING_S) / 60]
    try:
        output = session.python("-m", "scalebench.cli.app", "compare", table.operation, *words, *options, most_s=most_s)
    except ProgramFailedError as error:
        raise RuntimeError(verdict(error.output) or str(error)) from None
    return f"{len(output.splitlines())} lines"


def verdict(output: str) -> str:
    """Return the errors that ``scalebench compare`` printed in one line; "" if there are none."""
    lines = output.splitlines()
    wrong = [line.replace(" is WRONG in ", " in ", 1) for line in lines if " is WRONG in " in line]
    early = [line for line in lines if line.startswith("ended early")]
    reasons = [f"{len(wrong)} not accepted, first {wrong[0]}"] if wrong else []
    reasons += [line.replace("ended early, what was measured is kept", "ended early") for line in early]
    return "; ".join(line[: 200 // len(reasons) - 2] for line in reasons)


def written(shape: Shape) -> str:
    """Return a shape in command-line syntax."""
    return ",".join(
        f"{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in shape.items()
    )


def training(session: Session) -> str:
    """Train GPT from 124M to 1.3B parameters by several implementations, the most important first, until the deadline.

    Three workers: the next trials import and open their data while one has the GPU.
    """
    return together(session, {"gpu-speed": partial(study, session, "gpu-speed", 3)})


def law(session: Session) -> str:
    """Train the sizes of the law of loss, several at a time on the GPU, and fit it."""
    return together(session, {"gpu-law": partial(study, session, "gpu-law", 4)})


def study(session: Session, name: str, jobs: int) -> str:
    """Run a study and return the end of what it printed."""
    return output_of(session, name, jobs)[-600:]


def output_of(session: Session, name: str, jobs: int) -> str:
    """Run a study by its name or path, and return what it printed."""
    settings = session_rehearsed.STUDIES.get(Path(name).stem, ()) if session.device == "cpu" else ()
    options = ["--jobs", jobs, "--results", session.work / "results"]
    options += [word for setting in settings for word in ("--set", setting)]
    return session.python("-m", "scalebench.cli.app", "run", name, *options)


def profiles(session: Session) -> str:
    """Profile training steps of some sizes and implementations."""
    if session.device == "cpu":
        return "needs a GPU"
    return together(session, {f"{name} {width}": partial(profile, session, name, width) for name, width in PROFILES})


def profile(session: Session, implementation: str, width: int) -> str:
    """Profile training steps of one size by one implementation."""
    path = session.work / "results" / f"profile-{implementation}-{width}.json.gz"
    options = ("--implementation", implementation, "--width", width, "--output", path)
    output = session.python(Path(__file__).with_name("profile_step.py"), "gpu-speed", *options)
    (session.work / "results" / f"profile-{implementation}-{width}.txt").write_text(output, encoding="utf-8")
    return next((line for line in output.splitlines() if line.startswith("step ")), output[-200:])


# Writes both tables of results in one process, since importing pandas takes longer than writing.
EXPORT = """
import sys, pathlib
from scalebench.store.comparisons import read_comparisons
from scalebench.store import export, read_results, write_table
results, training, comparisons = map(pathlib.Path, sys.argv[1:])
trials, compared = read_results(results), read_comparisons(results).frame
if len(trials.frame):
    export(trials, training)
if len(compared):
    write_table(compared, comparisons)
"""


def pack_results(session: Session, results: Path) -> None:
    """Pack the folders that ``scalebench report`` reads, and profiles unless the archive would be too large."""
    files = [path for path in sorted(results.rglob("*")) if path.is_file() and path.suffix not in WEIGHTS]
    with session.replacing("results.tar.gz") as archive:
        pack(archive, results, files)
        if archive.stat().st_size > MOST_BYTES:
            session.say(f"results.tar.gz: {archive.stat().st_size >> 20} MiB; without profiles and logs")
            pack(archive, results, [path for path in files if path.suffix not in LARGE])


def pack(archive: Path, results: Path, files: Sequence[Path]) -> None:
    """Write a new archive with files of the folder ``results``."""
    with tarfile.open(archive, "w:gz", compresslevel=3) as packed:
        for path in files:
            packed.add(path, arcname=f"results/{path.relative_to(results)}")


def keep(session: Session) -> None:
    """Copy the results to OUT: both tables, and the folders that ``scalebench report`` reads."""
    results = session.work / "results"
    pack_results(session, results)
    try:
        # Even after the step's deadline: otherwise the last step's results would not be in the tables.
        with session.replacing("train.parquet") as training, session.replacing("compare.parquet") as compared:
            session.python("-c", EXPORT, results, training, compared, most_s=20, least_s=EXPORT_S)
    except RuntimeError as error:  # the folders are kept
        session.say(f"no table: {error}")
