"""What the GPU session measures: operations at the shapes of the goals by ``scalebench compare``, training by studies.

Every step is a command of the product, so that what it measures is kept and shown as everywhere else.
"""

from __future__ import annotations

import tarfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from session import Session, Step

Shape = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """One ``scalebench compare``: an operation at some shapes, by some providers, against a baseline."""

    operation: str
    shapes: Sequence[Shape]
    providers: str
    baseline: str
    backward: bool = False
    seconds: float = 0.3

    @property
    def name(self) -> str:
        """What the step is called."""
        return f"{self.operation} {'backward' if self.backward else 'forward'}"


def attention(batch: int, heads: int, length: int, head_dimension: int, causal: bool, key_heads: int = 0) -> Shape:
    """Return a shape of attention, in bfloat16."""
    return {
        "batch": batch, "query_heads": heads, "key_heads": key_heads or heads, "query_length": length,
        "key_length": length, "head_dimension": head_dimension, "causal": causal, "dtype": "bfloat16",
    }  # fmt: skip


def attention_shapes(lengths: Sequence[int]) -> list[Shape]:
    """16k tokens and a width of 2048, as in FlashAttention's tables; and what a small GPT trains with."""
    wide = [
        attention(16384 // length, 2048 // dimension, length, dimension, causal)
        for length in lengths
        for dimension in (128, 64)
        for causal in (False, True)
    ]
    return [*wide, attention(32, 12, 1024, 64, True)]


def loss(width: int) -> Shape:
    """Return a shape of the loss: the vocabulary of GPT-2, rounded up to 64."""
    return {"tokens": 8192, "width": width, "classes": 50304, "dtype": "bfloat16"}


def norm(kind: str, width: int, residual: bool) -> Shape:
    """Return a shape of a norm."""
    return {"kind": kind, "rows": 16384, "width": width, "residual": residual, "dtype": "bfloat16"}


def optimizer(size: str, dtype: str, state: str) -> Shape:
    """Return a shape of AdamW: the parameters of a published size of GPT."""
    return {"name": size, "algorithm": "adamw", "dtype": dtype, "state_dtype": state}


def turning(batch: int, length: int, heads: int, head_dimension: int) -> Shape:
    """Return a shape of rotary positions: all of one training step's tokens."""
    sizes = {"batch": batch, "length": length, "heads": heads, "head_dimension": head_dimension}
    return {**sizes, "dtype": "bfloat16"}


TRAINING_S, KEEP_EVERY_S = 150.0, 30.0
PROFILES = (("fused", 768), ("fused", 2048), ("compile", 768))  # implementation and width of what is profiled
SDPA = "sdpa-flash,sdpa-cudnn"
OURS = "triton,triton-pointers"
FLOAT32_STATE = [optimizer("124M", "float32", "float32"), optimizer("124M", "bfloat16", "float32")]
INT8_STATE = [optimizer("124M", "bfloat16", "int8")]
LOSSES = [loss(768), loss(2048)]
NORMS = [norm("rms", 4096, False), norm("rms", 2048, True), norm("layer", 768, True)]
TURNINGS = [turning(32, 1024, 12, 64), turning(16, 2048, 16, 128)]
ADAMW = "fused,triton"

TABLES: Mapping[str, Sequence[Table]] = {
    "first": (
        Table("attention", attention_shapes([8192]), f"{SDPA},{OURS}", "sdpa-cudnn", seconds=0.2),
        Table("attention", attention_shapes([8192]), f"{SDPA},{OURS}", "sdpa-cudnn", backward=True, seconds=0.2),
        Table("optimizer", FLOAT32_STATE, f"{ADAMW},triton-int8-state", "fused", seconds=0.2),
        Table("cross-entropy", LOSSES[:1], "eager,triton", "eager", backward=True, seconds=0.2),
        Table("norm", NORMS, "eager,triton", "eager", seconds=0.1),
        Table("norm", NORMS, "eager,triton", "eager", backward=True, seconds=0.1),
    ),
    "second": (
        Table("attention", attention_shapes([1024, 2048, 8192, 16384]), f"{SDPA},triton", "sdpa-cudnn"),
        Table("attention", attention_shapes([1024, 2048, 8192, 16384]), f"{SDPA},triton", "sdpa-cudnn", backward=True),
        Table("optimizer", FLOAT32_STATE, f"{ADAMW},triton-int8-state", "fused"),
        Table("cross-entropy", LOSSES, "eager,compiled,triton", "compiled", backward=True),
        Table("norm", NORMS, "eager,compiled,triton", "eager"),
        Table("norm", NORMS, "eager,compiled,triton", "eager", backward=True),
        Table("rotary", TURNINGS, "compiled,triton", "compiled"),
        Table("rotary", TURNINGS, "compiled,triton", "compiled", backward=True),
    ),
}


def measuring_steps(phase: str) -> list[Step]:
    """Return the measuring steps of a phase. Training comes between the tables of attention and the others."""
    tables = [Step(table.name, table_step(table), least_s=12, most_s=60) for table in TABLES[phase]]
    trainings = [
        Step("training", training, least_s=25, most_s=TRAINING_S),
        *(Step(f"profile {name} {width}", profile_step(name, width), 15, 45) for name, width in PROFILES),
    ]
    return [*tables[:2], *(trainings if phase == "second" else []), *tables[2:]]


def table_step(table: Table) -> Any:
    """Return what measures a table."""

    def do(session: Session) -> str:
        shapes = [word for shape in table.shapes for word in ("--shapes", written(shape))]
        options = ["--providers", table.providers, "--baseline", table.baseline, "--processes", 1]
        options += ["--seconds", table.seconds, "--device", session.device, *(["--backward"] if table.backward else [])]
        try:
            options += ["--results", session.work / "results", "--minutes", session.left_s() / 60]
            said = session.python("-m", "scalebench.cli", "compare", table.operation, *shapes, *options)
        finally:
            keep(session)
        return f"{len(said.splitlines())} lines, see compare.parquet"

    return do


def written(shape: Shape) -> str:
    """Return a shape as the command line takes it."""
    return ",".join(
        f"{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in shape.items()
    )


def training(session: Session) -> str:
    """Train GPT from 124M to 1.3B parameters by several implementations, the most wanted first, until the time is over.

    What is finished is brought into OUT every now and then: the step is the longest of all.
    """
    ended = threading.Event()

    def bring() -> None:
        while not ended.wait(KEEP_EVERY_S):
            keep(session)

    bringing = threading.Thread(target=bring)
    bringing.start()
    try:
        return session.python("-m", "scalebench.cli", "run", "gpu-speed", "--results", session.work / "results")[-600:]
    finally:
        ended.set()
        bringing.join()
        keep(session)


def profile_step(implementation: str, width: int) -> Any:
    """Return what profiles training steps of one size by one implementation."""

    def do(session: Session) -> str:
        path = session.work / "results" / f"profile-{implementation}-{width}.json.gz"
        options = ("--implementation", implementation, "--width", width, "--output", path)
        try:
            said = session.python(Path(__file__).with_name("profile_step.py"), "gpu-speed", *options)
        finally:
            keep(session)
        (session.work / "results" / f"profile-{implementation}-{width}.txt").write_text(said, encoding="utf-8")
        return said[-3000:]

    return do


EXPORT = """
import sys, pathlib
from scalebench.comparison_store import read_comparisons
results, out = map(pathlib.Path, sys.argv[1:])
frame = read_comparisons(results).frame
if len(frame):
    frame.astype({c: str for c in frame.columns[frame.dtypes == object]}).to_parquet(out / "compare.parquet")
"""


def keep(session: Session) -> None:
    """Bring what was measured into OUT: both tables, and the folders that ``scalebench report`` reads."""
    results = session.work / "results"
    with tarfile.open(session.out / ".results.tar.gz", "w:gz", compresslevel=3) as packed:
        for path in sorted(results.rglob("*")):
            if path.is_file() and path.suffix not in (".pt", ".safetensors"):
                packed.add(path, arcname=f"results/{path.relative_to(results)}")
    (session.out / ".results.tar.gz").replace(session.out / "results.tar.gz")
    for command in (
        ("-c", EXPORT, results, session.out),
        ("-m", "scalebench.cli", "export", results, "--output", session.out / "train.parquet"),
    ):
        try:
            session.python(*command, most_s=20)
        except RuntimeError as error:  # there may be nothing yet; the folders are kept
            session.say(f"no table: {error}")
