"""Quantisation: whole trials, the files that they write, and what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from parent_support import PARENT, planned, refused, trained
from quantize_support import HIDDEN_WEIGHTS
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import PLACEMENT

from scalebench import store
from scalebench.errors import InputError
from scalebench.families import FAMILIES, gpt, model_fields
from scalebench.running.planning import load_study, plan, trial_header
from scalebench.running.worker import run_trial
from scalebench.store import StoreError
from scalebench.workloads import columns_of, quantize
from scalebench.workloads.base import Request
from scalebench.workloads.building import planned_data
from scalebench.workloads.loop import validate
from scalebench.workloads.quantize_file import QUANTIZED
from scalebench.workloads.quantize_spec import SCHEMES
from scalebench.workloads.trained import load_quantized, load_trained

SHAPE = "depth = 2\nwidth = 32\nheads = 2\nhead_dim = 16\nhidden = 64\n"  # widths that int4's groups of 32 divide
SOURCE = PARENT.replace("params = 3000\n", SHAPE).replace("steps = 50", "steps = 20")
CHILD = 'schema = 1\nname = "child"\nworkload = "quantize"\n[from]\nstudy = "parent"\n[run]\ncheckpoint = true\n'
TOKENS = torch.arange(48).remainder(256).view(3, 16)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of a parent."""
    folder = tmp_path_factory.mktemp("parent")
    trained(folder, SOURCE)
    return folder


