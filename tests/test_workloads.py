"""The contract of a workload: declared columns are those in records, and a new workload needs one file and one line."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from drivers import Drivers
from support import PLACEMENT, REPOSITORY, run_here

from scalebench import store
from scalebench.cli.commands.catalogue import columns
from scalebench.families import FAMILIES, model_fields
from scalebench.running.planning import load_study
from scalebench.running.sweep import Sweep, execute
from scalebench.workloads import WORKLOADS, columns_of

TRAINING = """
schema = 1
name = "t"
[model]
family = "gpt"
params = 2000
[train]
steps = 4
batch_size = 4
sequence_length = 16
[data]
validation_samples = 16
[run]
checkpoint = true
"""
INFERENCE = """
schema = 1
name = "i"
workload = "inference"
[model]
family = "gpt"
params = 2000
[inference]
prompt_length = 8
new_tokens = 4
repeats = 100
"""
SERVING = """
schema = 1
name = "s"
workload = "serving"
[model]
family = "gpt"
params = 2000
[serving]
prompt_length = 4
new_tokens = 4
requests = 100
load = 0.5
first_token_within_s = 0.1
token_within_s = 0.1
"""
# Columns that no trial on a CPU that ends well can fill, and why.
ELSEWHERE = {
    "a GPU": {
        "peak_memory_allocated_bytes", "peak_memory_reserved_bytes", "energy_j", "ptxas_version",
    },
    "a family of a user's own file": {"family_sha256"},
    "float16, which needs a GPU": {"skipped_steps"},
    "a trial that fails": {"error_class", "error_message", "invalid_reason"},
    "a study that asks for them": {"size", "data_vocab_size", "requested_params", "requests_per_s", "concurrency"},
    "an earlier attempt that was interrupted": {"resumed_from_step"},
    "a trial with a parent": {"parent_trial_id", "parent_study", "parent_weights_sha256", "parent_flops"},
    "one of several trials that are trained together": {"ensemble_size", "ensemble_time_s"},
    "data with a known floor, or with noise": {"floor_nats", "noise_std", "data_vocab_size"},
    "a family from a file of the user's": {"family_sha256"},
    "a family with such a task": {
        "metric_accuracy", "metric_precision", "metric_recall", "metric_f1", "metric_mlm_loss_nats",
        "metric_nsp_loss_nats", "metric_mlm_accuracy",
        "metric_nsp_accuracy", "metric_nsp_f1", "metric_token_accuracy", "metric_exact_match",
    },
    "a checkout with its own repository": {"git_commit", "git_dirty"},
}  # fmt: skip


def test_columns_have_a_unit_of_the_vocabulary_and_a_meaning_and_one_definition() -> None:
    units = {"", "1", "s", "1/s", "B", "B/s", "J", "nat", "bit/B", "FLOP", "FLOP/s"}
    rows = columns()
    assert {row["unit"] for row in rows} <= units
    assert all(row["meaning"] for row in rows)
    for workload in WORKLOADS:
        names = [row["name"] for row in rows if workload in row["workloads"]]
        assert len(names) == len(set(names))
    for row in rows:
        unit = {"_s": "s", "_bytes": "B", "_nats": "nat", "_j": "J", "_per_s": row["unit"]}
        suffix = next((end for end in ("_per_s", "_s", "_bytes", "_nats", "_j") if row["name"].endswith(end)), None)
        assert suffix is None or row["unit"] == unit[suffix], row["name"]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_field_of_a_model_has_the_name_of_another_column(family: str) -> None:
    """Either would replace the other in the records."""
    taken = {column.name for workload in WORKLOADS for column in columns_of(workload)}
    assert not taken & set(model_fields(FAMILIES[family]))


@pytest.mark.parametrize(("workload", "text"), [("training", TRAINING), ("inference", INFERENCE), ("serving", SERVING)])
def test_the_columns_of_a_record_are_the_declared_ones_and_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workload: str, text: str
) -> None:
    monkeypatch.setitem(PLACEMENT, "cpus", sorted(os.sched_getaffinity(0)))
    (tmp_path / "s.toml").write_text(text)
    study = load_study(tmp_path / "s.toml")
    run_here(study, tmp_path / "results")
    (record,) = tmp_path.glob("results/*/trials/*/*/record.json")
    row = json.loads(record.read_text())
    assert row["status"] == "ok"
    list(execute(Sweep(tmp_path / "results" / study.name, []), study))  # writes study.json
    declared = {column.name for column in columns_of(workload)}
    assert set(row) - {"schema", "files", "sha256"} == declared | set(model_fields(FAMILIES["gpt"]))
    empty = {name for name in declared if row[name] is None}
    assert empty <= set().union(*ELSEWHERE.values())
    about = store.read_results(tmp_path / "results").studies
    (definition,) = about.values()
    assert definition["workload"] == workload
    assert {column["name"]: (column["unit"], column["meaning"]) for column in definition["columns"]} == {
        column.name: (column.unit, column.meaning) for column in columns_of(workload)
    }


TOY = '''
"""A workload for a test: multiplies the weights of a model by a factor and measures that."""

import time

import torch

from scalebench.store import Column
from scalebench.study import Section as Table
from scalebench.study.axes import Axis, Count, Finite, WholeNumber
from scalebench.workloads.base import SIZE_COLUMNS, Cost, Decided, count_columns
from scalebench.workloads.building import build_model, usable_device

SUMMARY = "multiply the weights of a model by a factor"
TABLE = "toy"
TAKES_WEIGHTS = False
KEEPS = ()
COLUMNS = (
    *SIZE_COLUMNS,
    Column("toy_time_s", "s", "time to multiply all weights"),
    Column("toy_sum", "1", "sum of the absolute weights afterwards"),
    Column("toy_ratio", "1", "that sum over the one before"),
)


class Section(Table):
    """Fields of [toy]."""

    factor: Axis[Finite] = (2.0,)
    repeats: Axis[Count] = (1,)
    seed: Axis[WholeNumber] = (0,)


class Spec(Table):
    """One trial."""

    factor: float
    repeats: int
    seed: int
    batch_size: int = 1
    sequence_length: int | None = None

    @property
    def precision(self):
        return "float32"

    @property
    def implementation(self):
        return "eager"


def decide(request):
    config, counts = request.configure(None)
    return Decided(Spec(**request.values), config, counts)


def cost(trial, counts):
    return Cost(counts.total * trial.spec.repeats, trial.spec.repeats, 4 * counts.total)


def run(trial, recorder):
    device = usable_device(trial)
    model = build_model(trial, device)
    weights = list(model.parameters())
    before = sum(float(weight.detach().abs().sum()) for weight in weights)
    started = time.perf_counter()
    with torch.no_grad():
        for done in range(trial.spec.repeats):
            for weight in weights:
                weight.mul_(trial.spec.factor)
            recorder.progress(done + 1, trial.spec.repeats)
    recorder.columns["toy_time_s"] = time.perf_counter() - started
    after = sum(float(weight.detach().abs().sum()) for weight in weights)
    recorder.columns |= {"toy_sum": after, "toy_ratio": after / before}
    recorder.columns |= count_columns(sum_of(weights))


def sum_of(weights):
    from types import SimpleNamespace

    total = sum(weight.numel() for weight in weights)
    return SimpleNamespace(total=total, non_embedding=total, active=total)
'''
TOY_STUDY = """
schema = 1
name = "doubling"
workload = "toy"
[model]
family = "mlp"
params = [500, 1000]
[toy]
factor = [2.0, 4.0]
"""


# Runs the commands of a list, each a list of arguments, in a forked driver, which imports the package anew from a copy.
# Writes exit code, output and errors of each.
RUN_ALL = """
import contextlib, io, json, sys
sys.path[:0] = {paths!r}
for name in [name for name in sys.modules if name.split(".")[0] in ("scalebench", "driver_server")]:
    del sys.modules[name]
