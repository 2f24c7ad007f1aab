"""What several test files share.

Imports little by itself, as ``conftest.py`` uses it in the process of pytest-xdist that runs no test.
"""

from __future__ import annotations

import ast
import fcntl
import os
import shutil
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from scalebench import store
from scalebench.running.claims import process_start

if TYPE_CHECKING:
    import torch

    from scalebench.study import Study
    from scalebench.workloads.training_spec import TrainSpec

REPOSITORY = Path(__file__).resolve().parent.parent

# The smallest study that has everything: two sizes, two seeds, real text is not needed to learn a teacher.
SMALL = """
schema = 1
name = "small"
[model]
family = "mlp"
params = [200, 800]
depth = 1
[train]
steps = 30
batch_size = 32
weight_decay = 0.0
seed = [0, 1]
[data]
validation_samples = 128
"""

# The arguments of `scalebench run` that made the results of the fixture `finished`, with SMALL as small.toml.
FINISHED = ("small.toml", "--set", "train.seed=0", "--set", 'train.precision=["float32", "float16"]')

# What an engine tells a worker about its node.
PLACEMENT = {"exclusive": True, "peaks": {"float32": {"flops_per_s": 1e12, "source": "a test"}}}

# For child processes: find both packages when they run from source.
SOURCE_PATH = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "kernels")])


def source_tree(path: Path) -> ast.Module:
    """The syntax tree of a source file, parsed once for all rules about sources."""
    return _parsed(path.read_text(encoding="utf-8"))


@cache
def _parsed(source: str) -> ast.Module:
    return ast.parse(source)


def child_environment(**changes: str) -> dict[str, str]:
    """Environment variables for a child process that imports both packages from source."""
    return os.environ | {"PYTHONPATH": SOURCE_PATH} | changes


def shared_folder(factory: pytest.TempPathFactory, name: str, fill: Callable[[Path], object]) -> Path:
    """Return a folder that is filled once per run of pytest, however many worker processes use it.

    The first process that asks calls ``fill`` while the others wait. Tests only read the folder.
    """
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = base / name, base / f"{name}.done"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # an earlier call failed half-way
            folder.mkdir()
            fill(folder)
            done.touch()
    return folder


_TRAIN = {
    "steps": 10, "batch_size": 8, "accumulation": 1, "checkpointing": False, "sequence_length": None,
    "optimizer": "adamw", "learning_rate": 0.01, "schedule": "constant", "warmup_steps": 0, "decay_fraction": 0.8,
    "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95,
    "momentum": 0.9, "gradient_clip": 1e9, "precision": "float32", "implementation": "eager", "graph": "none",
    "seed": 0,
}  # fmt: skip


def train_spec(**changes: object) -> TrainSpec:
    """One trial's training, short and plain, with some of its values changed."""
    from scalebench.workloads.training_spec import TrainSpec

    return TrainSpec(**(_TRAIN | changes))


def run_here(study: Study, results: Path) -> dict[str, dict[str, Any]]:
    """Run a study's trials in this process, as a worker does in its own; return the records by trial id."""
    from scalebench.running.planning import plan, trial_header
    from scalebench.running.worker import run_trial

    rows = {}
    for trial in plan(study, results):
        attempt = store.new_attempt(results / study.name, trial.trial_id)
        store.write_header(attempt, trial_header(study, trial, "a test"))
        run_trial(attempt, store.read_json(attempt / "trial.json"), PLACEMENT)
        rows[trial.trial_id] = store.read_record(attempt)
    return rows


def edit_record(attempt: Path, **changes: object) -> None:
    """Change columns of a record as if it had been written so."""
    path = attempt / "record.json"
    record = {name: value for name, value in store.read_json(path).items() if name != "sha256"}
    store.write_checked_json(path, record | changes)


def reference_data(name: str) -> Path:
    """The path of a public data file, or a skip that says where it was looked for."""
    folder = Path(os.environ.get("SCALEBENCH_REFERENCE_DATA", REPOSITORY.parent / "shared" / "reference-data"))
    if not (folder / name).exists():
        pytest.skip(f"{folder / name} is not there; SCALEBENCH_REFERENCE_DATA names its folder")
    return folder / name


def reference_case(name: str) -> Path:
    """The folder of a failing input from the field, or a skip that says where it was looked for."""
    folder = Path(os.environ.get("SCALEBENCH_CASES", REPOSITORY.parent / "shared" / "cases"))
    if not (folder / name).exists():
        pytest.skip(f"{folder / name} is not there; SCALEBENCH_CASES names its folder")
    return folder / name


def saved_for_backward(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> int:
    """Bytes that autograd keeps while ``loss`` runs, each storage once, the model's own tensors left out."""
    import torch

    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    storages: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        graph = loss()
    assert graph.requires_grad
    return sum(storage.nbytes() for storage in storages.values())


def ranks_of(attempt: Path) -> list[psutil.Process]:
    """The processes of an attempt's trial, without the one that started them, by rank."""
    ranks: dict[str, psutil.Process] = {}
    for process in psutil.process_iter(["cmdline", "environ"]):  # empty for a process that ends meanwhile
        if str(attempt) in (process.info["cmdline"] or []) and "RANK" in (process.info["environ"] or {}):
            ranks[process.info["environ"]["RANK"]] = process
    return [ranks[rank] for rank in sorted(ranks)]


def has_ended(pid: int, within_s: float = 5.0) -> bool:
    """Whether a process ends within some seconds; a zombie nobody waits for counts as ended."""
    deadline = time.monotonic() + within_s
    while process_start(pid) is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def beats(attempt: Path) -> bool:
    """Whether the worker of an attempt has begun to write its heartbeat."""
    return (attempt / "heartbeat.json").exists()