@pytest.fixture(scope="module")
def base(parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of a parent and of a child of every scheme."""
    pytest.importorskip("torchao")
    folder = Path(shutil.copytree(parent, tmp_path_factory.mktemp("base"), dirs_exist_ok=True))
    trained(folder, CHILD, f"quantize.scheme={json.dumps(SCHEMES)}", "quantize.bits=3")
    return folder


@pytest.fixture(scope="module")
def rows(base: Path) -> dict[str, dict[str, Any]]:
    """The record of each scheme's trial."""
    return {row["scheme"]: row for row in store.load_results(base / "results" / "child").to_dict("records")}


@pytest.fixture
def copied(parent: Path, tmp_path: Path) -> Path:
    shutil.copytree(parent, tmp_path, dirs_exist_ok=True)
    return tmp_path


# --- trials ----------------------------------------------------------------------------------------------------------


def test_every_scheme_is_measured(rows: dict[str, dict[str, Any]], base: Path) -> None:
    (parent,) = store.load_results(base / "results" / "parent").to_dict("records")
    assert set(rows) == set(SCHEMES)
    for scheme, row in rows.items():
        assert row["status"] == "ok", row["error_message"]
        assert row["invalid_reason"] is None
        assert row["round_trip_equal"] is True
        assert row["loss_before_nats"] == pytest.approx(parent["validation_loss_nats"], abs=1e-6)
        added = row["validation_loss_nats"] - row["loss_before_nats"]
        assert row["loss_added_nats"] == pytest.approx(added, abs=1e-9)
        assert (row["samples_seen"], row["tokens_seen"]) == (80, 80 * 16)
        assert row["parent_flops"] == 20 * parent["flops_per_step"]
        assert row["weight_bytes_before"] == 4 * row["params"]
        real = row["weight_bytes"] == row["closed_form_bytes"]
        timed = row["latency_ratio_low"] <= row["latency_ratio"] <= row["latency_ratio_high"]
        assert (real, timed) == (scheme != "simulated", scheme != "simulated")
    assert (rows["float32"]["loss_added_nats"], rows["float32"]["loss_added_se_nats"]) == (0, 0)
    assert abs(rows["simulated"]["loss_added_nats"]) > 10 * abs(rows["int8-weight-only"]["loss_added_nats"])
    assert [rows[name]["quantized_matrices"] for name in ("bfloat16", "int8-dynamic")] == [0, 8]
    assert rows["bfloat16"]["quantized_share"] == 1
    assert rows["simulated"]["quantized_share"] == HIDDEN_WEIGHTS / rows["simulated"]["params"]


def test_the_columns_of_a_record_are_the_declared_ones(rows: dict[str, dict[str, Any]]) -> None:
    record = json.loads((Path(rows["int8-weight-only"]["attempt_dir"]) / "record.json").read_text())
    declared = {column.name for column in columns_of("quantize")}
    assert declared | set(model_fields(FAMILIES["gpt"])) >= set(record) - {"schema", "files", "sha256"} >= declared
    own = {column.name for column in quantize.COLUMNS if not column.name.startswith("metric_")} - {"copied_layers"}
    assert {name for name in own if record[name] is None} == set()
    assert record["metric_bits_per_byte"] > 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_saved_loads_and_gives_equal_outputs(rows: dict[str, dict[str, Any]], scheme: str) -> None:
    row = rows[scheme]
    trial, loaded = load_quantized(Path(row["attempt_dir"]), row["quantized_sha256"])
    task = FAMILIES["gpt"].task(gpt.Config(**trial.model), planned_data(trial), trial.data, trial.spec)
    assert validate(loaded, task, trial.spec, torch.device("cpu")).loss_nats == row["validation_loss_nats"]
    _, plain = load_trained(Path(row["attempt_dir"]))  # what generate and export read
    with torch.no_grad():
        exact, near = loaded(TOKENS), plain(TOKENS)
    computed_otherwise = trial.spec.precision == "bfloat16" or scheme == "int8-dynamic"
    torch.testing.assert_close(near, exact, atol=0.1 if computed_otherwise else 1e-5, rtol=0)
    assert plain.head.weight is plain.tokens.weight
    with safe_open(Path(row["attempt_dir"]) / QUANTIZED, "pt") as file:
        parts = {name.rpartition(".")[2] for name in file.keys()}  # noqa: SIM118
    assert ("qdata" in parts) is scheme.startswith("int")


def test_without_checkpoint_nothing_stays_on_disk(copied: Path) -> None:
    (row,) = trained(copied, CHILD, "run.checkpoint=false", "quantize.scheme=simulated", "quantize.bits=2")
    assert not list(Path(row["attempt_dir"]).glob("*.safetensors"))
    assert (row["round_trip_equal"], row["quantized_sha256"], row["weights_sha256"]) == (True, None, None)


def test_a_quantised_model_can_be_a_parent_unless_a_layer_was_copied(copied: Path) -> None:
    (child,) = trained(copied, CHILD, "quantize.scheme=simulated", "quantize.bits=1")
    again = CHILD.replace('"parent"', '"child"').replace('name = "child"', 'name = "again"')
    (row,) = trained(copied, again, "quantize.scheme=simulated", "quantize.bits=1")
    assert row["loss_before_nats"] == child["validation_loss_nats"]
    assert row["loss_added_nats"] == pytest.approx(0, abs=1e-6)  # the two levels of each row are there already
    assert child["loss_added_nats"] > 0.001
    assert row["tokens_seen"] == child["tokens_seen"]
    tuned = again.replace('workload = "quantize"\n', "") + "[train]\nsteps = 2\nbatch_size = 4\nsequence_length = 16\n"
    assert trained(copied, tuned, "name=tuned")[0]["status"] == "ok"
    settings = ("name=copy", "quantize.scheme=simulated", "quantize.bits=1", "quantize.outer_layers=true")
    (copy,) = trained(copied, CHILD, *settings)
    assert (copy["copied_layers"], copy["weights_sha256"], copy["quantized_sha256"] is None) == ("head", None, False)
    assert "none of which kept its weights" in refused(copied, again.replace('"child"', '"copy"'))


def test_checkpoints_of_a_run_have_the_data_that_they_were_trained_on(tmp_path: Path) -> None:
    trained(tmp_path, SOURCE, "run.checkpoint_steps=[5, 15]")
    rows = trained(tmp_path, CHILD, "from.step=[5, 15]", "quantize.scheme=simulated", "quantize.bits=2")
    assert sorted((row["samples_seen"], row["tokens_seen"]) for row in rows) == [(20, 320), (60, 960)]
    assert len({row["parent_trial_id"] for row in rows}) == 1
    assert [row["parent_flops"] * 60 for row in rows] == [row["samples_seen"] * rows[1]["parent_flops"] for row in rows]


def test_a_skipped_layer_makes_the_row_invalid_with_its_name(copied: Path) -> None:
    settings = ("quantize.scheme=simulated", "quantize.bits=4", "quantize.group_size=64")
    (row,) = trained(copied, CHILD, *settings)
    assert row["status"] == "ok"
    assert "blocks.1.up: width 32 is not divisible by the group size 64" in row["invalid_reason"]
    assert "down" not in row["invalid_reason"]


def test_int8_without_torchao_is_unsupported(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    path = copied / "study.toml"
    path.write_text(CHILD)
    study = load_study(path)
    (trial,) = plan(study, copied / "results")
    attempt = store.new_attempt(copied / "results" / "child", trial.trial_id)
    store.write_json(attempt / "trial.json", trial_header(study, trial, "a test"))
    assert run_trial(attempt, store.read_header(attempt), PLACEMENT) == "unsupported"
    assert "pip install torchao" in store.read_record(attempt)["error_message"]


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def attempt(rows: dict[str, dict[str, Any]], tmp_path: Path) -> Path:
    """A copy of the attempt of int8 weights."""
    original = Path(rows["int8-weight-only"]["attempt_dir"])
    return Path(shutil.copytree(original, tmp_path / original.parent.name / original.name))


def other_shape(path: Path) -> None:
    tensors = load_file(path)
    tensors["blocks.0.up.weight.scale"] = torch.ones(3)
    save_file(tensors, path, metadata={"layout": "plain"})


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (Path.unlink, "not a quantised model"),
        (lambda path: path.write_bytes(path.read_bytes()[:-10]), "not a quantised model"),
        (other_shape, "blocks.0.up.weight.scale"),
        (lambda path: save_file(load_file(path), path, metadata={"layout": "AVX512"}), "packed as 'AVX512'"),
    ],
    ids=["missing", "cut short", "another shape", "packed for another CPU"],
)
def test_a_damaged_file_is_refused_by_name(attempt: Path, damage: Callable[[Path], Any], expected: str) -> None:
    damage(attempt / QUANTIZED)
    with pytest.raises(StoreError, match=expected):
        load_quantized(attempt)