import driver_server
from scalebench.cli.app import main
assert sys.modules["scalebench"].__file__.startswith({paths[0]!r})
driver_server.fork_servers()

def run(arguments):
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as end:
            code = end.code or 0
    return code, out.getvalue(), err.getvalue()

json.dump([run(arguments) for arguments in {lines!r}], sys.stdout)
sys.exit(0)
"""


@pytest.fixture
def with_toy(tmp_path: Path, drivers: Drivers) -> Callable[..., list[tuple[int, str, str]]]:
    """Run commands, all in one process, with a copy of the package that has one file and one line more."""
    copy = tmp_path / "copy"
    shutil.copytree(REPOSITORY / "scalebench", copy / "scalebench")
    shutil.copytree(REPOSITORY / "studies", copy / "studies")
    (copy / "scalebench" / "workloads" / "toy.py").write_text(TOY)
    catalogue = copy / "scalebench" / "workloads" / "__init__.py"
    text = catalogue.read_text()
    line, entry = "from scalebench.workloads import distill, finetune, inference", '    "inference": inference,\n'
    assert text.count(line) == text.count(entry) == 1
    catalogue.write_text(text.replace(line, f"{line}, toy").replace(entry, entry + '    "toy": toy,\n'))
    paths = [str(copy), str(REPOSITORY / "kernels"), str(REPOSITORY / "tests")]

    def commands(*lines: str) -> list[tuple[int, str, str]]:
        (tmp_path / "doubling.toml").write_text(TOY_STUDY)
        before = RUN_ALL.format(paths=paths, lines=[line.split() for line in lines])
        driver = drivers.start(tmp_path, [], before=before, PYTHONPATH=os.pathsep.join(paths))
        assert driver.wait(300) == 0, driver.err
        return json.loads(driver.out)

    return commands


@pytest.mark.slow
def test_a_workload_of_one_file_and_one_line_goes_all_the_way(with_toy, tmp_path: Path) -> None:
    """Planned, run, recorded, listed, exported and shown in a report."""

    *results, refused = with_toy(
        "plan doubling.toml --json",
        "list --columns --json",
        "list --columns",
        "list",
        "run doubling.toml --json --jobs 2",
        "plan doubling.toml --json",
        "status results",
        "export results -o table.csv",
        "report results -o report.html",
        "plan doubling.toml --set train.steps=3 --set toy.factr=1",
    )
    assert all(code == 0 for code, _, _ in results), results
    planned, columns, column_list, workloads, run, planned_after, status, *_ = [out for _, out, _ in results]
    plan = json.loads(planned)
    assert (plan["total"]["trials"], plan["total"]["missing"]) == (4, 4)
    assert plan["sizes"][0]["flops_per_trial"] == plan["sizes"][0]["params"]
    listed = {row["name"]: row for row in json.loads(columns)["columns"]}
    assert listed["toy_time_s"] == {
        "name": "toy_time_s", "unit": "s", "meaning": "time to multiply all weights", "workloads": ["toy"],
    }  # fmt: skip
    assert "toy_ratio" in column_list
    assert "multiply the weights of a model by a factor" in workloads
    assert json.loads(run.splitlines()[-1])["statuses"] == {"ok": 4}
    assert json.loads(planned_after)["total"]["missing"] == 0
    assert "4" in status
    frame = store.load_results(tmp_path / "results")
    assert set(frame["workload"]) == {"toy"}
    assert frame["toy_ratio"].tolist() == pytest.approx(frame["factor"].tolist())
    assert (frame["toy_time_s"] > 0).all()
    assert "mfu" not in frame
    assert "toy_ratio" in (tmp_path / "table.csv").read_text().splitlines()[0]
    page = (tmp_path / "report.html").read_text()
    assert "doubling" in page
    assert "time to multiply all weights" in page
    assert "Toy ratio against size" in page
    assert "Training loss over the steps" not in page
    code, _, errors = refused
    assert code == 2
    assert "train.steps: the workload 'toy' reads no [train]" in errors
    assert "toy.factr: unknown key 'factr'; did you mean 'factor'?" in errors