def test_a_file_that_changed_is_refused(attempt: Path) -> None:
    with pytest.raises(StoreError, match="the file changed"):
        load_quantized(attempt, "0" * 64)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["quantize.scheme=int9"], "quantize.scheme: unknown 'int9'"),
        (["quantize.scheme=simulated"], "quantize.bits: scheme = 'simulated' needs a number of bits, 1 to 8"),
        (["quantize.scheme=simulated", "quantize.bits=9"], "quantize.bits"),
        (["quantize.scheme=simulated", "quantize.bits=0"], "quantize.bits"),
        (["quantize.group_size=48"], "quantize.group_size: 48: int8-weight-only fits none of the matrices: 32 x 32"),
        (["quantize.scheme=int4-weight-only", "quantize.group_size=16"], "groups of 32, 64, 128"),
        (["quantize.implementation=compile"], "quantize.implementation: unknown 'compile'"),
        (["from.optimizer_state=true"], "from.optimizer_state: quantisation does not continue"),
        (["model.family=mlp"], "family 'gpt', not 'mlp'"),
    ],
)
def test_each_mistake_is_one_line(copied: Path, settings: list[str], expected: str) -> None:
    assert expected in refused(copied, CHILD, *settings)


@pytest.mark.parametrize(("name", "device"), [("quantize", "cpu"), ("quantize-gpu", "cuda")])
def test_shipped_studies_plan_their_children(tmp_path: Path, name: str, device: str) -> None:
    study = load_study(name)
    trained(tmp_path, SOURCE, f"name={study.parents.study}", "train.steps=1")  # type: ignore[union-attr]
    trials = [each.trial for each in plan(study, tmp_path / "results")]
    assert {trial.device_kind for trial in trials} == {device}
    simulated = [trial.spec.bits for trial in trials if trial.spec.scheme == "simulated"]
    assert (len(trials), simulated) == (10, [1, 2, 3, 4, 5, 6, 8])


def test_int4_without_torchao_is_refused_before_anything_runs(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "find_spec", lambda _: None)
    expected = "quantize.scheme: 'int4-weight-only' needs torchao, which is not installed: pip install torchao"
    assert expected in refused(copied, CHILD, "quantize.scheme=int4-weight-only")


def test_quantisation_without_a_parent_is_refused(tmp_path: Path) -> None:
    alone = CHILD.replace('[from]\nstudy = "parent"\n', '[model]\nfamily = "gpt"\nparams = 3000\n')
    assert "add a [from] table" in refused(tmp_path, alone)


def test_a_family_without_linear_layers_is_refused() -> None:
    parent: Any = SimpleNamespace(spec=SimpleNamespace(seed=0))
    family = FAMILIES["resnet"]
    config = family.SIZES["resnet20-cifar"]
    unused: Any = None
    request = Request("resnet", {"scheme": "int8-weight-only"}, lambda _: (config, unused), unused, unused, parent)
    with pytest.raises(InputError, match="resnet has no hidden linear layer"):
        quantize.decide(request)


def test_settings_without_effect_make_no_second_trial(copied: Path) -> None:
    schemes = 'quantize.scheme=["float32", "int8-dynamic", "simulated"]'
    trials = planned(copied, CHILD, schemes, "quantize.bits=[2, 4]", "quantize.precision=float32")
    specs = [(trial.trial.spec.scheme, trial.trial.spec.bits) for trial in trials]
    assert specs == [("float32", 32), ("int8-dynamic", 8), ("simulated", 2), ("simulated", 4)]
